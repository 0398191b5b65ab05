"""Single examples as text: what is right, what the model predicts, how sure it is; and a list of the worst ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_finetune.data.findings import cut
from hf_finetune.data.table import Table
from hf_finetune.run.details import order_by_error
from hf_finetune.run.scored import ScoredExamples
from hf_finetune.system.markdown import escape_marks
from hf_finetune.tasks.example_scores import BestProbabilities

NUM_SHOWN = 20  # of the list
LONGEST_TEXT = 240  # characters
LONGEST_VALUE = 120
STRONG = ("right", "predicted")


def find_mistakes(scored: ScoredExamples) -> list[int]:
    """Returns the places of the examples that are wrong, the worst first."""
    return [place for place in order_by_error(scored.scores, scored.metric).tolist() if is_wrong(scored, place)]


def is_wrong(scored: ScoredExamples, place: int) -> bool:
    """True if the prediction is not what is right; also if an example has no such thing, as that of a language model."""
    labels, predictions = scored.scores.labels, scored.scores.predictions
    return labels is None or predictions is None or labels[place] != predictions[place]


def describe_example(scored: ScoredExamples, place: int, text: str | None) -> dict[str, str]:
    """Returns where an example is from and what is known of it, as text; "" for what is not known.

    text: Its text; of tags, its words with blanks between them.
    """
    scores = scored.scores
    right, predicted = (values and values[place] for values in (scores.labels, scores.predictions))
    if scored.task == "tag" and right and predicted:
        right, predicted = keep_different_tags((text or "").split(" "), right, predicted)
    loss = None if scores.losses is None or np.isnan(scores.losses[place]) else float(scores.losses[place])
    return {
        "where": scored.where(place),
        "right": describe_value(right),
        "predicted": describe_value(predicted),
        "probability": describe_confidence(scores.probabilities, place),
        "loss": "" if loss is None else f"{loss:.4f}",
    }


def keep_different_tags(
    words: Sequence[str], right: Sequence[str], predicted: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Returns the right and the predicted tags that differ, each after its word, or after the word's number if the words are not
    known."""
    if len(words) != len(right):
        words = [f"word {number}:" for number in range(1, len(right) + 1)]
    pairs = [entry for entry in zip(words, right, predicted, strict=True) if entry[1] != entry[2]]
    return [f"{word} {tag}" for word, tag, _ in pairs], [f"{word} {tag}" for word, _, tag in pairs]


def describe_value(value: Any) -> str:
    """Returns a label or a prediction as text."""
    if value is None:
        return ""
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    return cut(f"{value:.4f}" if isinstance(value, float) else str(value), LONGEST_VALUE)


def describe_confidence(probabilities: Any, place: int) -> str:
    """Returns the largest probability of an example."""
    if probabilities is None:
        return ""
    values = probabilities.values if isinstance(probabilities, BestProbabilities) else probabilities
    return f"{float(np.max(values[place])):.3f}"


# --- as Markdown ----------------------------------------------------------------------------------------------------


def format_mistakes(split: str, scored: ScoredExamples, table: Table, inputs: Sequence[str]) -> str:
    """Returns the worst mistakes as a list in Markdown, in which texts are shown as they are. A table with short and long cells
    would be unreadable: TensorBoard breaks words to make columns narrow.

    Args:
        split: Its name.
        table: The rows of the split.
        inputs: The columns that the task reads.
    """
    places = find_mistakes(scored)
    if not places:
        return f"None of the {len(scored):,} examples of {split} is wrong."
    columns = [name for name in inputs if name in table.columns]
    items = []
    for place in places[:NUM_SHOWN]:
        row = int(scored.scores.rows[place])
        texts = {name: join_parts(table.columns[name][row]) for name in columns}
        known = describe_example(scored, place, next(iter(texts.values()), None))
        shown = {name: escape_marks(value) for name, value in known.items() if value}
        where = shown.pop("where")
        stated = [f"{name} **{value}**" if name in STRONG else f"{name} {value}" for name, value in shown.items()]
        texts = {name: escape_marks(cut(text, LONGEST_TEXT)) for name, text in texts.items()}
        lines = [f"{escape_marks(name)}: {text}" if len(texts) > 1 else text for name, text in texts.items() if text]
        items.append("\n\n    ".join([f"1. {', '.join([*stated, where])}", *lines]))
    kind = "examples" if len(places) == len(scored) else "wrong examples"
    head = f"The worst {len(items)} of {len(places):,} {kind}; {split} has {len(scored):,} examples."
    return "\n\n".join([head, *items])


def join_parts(value: Any) -> str:
    """Returns a text, or the parts of a list as one."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    return " ".join("" if part is None else str(part) for part in parts)
