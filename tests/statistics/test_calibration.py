"""Calibration against scikit-learn."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from hf_finetune.statistics.calibration import (
    TEMPERATURES,
    compute_brier_score,
    compute_calibration_error,
    compute_probabilities,
    find_confidences,
    fit_temperature,
    make_bins,
)

Array = np.ndarray[Any, Any]


def draw(num_examples: int, temperature: float, seed: int = 0) -> tuple[Array, Array]:
    """Logits [N, 4] of a model, and classes that follow its probabilities at another temperature."""
    generator = np.random.default_rng(seed)
    logits = 3 * generator.normal(size=(num_examples, 4))
    probabilities = softmax(logits / temperature, axis=1)
    classes = (probabilities.cumsum(axis=1) > generator.random((num_examples, 1))).argmax(axis=1)
    return logits, classes


def draw_several(num_examples: int, temperature: float) -> tuple[Array, Array]:
    """Logits [N, 3], and labels 0/1 [N, 3] that follow their probabilities at another temperature."""
    generator = np.random.default_rng(5)
    logits = 3 * generator.normal(size=(num_examples, 3)) - 1
    return logits, (expit(logits / temperature) > generator.random((num_examples, 3))).astype(np.int64)


@pytest.mark.parametrize(("equal_mass", "strategy"), [(False, "uniform"), (True, "quantile")])
def test_bins_are_those_of_scikit_learn(equal_mass: bool, strategy: str) -> None:
    logits, labels = draw_several(900, 2.0)
    confidences, is_right = find_confidences(expit(logits), labels)
    bins = make_bins(confidences, is_right, num_bins=12, equal_mass=equal_mass)
    shares, means = calibration_curve(is_right, confidences, n_bins=12, strategy=strategy)
    assert bins.accuracy == pytest.approx(shares)
    assert bins.confidence == pytest.approx(means)
    assert bins.count.sum() == 2700
    assert (bins.low <= bins.confidence).all()
    assert (bins.confidence <= bins.high).all()
    if equal_mass:
        assert np.ptp(bins.count) <= 1


def test_the_calibration_error_is_the_mean_gap_of_the_answers() -> None:
    confidences, is_right = np.array([0.95, 0.85, 0.55, 0.55]), np.array([True, False, True, False])
    # bins of a tenth: gaps 0.05, 0.85 and 0.05 with 1, 1 and 2 answers
    assert compute_calibration_error(confidences, is_right, num_bins=10) == pytest.approx((0.05 + 0.85 + 2 * 0.05) / 4)
    # two bins: answers 0.95 and 0.85 with one right, answers 0.55 with one right
    error = compute_calibration_error(confidences, is_right, num_bins=2, equal_mass=True)
    assert error == pytest.approx((2 * 0.4 + 2 * 0.05) / 4)


def test_answers_that_are_equally_confident_share_a_bin() -> None:
    bins = make_bins(np.full(10, 0.7), np.arange(10) < 7, equal_mass=True)
    assert bins.count.tolist() == [10]
    assert bins.accuracy.tolist() == pytest.approx([0.7])


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large() -> None:
    for temperature, low, high in ((1.0, 0.0, 0.02), (3.0, 0.2, 0.5)):
        logits, classes = draw(8000, temperature)
        confidences, is_right = find_confidences(softmax(logits, axis=1), classes)
        for equal_mass in (False, True):
            assert low <= compute_calibration_error(confidences, is_right, equal_mass=equal_mass) <= high


def test_the_brier_score_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    positive, labels = generator.random(300), generator.integers(2, size=300)
    probabilities = np.stack([1 - positive, positive], axis=1)
    binary = brier_score_loss(labels, positive)
    assert compute_brier_score(probabilities, labels) == pytest.approx(2 * binary)  # summed over both classes
    assert compute_brier_score(positive[:, None], labels[:, None]) == pytest.approx(binary)
    logits, classes = draw(500, 1.0)
    expected = ((softmax(logits, axis=1) - np.eye(4)[classes]) ** 2).sum(axis=1).mean()
    assert compute_brier_score(softmax(logits, axis=1), classes) == pytest.approx(expected)


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_and_lowers_the_log_loss(true: float) -> None:
    logits, classes = draw(6000, true)
    temperature = fit_temperature(logits, classes)
    assert temperature == pytest.approx(true, rel=0.1)
    before, after = (log_loss(classes, softmax(logits / scale, axis=1)) for scale in (1.0, temperature))
    assert after < before
    best = minimize_scalar(
        lambda scale: -log_softmax(logits / scale, axis=1)[np.arange(6000), classes].mean(),
        bounds=TEMPERATURES,
        method="bounded",
    ).x
    assert temperature == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("true", [0.5, 2.5])
def test_the_temperature_of_several_labels_is_found(true: float) -> None:
    logits, labels = draw_several(3000, true)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(true, rel=0.1)
    before, after = (log_loss(labels.ravel(), expit(logits / scale).ravel()) for scale in (1.0, temperature))
    assert after < before


def test_the_temperature_lowers_the_calibration_error_of_other_examples() -> None:
    temperature = fit_temperature(*draw(1000, 3.0))
    logits, classes = draw(4000, 3.0, seed=1)
    errors = [
        compute_calibration_error(*find_confidences(softmax(logits / scale, axis=1), classes))
        for scale in (1.0, temperature)
    ]
    assert errors[1] < 0.2 * errors[0]


def test_answers_that_are_all_right_do_not_make_a_model_certain() -> None:
    classes = np.arange(100) % 2
    logits = 4.0 * np.eye(2)[classes]
    confidence = softmax(logits / fit_temperature(logits, classes), axis=1).max(axis=1)
    assert confidence == pytest.approx(1 - 0.5 / 101)


def test_answers_that_are_all_wrong_give_the_largest_temperature() -> None:
    classes = np.arange(100) % 2
    assert fit_temperature(4.0 * np.eye(2)[1 - classes], classes) == TEMPERATURES[1]


def test_logits_without_differences_keep_a_temperature() -> None:
    temperature = fit_temperature(np.zeros((10, 3)), np.zeros(10, dtype=np.int64))
    assert temperature in TEMPERATURES
    assert softmax(np.zeros(3) / temperature) == pytest.approx(np.full(3, 1 / 3))


def test_confidences_of_one_label_are_of_the_most_probable_one() -> None:
    confidences, is_right = find_confidences(np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([1, 1]))
    assert confidences.tolist() == [0.8, 0.6]
    assert is_right.tolist() == [True, False]


def test_probabilities_are_softmax_or_sigmoid() -> None:
    logits = np.array([[1.0, -2.0, 0.5]])
    assert compute_probabilities(logits, has_several=False).sum() == pytest.approx(1)
    assert compute_probabilities(logits, has_several=True) == pytest.approx(1 / (1 + np.exp(-logits)))
