"""Metrics of the labels, tags and entities of weighted examples (tasks.weighted_metrics).

R weightings, N examples, C labels.
"""

from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.tasks.example_scores import ExampleScores

COUNTED_AT_ONCE = 20_000_000  # labels by weightings


def compute_labels(scores: ExampleScores, weights: Array, name: str) -> Array:
    """Returns a metric of predicted and right labels (tasks.metrics.OFFLINE)."""
    predicted, actual = scores.prediction_numbers, scores.label_numbers
    if name in ("accuracy", "exact_match"):
        is_right = predicted == actual if not scores.has_several_labels else share_right(predicted, actual)
        if name == "exact_match":
            is_right = is_right == 1
        return np.asarray(weights @ is_right.astype(np.float64) / weights.sum(1))
    size = max(1, COUNTED_AT_ONCE // len(scores.label_names))
    parts = []
    for start in range(0, len(weights), size):
        counts = count_labels(scores, weights[start : start + size])
        if name == "matthews_correlation":
            parts.append(compute_matthews(*counts, weights[start : start + size].sum(1)))
        else:
            parts.append(compute_average(name, *counts, has_all=scores.has_several_labels))
    return np.concatenate(parts)


def share_right(predicted: Any, actual: Any) -> Array:
    """Returns the share of all labels that are right for each example [N]. Both arguments are sparse [N, C]."""
    return np.asarray(1 - abs(predicted - actual).sum(1) / predicted.shape[1]).ravel()


def count_labels(scores: ExampleScores, weights: Array) -> tuple[Array, Array, Array]:
    """Returns how many examples are rightly predicted to have each label, are predicted to, and have it, [R, C] each."""
    predicted, actual = (
        one if scores.has_several_labels else mark_classes(one, len(scores.label_names))
        for one in (scores.prediction_numbers, scores.label_numbers)
    )
    right, all_predicted, all_actual = ((part.T @ weights.T).T for part in (predicted * actual, predicted, actual))
    return right, all_predicted, all_actual


def mark_classes(numbers: Array, num_labels: int) -> Any:
    """Returns class numbers [N] as a sparse matrix [N, C] with a 1 in each row."""
    from scipy.sparse import csr_array

    size = len(numbers)
    return csr_array((np.ones(size), numbers, np.arange(size + 1)), shape=(size, num_labels))


def compute_average(name: str, right: Array, predicted: Array, actual: Array, *, has_all: bool) -> Array:
    """Returns f1, precision or recall with an average (such as f1_macro) of counts [R, C].

    A label for which it is undefined counts as 0. has_all: So does one that does not occur; it is left out if not.
    """
    kind, average = name.split("_")
    if average == "micro":
        right, predicted, actual = (part.sum(1, keepdims=True) for part in (right, predicted, actual))
    values = divide_counts(kind, right, predicted, actual)
    weights = np.ones_like(values) if has_all else (predicted + actual > 0).astype(np.float64)
    if average == "weighted":
        weights = np.where(actual.any(1, keepdims=True), actual, weights)
    return np.asarray((values * weights).sum(1) / weights.sum(1))


def divide_counts(kind: str, right: Array, predicted: Array, actual: Array) -> Array:
    """Returns f1, precision or recall of counts of any shape; 0 if it is undefined."""
    above, below = {
        "precision": (right, predicted),
        "recall": (right, actual),
        "f1": (2.0 * right, actual + predicted),
    }[kind]
    return np.divide(above, below, out=np.zeros(below.shape), where=below != 0)


def compute_matthews(right: Array, predicted: Array, actual: Array, totals: Array) -> Array:
    """Returns the Matthews correlation of counts [R, C] of examples [R]; 0 if one side is all of one class."""
    covariance = right.sum(1) * totals - (actual * predicted).sum(1)
    variances = (totals**2 - (actual**2).sum(1)) * (totals**2 - (predicted**2).sum(1))
    return np.where(variances > 0, covariance / np.sqrt(np.where(variances > 0, variances, 1)), 0.0)


def compute_roc_auc(scores: ExampleScores, weights: Array) -> Array:
    """Returns tasks.metrics.roc_auc() of the probabilities of all labels [N, C]: for each label the probability that an example
    with it has a larger one than an example without it (Mann and Whitney 1947)."""
    probabilities = np.asarray(scores.probabilities)
    actual: Any = scores.label_numbers
    if not scores.has_several_labels:
        actual = mark_classes(actual, probabilities.shape[1])
    is_binary = probabilities.shape[1] == 2 and not scores.has_several_labels
    areas = []
    for column in [1] if is_binary else range(probabilities.shape[1]):
        has_label = actual[:, [column]].toarray()[:, 0]
        with_label = weights @ has_label
        ranks = (weights * rank(probabilities[:, column], weights)) @ has_label
        pairs = with_label * (weights.sum(1) - with_label)
        areas.append(
            np.where(pairs > 0, (ranks - with_label * (with_label + 1) / 2) / np.where(pairs > 0, pairs, 1), np.nan)
        )
    if not scores.has_several_labels:  # undefined without one of the labels
        return np.mean(areas, axis=0)
    is_defined = ~np.isnan(areas)
    return np.nansum(areas, axis=0) / np.where(is_defined.any(0), is_defined.sum(0), np.nan)


def rank(values: Array, weights: Array) -> Array:
    """Returns the ranks [R, N] of values [N] among all drawn ones, as often as they were drawn; equal values share the mean."""
    _, groups = np.unique(values, return_inverse=True)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.asarray((np.cumsum(counts, axis=1) - counts + (counts + 1) / 2)[:, groups])


def count_each(scores: ExampleScores, weights: Array) -> tuple[tuple[str, ...], list[Array]] | None:
    """Returns the labels, tags or types of entities, and for each how often it is rightly predicted, predicted and right, [R, C]
    each. None if the examples have no such counts."""
    begin = name_counts("")[0]
    names = tuple(name.removeprefix(begin) for name in scores.columns if name.startswith(begin))
    if names:
        return names, sum_counts(scores, weights)
    if not scores.label_names or scores.labels is None:
        return None
    return scores.label_names, list(count_labels(scores, weights))


# --- of tags and entities, which are counted by example -------------------------------------------------------------


def name_counts(name: str) -> tuple[str, str, str]:
    """Returns the columns with the counts of a tag or of a type of entities: those that are rightly predicted, those that are
    predicted, and those that there are."""
    return f"right/{name}", f"predicted/{name}", f"expected/{name}"


def sum_counts(scores: ExampleScores, weights: Array) -> list[Array]:
    """Returns the three counts of name_counts() for each name, [R, C] each, in the order of the columns."""
    return [
        weights @ scores.numbers[:, [place for place, name in enumerate(scores.columns) if name.startswith(prefix)]]
        for prefix in name_counts("")
    ]


def compute_entities(scores: ExampleScores, weights: Array, kind: str, entity: str = "") -> Array:
    """Returns f1, precision or recall of all entities, or of a type; nan for a type that there is not."""
    if not entity:
        return divide_counts(kind, *(part.sum(1) for part in sum_counts(scores, weights)))
    right, predicted, expected = (weights @ scores.get_column(name) for name in name_counts(entity))
    return np.where(predicted + expected > 0, divide_counts(kind, right, predicted, expected), np.nan)


def compute_tags(scores: ExampleScores, weights: Array, name: str) -> Array:
    """Returns f1, precision or recall of words' tags, with an average."""
    return compute_average(name, *sum_counts(scores, weights), has_all=False)
