"""Split conformal prediction: sets of labels that contain the right one with a stated probability.

The guarantee needs no assumption about the model. It holds for examples that come from where the calibration examples come from,
on average over both, if the model has not been trained on the latter (Angelopoulos and Bates 2021, "A Gentle Introduction to
Conformal Prediction", sections 1 and 4.3).

The score of a label is its probability (LAC: Sadinle, Lei and Wasserman 2019, "Least Ambiguous Set-Valued Classifiers"), which
gives the smallest sets on average. All labels from a threshold on form the set.

N calibration examples, B examples, C classes.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def count_left_out(num_examples: int, coverage: float) -> int:
    """Returns how many of the right labels of N calibration examples may lie below the threshold, -1 if N are too few.

    The threshold is the quantile ceil((N + 1) * coverage) / N of the examples, counted from the most probable one.
    """
    share = Fraction(str(coverage))  # exact: 0.9 * 10 as floating-point numbers may be above 9
    return num_examples - math.ceil((num_examples + 1) * share)


def count_needed(coverage: float) -> int:
    """Returns the number of calibration examples that a coverage needs: with fewer, a set must hold all labels."""
    share = Fraction(str(coverage))
    return math.ceil(share / (1 - share))


def fit_set_threshold(probabilities: Array, coverage: float) -> float:
    """Returns the probability from which on labels belong to a set; 0 if there are too few examples, so that all labels do.

    probabilities: Of the right label of each calibration example [N].
    """
    num_left_out = count_left_out(len(probabilities), coverage)
    return float(np.sort(probabilities)[num_left_out]) if num_left_out >= 0 else 0.0


def fit_label_set_thresholds(probabilities: Array, references: Array, coverage: float) -> Array:
    """Returns a threshold for each label [C] of examples that have several: of the examples that have a label, the share
    `coverage` has it in its set. 0 for labels that too few examples have.

    probabilities: [N, C]. references: 0/1 [N, C].
    """
    columns = zip(probabilities.T, references.T.astype(bool), strict=True)
    return np.array([fit_set_threshold(column[actual], coverage) for column, actual in columns])


def make_sets(probabilities: Array, thresholds: float | Array) -> Array:
    """Returns which labels belong to the set of each example, as booleans [B, C]. thresholds: One, or one for each label [C].

    The most probable label always does, which makes the coverage larger, never smaller.
    """
    sets: Array = probabilities >= thresholds
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets
