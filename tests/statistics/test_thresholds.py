"""Thresholds against all thresholds, tried one by one, and scikit-learn."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve

from hf_finetune.statistics.thresholds import count_answers, fit_abstention_threshold, fit_label_thresholds

Array = np.ndarray[Any, Any]


def draw(num_examples: int, decimals: int, seed: int) -> tuple[Array, Array]:
    """Probabilities, with equal ones if they have few decimals, and 0/1 that follow them."""
    generator = np.random.default_rng(seed)
    values = generator.random(num_examples).round(decimals)
    return values, (generator.random(num_examples) < values).astype(np.int64)


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_abstention_threshold_answers_the_most_at_the_accuracy(decimals: int, seed: int) -> None:
    confidences, is_right = draw(120, decimals, seed)
    found = fit_abstention_threshold(confidences, is_right, 0.8)
    answers = {value: is_right[confidences >= value] for value in np.unique(confidences)}
    reaching = [value for value, right in answers.items() if right.mean() >= 0.8 and len(right) >= 5]
    assert found == min(reaching)


def test_there_is_no_threshold_if_no_accuracy_is_that_high() -> None:
    assert fit_abstention_threshold(np.array([0.9, 0.8]), np.array([False, True]), 0.8) is None


def test_everything_is_answered_if_the_accuracy_is_reached() -> None:
    confidences = np.linspace(0.9, 0.4, 5)
    assert fit_abstention_threshold(confidences, np.array([True, True, False, True, True]), 0.8) == 0.4


def test_a_few_right_answers_show_no_accuracy() -> None:
    assert [count_answers(accuracy) for accuracy in (0.5, 0.8, 0.9, 0.95, 0.99)] == [2, 5, 10, 20, 100]
    confidences = np.linspace(0.9, 0.4, 20)
    assert fit_abstention_threshold(confidences, np.arange(20) < 8, 0.9) is None
    assert fit_abstention_threshold(confidences, np.arange(20) < 8, 0.8) == confidences[9]


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("seed", range(5))
def test_label_thresholds_have_the_largest_f1(decimals: int, seed: int) -> None:
    columns = [draw(80, decimals, 10 * seed + number) for number in range(3)]
    probabilities, references = (np.stack(arrays, axis=1) for arrays in zip(*columns, strict=True))
    thresholds = fit_label_thresholds(probabilities, references)
    for column, actual, threshold in zip(probabilities.T, references.T, thresholds, strict=True):
        precision, recall, _ = precision_recall_curve(actual, column)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        assert f1_score(actual, column > threshold) == pytest.approx(best)


def test_a_threshold_lies_halfway_between_probabilities() -> None:
    probabilities = np.array([[0.3, 0.9], [0.2, 0.8], [0.1, 0.7]])
    references = np.array([[1, 1], [0, 1], [0, 1]])
    assert fit_label_thresholds(probabilities, references) == pytest.approx([0.25, 0.35])


def test_a_label_without_examples_keeps_the_default() -> None:
    assert fit_label_thresholds(np.array([[0.3], [0.2]]), np.zeros((2, 1), dtype=np.int64)).tolist() == [0.5]
