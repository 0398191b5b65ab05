"""Which labels are likely to be wrong: confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating
Uncertainty in Dataset Labels", section 3).

A class counts as confident for an example if its probability is at least the mean of those that the examples labelled with it
have. If the most probable one of the confident classes is not the label, the label is likely wrong. The probabilities must come
from a model that has not seen the example's label, such as those of its fold.

N examples, C classes, K most probable classes of each example.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LabelErrors:
    """The labels that are likely wrong, the likeliest first. Arrays of the same length.

    Args:
        examples: The number of the example.
        given: Its label; for several labels an example, the label that it has and should not have, or the other way round.
        suggested: The class that the model is confident of; for several labels an example, 1 if it should have the label.
        quality: The probability of what the example is labelled with, from 0 (wrong) to 1.
    """

    examples: Array
    given: Array
    suggested: Array
    quality: Array


def compute_thresholds(quality: Array, labels: Array, num_classes: int) -> Array:
    """Returns the probability from which on each class counts as confident [C]: the mean over the examples that have the label;
    infinite for a class that no example has. quality: The probability of each example's label [N]."""
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=quality, minlength=num_classes)
    return np.divide(sums, counts, out=np.full(num_classes, np.inf), where=counts > 0)


def find_confident_classes(probabilities: Array, labels: Array, quality: Array, classes: Array) -> Array:
    """Returns the most probable one of the confident classes of each example [N]; its label if there is none. The arguments are
    those of find_label_errors()."""
    thresholds = compute_thresholds(quality, labels, int(max(classes.max(), labels.max())) + 1)
    is_confident = probabilities >= thresholds[classes] - 1e-6  # a mean is rounded
    places = np.where(is_confident, probabilities, -1.0).argmax(axis=1)
    confident = np.take_along_axis(np.broadcast_to(classes, probabilities.shape), places[:, None], axis=1)[:, 0]
    return np.where(is_confident.any(axis=1), confident, labels)


def find_label_errors(
    probabilities: Array, labels: Array, quality: Array | None = None, classes: Array | None = None
) -> LabelErrors:
    """Returns the likely wrong labels of examples with one label each.

    Args:
        probabilities: [N, C], out of fold; or of the K most probable classes of each example [N, K].
        labels: Class numbers [N].
        quality: The probability of each example's label [N], which need not be among the K; those in `probabilities` if they are
            of all classes.
        classes: The class numbers of the K probabilities [N, K].
    """
    if quality is None or classes is None:
        quality, classes = probabilities[np.arange(len(labels)), labels], np.arange(probabilities.shape[1])[None]
    suggested = find_confident_classes(probabilities, labels, quality, classes)
    found = np.flatnonzero((suggested != labels) & (probabilities.max(axis=1) > quality))
    found = found[np.argsort(quality[found], kind="stable")]
    return LabelErrors(examples=found, given=labels[found], suggested=suggested[found], quality=quality[found])


def find_multi_label_errors(probabilities: Array, labels: Array) -> LabelErrors:
    """Returns the likely wrong labels of examples with several labels: each label is a problem with the classes 0 and 1.

    probabilities: [N, C], out of fold. labels: 0/1 [N, C].
    """
    parts = []
    for number, (column, actual) in enumerate(zip(probabilities.T, labels.T.astype(np.int64), strict=True)):
        part = find_label_errors(np.stack([1 - column, column], axis=1), actual)
        parts.append((part.examples, np.full(len(part.examples), number), part.suggested, part.quality))
    examples, given, suggested, quality = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(quality, kind="stable")
    return LabelErrors(examples=examples[order], given=given[order], suggested=suggested[order], quality=quality[order])
