"""Updates, epochs, and when something is due. tests/training/test_optim.py has the learning rates."""

from collections.abc import Callable

import pytest

from hf_finetune.config.sections import RunConfig
from hf_finetune.training.schedule import Schedule, make_schedule

MakeConfig = Callable[..., RunConfig]


def test_schedule_counts_updates_from_one() -> None:
    schedule = Schedule(updates_per_epoch=4, total_updates=10)
    assert [schedule.epoch(update) for update in (0, 1, 4, 5, 8, 9, 10)] == [1, 1, 1, 2, 2, 3, 3]
    assert [update for update in range(1, 11) if schedule.is_due("epoch", update)] == [4, 8, 10]
    assert [update for update in range(1, 11) if schedule.is_due(3, update)] == [3, 6, 9, 10]


@pytest.mark.parametrize(("size", "limit", "total"), [(60, None, 16), (64, None, 16), (65, None, 18), (60, 5, 5)])
def test_schedule_covers_every_example(make_config: MakeConfig, size: int, limit: int | None, total: int) -> None:
    assert make_schedule(size, make_config(**{"train.max_updates": limit})).total_updates == total
