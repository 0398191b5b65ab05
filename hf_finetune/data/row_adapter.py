"""Rows that a task reads in more than one form: they get the task's own columns while they are read."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

NumberedRow = tuple[int, dict[str, Any]]  # a row with its line, or its number
Where = Callable[[int], str]  # the origin of the row with a number, for errors
Say = Callable[[str], None]  # takes a sentence about what was recognised

WORD_LINES = "#lines"  # the key of a row with a list of the lines of its words


class RowAdapter(Protocol):
    """Makes rows of a task's own columns. Its repr() has all that they depend on: rows on disk are found by it."""

    def needs(self, name: str) -> bool:
        """True if a column with this name may be read, besides the task's own ones."""
        ...

    def adapts(self, row: Mapping[str, Any]) -> bool:
        """True if rows like this one have another form than the task's own."""
        ...

    def adapt(
        self, rows: Iterator[NumberedRow], *, where: Where, say: Say, needs_labels: bool
    ) -> Iterator[NumberedRow]:
        """Yields the rows of a file in the task's own columns. Several rows may become one, which has the number of the first.

        InputError with the row's origin if one cannot be used. needs_labels: False if labels are not used.
        """
        ...
