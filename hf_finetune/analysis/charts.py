"""The geometry of line charts as SVG: lines stretch with the page, and text, dots and ticks stay as large as they are.

Horizontal places are percentages of the plot's width, vertical ones are pixels of its height.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_finetune.system.axes import Axis, make_axis

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
