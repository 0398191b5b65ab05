"""A linear layer fitted in closed form, compared with scikit-learn and with fits that leave out a row."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss

from hf_finetune.training.ridge import PENALTIES, Targets, fit_linear, make_kernel_regressions, make_regressions

GENERATOR = np.random.default_rng(0)
FEATURES = GENERATOR.normal(size=(60, 7)) + 3
WEIGHTS = GENERATOR.uniform(0.5, 2, size=60)
SCORES = (FEATURES - 3) @ GENERATOR.normal(size=(7, 3)) + [0.0, 1.0, -1.0]
CLASSES = (SCORES + GENERATOR.gumbel(size=SCORES.shape)).argmax(-1)
VALUES = {"single_label": CLASSES, "multi_label": (SCORES > 0.5).astype(float), "regression": SCORES[:, 0] * 4 + 100}


def make_targets(problem: str, rows: slice = slice(None)) -> Targets:
    return Targets(
        problem=problem,
        values=VALUES[problem][rows],
        weights=WEIGHTS[rows],
        num_outputs=1 if problem == "regression" else 3,
    )


@pytest.mark.parametrize("penalty", [PENALTIES[0], 1.0, PENALTIES[-1]])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [60, 5], ids=["rows", "few_rows"])  # fewer rows than features: the other matrix
def test_a_regression_is_that_of_scikit_learn_and_each_row_is_left_out(
    penalty: float, has_bias: bool, num_rows: int
) -> None:
    features, weights, columns = FEATURES[:num_rows], WEIGHTS[:num_rows], SCORES[:num_rows]
    center = np.average(features, axis=0, weights=weights) * has_bias
    means = np.average(columns, axis=0, weights=weights) * has_bias
    regressions = make_regressions(features - center, weights, has_bias=has_bias)
    coefficients, left_out = regressions.solve(columns - means, penalty)
    expected = Ridge(alpha=penalty * regressions.unit, fit_intercept=has_bias)
    np.testing.assert_allclose(coefficients, expected.fit(features, columns, weights).coef_.T, rtol=1e-6, atol=1e-9)
    for row in range(num_rows):
        rest = np.arange(num_rows) != row
        expected.fit(features[rest], columns[rest], weights[rest])
        np.testing.assert_allclose(left_out[row] + means, expected.predict(features[[row]])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("problem", VALUES)
def test_the_layer_predicts_the_targets(problem: str, has_bias: bool) -> None:
    """Without a bias its place is taken by features whose sum is constant, as those of a normalised layer nearly are."""
    features = FEATURES if has_bias else np.column_stack((FEATURES, 40 - FEATURES.sum(-1)))
    fit = fit_linear(features, make_targets(problem), has_bias=has_bias)
    assert (fit.bias is not None) is has_bias
    outputs = features @ fit.weight.T + (fit.bias if has_bias else 0)
    loss, targets = make_targets(problem).compute_loss(outputs), VALUES[problem]
    assert loss < fit.loss  # of rows that it has seen
    if problem == "single_label":
        probabilities = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
        assert loss == pytest.approx(log_loss(targets, probabilities, sample_weight=WEIGHTS))
        assert fit.loss < log_loss(targets, np.tile(np.bincount(targets) / 60, (60, 1)))
        assert (outputs.argmax(-1) == targets).mean() > 0.6
    elif problem == "multi_label":
        assert ((outputs > 0) == targets).mean() > 0.9
    else:
        assert np.corrcoef(outputs[:, 0], targets)[0, 1] > 0.99


@pytest.mark.parametrize("penalty", [PENALTIES[0], 1.0, PENALTIES[-1]])
def test_regressions_on_products_are_those_on_features(penalty: float) -> None:
    centered = FEATURES - FEATURES.mean(0)
    columns = SCORES - SCORES.mean(0)
    plain = make_regressions(centered, np.ones(60), has_bias=True)
    by_products = make_kernel_regressions(centered @ centered.T)
    assert by_products.unit * 60 == pytest.approx(plain.unit * 7)  # both are the sum of all eigenvalues
    coefficients, left_out = plain.solve(columns, penalty)
    row_coefficients, others = by_products.solve(columns, penalty * plain.unit / by_products.unit)
    np.testing.assert_allclose(others, left_out, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(centered.T @ row_coefficients, coefficients, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_predicted_gives_the_share_of_each_label() -> None:
    """A random layer claims more, and so would one whose outputs were not scaled by rows that it has not seen."""
    noise = np.random.default_rng(1).normal(size=(60, 50))
    fit = fit_linear(noise, make_targets("single_label"))
    shares = np.bincount(CLASSES, weights=WEIGHTS) / WEIGHTS.sum()
    outputs = noise @ fit.weight.T + fit.bias
    assert np.abs(np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True) - shares).max() < 0.25
    assert fit.loss < make_targets("single_label").compute_loss(np.tile(np.log(shares), (60, 1))) + 0.05


@pytest.mark.parametrize("problem", VALUES)
def test_constant_features_and_one_class_are_no_error(problem: str) -> None:
    targets = Targets(problem=problem, values=0 * VALUES[problem], weights=np.ones(60), num_outputs=3)
    fit = fit_linear(np.ones((60, 4)), targets)
    assert np.isfinite([*fit.weight.ravel(), fit.loss]).all()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("problem", VALUES)
def test_weights_that_are_too_large_are_scaled_down(problem: str, has_bias: bool) -> None:
    """The logits of the mean features stay, and the printed loss is that of the smaller weights."""
    targets = make_targets(problem)
    free = fit_linear(FEATURES, targets, has_bias=has_bias)
    norm = np.linalg.norm(free.weight, axis=1).mean()
    assert fit_linear(FEATURES, targets, has_bias=has_bias, most_norm=norm * 1.01).loss == free.loss
    small = fit_linear(FEATURES, targets, has_bias=has_bias, most_norm=norm / 4)
    if problem == "regression":
        assert (small.weight == free.weight).all()
        return
    np.testing.assert_allclose(small.weight, free.weight / 4)
    assert small.loss == pytest.approx(targets.compute_loss(small.outputs))
    assert small.loss > free.loss
    if has_bias:
        assert free.bias is not None
        assert small.bias is not None
        center = np.average(FEATURES, axis=0, weights=WEIGHTS)
        np.testing.assert_allclose(free.weight @ center + free.bias, small.weight @ center + small.bias)
        constant = free.weight @ center + free.bias
        np.testing.assert_allclose(small.outputs - constant, (free.outputs - constant) / 4)
