"""Draws docs/demo.svg from the metrics.jsonl of a run: `python docs/make_picture.py outputs/bbc-news`."""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 720, 260, 46
FONT = 'font-family="sans-serif" font-size="12" fill="#555"'


def points(rows: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    """`(update, value)` of a logged number."""
    return [(row["update"], row[name]) for row in rows if name in row]


def draw(rows: list[dict[str, float]]) -> str:
    """The training loss as a line, validation and test accuracy as dots with their values."""
    loss = points(rows, "train/loss")
    last, highest = loss[-1][0], max(value for _, value in loss)

    def place(update: float, share: float) -> tuple[float, float]:
        return MARGIN + (WIDTH - 2 * MARGIN) * update / last, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share

    line = " ".join("{:.1f},{:.1f}".format(*place(update, value / highest)) for update, value in loss)
    (left, bottom), (right, top) = place(0, 0), place(last, 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><rect width="100%" height="100%" fill="#fff"/>',
        f'<path d="M{left},{top} V{bottom} H{right}" fill="none" stroke="#999"/>',
        f'<polyline points="{line}" fill="none" stroke="#d1661b" stroke-width="2"/>',
        f'<text x="{left - 6}" y="{top + 4}" text-anchor="end" {FONT}>{highest:.2f}</text>',
        f'<text x="{left - 6}" y="{bottom + 4}" text-anchor="end" {FONT}>0</text>',
        f'<text x="{right}" y="{bottom + 18}" text-anchor="end" {FONT}>update {last:.0f}</text>',
        f'<text x="{left + 8}" y="{top - 14}" {FONT}>training loss (line), accuracy on validation and test (dots)</text>',
    ]
    for name, colour, side in (("validation/accuracy", "#2a6fb0", 20), ("test/accuracy", "#2d8a4e", 38)):
        for update, value in points(rows, name):
            x, y = place(update, value)
            label = f"{name.split('/')[0]} {value:.1%}"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{x - 8:.1f}" y="{y + side:.1f}" text-anchor="end" {FONT}>{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    text = (Path(sys.argv[1]) / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    (Path(__file__).parent / "demo.svg").write_text(draw(rows), encoding="utf-8")
