"""Bootstrap intervals of a metric, and of the difference between two models on the same examples.

A resample is a weight for each example: how often it was drawn. So a statistic is a function of weights [r, N] that returns a
value for each resample, [r]; with weights of 1 it returns the value on the examples themselves. The weights depend on the seed
and the number of examples alone: all statistics of the same examples see the same resamples, and differences are paired.

N examples, R resamples, S runs of a side (seeds).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[Any]], NDArray[Any]]  # values [r, ...] of weights [r, N]
Verdict = Literal["better", "worse", "not to be told apart"]

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
WEIGHTS_AT_ONCE = 4_000_000  # 32 MB
MOST_UNDEFINED = 0.05  # share of resamples in which a statistic may be nan


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the bounds of its confidence interval; bounds are nan if the statistic is undefined in too many resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of a first side from a second one, with its interval and what the first side is by it."""

    difference: Interval
    verdict: Verdict


# --- resamples ------------------------------------------------------------------------------------------------------


def make_resamples(
    num_examples: int,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
) -> Iterator[NDArray[np.float64]]:
    """Yields the weights of the resamples in chunks [r, N], which add up to R rows.

    groups: A number [N] for each example, equal for examples that belong together, such as questions on one document: then groups
    are drawn, with all their examples.
    """
    generator = np.random.default_rng(seed)
    members = None if groups is None else np.unique(groups, return_inverse=True)[1]
    num_drawn = num_examples if members is None else int(members.max()) + 1
    chunk = max(1, WEIGHTS_AT_ONCE // max(1, num_examples))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        weights = np.empty((size, num_examples))
        for row in weights:
            counts = np.bincount(generator.integers(num_drawn, size=num_drawn), minlength=num_drawn)
            row[:] = counts if members is None else counts[members]
        yield weights


def resample(
    statistic: Statistic,
    num_examples: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Returns the values of a statistic in all resamples, [R, ...]. The options are those of make_resamples()."""
    chunks = make_resamples(num_examples, num_resamples, seed, groups)
    return np.concatenate([np.asarray(statistic(weights)) for weights in chunks])


# --- intervals ------------------------------------------------------------------------------------------------------


def make_interval(value: float, resampled: NDArray[Any], confidence: float = CONFIDENCE) -> Interval:
    """Returns the percentile interval (Efron and Tibshirani 1993, chapter 13) of a value from its resampled values [R].

    Resamples in which the statistic is undefined (nan) are left out, unless they are more than 5 %.
    """
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < (1 - MOST_UNDEFINED) * len(resampled):
        return Interval(value=float(value), low=math.nan, high=math.nan)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))


def compute_interval(
    statistic: Statistic,
    num_examples: int,
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
) -> Interval:
    """Returns a statistic of N examples with its interval. The options are those of make_resamples()."""
    value = float(statistic(np.ones((1, num_examples)))[0])
    resampled = resample(statistic, num_examples, num_resamples=num_resamples, seed=seed, groups=groups)
    return make_interval(value, resampled, confidence)


# --- comparisons ----------------------------------------------------------------------------------------------------


def compare(
    first: Sequence[Statistic],
    second: Sequence[Statistic],
    num_examples: int,
    *,
    greater_is_better: bool = True,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
) -> Comparison:
    """Returns the mean of the first side's runs minus that of the second's, with its interval and the verdict on the first.

    Args:
        first, second: The statistic of each run of a side, all of the same N examples in the same order. A side may have one run,
            or several that differ in their seed.
        num_examples: N.
        groups: As in make_resamples().

    The interval covers the draw of the examples, and that of the seeds if a side has several runs. Values of different seeds are
    taken to be as spread on one side as on the other.
    """
    once = np.ones((1, num_examples))
    values = [np.array([float(run(once)[0]) for run in side]) for side in (first, second)]

    def compute_values(weights: NDArray[Any]) -> NDArray[Any]:
        """The value of each run, [r, runs of both sides]."""
        return np.stack([run(weights) for run in (*first, *second)], axis=1)

    resampled = resample(compute_values, num_examples, num_resamples=num_resamples, seed=seed, groups=groups)
    sides = np.split(resampled, [len(first)], axis=1)
    value = float(values[0].mean() - values[1].mean())
    errors = find_example_errors(sides, values) + draw_seed_errors(values, num_resamples, seed)
    difference = make_interval(value, value + errors, confidence)
    return Comparison(difference=difference, verdict=decide(difference, greater_is_better=greater_is_better))


def find_example_errors(resampled: Sequence[NDArray[Any]], values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Returns the errors [R] that the difference of two means has because the examples are a sample.

    Runs of one side answer some examples differently. That is in the spread of their values already, and so in
    draw_seed_errors(): its share of the variance is taken out.

    resampled: Of each side the values [R, S] of its runs. values: On the examples themselves [S].
    """
    deviations = [runs - value for runs, value in zip(resampled, values, strict=True)]
    errors = np.asarray(deviations[0].mean(axis=1) - deviations[1].mean(axis=1))
    freedom = sum(len(side) - 1 for side in values)
    defined = ~np.isnan(errors)
    variance = float(errors[defined].var()) if defined.any() else 0.0
    if not freedom or not variance:
        return errors
    squares = sum(float(side[defined].var(axis=1).mean()) * side.shape[1] for side in deviations)
    own = squares / freedom * sum(1 / len(side) for side in values)
    return errors * math.sqrt(max(0.0, 1 - own / variance))


def draw_seed_errors(values: Sequence[NDArray[Any]], num_resamples: int, seed: int) -> NDArray[Any]:
    """Returns draws [R] of the error that the difference of two means has because each is of a few seeds; zeros if no side has
    several runs.

    Seeds are too few to be resampled: three runs drawn from three spread by a third too little, and look normal. So the errors
    are drawn from Student's t with the variance pooled over both sides, as in the two-sample t-test. values: of the runs [S] of
    each side.
    """
    freedom = sum(len(side) - 1 for side in values)
    if freedom == 0:
        return np.zeros(num_resamples)
    variance = sum(float(((side - side.mean()) ** 2).sum()) for side in values) / freedom
    scale = math.sqrt(variance * sum(1 / len(side) for side in values))
    generator = np.random.default_rng([seed, 1])  # other draws than those of the examples
    return scale * generator.standard_t(freedom, size=num_resamples)


def decide(difference: Interval, *, greater_is_better: bool) -> Verdict:
    """Returns what the first side is by the interval of its difference from the second."""
    if difference.low > 0:
        return "better" if greater_is_better else "worse"
    if difference.high < 0:
        return "worse" if greater_is_better else "better"
    return "not to be told apart"
