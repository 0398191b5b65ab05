"""What an evaluation of tagging knows of each sentence.

N sentences, C tags.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.tasks.example_scores import ExampleScores, Rule
from hf_finetune.tasks.text.tags import IGNORED_TAG, find_entities
from hf_finetune.tasks.weighted_labels import name_counts

SCORES = ("f1", "precision", "recall")


def describe_tags(
    names: tuple[str, ...],
    kinds: Sequence[str] | None,
    *,
    rows: Array,
    predicted: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    losses: Array,
) -> ExampleScores:
    """Returns the scores of sentences.

    Args:
        names: The tags.
        kinds: The types of entities; None if the tags do not mark any.
        rows: Rows of the table [N].
        predicted, references: The tags of each sentence's words, IGNORED_TAG for a word that is not labelled.
        losses: The loss of each sentence, summed over tokens, and the number of these [N, 2].
    """
    counted = names if kinds is None else tuple(kinds)
    pairs = list(zip(predicted, references, strict=True))
    words = [count_words(*pair) for pair in pairs]
    counts = [count_tags(*pair) if kinds is None else count_entities(*pair) for pair in pairs]
    numbers = [[part[name] for name in counted for part in parts] for parts in counts]
    rules: dict[str, Rule] = {"loss": ("ratio", "token_losses", "tokens"), "accuracy": ("ratio", "correct", "words")}
    if kinds is None:
        averages = ("macro", "micro", "weighted")
        rules |= {f"{score}_{average}": ("tags", f"{score}_{average}") for score in SCORES for average in averages}
    else:
        rules |= {score: ("entities", score) for score in SCORES}
        rules |= {f"{score}/{kind}": ("entities", score, kind) for kind in kinds for score in SCORES}
    with np.errstate(invalid="ignore"):
        means = losses[:, 0] / losses[:, 1]
    return ExampleScores(
        rows=rows,
        metrics=rules,
        columns=("token_losses", "tokens", "correct", "words", *(name for one in counted for name in name_counts(one))),
        numbers=np.column_stack([losses, np.array(words).reshape(-1, 2), np.array(numbers).reshape(len(rows), -1)]),
        labels=[list(tags) for tags in references],
        predictions=[list(tags) for tags in predicted],
        losses=means,
        label_names=names,
    )


def count_words(predicted: Sequence[str], right: Sequence[str]) -> tuple[int, int]:
    """Returns how many labelled words of a sentence have the right tag, and how many labelled words there are."""
    labelled = [(own, tag) for own, tag in zip(predicted, right, strict=True) if tag != IGNORED_TAG]
    return sum(own == tag for own, tag in labelled), len(labelled)


def count_tags(predicted: Sequence[str], right: Sequence[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Returns how often each tag is rightly predicted in a sentence, is predicted, and is right."""
    return (
        Counter(own for own, tag in zip(predicted, right, strict=True) if own == tag),
        Counter(predicted),
        Counter(right),
    )


def count_entities(predicted: Sequence[str], right: Sequence[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Returns how many entities of each type a sentence has rightly predicted, predicted, and right."""
    found, expected = set(find_entities(predicted)), set(find_entities(right))
    both, only, all_right = ([kind for kind, _, _ in part] for part in (found & expected, found, expected))
    return Counter(both), Counter(only), Counter(all_right)
