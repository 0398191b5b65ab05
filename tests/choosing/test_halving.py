"""Which trial of a sweep runs next, and how far."""

import math
import random

from hf_finetune.choosing.halving import RUNGS, Standing, choose_next, rank


def run_all(
    values: list[float], rungs: tuple[float, ...] = RUNGS, diverge_at: dict[int, int] | None = None
) -> list[tuple[int, int]]:
    """Runs trials whose score is their value at each rung. Returns the order of the runs."""
    standings: list[Standing] = []
    order = []
    while (following := choose_next(standings, len(values), rungs)) is not None:
        number, rung = following
        order.append(following)
        assert len(order) < 100
        if number == len(standings):
            standings.append(Standing())
        scores = (*standings[number].scores, (values[number],))
        if (diverge_at or {}).get(number) == rung:
            standings[number] = Standing(scores=scores[:-1], is_over=True, has_failed=True)
        else:
            standings[number] = Standing(scores=scores, is_over=rung == len(rungs) - 1)
    return order


def test_a_third_is_promoted_at_each_rung() -> None:
    order = run_all([0.1, 0.5, 0.2, 0.9, 0.3, 0.4, 0.8, 0.6])
    assert order[:8] == [(number, 0) for number in range(8)]
    assert order[8:] == [(3, 1), (6, 1), (3, 2)]


def test_all_trials_run_to_the_end_without_halving() -> None:
    assert run_all([0.1, 0.5, 0.2], (1.0,)) == [(0, 0), (1, 0), (2, 0)]


def test_one_trial_always_ends() -> None:
    for count in range(1, 40):
        values = [random.Random(count).random() for _ in range(count)]
        order = run_all(values)
        finished = [number for number, rung in order if rung == 2]
        assert finished[0] == max(range(count), key=values.__getitem__)
        assert len(finished) == max(1, max(1, count // 3) // 3)


def test_the_next_best_takes_the_place_of_a_trial_that_diverged() -> None:
    values = [0.1, 0.5, 0.9, 0.4]
    assert run_all(values, diverge_at={2: 0})[4:] == [(1, 1), (1, 2)]
    assert run_all(values, diverge_at={2: 1})[4:] == [(2, 1), (1, 1), (1, 2)]
    assert run_all(values, diverge_at={2: 2, 1: 1})[4:] == [(2, 1), (2, 2), (1, 1), (3, 1), (3, 2)]
    assert run_all(values, diverge_at=dict.fromkeys(range(4), 0)) == [(number, 0) for number in range(4)]


def test_an_early_end_counts_at_the_rungs_after_it() -> None:
    standings = [Standing(scores=((0.9,),), is_over=True), Standing(scores=((0.8,),)), Standing(scores=((0.1,),))]
    assert choose_next(standings, 3, RUNGS) is None
    assert choose_next(standings, 4, RUNGS) == (3, 0)


def test_equal_values_are_compared_by_the_next_score_and_by_the_order() -> None:
    standings = [
        Standing(scores=((0.5, -0.9),)),
        Standing(scores=((0.5, -0.3),)),
        Standing(scores=((0.5, -0.3),)),
        Standing(),
    ]
    assert rank(standings, range(4), 0) == [1, 2, 0, 3]


def test_nan_is_worse_than_any_number() -> None:
    values = [math.nan, 0.5, 0.9, -5.0]
    standings = [Standing(scores=((value, -0.3),)) for value in values]
    assert rank(standings, range(4), 0) == [2, 1, 3, 0]
    standings.append(Standing(scores=((0.7, 0.0),), has_failed=True))
    assert rank(standings, range(5), 0)[-2:] == [0, 4]
    assert run_all([math.nan, 0.5, 0.9])[3:] == [(2, 1), (2, 2)]
