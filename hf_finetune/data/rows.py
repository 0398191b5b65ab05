"""Rows of files: what all readers share."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import FILE_ENDINGS

Rows = Iterator[tuple[int, dict[str, Any]]]  # pairs of a line number, from 1, and a row
Say = Callable[[str], None]  # takes a sentence about what was recognised in a file
NeedsColumn = Callable[[str], bool]  # takes the name of a column


class FileWarning(str):
    """A sentence about a file that is probably not read as it is meant. The report on the data warns with it."""


def prefix_note(note: str, prefix: str) -> str:
    """Returns a note with a prefix; a FileWarning stays one."""
    return type(note)(prefix + note)


def sort_notes(notes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the attributes notes and warnings of a Table, each sentence once."""
    distinct = list(dict.fromkeys(notes))
    return {
        "notes": tuple(note for note in distinct if not isinstance(note, FileWarning)),
        "warnings": tuple(note for note in distinct if isinstance(note, FileWarning)),
    }


class DistinctNotes:
    """Takes sentences about many files, and gives each once: of those that differ in the name of the file and in numbers alone,
    the first one."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.waiting: list[str] = []

    def add(self, note: str) -> None:
        """Takes a sentence that begins with the name of a file, as `a.csv: the delimiter is ;`."""
        key = re.sub(r"(?<![\w-])(?<!column )\d[\d,.]*", "0", note.partition(": ")[2])
        if key not in self.known:
            self.known.add(key)
            self.waiting.append(note)

    def take(self) -> list[str]:
        """Returns the sentences that are new since the last call."""
        taken, self.waiting = self.waiting, []
        return taken


def say_nothing(note: str) -> None:
    """Keeps no note."""


def needs_all(name: str) -> bool:
    """True: each column is needed."""
    return True


def name_type(value: Any) -> str:
    """Returns the type of a value with its article, for error messages: "null", "a list", "an int"."""
    if value is None:
        return "null"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def get_value(row: Mapping[str, Any], column: str) -> Any:
    """Returns the value of a column. "a.b" is the entry b of the object in column a. Raises KeyError if there is none."""
    if column in row or "." not in column:
        return row[column]
    outer, _, inner = column.partition(".")
    if not isinstance(row[outer], Mapping):
        raise KeyError(column)
    return get_value(row[outer], inner)


def find_ending(path: Path) -> str:
    """Returns the ending of a file's name in lower case, without .gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def is_table(path: Path) -> bool:
    """True if the file's ending is that of a table."""
    return find_ending(path) in FILE_ENDINGS
