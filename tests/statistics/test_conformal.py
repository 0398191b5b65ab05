"""Coverage of conformal sets over 200 random splits."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from hf_finetune.statistics.conformal import (
    count_left_out,
    count_needed,
    fit_label_set_thresholds,
    fit_set_threshold,
    make_sets,
)

Array = np.ndarray[Any, Any]

NUM_SPLITS = 200
NUM_FITTED = NUM_TESTED = 99


def draw(generator: np.random.Generator, num_examples: int) -> tuple[Array, Array]:
    """Probabilities [N, 5] of a model that is too certain, and the right classes."""
    true = generator.dirichlet(np.full(5, 0.5), size=num_examples)
    classes = (true.cumsum(axis=1) > generator.random((num_examples, 1))).argmax(axis=1)
    sharpened = true**3
    return sharpened / sharpened.sum(axis=1, keepdims=True), classes


def bound(coverage: float, num_fitted: int, num_tested: int) -> tuple[float, float]:
    """The bounds in which the share of right labels in their sets, over all splits, lies with a probability of 99.9 %.

    In one split the number is beta-binomial (Angelopoulos and Bates 2021, appendix C), and a sum of 200 is about normal.
    """
    left_out = count_left_out(num_fitted, coverage)
    law = scipy.stats.betabinom(num_tested, num_fitted - left_out, left_out + 1)
    error = scipy.stats.norm.ppf(0.9995) * law.std() / np.sqrt(NUM_SPLITS)
    return (law.mean() - error) / num_tested, (law.mean() + error) / num_tested


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_hold_the_right_label_as_often_as_stated(coverage: float) -> None:
    covered = covered_by_threshold = 0
    for split in range(NUM_SPLITS):
        probabilities, classes = draw(np.random.default_rng(split), NUM_FITTED + NUM_TESTED)
        right = probabilities[np.arange(len(classes)), classes]
        threshold = fit_set_threshold(right[:NUM_FITTED], coverage)
        sets = make_sets(probabilities[NUM_FITTED:], threshold)
        covered += sets[np.arange(NUM_TESTED), classes[NUM_FITTED:]].sum()
        covered_by_threshold += (right[NUM_FITTED:] >= threshold).sum()
        assert sets.any(axis=1).all()
    low, high = bound(coverage, NUM_FITTED, NUM_TESTED)
    assert low <= covered_by_threshold / (NUM_SPLITS * NUM_TESTED) <= high
    assert low <= covered / (NUM_SPLITS * NUM_TESTED)


def test_sets_of_several_labels_hold_each_of_them_as_often_as_stated() -> None:
    covered, total = np.zeros(2), np.zeros(2)
    for split in range(NUM_SPLITS):
        generator = np.random.default_rng(split)
        scores = generator.random((600, 2))
        labels = (generator.random((600, 2)) < scores * [0.9, 0.3]).astype(np.int64)
        thresholds = fit_label_set_thresholds(scores[:300], labels[:300], 0.9)
        held = (scores[300:] >= thresholds) & (labels[300:] == 1)
        covered += held.sum(axis=0)
        total += labels[300:].sum(axis=0)
    error = 3.3 * np.sqrt(0.9 * 0.1 / total) + 3.3 * np.sqrt(0.9 * 0.1 / (NUM_SPLITS * 45))
    assert (np.abs(covered / total - 0.9) <= error + 1 / 45).all()
    assert (covered / total >= 0.9 - error).all()


def test_the_quantile_counts_one_example_more_than_there_are() -> None:
    probabilities = np.arange(1, 20) / 20  # 19 examples: 18 of 20 parts are 0.9
    assert count_left_out(19, 0.9) == 1
    assert fit_set_threshold(probabilities, 0.9) == 2 / 20
    assert count_left_out(9, 0.9) == 0
    assert fit_set_threshold(probabilities[:9], 0.9) == 1 / 20


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.85, 6)])
def test_a_coverage_needs_enough_examples(coverage: float, needed: int) -> None:
    assert count_needed(coverage) == needed
    assert count_left_out(needed, coverage) >= 0
    assert count_left_out(needed - 1, coverage) < 0


def test_sets_from_too_few_examples_hold_all_labels() -> None:
    threshold = fit_set_threshold(np.full(8, 0.7), 0.9)
    assert make_sets(np.array([[1.0, 0.0, 0.0]]), threshold).all()
    thresholds = fit_label_set_thresholds(np.full((20, 2), 0.7), np.array([[1, 0]] * 20), 0.9)
    assert thresholds.tolist() == [0.7, 0.0]


def test_the_most_probable_label_belongs_to_every_set() -> None:
    probabilities = np.array([[0.4, 0.35, 0.25], [0.7, 0.2, 0.1]])
    assert make_sets(probabilities, 0.5).tolist() == [[True, False, False], [True, False, False]]
    assert make_sets(probabilities, np.array([0.9, 0.3, 0.1])).tolist() == [[True, True, True], [True, False, True]]
