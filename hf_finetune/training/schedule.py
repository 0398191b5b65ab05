"""How many updates a run has, and the learning rate at each. Pure functions of the update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_finetune.config.schedules import SCHEDULES
from hf_finetune.config.sections import RunConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The length of a run in updates."""

    updates_per_epoch: int
    total_updates: int

    @property
    def planned_updates(self) -> int:
        """The number of updates that the learning rate follows."""
        return self.total_updates

    def epoch(self, update: int) -> int:
        """The epoch of an update; both count from 1."""
        return max(1, -(-update // self.updates_per_epoch))

    def measure_epochs(self, update: int) -> float:
        """The epochs, with a fraction, that have passed after an update."""
        return round(update / self.updates_per_epoch, 4)

    def is_due(self, every: int | str, update: int) -> bool:
        """True if something that happens `every` epoch, or every that many updates, is due after `update`. It always is after the
        last update."""
        return update % self.find_period(every) == 0 or update == self.total_updates

    def find_period(self, every: int | str) -> int:
        """The number of updates between two times of something that happens `every` epoch, every that many updates, or after each
        such share of the run (1/9)."""
        return self.updates_per_epoch if every == "epoch" else find_period(every, self.total_updates)


@dataclass(frozen=True, kw_only=True)
class StreamedSchedule:
    """The length of a run whose training data are a stream: an epoch ends where the stream does, which shows when it is read.

    Attributes:
        planned_updates: train.max_updates. The learning rate follows it.
        epochs: The epochs after which the run ends, even before it has made these updates.
        epoch_ends: The last update of each epoch that has ended, which the stream adds.
    """

    planned_updates: int
    epochs: int
    epoch_ends: list[int]

    @property
    def total_updates(self) -> int:
        """The number of updates, as far as it is known."""
        ends = self.epoch_ends
        return min(self.planned_updates, ends[self.epochs - 1] if len(ends) >= self.epochs else self.planned_updates)

    @property
    def updates_per_epoch(self) -> int:
        """The most updates that an epoch can have."""
        return self.planned_updates

    def epoch(self, update: int) -> int:
        """The epoch of an update; both count from 1."""
        return 1 + sum(end < update for end in self.epoch_ends)

    def measure_epochs(self, update: int) -> int:
        """The epoch of an update: how much of it has passed is unknown until it ends."""
        return self.epoch(update)

    def is_due(self, every: int | str, update: int) -> bool:
        """As Schedule.is_due()."""
        if every == "epoch":
            return update in self.epoch_ends or update == self.total_updates
        return update % find_period(every, self.planned_updates) == 0 or update == self.total_updates

    def find_period(self, every: int | str) -> int:
        """As Schedule.find_period(). Of an epoch it is the most that it can be."""
        return self.updates_per_epoch if every == "epoch" else find_period(every, self.planned_updates)


def find_period(every: int | str, total_updates: int) -> int:
    """The number of updates that `every` stands for: itself, or a share (1/9) of all updates, rounded up."""
    if isinstance(every, str):
        return math.ceil(total_updates / int(every.removeprefix("1/")))
    return every


def make_schedule(num_examples: int, config: RunConfig) -> Schedule:
    """The schedule for a number of training features."""
    updates_per_epoch = math.ceil(num_examples / config.train.batch_size)
    total = updates_per_epoch * config.train.epochs
    return Schedule(updates_per_epoch=updates_per_epoch, total_updates=min(total, config.train.max_updates or total))


def compute_learning_rate(update: int, total_updates: int, config: TrainConfig) -> float:
    """The factor in [0, 1] on the peak learning rate at `update`, counted from 0. Law 3: a pure function.

    The warm-up rises linearly and starts above zero; the decay would reach its end one update after the last. After the warm-up
    a schedule is that of the same name in transformers.get_scheduler, with its min_lr_ratio here called min_ratio.
    """
    warmup = math.ceil(config.warmup_fraction * total_updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    options = SCHEDULES[config.schedule].complete(config.schedule_options)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "inverse_sqrt":
        timescale = options["timescale"] or warmup or 10_000
        return 1.0 / math.sqrt((update - warmup + timescale) / timescale)
    start = warmup
    if config.schedule == "wsd":
        start = max(warmup, total_updates - math.ceil(options["decay_fraction"] * total_updates))
    progress = (update - start) / max(1, total_updates - start)
    if progress < 0:
        return 1.0
    factor = compute_decay(options.get("decay", config.schedule), progress, options)
    return factor * (1.0 - options["min_ratio"]) + options["min_ratio"]


def compute_decay(shape: str, progress: float, options: Mapping[str, Any]) -> float:
    """The factor in [0, 1] of a decay of this shape. progress: the share of its updates that are done, in [0, 1)."""
    if shape == "linear":
        return 1.0 - progress
    if shape == "1-sqrt":
        return 1.0 - math.sqrt(progress)
    if shape == "polynomial":
        return float((1.0 - progress) ** options["power"])
    if shape == "cosine_with_restarts":
        return 0.5 * (1.0 + math.cos(math.pi * (options["num_cycles"] * progress % 1.0)))
    return 0.5 * (1.0 + math.cos(math.pi * options.get("num_cycles", 0.5) * 2.0 * progress))
