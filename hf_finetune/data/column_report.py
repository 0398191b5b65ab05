"""The columns of a table: types, missing and distinct values, lengths. For files whose task is not named yet."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.config.sections import FILE_ENDINGS, DataConfig
from hf_finetune.data.columns import find_distinct_parts, hash_rows
from hf_finetune.data.findings import shorten
from hf_finetune.data.formats import is_table, read_rows
from hf_finetune.data.headers import HeaderWarning
from hf_finetune.data.sources import find_files, read_table
from hf_finetune.data.table import ColumnSpec, Table, is_delimited
from hf_finetune.system.errors import InputError

ROWS_FOR_NAMES = 1000  # of each file, in which the columns are looked for
BITS = frozenset({"0", "1", "0.0", "1.0", "false", "true"})
TYPE_NAMES = {str: "text", bool: "true/false", int: "integer", float: "number", list: "list", dict: "object"}


@dataclass(kw_only=True)
class ColumnSummary:
    """What a column holds.

    Attributes:
        name: Its name.
        types: The number of values of each type. Missing values have none.
        missing: The number of values that are null or blank.
        distinct: The number of different values that are not missing.
        total_size: The sum of the sizes of the values: characters of a text, items of a list.
        largest: The largest size, or the largest number.
        smallest: The smallest size, or the smallest number.
        holds_numbers: True if all values are numbers or texts of such.
        holds_bits: True if all values are 0 or 1, or true or false.
        example: The first value that is not missing.
    """

    name: str
    types: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    distinct: int = 0
    total_size: float = 0.0
    largest: float = -math.inf
    smallest: float = math.inf
    holds_numbers: bool = True
    holds_bits: bool = True
    example: Any = None

    def add(self, value: Any, count: int = 1) -> None:
        """Counts a value that occurs in `count` rows."""
        if is_absent(value):
            self.missing += count
            return
        if self.example is None:
            self.example = value
        self.types[TYPE_NAMES.get(type(value), type(value).__name__)] += count
        self.holds_numbers = self.holds_numbers and is_number(value)
        self.holds_bits = self.holds_bits and str(value).lower() in BITS
        size = len(value) if isinstance(value, (str, list, tuple, dict)) else float(value) if is_number(value) else 0.0
        self.total_size += count * size
        self.largest, self.smallest = max(self.largest, size), min(self.smallest, size)

    @property
    def is_text(self) -> bool:
        """True if all values are texts, and not numbers written as text."""
        return list(self.types) == ["text"] and not self.holds_numbers

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as plain values."""
        num_values = sum(self.types.values())
        return {
            "name": self.name,
            "types": dict(self.types),
            "missing": self.missing,
            "distinct": self.distinct,
            "smallest": self.smallest if num_values else None,
            "largest": self.largest if num_values else None,
            "mean": round(self.total_size / num_values, 2) if num_values else None,
            "example": self.example,
        }

    def describe(self) -> tuple[str, ...]:
        """Returns the cells of the column's row in a table: name, types, missing, distinct, sizes, an example."""
        types = " or ".join(self.types) or "empty"
        if self.holds_numbers and list(self.types) == ["text"]:
            types = "number as text"
        unit = {"text": " characters", "list": " items", "object": " entries"}.get(next(iter(self.types), ""), "")
        if self.smallest == self.largest == 1:
            unit = {" entries": " entry"}.get(unit, unit.removesuffix("s"))
        if self.largest == -math.inf:
            sizes = ""
        elif self.smallest == self.largest:
            sizes = f"{self.largest:,g}{unit}"
        else:
            sizes = f"{self.smallest:,g} to {self.largest:,g}{unit}"
        return self.name, types, f"{self.missing:,}", f"{self.distinct:,}", sizes, shorten(str(self.example))


def is_absent(value: Any) -> bool:
    """True for null, a blank text and nan."""
    return value is None or (isinstance(value, str) and not value.strip()) or bool(value != value)


def is_number(value: Any) -> bool:
    """True if a value is a number, or a text that Python reads as one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def read_all_columns(locations: Sequence[str], config: DataConfig, root: Path | None = None) -> Table:
    """Returns the table of files with all columns that their first rows have. InputError if a file is not a table."""
    names: dict[str, None] = {}
    for path in find_files(locations, "data.train"):
        if path.is_dir() or not is_table(path):
            raise InputError(
                f"{path}: is not a table ({', '.join(FILE_ENDINGS)}); if a task reads such files, name it: --task tag for CoNLL"
            )
        for _, row in islice(read_rows(path, config), ROWS_FOR_NAMES):
            names |= dict.fromkeys(row)
    if not names:
        raise InputError(f"{', '.join(locations)}: has no rows")
    spec = ColumnSpec(inputs=(), optional=tuple(names))
    return read_table(locations, config, "data.train", spec, needs_labels=False, root=root)


def lacks_names(locations: Sequence[str], config: DataConfig) -> bool:
    """True if the first line of each csv or tsv file among these files seems to be a row (data.headers), and there is one."""
    found: list[bool] = []
    for path in find_files(locations, "data.train"):
        if is_delimited(str(path)):
            notes: list[str] = []
            next(read_rows(path, config, say=notes.append), None)
            found.append(any(isinstance(note, HeaderWarning) for note in notes))
    return bool(found) and all(found)


def summarize_columns(table: Table) -> list[ColumnSummary]:
    """Returns a summary of each column."""
    summaries = []
    for name, column in table.columns.items():
        summary = ColumnSummary(name=name)
        for distinct, indices in find_distinct_parts(column):
            for value, count in zip(distinct, np.bincount(indices, minlength=len(distinct)).tolist(), strict=True):
                summary.add(value, count)
        hashes = hash_rows(table, [name])[~np.fromiter(map(is_absent, column), dtype=bool, count=len(table))]
        hashes.sort()
        summary.distinct = int(np.count_nonzero(hashes[1:] != hashes[:-1])) + bool(len(hashes))
        summaries.append(summary)
    return summaries


def guess_text_and_labels(summaries: Iterable[ColumnSummary]) -> tuple[str, list[str]] | None:
    """Returns the columns that look like a text and its labels. None if there are none.

    The text is the column with the longest texts. The labels are all columns of 0 and 1 if there are several of these, else the
    column with the fewest different values among those that repeat.
    """
    summaries = [summary for summary in summaries if summary.types]
    texts = [summary for summary in summaries if summary.is_text]
    if not texts:
        return None
    text = max(texts, key=lambda summary: summary.total_size)
    num_rows = sum(text.types.values()) + text.missing
    labels = [
        summary
        for summary in summaries
        if summary is not text and summary.distinct >= 2 and 2 * summary.distinct <= num_rows
    ]
    if not labels:
        return None
    bits = [summary.name for summary in labels if summary.holds_bits]
    return text.name, bits if len(bits) > 1 else [min(labels, key=lambda summary: summary.distinct).name]
