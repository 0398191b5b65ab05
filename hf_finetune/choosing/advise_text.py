"""The lines that `hf-finetune advise` prints, and the picture that it writes: the metric against the seconds."""

import math
from collections.abc import Sequence
from html import escape

from hf_finetune.choosing.advise_metric import ExpectedMetric
from hf_finetune.choosing.advise_seconds import ExpectedSeconds
from hf_finetune.system.console import align_columns

WIDTH, HEIGHT = 56, 12  # of the picture in the terminal, in characters

SVG_WIDTH, SVG_HEIGHT, MARGIN = 640, 360, 56  # in pixels


def make_table(metrics: Sequence[ExpectedMetric], seconds: Sequence[ExpectedSeconds], best: int, name: str) -> str:
    """Returns the table, a row for each depth."""
    rows = [("freeze.layers", f"{name}, frozen", f"{name}, trained", "loses at most", "first run", "later runs", "")]
    for metric, time in zip(metrics, seconds, strict=True):
        mark = "<- recommended" if metric.depth == best else ""
        frozen = "-" if math.isnan(metric.frozen) else f"{metric.frozen:.3f}"
        values = (
            frozen,
            f"{metric.trained:.3f}",
            "-" if math.isnan(metric.most_lost) else f"{metric.most_lost:.3f}",
            f"{time.cold:.0f} s",
            f"{time.warm:.0f} s",
        )
        rows.append((str(metric.depth), *values, mark))
    return align_columns(rows)


def find_range(values: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of an axis: the smallest and the largest value, never the same."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def draw_characters(metrics: Sequence[ExpectedMetric], seconds: Sequence[ExpectedSeconds], name: str) -> str:
    """Returns the picture for a terminal: the metric upwards, the seconds of the first run to the right, each point a depth."""
    times, values = [each.cold for each in seconds], [each.trained for each in metrics]
    (left, right), (low, high) = find_range(times), find_range(values)
    canvas = [[" "] * (WIDTH + 2) for _ in range(HEIGHT)]
    for metric, time, value in zip(metrics, times, values, strict=True):
        column = round((time - left) / (right - left) * (WIDTH - 1))
        row = HEIGHT - 1 - round((value - low) / (high - low) * (HEIGHT - 1))
        for offset, character in enumerate(str(metric.depth)):
            canvas[row][column + offset] = character
    labels = {0: f"{high:.3f}", HEIGHT - 1: f"{low:.3f}"}
    lines = [f"  {labels.get(row, ''):>6} |{''.join(cells).rstrip()}" for row, cells in enumerate(canvas)]
    ends = f"{left:.0f} s"
    axis = f"{'':>8} +{'-' * WIDTH}"
    below = f"{'':>10}{ends}{f'{right:.0f} s':>{WIDTH - len(ends)}}"
    title = f"  {name}, trained, and seconds of the first run; each number is a depth"
    return "\n".join((title, *lines, axis, below))


def draw_svg(metrics: Sequence[ExpectedMetric], seconds: Sequence[ExpectedSeconds], best: int, name: str) -> str:
    """Returns the picture as SVG: points of first runs, joined, and those of later runs."""
    times = [time for each in seconds for time in (each.cold, each.warm)]
    values = [each.trained for each in metrics]
    (left, right), (low, high) = find_range([0.0, *times]), find_range(values)

    def place(time: float, value: float) -> tuple[float, float]:
        x = MARGIN + (time - left) / (right - left) * (SVG_WIDTH - 2 * MARGIN)
        return x, SVG_HEIGHT - MARGIN - (value - low) / (high - low) * (SVG_HEIGHT - 2 * MARGIN)

    bottom, end = SVG_HEIGHT - MARGIN + 12, SVG_WIDTH - MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{SVG_WIDTH}" height="{SVG_HEIGHT}" fill="#ffffff"/>',
        f'<path d="M{MARGIN} {MARGIN - 12}V{bottom}H{end + 12}" fill="none" stroke="#555555"/>',
        f'<text x="{MARGIN}" y="24" fill="#222222">{escape(name)} if the blocks above are trained, by freeze.layers</text>',
        f'<text x="{end}" y="{SVG_HEIGHT - 12}" text-anchor="end" fill="#222222">seconds of a run</text>',
    ]
    for value in (low, high):
        parts.append(
            f'<text x="{MARGIN - 6}" y="{place(left, value)[1] + 4:.1f}" text-anchor="end" fill="#555555">{value:.3f}</text>'
        )
    for time in (left, right):
        parts.append(
            f'<text x="{place(time, low)[0]:.1f}" y="{bottom + 17}" text-anchor="middle" fill="#555555">{time:.0f}</text>'
        )
    for kind, color in (("cold", "#1f6f8b"), ("warm", "#d1732c")):
        points = [place(getattr(each, kind), metric.trained) for metric, each in zip(metrics, seconds, strict=True)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        for metric, (x, y) in zip(metrics, points, strict=True):
            radius = 7 if metric.depth == best else 4
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}"/>')
            parts.append(f'<text x="{x + 9:.1f}" y="{y + 16:.1f}" fill="{color}">{metric.depth}</text>')
    for number, (text, color) in enumerate((("first run", "#1f6f8b"), ("later runs", "#d1732c"))):
        parts.append(f'<text x="{end}" y="{bottom - 30 + 18 * number}" text-anchor="end" fill="{color}">{text}</text>')
    return "\n".join((*parts, "</svg>")) + "\n"
