"""How far probabilities can be trusted: calibration error, reliability bins, Brier score; and temperature scaling.

The confidence of an answer is the probability that the model gives to it. A model is calibrated if, of the answers with
confidence 0.8, 80 % are right.

N examples, C classes, K bins. References are class numbers [N] for single_label, 0/1 [N, C] for multi_label.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NUM_BINS = 15  # as in Guo et al. 2017
TEMPERATURES = (0.01, 100.0)


def find_confidences(probabilities: Array, references: Array) -> tuple[Array, Array]:
    """Returns the confidence of each answer, and whether it is right.

    For single_label an answer is the most probable class, [N]. For multi_label every label of every example is one, [N * C]: its
    confidence is the label's probability, and it is right if the example has the label.
    """
    if references.ndim == 2:
        return probabilities.reshape(-1), references.reshape(-1).astype(bool)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == references


# --- calibration error ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ReliabilityBins:
    """Answers by their confidence, without empty bins. Arrays [K].

    Args:
        low, high: The bounds of a bin: low < confidence <= high; in the first bin also confidence = low.
        confidence: The mean confidence of its answers.
        accuracy: The share of its answers that are right.
        count: The number of its answers.
    """

    low: Array
    high: Array
    confidence: Array
    accuracy: Array
    count: Array


def number_bins(confidences: Array, edges: Array) -> Array:
    """Returns the number of the bin of each confidence. edges: The bounds of the K bins [K + 1], those of make_bins()."""
    return np.searchsorted(edges[1:-1], confidences)


def make_bins(
    confidences: Array, is_right: Array, *, num_bins: int = NUM_BINS, equal_mass: bool = False
) -> ReliabilityBins:
    """Returns the reliability bins of answers.

    Bins have equal width (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2), or about as many answers each
    (Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis"). Answers of equal confidence share a bin.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    if equal_mass:
        edges = np.quantile(confidences, edges)
    numbers = number_bins(confidences, edges)
    counts = np.bincount(numbers, minlength=num_bins)
    used = np.flatnonzero(counts)
    sums = (
        np.bincount(numbers, weights=values, minlength=num_bins)[used]
        for values in (confidences.astype(np.float64), is_right.astype(np.float64))
    )
    confidence, accuracy = (total / counts[used] for total in sums)
    return ReliabilityBins(
        low=edges[used], high=edges[used + 1], confidence=confidence, accuracy=accuracy, count=counts[used]
    )


def compute_calibration_error(
    confidences: Array, is_right: Array, *, num_bins: int = NUM_BINS, equal_mass: bool = False
) -> float:
    """Returns the expected calibration error (ECE): the mean gap between confidence and accuracy of the bins, weighted by their
    number of answers (Guo et al. 2017, equation 3). It is above 0 for a perfect model too, the more so the fewer answers."""
    bins = make_bins(confidences, is_right, num_bins=num_bins, equal_mass=equal_mass)
    return float(np.abs(bins.accuracy - bins.confidence) @ bins.count / bins.count.sum())


def compute_brier_score(probabilities: Array, references: Array) -> float:
    """Returns the mean squared error of the probabilities (Brier 1950).

    For single_label summed over the classes of an example, from 0 to 2; for multi_label the mean over all labels, from 0 to 1.
    """
    if references.ndim == 2:
        return float(np.mean((probabilities - references) ** 2))
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(references)), references] -= 1
    return float((errors**2).sum(axis=1).mean())


def compute_log_loss(probabilities: Array, references: Array) -> float:
    """Returns the mean negative log-likelihood of the references: of the right class, or for multi_label of each label."""
    logits = compute_logits(probabilities, has_several=references.ndim == 2)
    if references.ndim == 2:
        return float(np.logaddexp(0, np.where(references != 0, -logits, logits)).mean())
    return float(-logits[np.arange(len(references)), references].mean())


# --- temperature ----------------------------------------------------------------------------------------------------


def fit_temperature(logits: Array, references: Array) -> float:
    """Returns the number by which logits [N, C] are divided so that the likelihood of the references is largest.

    Temperature scaling (Guo et al. 2017, section 4.2) does not change which class is the most probable one, and for multi_label
    not on which side of 0.5 a label's probability lies. In the inverse of the temperature the loss is convex, so that it has one
    minimum, where its derivative is 0. If all answers are right, it has none: the larger all probabilities, the better. So the
    references count as N examples of N + 1, and the last one is spread evenly over the classes, as in Platt 1999, section 2.2.
    """
    from scipy.optimize import brentq

    exact = logits.astype(np.float64)
    smoothing = 1 / (len(exact) + 1)
    if references.ndim == 2:
        targets = (1 - smoothing) * references + smoothing / 2
    else:
        exact = exact - exact.max(axis=1, keepdims=True)
        targets = np.full(exact.shape, smoothing / exact.shape[1])
        targets[np.arange(len(exact)), references] += 1 - smoothing
    wanted = float((targets * exact).sum())

    def compute_slope(inverse: float) -> float:
        """The derivative of the summed loss by the inverse of the temperature."""
        return float((compute_probabilities(exact * inverse, references.ndim == 2) * exact).sum()) - wanted

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if compute_slope(low) >= 0:
        return TEMPERATURES[1]
    if compute_slope(high) <= 0:
        return TEMPERATURES[0]
    return 1 / float(brentq(compute_slope, low, high, xtol=1e-12))


def compute_probabilities(logits: Array, has_several: bool) -> Array:
    """Returns the probabilities of logits: softmax over the classes, or the sigmoid of each if an example has several labels."""
    from scipy.special import expit, softmax

    return expit(logits) if has_several else softmax(logits, axis=-1)


def compute_logits(probabilities: Array, has_several: bool) -> Array:
    """Returns finite logits of probabilities (float64): those that compute_probabilities() makes them of. Those of softmax are
    logarithms; the smallest and largest numbers stand for 0 and 1."""
    from scipy.special import logit

    limits = np.finfo(np.float64)
    clipped = np.clip(probabilities.astype(np.float64), limits.tiny, 1 - limits.epsneg)
    return logit(clipped) if has_several else np.log(clipped)
