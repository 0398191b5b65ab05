"""The schedules that train.schedule names, with the options that each takes. training/schedule.py computes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_finetune.config.optimizers import check_options
from hf_finetune.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ScheduleOption:
    """An option of a schedule: its default, what a value must be, in words, and the check of it."""

    default: Any
    must_be: str
    is_right: Callable[[Any], bool]


@dataclass(frozen=True, kw_only=True)
class ScheduleKind:
    """A schedule that train.schedule names.

    Args:
        formula: The factor on the peak learning rate after the warm-up. x, in [0, 1), is the share of the updates after the
            warm-up that are done.
        options: The options that it takes.
    """

    formula: str
    options: Mapping[str, ScheduleOption] = field(default_factory=dict)

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options that are given, and the defaults of the others."""
        return {name: option.default for name, option in self.options.items()} | dict(options)


def is_number(value: Any) -> bool:
    """True for a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def is_count(value: Any) -> bool:
    """True for a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


MIN_RATIO = {
    "min_ratio": ScheduleOption(
        default=0.0, must_be="a number in [0, 1)", is_right=lambda value: is_number(value) and 0 <= value < 1
    )
}
SCHEDULES: Mapping[str, ScheduleKind] = {
    "linear": ScheduleKind(formula="1 - x", options=MIN_RATIO),
    "cosine": ScheduleKind(
        formula="(1 + cos(2 pi num_cycles x)) / 2",
        options={
            "num_cycles": ScheduleOption(
                default=0.5, must_be="a number above 0", is_right=lambda value: is_number(value) and value > 0
            ),
            **MIN_RATIO,
        },
    ),
    "constant": ScheduleKind(formula="1"),
    "cosine_with_restarts": ScheduleKind(
        formula="(1 + cos(pi (num_cycles x mod 1))) / 2",
        options={
            "num_cycles": ScheduleOption(default=1, must_be="a whole number of at least 1", is_right=is_count),
            **MIN_RATIO,
        },
    ),
    "polynomial": ScheduleKind(
        formula="(1 - x)^power",
        options={
            "power": ScheduleOption(
                default=1.0, must_be="a number above 0", is_right=lambda value: is_number(value) and value > 0
            ),
            **MIN_RATIO,
        },
    ),
    "inverse_sqrt": ScheduleKind(
        formula="sqrt(timescale / (timescale + n)) at n updates after the warm-up",
        options={
            "timescale": ScheduleOption(
                default=None,
                must_be="a whole number of at least 1, or null for the number of updates of the warm-up (10,000 without one)",
                is_right=lambda value: value is None or is_count(value),
            )
        },
    ),
    "wsd": ScheduleKind(
        formula="1; in the last decay_fraction of all updates, of which y are done: cosine (1 + cos(pi y)) / 2, linear 1 - y, "
        "or 1-sqrt 1 - sqrt(y)",
        options={
            "decay_fraction": ScheduleOption(
                default=0.1, must_be="a number in (0, 1]", is_right=lambda value: is_number(value) and 0 < value <= 1
            ),
            "decay": ScheduleOption(
                default="cosine",
                must_be="cosine, linear or 1-sqrt",
                is_right=lambda value: value in ("cosine", "linear", "1-sqrt"),
            ),
            **MIN_RATIO,
        },
    ),
}


def check_schedule(name: str, options: Mapping[str, Any], warmup_fraction: float) -> None:
    """Raises InputError if the schedule does not take one of the options, or for a wrong value."""
    kind = SCHEDULES[name]
    check_options("train.schedule_options", name, options, kind.options)
    for option, value in options.items():
        if not kind.options[option].is_right(value):
            raise InputError(f"train.schedule_options.{option} ({value}): must be {kind.options[option].must_be}")
    fraction = kind.complete(options).get("decay_fraction", 0.0)
    if fraction + warmup_fraction > 1:
        raise InputError(
            f"train.schedule_options.decay_fraction ({fraction}): must be at most 1 together with "
            f"train.warmup_fraction ({warmup_fraction})"
        )
