"""The range of a chart's axis, and its ticks at round numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The values from `low` to `high`, and its ticks with their labels."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def get_share(self, value: float) -> float:
        """Returns the place of a value, from 0 at the low end to 1 at the high end."""
        return (value - self.low) / (self.high - self.low)


def make_axis(low: float, high: float, *, num_ticks: int, is_count: bool = False) -> Axis:
    """Returns an axis from about low to high with round ticks. is_count: Ticks are whole numbers, and it ends at the values, not
    at ticks."""
    if low == high:
        pad = abs(low) * 0.1
        low, high = (low, high + 1) if is_count or not pad else (low - pad, high + pad)
    step = (
        max(1, find_step((high - low) / num_ticks, (1, 2, 5, 10))) if is_count else find_step((high - low) / num_ticks)
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if not is_count:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        low, high = first * step, last * step
    ticks = tuple((number * step, format_tick(number * step, step)) for number in range(first, last + 1))
    return Axis(low=low, high=high, ticks=ticks)


def find_step(rough: float, factors: Sequence[float] = (1, 2, 2.5, 5, 10)) -> float:
    """Returns the smallest of the factors times a power of ten that is not below `rough`. factors: From 1 to 10."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in factors if factor * power >= rough * (1 - 1e-9))


def format_tick(value: float, step: float) -> str:
    """Returns a tick's label with as many digits as tell it from its neighbours."""
    if value == 0:
        return "0"
    if step >= 1e6:
        return f"{value / 1e6:g}M"
    if step >= 1:
        return f"{value:,.0f}" if step == int(step) else f"{value:,.1f}"
    if abs(value) < 1e-2 and step < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits + (round(step * 10**digits, 6) != round(step * 10**digits))}f}"
