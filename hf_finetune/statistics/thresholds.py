"""Thresholds on probabilities: below which one a model abstains, and from which one on a label is predicted.

They are fitted on validation. On the test split they would be chosen by the numbers that are to be reported.

N examples, C classes.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def count_answers(accuracy: float) -> int:
    """Returns the fewest answers that can show an accuracy: with one wrong answer among them they still have it."""
    return math.ceil(
        1 / (1 - Fraction(str(accuracy)))
    )  # exact: 1 / (1 - 0.9) as floating-point numbers may be above 10


def fit_abstention_threshold(confidences: Array, is_right: Array, accuracy: float) -> float | None:
    """Returns the smallest confidence so that the answers with at least that confidence reach an accuracy, None if there is none.

    Fewer than count_answers() do not count: a few right answers are luck.

    confidences: Of each answer [N]. is_right: Whether it is right [N].
    """
    order = np.argsort(-confidences, kind="stable")
    sorted_confidences = confidences[order]
    counts = np.arange(1, len(order) + 1)
    is_reached = (np.cumsum(is_right[order]) / counts >= accuracy) & (counts >= count_answers(accuracy))
    is_last = np.append(
        sorted_confidences[1:] < sorted_confidences[:-1], True
    )  # of equal confidences, all are answered
    reached = np.flatnonzero(is_last & is_reached)
    return float(sorted_confidences[reached[-1]]) if len(reached) else None


def fit_label_thresholds(probabilities: Array, references: Array, default: float = 0.5) -> Array:
    """Returns a threshold for each label [C] so that its F1 is largest if it is predicted from larger probabilities.

    Each lies halfway between two neighbouring probabilities. Of several with the same F1 it is the one that predicts the fewest
    examples. A label that no example has keeps the default.

    probabilities: [N, C]. references: 0/1 [N, C].
    """
    columns = zip(probabilities.T.astype(np.float64), references.T, strict=True)
    return np.array([fit_label_threshold(column, actual, default) for column, actual in columns])


def fit_label_threshold(probabilities: Array, references: Array, default: float) -> float:
    """As fit_label_thresholds(), for one label: arrays [N]."""
    if not references.any():
        return default
    order = np.argsort(-probabilities, kind="stable")
    scores = probabilities[order]
    num_predicted = np.arange(1, len(order) + 1)
    f1 = 2 * np.cumsum(references[order]) / (num_predicted + references.sum())
    below = np.append(scores[1:], 0.0)
    f1[below == scores] = -1  # of equal probabilities, all are predicted or none
    best = int(f1.argmax())
    return float((scores[best] + below[best]) / 2)
