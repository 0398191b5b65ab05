"""Draws docs/demo.svg from the metrics.jsonl of a run: `python docs/make_picture.py outputs/bbc-news`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 720, 260, 46  # pixels
FONT = 'font-family="sans-serif" font-size="12" fill="#555"'
# Name in metrics.jsonl, colour, and pixels between the dot and its label
DOTS = (("validation/accuracy", "#2a6fb0", 20), ("test/accuracy", "#2d8a4e", 38))


def select_points(rows: Sequence[dict[str, float]], name: str) -> list[tuple[float, float]]:
    """Returns `(update, value)` of each row that has the number `name`."""
    return [(row["update"], row[name]) for row in rows if name in row]


def draw(rows: Sequence[dict[str, float]]) -> str:
    """Returns the SVG: the training loss as a line, validation and test accuracy as dots with their values."""
    loss = select_points(rows, "train/loss")
    last, highest = loss[-1][0], max(value for _, value in loss)

    def scale(update: float, share: float) -> tuple[float, float]:
        """Returns the pixel of an update and of a share of the height."""
        return MARGIN + (WIDTH - 2 * MARGIN) * update / last, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share

    line = " ".join("{:.1f},{:.1f}".format(*scale(update, value / highest)) for update, value in loss)
    (left, bottom), (right, top) = scale(0, 0), scale(last, 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><rect width="100%" height="100%" fill="#fff"/>',
        f'<path d="M{left},{top} V{bottom} H{right}" fill="none" stroke="#999"/>',
        f'<polyline points="{line}" fill="none" stroke="#d1661b" stroke-width="2"/>',
        f'<text x="{left - 6}" y="{top + 4}" text-anchor="end" {FONT}>{highest:.2f}</text>',
        f'<text x="{left - 6}" y="{bottom + 4}" text-anchor="end" {FONT}>0</text>',
        f'<text x="{right}" y="{bottom + 18}" text-anchor="end" {FONT}>update {last:.0f}</text>',
        f'<text x="{left + 8}" y="{top - 14}" {FONT}>training loss (line), accuracy on validation and test (dots)</text>',
    ]
    for name, colour, distance in DOTS:
        for update, value in select_points(rows, name):
            x, y = scale(update, value)
            label = f"{name.split('/')[0]} {value:.1%}"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{x - 8:.1f}" y="{y + distance:.1f}" text-anchor="end" {FONT}>{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Draws the picture of the run whose folder is named."""
    text = (Path(sys.argv[1]) / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    (Path(__file__).parent / "demo.svg").write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
