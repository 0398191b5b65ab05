"""Tables of a report: what each row is, with a cell for each run."""

from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "–"  # in a cell that has no value


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: its name and its cells. is_marked: It is what differs, and stands out."""

    name: str
    cells: tuple[str, ...]
    is_marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows, for readers that cannot see it.
        head: The titles of the columns after the first one; () for none.
        rows: The rows.
        has_numbers: Cells are numbers, which end at the same place; else texts, of which equal ones are one cell.
    """

    caption: str
    head: tuple[str, ...]
    rows: Sequence[Row]
    has_numbers: bool = True

    def draw(self) -> list[tuple[Row, list[tuple[str, int]]]]:
        """Returns the rows with their cells as pairs of text and number of columns."""
        drawn = []
        for row in self.rows:
            is_one = not self.has_numbers and len(row.cells) > 1 and len(set(row.cells)) == 1
            cells = [(row.cells[0], len(row.cells))] if is_one else [(cell, 1) for cell in row.cells]
            drawn.append((row, cells))
        return drawn


def format_metric(value: float | None) -> str:
    """Returns a metric with four digits after the point; a dash for none (nan in results.json)."""
    return NOTHING if value is None else f"{value:.4f}"


def format_count(value: float | None) -> str:
    """Returns a count with commas."""
    return NOTHING if value is None else f"{value:,.0f}"


def format_seconds(value: float | None) -> str:
    """Returns seconds with one digit after the point."""
    return NOTHING if value is None else f"{value:,.1f} s"


def format_share(part: float, total: float) -> str:
    """Returns a share as a percentage."""
    return f"{100 * part / total:.1f} %" if total else NOTHING
