"""Bootstrap intervals against scipy, and their coverage by simulation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats

from hf_finetune.statistics import intervals
from hf_finetune.statistics.intervals import (
    Statistic,
    compare,
    compute_interval,
    make_interval,
    make_resamples,
    resample,
)

Array = np.ndarray[Any, Any]


def mean_of(values: Array) -> Statistic:
    """The weighted mean of a value for each example."""
    return lambda weights: weights @ values / weights.sum(axis=1)


def test_each_resample_draws_as_many_examples_as_there_are() -> None:
    weights = np.concatenate(list(make_resamples(50, 200)))
    assert weights.shape == (200, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.min() == 0
    assert weights.max() > 1
    assert len(np.unique(weights, axis=0)) == 200


def test_resamples_depend_on_the_seed_and_not_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    entire = list(make_resamples(40, 30, seed=3))
    monkeypatch.setattr(intervals, "WEIGHTS_AT_ONCE", 7 * 40)
    chunks = list(make_resamples(40, 30, seed=3))
    assert [len(chunk) for chunk in chunks] == [7, 7, 7, 7, 2]
    assert len(entire) == 1
    assert (np.concatenate(chunks) == entire[0]).all()
    assert (next(make_resamples(40, 7, seed=4)) != chunks[0]).any()


def test_chunks_of_many_examples_stay_small() -> None:
    sizes = [chunk.nbytes for chunk in make_resamples(100_000, 100)]
    assert max(sizes) <= 8 * intervals.WEIGHTS_AT_ONCE


def test_groups_are_drawn_with_all_their_examples() -> None:
    groups = np.array([5, 5, 2, 9, 2, 5])
    weights = np.concatenate(list(make_resamples(6, 100, groups=groups)))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 2] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()  # three groups each time


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    ours = compute_interval(mean_of(values), 400, num_resamples=4000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_the_paired_difference_is_that_of_scipy() -> None:
    generator = np.random.default_rng(2)
    hard = generator.random(600)
    first, second = (generator.random(600) > hard - shift for shift in (0.1, 0.02))
    ours = compare([mean_of(first * 1.0)], [mean_of(second * 1.0)], 600, num_resamples=4000).difference
    theirs = scipy.stats.bootstrap(
        (first * 1.0, second * 1.0),
        lambda one, two, axis: one.mean(axis) - two.mean(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def measure_coverage(is_covered: Callable[[np.random.Generator], bool], num_trials: int) -> float:
    return float(np.mean([is_covered(np.random.default_rng(trial)) for trial in range(num_trials)]))


def test_an_interval_of_95_percent_covers_the_true_accuracy_that_often() -> None:
    def is_covered(generator: np.random.Generator) -> bool:
        interval = compute_interval(mean_of((generator.random(300) < 0.8) * 1.0), 300, num_resamples=400)
        return interval.low <= 0.8 <= interval.high

    assert 0.92 <= measure_coverage(is_covered, 400) <= 0.98


def test_a_difference_is_better_or_worse_as_its_metric_says() -> None:
    values = np.random.default_rng(0).random(200)
    high, low = mean_of(values + 0.1), mean_of(values)
    better = compare([high], [low], 200)
    assert better.verdict == "better"
    assert better.difference.value == pytest.approx(0.1)
    assert better.difference.low == pytest.approx(0.1)  # paired: the same for every example
    assert compare([low], [high], 200).verdict == "worse"
    assert compare([high], [low], 200, greater_is_better=False).verdict == "worse"
    assert compare([low], [high], 200, greater_is_better=False).verdict == "better"
    assert compare([low], [low], 200).verdict == "not to be told apart"


def simulate_sides(
    generator: np.random.Generator, runs: int, seed_spread: float
) -> tuple[list[Statistic], list[Statistic]]:
    """Runs of two sides that are equally good: each seed has its own accuracy, and each example its own difficulty."""
    hard = generator.normal(size=200)

    def make_run() -> Statistic:
        skill = 1 + seed_spread * generator.normal()
        return mean_of((skill + generator.normal(size=200) > hard) * 1.0)

    return [make_run() for _ in range(runs)], [make_run() for _ in range(runs)]


@pytest.mark.parametrize(("runs", "seed_spread"), [(1, 0.0), (2, 0.3), (3, 0.0), (3, 0.3), (5, 0.1)])
def test_equal_sides_are_told_apart_in_5_percent_at_most(runs: int, seed_spread: float) -> None:
    def is_covered(generator: np.random.Generator) -> bool:
        comparison = compare(*simulate_sides(generator, runs, seed_spread), 200, num_resamples=300)
        return comparison.verdict == "not to be told apart"

    assert 0.92 <= measure_coverage(is_covered, 300) <= 0.985


def test_one_run_a_side_knows_nothing_of_seeds() -> None:
    def is_covered(generator: np.random.Generator) -> bool:
        comparison = compare(*simulate_sides(generator, 1, 0.5), 200, num_resamples=200)
        return comparison.verdict == "not to be told apart"

    assert measure_coverage(is_covered, 200) < 0.8


def test_several_runs_of_one_side_tell_the_spread_of_both() -> None:
    one = [mean_of(np.full(50, 0.8))]
    three = [mean_of(np.full(50, value)) for value in (0.7, 0.8, 0.9)]
    difference = compare(three, one, 50, num_resamples=20_000).difference
    scale = 0.1 * math.sqrt(1 / 3 + 1)
    assert difference.high == pytest.approx(scale * scipy.stats.t.ppf(0.975, 2), rel=0.1)
    assert difference.low == pytest.approx(-difference.high, rel=0.1)


def test_a_statistic_may_have_several_values() -> None:
    values = np.random.default_rng(0).random((30, 4))
    together = resample(lambda weights: weights @ values, 30, num_resamples=50)
    assert together.shape == (50, 4)
    alone = resample(lambda weights: weights @ values[:, 2], 30, num_resamples=50)
    assert together[:, 2] == pytest.approx(alone)


def test_resamples_without_a_value_are_left_out_unless_there_are_many() -> None:
    resampled = np.linspace(0, 1, 101)
    few = np.append(resampled, [np.nan] * 5)
    assert make_interval(0.5, few) == make_interval(0.5, resampled)
    many = make_interval(0.5, np.append(resampled, [np.nan] * 6))
    assert math.isnan(many.low)
    assert math.isnan(many.high)
    assert intervals.decide(many, greater_is_better=True) == "not to be told apart"
