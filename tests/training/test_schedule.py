"""Updates, epochs, when something is due, and the learning rate at each update."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_finetune.config.schedules import SCHEDULES
from hf_finetune.config.sections import RunConfig, TrainConfig
from hf_finetune.training.schedule import Schedule, StreamedSchedule, compute_learning_rate, make_schedule

MakeConfig = Callable[..., RunConfig]


def test_schedule_counts_updates_from_one() -> None:
    schedule = Schedule(updates_per_epoch=4, total_updates=10)
    assert [schedule.epoch(update) for update in (0, 1, 4, 5, 8, 9, 10)] == [1, 1, 1, 2, 2, 3, 3]
    assert [update for update in range(1, 11) if schedule.is_due("epoch", update)] == [4, 8, 10]
    assert [update for update in range(1, 11) if schedule.is_due(3, update)] == [3, 6, 9, 10]
    assert [update for update in range(1, 11) if schedule.is_due("1/3", update)] == [4, 8, 10]
    assert [schedule.find_period(every) for every in ("epoch", 3, "1/3", "1/100")] == [4, 3, 4, 1]


def test_a_share_of_a_streamed_run_is_one_of_its_planned_updates() -> None:
    schedule = StreamedSchedule(planned_updates=9, epochs=1, epoch_ends=[])
    assert [update for update in range(1, 10) if schedule.is_due("1/3", update)] == [3, 6, 9]
    schedule.epoch_ends.append(7)  # the stream ended before
    assert [update for update in range(1, 8) if schedule.is_due("1/3", update)] == [3, 6, 7]
    assert [schedule.find_period(every) for every in ("epoch", 2, "1/3")] == [9, 2, 3]


@pytest.mark.parametrize(("size", "limit", "total"), [(60, None, 16), (64, None, 16), (65, None, 18), (60, 5, 5)])
def test_schedule_covers_every_example(make_config: MakeConfig, size: int, limit: int | None, total: int) -> None:
    assert make_schedule(size, make_config(**{"train.max_updates": limit})).total_updates == total


# --- the learning rate ----------------------------------------------------------------------------------------------

FALLING = ("linear", "cosine", "constant", "polynomial", "inverse_sqrt", "wsd")  # they rise only in the warm-up


def compute_rates(
    total: int, schedule: str, options: Mapping[str, Any] | None = None, warmup: float = 0.0
) -> list[float]:
    """The factor on the peak learning rate at each update."""
    config = TrainConfig(warmup_fraction=warmup, schedule=schedule, schedule_options=options or {})  # type: ignore[arg-type]
    return [compute_learning_rate(update, total, config) for update in range(total)]


@given(total=st.integers(1, 300), warmup=st.floats(0, 0.9), schedule=st.sampled_from(FALLING), seed=st.integers(0, 9))
def test_the_rate_is_a_pure_function_above_zero_that_rises_to_its_peak_and_never_rises_again(
    total: int, warmup: float, schedule: Any, seed: int
) -> None:
    config = TrainConfig(warmup_fraction=warmup, schedule=schedule)
    rates = [compute_learning_rate(update, total, config) for update in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = min(math.ceil(warmup * total), total)
    assert all(earlier < later for earlier, later in pairwise(rates[: peak + 1]))
    assert all(earlier >= later for earlier, later in pairwise(rates[peak:]))
    if peak < total:
        assert rates[peak] == 1.0
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    assert {update: compute_learning_rate(update, total, config) for update in order} == dict(enumerate(rates))


def test_the_warm_up_is_a_line_from_above_zero() -> None:
    config = TrainConfig(warmup_fraction=0.4)
    assert [compute_learning_rate(update, 10, config) for update in range(5)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0]
    )


def test_linear_falls_on_a_line_that_meets_zero_one_update_after_the_last() -> None:
    config = TrainConfig(warmup_fraction=0.0, schedule="linear")
    assert [compute_learning_rate(update, 5, config) for update in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_down_in_the_middle_and_flat_at_both_ends() -> None:
    config = TrainConfig(warmup_fraction=0.0, schedule="cosine")
    rates = [compute_learning_rate(update, 100, config) for update in range(100)]
    assert rates[50] == pytest.approx(0.5)
    assert rates[25] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert rates[0] - rates[1] < 0.001
    assert rates[98] - rates[99] < 0.001


def test_constant_stays_at_its_peak() -> None:
    config = TrainConfig(warmup_fraction=0.1, schedule="constant")
    assert {compute_learning_rate(update, 50, config) for update in range(5, 50)} == {1.0}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_first_rate_of_every_schedule_is_above_zero(schedule: str) -> None:
    for total in (1, 2, 7):
        assert compute_rates(total, schedule)[0] > 0


# Each schedule with its options, and the keywords that transformers' function of the same name takes
SAME_IN_TRANSFORMERS: list[tuple[str, dict[str, Any], str, Callable[[int, int], dict[str, Any]]]] = [
    ("linear", {}, "linear", lambda total, warmup: {}),
    ("cosine", {}, "cosine", lambda total, warmup: {}),
    ("cosine", {"num_cycles": 1.25}, "cosine", lambda total, warmup: {"num_cycles": 1.25}),
    ("cosine", {"min_ratio": 0.1}, "cosine_with_min_lr", lambda total, warmup: {"min_lr_rate": 0.1}),
    ("constant", {}, "constant_with_warmup", lambda total, warmup: {}),
    ("cosine_with_restarts", {"num_cycles": 3}, "cosine_with_restarts", lambda total, warmup: {"num_cycles": 3}),
    ("polynomial", {"power": 2, "min_ratio": 0.2}, "polynomial", lambda total, warmup: {"power": 2, "lr_end": 0.2}),
    ("inverse_sqrt", {}, "inverse_sqrt", lambda total, warmup: {}),
    ("inverse_sqrt", {"timescale": 40}, "inverse_sqrt", lambda total, warmup: {"timescale": 40}),
    *(
        (
            "wsd",
            {"decay_fraction": 0.3, "decay": decay, "min_ratio": 0.05},
            "warmup_stable_decay",
            lambda total, warmup, decay=decay: {  # type: ignore[misc]
                "num_decay_steps": math.ceil(0.3 * total),
                "decay_type": decay,
                "min_lr_ratio": 0.05,
            },
        )
        for decay in ("cosine", "linear", "1-sqrt")
    ),
]


@pytest.mark.parametrize(("total", "fraction"), [(20, 0.0), (20, 0.1), (33, 0.25), (7, 0.5), (100, 0.06)])
@pytest.mark.parametrize(("schedule", "options", "name", "make_keywords"), SAME_IN_TRANSFORMERS)
def test_after_the_warm_up_a_schedule_is_that_of_transformers(
    schedule: str,
    options: dict[str, Any],
    name: str,
    make_keywords: Callable[[int, int], dict[str, Any]],
    total: int,
    fraction: float,
) -> None:
    warmup = math.ceil(fraction * total)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    keywords = make_keywords(total, warmup)
    counts = {"num_warmup_steps": warmup, "num_training_steps": total}
    scheduler = transformers.get_scheduler(name, optimizer, **counts, scheduler_specific_kwargs=keywords)
    for update, ours in enumerate(compute_rates(total, schedule, options, fraction)):
        (theirs,) = scheduler.get_last_lr()
        if update >= warmup:
            assert ours == pytest.approx(theirs, abs=1e-9)
        elif schedule != "wsd":  # theirs starts at 0, and wastes the first update; wsd's at min_ratio
            assert theirs < ours < theirs + 1 / warmup
        optimizer.step()
        scheduler.step()


def test_every_schedule_is_compared_with_transformers() -> None:
    assert {schedule for schedule, *_ in SAME_IN_TRANSFORMERS} == SCHEDULES.keys()


@pytest.mark.parametrize("schedule", [name for name, kind in SCHEDULES.items() if "min_ratio" in kind.options])
def test_no_rate_is_below_min_ratio(schedule: str) -> None:
    rates = compute_rates(400, schedule, {"min_ratio": 0.25})
    assert min(rates) == pytest.approx(0.25, abs=0.03)
    assert min(rates) >= 0.25


def test_wsd_is_stable_and_then_decays() -> None:
    rates = compute_rates(20, "wsd", {"decay_fraction": 0.25, "decay": "linear"}, 0.1)
    assert rates[2:15] == [1.0] * 13
    assert rates[15:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_inverse_sqrt_is_half_after_three_timescales() -> None:
    assert compute_rates(31, "inverse_sqrt", {"timescale": 10})[30] == pytest.approx(0.5)


def test_restarts_are_at_the_peak() -> None:
    rates = compute_rates(30, "cosine_with_restarts", {"num_cycles": 3})
    assert [update for update in range(30) if rates[update] == 1.0] == [0, 10, 20]
