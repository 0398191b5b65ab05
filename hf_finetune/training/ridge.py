"""A linear layer that is fitted in closed form, by ridge regression.

N rows, H hidden, C outputs.
"""

from dataclasses import dataclass, replace

import numpy as np

from hf_finetune.data.features import Array

PENALTIES = 10.0 ** np.arange(-6, 2.5, 0.5)  # in units of the mean eigenvalue of the features' covariance
SCALES = 10.0 ** np.arange(-1, 2.01, 0.125)


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """A fitted linear layer.

    Args:
        weight: [C, H].
        bias: [C], None for a layer without one.
        outputs: What it gives for each row [N, C], fitted without that row.
        loss: The mean loss of these outputs.
    """

    weight: Array
    bias: Array | None
    outputs: Array
    loss: float


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the outputs of a linear layer should be.

    Args:
        problem: single_label (logits of one class), multi_label (a logit for each class) or regression (numbers).
        values: Class numbers [N], or 0 and 1 [N, C], or numbers [N].
        weights: How much each row counts, [N].
        num_outputs: C.
    """

    problem: str
    values: Array
    weights: Array
    num_outputs: int

    def make_columns(self) -> Array:
        """Returns the targets as columns of numbers, [N, C] float64."""
        if self.problem == "single_label":
            return np.equal.outer(self.values, np.arange(self.num_outputs)).astype(np.float64)
        return np.asarray(self.values, np.float64).reshape(len(self.weights), -1)

    def compute_losses(self, outputs: Array) -> Array:
        """Returns the losses [N] of outputs [N, C]: cross entropy, binary cross entropy, or squared error."""
        if self.problem == "single_label":
            largest = outputs.max(-1)
            sums = np.log(np.exp(outputs - largest[:, None]).sum(-1)) + largest
            return np.asarray(sums - outputs[np.arange(len(outputs)), self.values])
        if self.problem == "multi_label":
            return np.asarray((np.logaddexp(0, outputs) - outputs * self.values).mean(-1))
        return np.asarray((outputs[:, 0] - self.values) ** 2)

    def compute_loss(self, outputs: Array) -> float:
        """Returns the mean of the losses of outputs [N, C]."""
        return float(np.average(self.compute_losses(outputs), weights=self.weights))


@dataclass(frozen=True, kw_only=True)
class Regressions:
    """Weighted ridge regressions on the same features, for any penalty: one eigendecomposition serves all of them.

    Args:
        rotated: The features, without their mean if there is a bias, in the basis of R eigenvectors. [N, R]
        basis: The eigenvectors, [H, R].
        eigenvalues: Those of the sum of the weighted outer products, [R].
        unit: The mean of all H eigenvalues; penalties are multiples of it.
        weights: How much each row counts, [N].
        constant: The leverage of the bias: 1 over the sum of the weights; 0 if there is no bias.
    """

    rotated: Array
    basis: Array
    eigenvalues: Array
    unit: float
    weights: Array
    constant: float

    def solve(self, columns: Array, penalty: float) -> tuple[Array, Array]:
        """Returns the coefficients [H, K] of columns of targets [N, K], and the outputs [N, K], each fitted without its row."""
        shrunk = 1 / (self.eigenvalues + penalty * self.unit)
        coefficients = (self.rotated.T @ (columns * self.weights[:, None])) * shrunk[:, None]
        leverage = self.weights * (self.rotated**2 @ shrunk + self.constant)
        errors = (columns - self.rotated @ coefficients) / np.maximum(1 - leverage, 1e-9)[:, None]
        return self.basis @ coefficients, columns - errors


def make_regressions(features: Array, weights: Array, *, has_bias: bool) -> Regressions:
    """Returns the regressions on features [N, H], which are without their mean if there is a bias."""
    rows = features * np.sqrt(weights)[:, None]
    num_rows, hidden = rows.shape
    if num_rows < hidden:  # the smaller of two matrices with the same eigenvalues above 0
        eigenvalues, vectors = np.linalg.eigh(rows @ rows.T)
        is_positive = eigenvalues > eigenvalues.max() * num_rows * np.finfo(np.float64).eps
        eigenvalues, vectors = eigenvalues[is_positive], vectors[:, is_positive]
        basis = rows.T @ vectors / np.sqrt(eigenvalues)
    else:
        eigenvalues, basis = np.linalg.eigh(rows.T @ rows)
    return Regressions(
        rotated=features @ basis,
        basis=basis,
        eigenvalues=eigenvalues.clip(0),
        unit=float(np.square(rows).sum() / hidden) or 1.0,
        weights=weights,
        constant=1 / float(weights.sum()) if has_bias else 0.0,
    )


def make_kernel_regressions(kernel: Array) -> Regressions:
    """Returns the regressions on features that are only known by their products [N, N], each without its mean.

    The coefficients of a fit are then those of the rows [N, C]: another row's outputs are its products with them.
    """
    eigenvalues, vectors = np.linalg.eigh(kernel)
    is_positive = eigenvalues > eigenvalues.max() * len(kernel) * np.finfo(np.float64).eps
    roots = np.sqrt(eigenvalues[is_positive])
    return Regressions(
        rotated=vectors[:, is_positive] * roots,
        basis=vectors[:, is_positive] / roots,
        eigenvalues=eigenvalues[is_positive],
        unit=float(np.trace(kernel)) / len(kernel) or 1.0,
        weights=np.ones(len(kernel)),
        constant=1 / len(kernel),
    )


def fit_linear(
    features: Array, targets: Targets, *, has_bias: bool = True, most_norm: float | None = None
) -> LinearFit:
    """Returns the linear layer whose outputs are the logits (or, for regression, the numbers) of the targets; see choose_fit().

    Args:
        features: The inputs of the layer, [N, H].
        targets: Those of the same rows.
        has_bias: The layer has a bias. If not, the constant part of its outputs is fitted as well as the inputs allow.
        most_norm: The largest mean norm of the weights of an output; as limit_norm().
    """
    features = np.asarray(features, np.float64)
    weights = targets.weights / targets.weights.mean()
    center = np.average(features, axis=0, weights=weights) * has_bias
    regressions = make_regressions(features - center, weights, has_bias=has_bias)
    fit = choose_fit(regressions, targets, has_bias=has_bias)
    if most_norm is not None:
        fit = limit_norm(fit, targets, most_norm)
    return fit if fit.bias is None else replace(fit, bias=fit.bias - fit.weight @ center)


def limit_norm(fit: LinearFit, targets: Targets, most_norm: float) -> LinearFit:
    """Returns a fit whose logits are scaled down if the mean norm of the weights of an output is larger than that. The outputs of
    a regression are numbers, and stay. fit: For features without their mean."""
    norm = np.linalg.norm(fit.weight, axis=1).mean()
    if targets.problem == "regression" or norm <= most_norm:
        return fit
    factor, constant = most_norm / norm, 0.0 if fit.bias is None else fit.bias
    outputs = constant + factor * (fit.outputs - constant)
    return replace(fit, weight=factor * fit.weight, outputs=outputs, loss=targets.compute_loss(outputs))


def choose_fit(
    regressions: Regressions, targets: Targets, *, has_bias: bool = True, penalties: Array = PENALTIES
) -> LinearFit:
    """Returns the fit of the regressions with the best of the penalties. Its bias is for features without their mean.

    f is the ridge regression on targets of 0 and 1 that are scaled to variance 1. The logits are log(p) + s f, where p is the
    share of a label among the rows; for multi_label, log(p / (1 - p)) + s f. The penalty and s are those with the smallest loss
    of rows that the fit has not seen: leaving out each row in turn has a closed form.
    """
    columns = targets.make_columns()
    means = np.average(columns, axis=0, weights=targets.weights)
    offset, deviations, scales = choose_outputs(targets, means)
    columns = (columns - means) / deviations
    if not has_bias:
        columns = np.column_stack((columns, np.ones(len(columns))))  # the constant part is one more column
    best: LinearFit | None = None
    for penalty in penalties:
        coefficients, outputs = regressions.solve(columns, penalty)
        constant = outputs[:, -1:] if not has_bias else 1.0
        for scale in scales:
            left_out = constant * offset + scale * outputs[:, : len(offset)]
            loss = targets.compute_loss(left_out)
            if best is not None and not loss < best.loss:
                continue
            weight = scale * coefficients[:, : len(offset)]
            weight = weight if has_bias else weight + coefficients[:, -1:] * offset
            best = LinearFit(weight=weight.T, bias=offset if has_bias else None, outputs=left_out, loss=loss)
    assert best is not None
    return best


def choose_outputs(targets: Targets, means: Array) -> tuple[Array, Array, Array]:
    """Returns the constant part of the outputs [C], the deviations that columns of targets are divided by [C], and the scales
    that are tried. means: The weighted means of the columns, [C]."""
    if targets.problem == "regression":
        deviation = np.sqrt(np.average((targets.make_columns() - means) ** 2, axis=0, weights=targets.weights))
        deviation = np.where(deviation > 0, deviation, 1.0)
        return means, deviation, deviation
    rarest = 0.5 / len(targets.weights)  # a label without rows counts as half a row
    shares = means.clip(rarest, 1 - rarest)
    odds = shares / (1 - shares) if targets.problem == "multi_label" else shares
    return np.log(odds), np.sqrt(shares * (1 - shares)), SCALES
