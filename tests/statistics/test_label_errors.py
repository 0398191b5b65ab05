"""Wrong labels against cleanlab, and planted ones."""

from typing import Any

import numpy as np
import pytest
from cleanlab.count import get_confident_thresholds
from cleanlab.filter import find_label_issues
from cleanlab.multilabel_classification.filter import find_label_issues as find_multi_label_issues
from cleanlab.rank import get_label_quality_scores

from hf_finetune.statistics.label_errors import (
    compute_thresholds,
    find_confident_classes,
    find_label_errors,
    find_multi_label_errors,
)

Array = np.ndarray[Any, Any]


def draw(
    num_classes: int, *, share_wrong: float = 0.05, sharpness: float = 3.0, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Probabilities [400, C], labels of which some are wrong, and which of them are."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(num_classes, size=400)
    logits = generator.normal(size=(400, num_classes)) + sharpness * np.eye(num_classes)[classes]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    is_wrong = generator.random(400) < share_wrong
    shifts = generator.integers(1, num_classes, size=400)
    return probabilities, np.where(is_wrong, (classes + shifts) % num_classes, classes), is_wrong


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_wrong_labels_and_their_order_are_those_of_cleanlab(num_classes: int, sharpness: float) -> None:
    probabilities, labels, _ = draw(num_classes, sharpness=sharpness)
    found = find_label_errors(probabilities, labels)
    expected = find_label_issues(
        labels, probabilities, filter_by="confident_learning", return_indices_ranked_by="self_confidence"
    )
    assert len(found.examples) >= 10
    assert found.examples.tolist() == expected.tolist()
    assert found.quality == pytest.approx(get_label_quality_scores(labels, probabilities)[found.examples])
    thresholds = compute_thresholds(probabilities[np.arange(400), labels], labels, num_classes)
    assert thresholds == pytest.approx(get_confident_thresholds(labels, probabilities))


def test_planted_labels_come_first() -> None:
    probabilities, labels, is_wrong = draw(4, sharpness=5.0)
    found = find_label_errors(probabilities, labels)
    first = found.examples[: int(is_wrong.sum())]
    assert is_wrong[first].mean() >= 0.8
    assert (found.given == labels[found.examples]).all()
    assert (found.suggested != found.given).all()
    assert (np.diff(found.quality) >= 0).all()


def test_a_class_is_confident_by_the_mean_of_its_own_examples() -> None:
    # class 0 has a mean of 0.8, class 1 of 0.4
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.3, 0.7], [0.9, 0.1], [0.55, 0.45]])
    labels = np.array([0, 0, 1, 1, 0])
    quality = probabilities[np.arange(5), labels]
    assert compute_thresholds(quality, labels, 2) == pytest.approx([(0.9 + 0.7 + 0.55) / 3, 0.4])
    assert find_confident_classes(probabilities, labels, quality, np.arange(2)[None]).tolist() == [0, 0, 1, 0, 1]
    found = find_label_errors(probabilities, labels)
    assert found.examples.tolist() == [3]  # the last one's label is the most probable class
    assert found.suggested.tolist() == [0]
    assert found.quality.tolist() == pytest.approx([0.1])


def test_a_class_without_examples_is_never_suggested() -> None:
    probabilities = np.array([[0.1, 0.1, 0.8]] * 4)
    found = find_label_errors(probabilities, np.array([0, 0, 1, 1]))
    assert 2 not in found.suggested
    assert np.isinf(compute_thresholds(np.full(4, 0.1), np.array([0, 0, 1, 1]), 3)[2])


def test_the_most_probable_classes_give_most_errors_of_all() -> None:
    probabilities, labels, is_wrong = draw(80, share_wrong=0.2, sharpness=6.0)
    every = find_label_errors(probabilities, labels)
    best = np.argsort(-probabilities, axis=1)[:, :5]
    values = np.take_along_axis(probabilities, best, axis=1)
    some = find_label_errors(values, labels, probabilities[np.arange(400), labels], best)
    assert is_wrong[some.examples].mean() > 0.9
    places = [every.examples.tolist().index(example) for example in some.examples.tolist()]
    assert len(some.examples) > 0.7 * len(every.examples)
    assert places == sorted(places)
    assert some.quality.tolist() == every.quality[places].tolist()


def test_wrong_ones_of_several_labels_are_those_of_cleanlab() -> None:
    generator = np.random.default_rng(1)
    actual = (generator.random((300, 3)) < 0.4).astype(np.int64)
    probabilities = 1 / (1 + np.exp(-(4 * actual - 2 + generator.normal(size=(300, 3)))))
    is_wrong = generator.random((300, 3)) < 0.05
    labels = np.where(is_wrong, 1 - actual, actual)
    found = find_multi_label_errors(probabilities, labels)
    lists = [np.flatnonzero(row).tolist() for row in labels]
    expected = find_multi_label_issues(lists, probabilities, filter_by="confident_learning")
    assert set(found.examples.tolist()) == set(np.flatnonzero(expected).tolist())
    first = int(is_wrong.sum())
    assert is_wrong[found.examples[:first], found.given[:first]].mean() >= 0.8
    assert (found.suggested == 1 - labels[found.examples, found.given]).all()
    assert (np.diff(found.quality) >= 0).all()
