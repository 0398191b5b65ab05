"""The geometry of line charts as SVG: lines stretch with the page, and text, dots and ticks stay as large as they are.

Horizontal places are percentages of the plot's width, vertical ones are pixels of its height.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

HEIGHT = 200  # pixels of the plot
MARGIN = 8  # pixels free above the highest value and below the lowest
MOST_POINTS = 400  # of one line: neighbours of longer ones are averaged
FEW_POINTS = 40  # each gets a dot

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        label: Its text in the legend.
        color: The number of its colour: that of its run.
        style: main, faint or dashed.
        points: Pairs of update and value.
        best: The update of the best checkpoint, which gets a ring; None for no ring.
    """

    label: str
    color: int
    points: Sequence[Point]
    style: str = "main"
    best: int | None = None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The values from `low` to `high`, and its ticks with their labels."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def get_share(self, value: float) -> float:
        """Returns the place of a value, from 0 at the low end to 1 at the high end."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over updates, ready to be drawn.

    Attributes:
        name: Its id in the page.
        title: What the values are.
        lines: The lines.
        note: A sentence below the title.
    """

    name: str
    title: str
    lines: Sequence[Line]
    note: str = ""
    height: int = HEIGHT

    @property
    def x_axis(self) -> Axis:
        """The updates, from 0."""
        return make_axis(0, max(x for line in self.lines for x, _ in line.points), num_ticks=5, is_count=True)

    @property
    def y_axis(self) -> Axis:
        """The values."""
        values = [y for line in self.lines for _, y in line.points]
        return make_axis(min(values), max(values), num_ticks=5)

    def draw(self) -> dict[str, Any]:
        """Returns what the page's template draws."""
        x_axis, y_axis = self.x_axis, self.y_axis

        def place(x: float, y: float) -> tuple[float, float]:
            inner = self.height - 2 * MARGIN
            return round(100 * x_axis.get_share(x), 3), round(MARGIN + inner * (1 - y_axis.get_share(y)), 2)

        drawn = []
        for line in self.lines:
            points = thin_out(line.points)
            places = [place(x, y) for x, y in points]
            rings = [place(x, y) for x, y in points if x == line.best]
            drawn.append(
                {
                    "label": line.label,
                    "color": line.color,
                    "style": line.style,
                    "path": " ".join(f"{'L' if number else 'M'}{x},{y}" for number, (x, y) in enumerate(places)),
                    "dots": places if line.style == "main" and len(places) <= FEW_POINTS else [],
                    "rings": rings,
                    "points": [[x, float(f"{y:.6g}")] for x, y in points],
                }
            )
        return {
            "name": self.name,
            "title": self.title,
            "note": self.note,
            "height": self.height,
            "lines": drawn,
            "low": x_axis.low,
            "high": x_axis.high,
            "x_ticks": [(round(100 * x_axis.get_share(value), 3), label) for value, label in x_axis.ticks],
            "y_ticks": [(place(x_axis.low, value)[1], label) for value, label in y_axis.ticks],
        }


def thin_out(points: Sequence[Point]) -> list[Point]:
    """Returns at most MOST_POINTS points: means of neighbours, at the last update of each group."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]


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


def merge_equal(lines: Iterable[tuple[str, Sequence[Point]]]) -> list[tuple[list[str], Sequence[Point]]]:
    """Returns lines with equal points once, with all of their names."""
    merged: list[tuple[list[str], Sequence[Point]]] = []
    for name, points in lines:
        for names, known in merged:
            if known == points:
                names.append(name)
                break
        else:
            merged.append(([name], points))
    return merged
