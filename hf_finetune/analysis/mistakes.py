"""The worst and the least certain examples of a run, from its file of scored examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.analysis.tables import NOTHING, format_metric
from hf_finetune.analysis.texts import read_texts
from hf_finetune.data.findings import cut
from hf_finetune.run.details import order_by_doubt, order_by_error
from hf_finetune.run.scored import FOLDER, ScoredExamples, read_scored
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.example_scores import BestProbabilities

NUM_SHOWN = 12  # of each list
LONGEST_TEXT = 240  # characters
COLUMNS = {"right": "", "predicted": "", "probability": "number", "loss": "number"}  # with their styles


def read_split(run: RunFiles, split: str) -> ScoredExamples | None:
    """Returns the scored examples of a split, None if the run has none. InputError if the file is damaged."""
    path = run.folder / FOLDER / f"{split}.jsonl"
    return read_scored(path) if path.is_file() else None


def make_mistakes(run: RunFiles, split: str) -> dict[str, Any]:
    """Returns the examples to look at: `worst` and `doubtful`, each with its origin and `columns`, the pairs of a name and a
    style; a `note` if there are none, and a `text_note` if not all have their text."""
    nothing: dict[str, Any] = {"text_note": "", "columns": [], "worst": [], "doubtful": []}
    try:
        scored = read_split(run, split)
    except InputError as error:
        return {"note": str(error), **nothing}
    if scored is None:
        note = f"There is no {FOLDER}/{split}.jsonl: the run is not finished, or an earlier version made it."
        return {"note": note, **nothing}
    worst = [place for place in order_by_error(scored.scores, scored.metric).tolist() if is_wrong(scored, place)]
    doubtful = order_by_doubt(scored.scores)
    places = {"worst": worst[:NUM_SHOWN], "doubtful": [] if doubtful is None else doubtful[:NUM_SHOWN].tolist()}
    texts, text_note = read_texts(run, scored, split, {place for some in places.values() for place in some})
    shown = {name: [describe(scored, place, texts.get(place)) for place in some] for name, some in places.items()}
    examples = [example for some in shown.values() for example in some]
    columns = [entry for entry in COLUMNS.items() if any(example[entry[0]] != NOTHING for example in examples)]
    note = "" if shown["worst"] else "No example is wrong."
    return {"note": note, "text_note": text_note, "columns": columns, **shown}


def is_wrong(scored: ScoredExamples, place: int) -> bool:
    """True if the prediction is not what is right; also if an example has no such thing, as that of a language model."""
    labels, predictions = scored.scores.labels, scored.scores.predictions
    return labels is None or predictions is None or labels[place] != predictions[place]


def describe(scored: ScoredExamples, place: int, text: str | None) -> dict[str, str]:
    """Returns an example as the page shows it."""
    scores = scored.scores
    right, predicted = (values and values[place] for values in (scores.labels, scores.predictions))
    if scored.task == "tag" and right and predicted:
        right, predicted = keep_different_tags((text or "").split(" "), right, predicted)
    loss = (
        NOTHING
        if scores.losses is None or np.isnan(scores.losses[place])
        else format_metric(float(scores.losses[place]))
    )
    return {
        "where": scored.where(place),
        "right": describe_value(right),
        "predicted": describe_value(predicted),
        "probability": describe_confidence(scores.probabilities, place),
        "loss": loss,
        "text": cut(text or "", LONGEST_TEXT),
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
        return NOTHING
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    return cut(f"{value:.4f}" if isinstance(value, float) else str(value), 120)


def describe_confidence(probabilities: Any, place: int) -> str:
    """Returns the largest probability of an example."""
    if probabilities is None:
        return NOTHING
    values = probabilities.values if isinstance(probabilities, BestProbabilities) else probabilities
    return f"{float(np.max(values[place])):.3f}"
