"""What an evaluation says besides its metrics: their intervals, scores by label, confusions, calibration, and slices.

All of it follows from the scored examples (run.scored). Intervals are those of bootstrap resamples (statistics.intervals), of
which there are fewer for many examples.

N examples, R resamples, C labels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_finetune.data.features import Array, Features
from hf_finetune.statistics.calibration import compute_calibration_error, make_bins
from hf_finetune.statistics.intervals import CONFIDENCE, NUM_RESAMPLES, make_interval, make_resamples
from hf_finetune.tasks.example_scores import BestProbabilities, ExampleScores, find_confidences, group_by_row
from hf_finetune.tasks.weighted_labels import count_each, divide_counts
from hf_finetune.tasks.weighted_metrics import compute_weighted

MOST_WEIGHTS = 20_000_000  # examples by resamples
FEWEST_RESAMPLES = 100
MOST_LABELS = 100  # labels that are listed, those with the most examples first
MOST_CELLS = 20  # labels of a confusion matrix that is given in full
MOST_CONFUSIONS = 50
NUM_LENGTHS = 5  # parts of the examples by their length
LABEL_SCORES = ("precision", "recall", "f1")


def choose_num_resamples(num_examples: int) -> int:
    """Returns the number of resamples of this many examples: 1,000 up to 20,000 examples, 100 from 200,000 on."""
    return min(NUM_RESAMPLES, max(FEWEST_RESAMPLES, MOST_WEIGHTS // max(1, num_examples)))


def describe_details(scores: ExampleScores, names: Sequence[str], lengths: Array, metric: str) -> dict[str, Any]:
    """Returns the entry of a split in the `details` of results.json.

    Args:
        names: The metrics to give intervals for; those that do not follow from the examples are left out.
        lengths: The tokens of each example [N].
        metric: The metric of slices.
    """
    known = [name for name in names if name in scores.metrics]
    resampled = Resampled(scores, known)
    details: dict[str, Any] = {
        "examples": len(scores),
        "resamples": resampled.num_resamples,
        "confidence": CONFIDENCE,
        "intervals": {name: resampled.get_bounds(name) for name in known},
    }
    if resampled.labels:
        details["labels"] = resampled.describe_labels()
    details |= describe_confusions(scores)
    if calibration := describe_calibration(scores):
        details["calibration"] = calibration
    slices = slice_by_length(lengths)
    if len(slices) > 1 and (names := [name for name in dict.fromkeys((metric, "loss")) if name in scores.metrics]):
        details["lengths"] = describe_slices(scores, slices, names)
    return details


class Resampled:
    """The metrics of resamples, and the counts of each label in them.

    Args:
        scores: The examples.
        names: The metrics.
        counts_labels: Counts labels.
        num_resamples: As choose_num_resamples() returns for the examples if not given.
    """

    def __init__(
        self,
        scores: ExampleScores,
        names: Sequence[str],
        *,
        counts_labels: bool = True,
        num_resamples: int | None = None,
    ) -> None:
        self.num_resamples = num_resamples or choose_num_resamples(len(scores))
        once = np.ones((1, len(scores)))
        self.values = {name: float(compute_weighted(scores, name, once)[0]) for name in names}
        counted = count_each(scores, once) if counts_labels else None
        self.labels = counted[0] if counted else ()
        self.counts = [part[0] for part in counted[1]] if counted else []
        order = np.argsort(-self.counts[2], kind="stable")[:MOST_LABELS] if counted else np.zeros(0, dtype=np.int64)
        self.order = order
        values: dict[str, list[Array]] = {name: [] for name in names}
        by_label: dict[str, list[Array]] = {name: [] for name in LABEL_SCORES}
        for weights in make_resamples(len(scores), self.num_resamples):
            for name in names:
                values[name].append(compute_weighted(scores, name, weights))
            if counted:
                parts = count_each(scores, weights)
                assert parts is not None
                some = [part[:, order] for part in parts[1]]
                for name in LABEL_SCORES:
                    by_label[name].append(divide_counts(name, *some))
        self.resampled = {name: np.concatenate(parts) for name, parts in values.items()}
        self.by_label = {name: np.concatenate(parts) for name, parts in by_label.items() if parts}

    def get_bounds(self, name: str) -> list[float]:
        """Returns the bounds of a metric's interval."""
        return bounds(self.values[name], self.resampled[name])

    def describe_labels(self) -> list[dict[str, Any]]:
        """Returns the scores of each label with their intervals, and its support: the number of examples that have it."""
        described = []
        for place, number in enumerate(self.order.tolist()):
            counts = [part[number] for part in self.counts]
            entry: dict[str, Any] = {
                "label": self.labels[number],
                "support": int(counts[2]),
                "predicted": int(counts[1]),
            }
            for name in LABEL_SCORES:
                value = float(divide_counts(name, *counts))
                entry |= {name: value, f"{name}_interval": bounds(value, self.by_label[name][:, place])}
            described.append(entry)
        return described


def bounds(value: float, resampled: Array) -> list[float]:
    """Returns the bounds of a percentile interval."""
    interval = make_interval(value, resampled)
    return [interval.low, interval.high]


