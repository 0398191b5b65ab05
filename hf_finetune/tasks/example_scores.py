"""What an evaluation knows of each example, and the rules by which metrics follow from it.

N examples of a split, K columns of numbers, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from hf_finetune.data.features import Array, Features, Ragged

MOST_LABELS = 50  # of which an example keeps all probabilities
NUM_BEST = 5  # probabilities that it keeps if there are more labels

# How a metric is computed: the name of a function of tasks.weighted_metrics, and its arguments
Rule = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class BestProbabilities:
    """The largest of many probabilities of each example, the largest first.

    numbers: The numbers of their labels [N, NUM_BEST]. values: The probabilities [N, NUM_BEST].
    """

    numbers: Array
    values: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleScores:
    """N examples of a split, each with what was right, what was predicted, and the numbers that metrics are computed from.

    Args:
        rows: The row of the table that each example is [N], ascending. Of a language model with blocks: the row in which its
            blocks begin.
        metrics: The rule of each metric that can be computed from the examples.
        columns: Names of the numbers.
        numbers: [N, K], nan where an example does not have the number.
        labels: What is right for each example, as a plain value; None if that is nothing that can be written down.
        predictions: What the model predicts for each, in the same form; None likewise.
        losses: The loss of each example [N], without label smoothing, class weights and focal_gamma; None if it has none of its
            own, as with in-batch negatives.
        probabilities: Of all labels [N, C], of the most probable ones, or a list of arrays if examples have labels of their own.
        label_names: The names of the labels.
    """

    rows: Array
    metrics: dict[str, Rule]
    columns: tuple[str, ...] = ()
    numbers: Array = field(default_factory=lambda: np.zeros((0, 0)))
    labels: Sequence[Any] | None = None
    predictions: Sequence[Any] | None = None
    losses: Array | None = None
    probabilities: Array | BestProbabilities | Sequence[Array] | None = None
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Array) -> "ExampleScores":
        """Returns the scores of some examples, in this order."""

        def pick(values: Any) -> Any:
            if values is None or isinstance(values, np.ndarray):
                return values if values is None else values[places]
            if isinstance(values, BestProbabilities):
                return BestProbabilities(numbers=values.numbers[places], values=values.values[places])
            return [values[place] for place in places.tolist()]

        names = ("rows", "labels", "predictions", "losses", "probabilities")
        numbers = self.numbers[places] if self.columns else self.numbers
        return replace(self, numbers=numbers, **{name: pick(getattr(self, name)) for name in names})

    def get_column(self, name: str) -> Array:
        """Returns the numbers of a column [N]."""
        return self.numbers[:, self.columns.index(name)]

    @cached_property
    def label_numbers(self) -> Array | Any:
        """The classes that are right: [N], or a sparse matrix [N, C] of 0 and 1 if an example has several."""
        return number_labels(self.labels or (), self.label_names)

    @cached_property
    def prediction_numbers(self) -> Array | Any:
        """The classes that are predicted, as `label_numbers`."""
        return number_labels(self.predictions or (), self.label_names)

    @property
    def has_several_labels(self) -> bool:
        """True if an example may have several labels."""
        return self.labels is not None and len(self.labels) > 0 and isinstance(self.labels[0], list)


def number_labels(values: Sequence[Any], names: Sequence[str]) -> Array | Any:
    """Returns names of classes as numbers [N], or lists of them as a sparse matrix [N, C]."""
    index = {name: number for number, name in enumerate(names)}
    if values and isinstance(values[0], list):
        from scipy.sparse import csr_array

        offsets = np.cumsum([0, *map(len, values)])
        numbers = np.array([index[name] for row in values for name in row], dtype=np.int64)
        return csr_array((np.ones(len(numbers)), numbers, offsets), shape=(len(values), len(names)))
    return np.array([index[value] for value in values], dtype=np.int64)


def find_confidences(scores: ExampleScores) -> tuple[Array, Array] | None:
    """Returns the confidence of each answer and whether it is right, as statistics.calibration does; None without probabilities.
    Of many labels only the most probable one is an answer."""
    values = scores.probabilities
    if values is None or scores.labels is None or not scores.label_names:
        return None
    best = values.values if isinstance(values, BestProbabilities) else np.asarray(values)
    if not scores.has_several_labels:
        return best.max(axis=1).astype(np.float64), scores.prediction_numbers == scores.label_numbers
    if isinstance(values, BestProbabilities):
        return None
    labels: Any = scores.label_numbers
    return best.reshape(-1).astype(np.float64), labels.toarray().reshape(-1) > 0


def group_by_row(features: Features, indices: Array) -> tuple[Array, Array]:
    """Returns the rows of the table that the features at `indices` come from, ascending and each once [R], and the place of each
    feature's row among these."""
    examples = indices if features.example_indices is None else np.asarray(features.example_indices)[indices]
    rows, places = np.unique(examples, return_inverse=True)
    return rows, places


def sum_by_row(numbers: Array, places: Array, num_rows: int) -> Array:
    """Returns the sums of the numbers [F, K] of features over the features of each row [R, K]. places: As of group_by_row()."""
    sums = np.zeros((num_rows, numbers.shape[1]))
    np.add.at(sums, places, numbers.astype(np.float64))
    return sums


def count_targets(features: Features, indices: Array, ignored: int) -> Array:
    """Returns the number of targets of each feature that are not `ignored`. Its targets are ragged."""
    assert isinstance(features.labels, Ragged)
    counts = np.concatenate([[0], np.cumsum(features.labels.values != ignored)])
    return np.asarray(counts[features.labels.offsets[indices + 1]] - counts[features.labels.offsets[indices]])
