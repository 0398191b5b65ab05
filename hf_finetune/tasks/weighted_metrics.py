"""Metrics of weighted examples, many weightings at once: what bootstrap intervals are made of.

With weights of 1 each is the metric of an evaluation. A weight counts how often an example was drawn, so weights are 0, 1,
2 and so on.

R weightings, N examples.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.statistics.calibration import NUM_BINS, number_bins
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import weighted_labels
from hf_finetune.tasks.example_scores import ExampleScores, find_confidences

LARGEST_EXPONENT = 700.0  # exp() of a larger number overflows float64


def compute_weighted(scores: ExampleScores, metric: str, weights: Array) -> Array:
    """Returns the values [R] of a metric for weights [R, N]. InputError if it cannot be computed from the examples alone."""
    if metric not in scores.metrics:
        raise InputError(
            f"metric ({metric}): cannot be computed from single examples here; those that can are {', '.join(scores.metrics)}"
        )
    kind, *arguments = scores.metrics[metric]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(KINDS[str(kind)](scores, weights, *arguments), dtype=np.float64)


def compute_value(scores: ExampleScores, metric: str) -> float:
    """Returns a metric of the examples, each of which counts once."""
    return float(compute_weighted(scores, metric, np.ones((1, len(scores))))[0])


# --- of numbers -----------------------------------------------------------------------------------------------------


def average(values: Array, weights: Array) -> Array:
    """Returns the means [R] of values [N]; those that are nan are left out."""
    is_known = ~np.isnan(values)
    return (weights @ np.where(is_known, values, 0.0)) / (weights @ is_known.astype(np.float64))


def mean(scores: ExampleScores, weights: Array, column: str) -> Array:
    return average(scores.get_column(column), weights)


def mean_loss(scores: ExampleScores, weights: Array) -> Array:
    assert scores.losses is not None
    return average(scores.losses, weights)


def ratio(scores: ExampleScores, weights: Array, above: str, below: str) -> Array:
    """The sum of one column divided by that of another one."""
    return (weights @ scores.get_column(above)) / (weights @ scores.get_column(below))


def perplexity(scores: ExampleScores, weights: Array, above: str, below: str) -> Array:
    """exp() of a ratio."""
    means = ratio(scores, weights, above, below)
    return np.where(means > LARGEST_EXPONENT, math.inf, np.exp(np.minimum(means, LARGEST_EXPONENT)))


def at_most(scores: ExampleScores, weights: Array, column: str, most: int) -> Array:
    """The share of examples whose number is at most `most`."""
    return average((scores.get_column(column) <= most).astype(np.float64), weights)


# --- of pairs of numbers --------------------------------------------------------------------------------------------


def mse(scores: ExampleScores, weights: Array, predicted: str, expected: str) -> Array:
    return average((scores.get_column(predicted) - scores.get_column(expected)) ** 2, weights)


def pearson(scores: ExampleScores, weights: Array, predicted: str, expected: str) -> Array:
    first, second = scores.get_column(predicted), scores.get_column(expected)
    return correlate(np.broadcast_to(first, weights.shape), np.broadcast_to(second, weights.shape), weights)


def spearman(scores: ExampleScores, weights: Array, predicted: str, expected: str) -> Array:
    first, second = (weighted_labels.rank(scores.get_column(name), weights) for name in (predicted, expected))
    return correlate(first, second, weights)


def correlate(first: Array, second: Array, weights: Array) -> Array:
    """Returns Pearson's correlations [R] of values [R, N]; nan where one side is constant."""
    totals = weights.sum(1)
    centred = [side - ((weights * side).sum(1) / totals)[:, None] for side in (first, second)]
    covariance = (weights * centred[0] * centred[1]).sum(1)
    variances = [(weights * side**2).sum(1) for side in centred]
    is_constant = np.any([spread(side, weights) == 0 for side in (first, second)], axis=0)
    return np.where(is_constant, np.nan, np.clip(covariance / np.sqrt(variances[0] * variances[1]), -1, 1))


def spread(values: Array, weights: Array) -> Array:
    """Returns the differences of the largest and the smallest of the values [R, N] that have a weight."""
    is_drawn = weights > 0
    return np.where(is_drawn, values, -np.inf).max(1) - np.where(is_drawn, values, np.inf).min(1)


# --- of probabilities -----------------------------------------------------------------------------------------------


def calibration_error(scores: ExampleScores, weights: Array) -> Array:
    """statistics.calibration.compute_calibration_error() of the answers.

    The bins have fixed edges, so that the gap of a bin is the sum of what each example adds to it.
    """
    found = find_confidences(scores)
    assert found is not None
    confidences, is_right = (values.reshape(len(scores), -1) for values in found)
    gaps = np.zeros((len(scores), NUM_BINS))
    numbers = number_bins(confidences, np.linspace(0, 1, NUM_BINS + 1))
    np.add.at(gaps, (np.arange(len(scores))[:, None], numbers), is_right - confidences)
    return np.asarray(abs(weights @ gaps).sum(1) / (weights.sum(1) * confidences.shape[1]))


def brier_score(scores: ExampleScores, weights: Array) -> Array:
    """statistics.calibration.compute_brier_score() of the probabilities."""
    probabilities = np.asarray(scores.probabilities, np.float64)
    actual: Any = scores.label_numbers
    if scores.has_several_labels:
        return average(((probabilities - actual.toarray()) ** 2).mean(1), weights)
    return average(((probabilities - np.eye(probabilities.shape[1])[actual]) ** 2).sum(1), weights)


# --- of translations ------------------------------------------------------------------------------------------------


def bleu(scores: ExampleScores, weights: Array, *columns: str) -> Array:
    """Corpus BLEU. columns: Matching n-grams and all n-grams of 1 to 4 words, and the lengths of a text and its reference."""
    from sacrebleu.metrics.bleu import BLEU

    known = np.nan_to_num(np.stack([scores.get_column(name) for name in columns], 1))
    order = (len(columns) - 2) // 2
    values = []
    for counts in weights @ known:
        *ngrams, text_words, reference_words = counts.astype(np.int64).tolist()
        values.append(
            BLEU.compute_bleu(ngrams[:order], ngrams[order:], text_words, reference_words, smooth_method="exp").score
        )
    return np.array(values)


KINDS: dict[str, Callable[..., Array]] = {
    "mean": mean,
    "loss": mean_loss,
    "ratio": ratio,
    "perplexity": perplexity,
    "at_most": at_most,
    "mse": mse,
    "pearson": pearson,
    "spearman": spearman,
    "labels": weighted_labels.compute_labels,
    "roc_auc": weighted_labels.compute_roc_auc,
    "ece": calibration_error,
    "brier_score": brier_score,
    "entities": weighted_labels.compute_entities,
    "tags": weighted_labels.compute_tags,
    "bleu": bleu,
}
