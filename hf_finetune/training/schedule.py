"""How many updates a run has, and the learning rate at each. Pure functions of the update."""

import math
from dataclasses import dataclass

from hf_finetune.config.sections import RunConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The length of a run in updates."""

    updates_per_epoch: int
    total_updates: int

    def epoch(self, update: int) -> int:
        """The epoch of an update; both count from 1."""
        return max(1, -(-update // self.updates_per_epoch))

    def is_due(self, every: int | str, update: int) -> bool:
        """True if something that happens `every` epoch, or every that many updates, is due after `update`. It always is after the
        last update."""
        period = self.updates_per_epoch if every == "epoch" else int(every)
        return update % period == 0 or update == self.total_updates


def make_schedule(num_examples: int, config: RunConfig) -> Schedule:
    """The schedule for a number of training features."""
    updates_per_epoch = math.ceil(num_examples / config.train.batch_size)
    total = updates_per_epoch * config.train.epochs
    return Schedule(updates_per_epoch=updates_per_epoch, total_updates=min(total, config.train.max_updates or total))


def compute_learning_rate(update: int, total_updates: int, config: TrainConfig) -> float:
    """The factor in (0, 1] on the peak learning rate at `update`, counted from 0. Law 3: a pure function.

    The warm-up rises linearly and starts above zero; the decay would reach 0 one update after the last.
    """
    warmup = math.ceil(config.warmup_fraction * total_updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = (update - warmup) / max(1, total_updates - warmup)
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