def describe_confusions(scores: ExampleScores) -> dict[str, Any]:
    """Returns the labels that are predicted in place of others, the most frequent pairs first, and for few labels the matrix of
    all counts [right label][predicted label]. {} if an example does not have one label."""
    if not scores.label_names or scores.labels is None or scores.has_several_labels:
        return {}
    size, names = len(scores.label_names), scores.label_names
    pairs, counts = np.unique(scores.label_numbers * size + scores.prediction_numbers, return_counts=True)
    is_wrong = pairs // size != pairs % size
    order = np.flatnonzero(is_wrong)[np.argsort(-counts[is_wrong], kind="stable")][:MOST_CONFUSIONS]
    described: dict[str, Any] = {
        "confusions": [
            {"label": names[pair // size], "prediction": names[pair % size], "count": count}
            for pair, count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
        ]
    }
    if size <= MOST_CELLS:
        matrix = np.zeros(size * size, dtype=np.int64)
        matrix[pairs] = counts
        described["confusion"] = matrix.reshape(size, size).tolist()
    return described


def describe_calibration(scores: ExampleScores) -> dict[str, Any]:
    """Returns the expected calibration error and the reliability bins; {} if the examples have no probabilities of labels."""
    found = find_confidences(scores)
    if found is None:
        return {}
    bins = make_bins(*found)
    columns = {name: getattr(bins, name).tolist() for name in ("low", "high", "confidence", "accuracy", "count")}
    return {
        "error": compute_calibration_error(*found),
        "bins": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
    }


# --- slices ---------------------------------------------------------------------------------------------------------


def measure_lengths(scores: ExampleScores, features: Features) -> Array:
    """Returns the number of tokens of each example [N], over all its windows or choices."""
    indices = np.arange(len(features))
    rows, places = group_by_row(features, indices)
    totals = np.bincount(places, weights=features.get_num_tokens(indices), minlength=len(rows))
    return totals[np.searchsorted(rows, scores.rows)].astype(np.int64)


def slice_by_length(lengths: Array) -> dict[str, Array]:
    """Returns the places of the examples by their length: about as many in each part."""
    if not len(lengths):
        return {}
    ends = -(-np.arange(1, NUM_LENGTHS) * len(lengths) // NUM_LENGTHS) - 1
    edges = np.unique(np.sort(lengths)[ends])
    parts = np.searchsorted(edges, lengths)
    slices = {}
    for part in np.unique(parts):
        places = np.flatnonzero(parts == part)
        low, high = int(lengths[places].min()), int(lengths[places].max())
        slices[f"{low}" if low == high else f"{low} to {high}"] = places
    return slices


def slice_by_value(values: Sequence[Any]) -> dict[str, Array]:
    """Returns the places of the examples by their value, the most frequent value first."""
    found: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        found.setdefault("null" if value is None else str(value), []).append(place)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return {name: np.array(places) for name, places in ordered}


def describe_slices(scores: ExampleScores, slices: Mapping[str, Array], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the metrics of parts of the examples, with intervals."""
    described, num_resamples = [], choose_num_resamples(len(scores))
    for name, places in slices.items():
        resampled = Resampled(scores.take(places), names, counts_labels=False, num_resamples=num_resamples)
        entry: dict[str, Any] = {"slice": name, "examples": len(places)}
        for metric in names:
            entry |= {metric: resampled.values[metric], f"{metric}_interval": resampled.get_bounds(metric)}
        described.append(entry)
    return described


# --- single examples ------------------------------------------------------------------------------------------------


def order_by_error(scores: ExampleScores, metric: str) -> Array:
    """Returns the places of the examples, the worst first: by their loss, or by the number that a metric follows from if they
    have no loss of their own."""
    if scores.losses is not None:
        badness = scores.losses
    else:
        kind, *columns = scores.metrics[metric if metric in scores.metrics else next(iter(scores.metrics))]
        numbers = [scores.get_column(str(name)) for name in columns if name in scores.columns]
        if kind in ("pearson", "spearman", "mse"):
            badness = compare_ranks(*numbers)
        else:
            badness = numbers[0] if kind == "at_most" else -numbers[0]
    return np.argsort(-np.where(np.isnan(badness), -math.inf, badness), kind="stable")


def compare_ranks(first: Array, second: Array) -> Array:
    """Returns how far the ranks of two numbers of each example differ [N]."""
    from scipy.stats import rankdata

    return np.asarray(abs(rankdata(first) - rankdata(second)))


def order_by_doubt(scores: ExampleScores) -> Array | None:
    """Returns the places of the examples, the least certain first: by the difference of the two largest probabilities, or of
    several labels by the one nearest to 0.5. None if the examples have no probabilities."""
    values = scores.probabilities
    if values is None:
        return None
    if isinstance(values, BestProbabilities):
        values = values.values
    if scores.has_several_labels:
        margins = np.abs(np.asarray(values) - 0.5).min(axis=1)
    else:
        margins = np.array([np.diff(np.sort(part)[-2:])[0] if len(part) > 1 else 1.0 for part in values])
    return np.argsort(margins, kind="stable")
