"""Rows of csv and tsv files in which quotes are something else than they are read as, and what can be done about it."""

import contextlib
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.dialects import DOUBLE_QUOTES, PANDAS, Dialect, read_head
from hf_finetune.data.numbers import is_number
from hf_finetune.data.rows import Say
from hf_finetune.data.text_files import TextFile
from hf_finetune.system.errors import InputError

ESCAPED_QUOTE = '\\"'
WITHOUT_BACKSLASHES = PANDAS.format("escapechar='\\\\'")
NO_BACKSLASHES = f'quotes in fields are escaped with a backslash (\\"): double them ("") instead; {WITHOUT_BACKSLASHES}'


class OtherWay(NamedTuple):
    """A way to quote in which files are not read: what an error says of it, what marks it, and its options of csv.reader()."""

    explanation: str
    mark: str
    options: Mapping[str, object]


OTHER_WAYS = (
    OtherWay(
        f"fields seem to be quoted by ', which is read as a character like any other: {DOUBLE_QUOTES}",
        "'",
        {"quotechar": "'", "quoting": csv.QUOTE_MINIMAL},
    ),
    OtherWay(NO_BACKSLASHES, ESCAPED_QUOTE, {"escapechar": "\\"}),
    OtherWay(
        f"a delimiter in a field is escaped with a backslash: put the field in double quotes instead; {WITHOUT_BACKSLASHES}",
        "\\",
        {"escapechar": "\\"},
    ),
)

# --- rows that a quote swallows --------------------------------------------------------------------------------------


def find_values(file: TextFile, dialect: Dialect, width: int) -> list[set[str]]:
    """Returns the values of each column in the first lines of a file that have no quote, without the header."""
    head = read_head(file)
    rows = [line.rstrip("\r\n").split(dialect.delimiter) for line in head.lines[1:] if '"' not in line]
    return [{row[column] for row in rows if len(row) == width} for column in range(width)]


def have_all_fields(lines: Sequence[str], dialect: Dialect, width: int) -> bool:
    """True if each line has as many fields as a row, which are at least two, if quotes are characters like any other."""
    return width > 1 and all(line.count(dialect.delimiter) == width - 1 for line in lines)


def look_like_rows(lines: Sequence[str], dialect: Dialect, values: Sequence[set[str]]) -> bool:
    """True if each of the lines, which have all fields, has in one column a value that is seen there elsewhere.

    values: The values of each column in other rows.
    """
    rows = [line.rstrip("\r\n").split(dialect.delimiter) for line in lines]
    return any(all(fits(row[column], known) for row in rows) for column, known in enumerate(values) if known - {""})


def fits(value: str, known: set[str]) -> bool:
    """True if a value is one of a column's, or is a number as they all are."""
    return value in known or (is_number(value) and all(map(is_number, known)))


@dataclass(kw_only=True)
class LongRows:
    """Rows of several lines that look like rows themselves. count: Their number. first: The lines of the first one."""

    count: int = 0
    first: tuple[int, int] = (0, 0)

    def add(self, path: Path, begin: int, lines: Sequence[str], config: DataConfig) -> None:
        """Counts a row of several lines. begin: The number of the first. InputError if the user has not said that fields are
        quoted."""
        if config.quoting == "auto":
            raise InputError(f"{path}:{begin}: {describe_swallowed(lines)}")
        self.first = self.first if self.count else (begin, begin + len(lines) - 1)
        self.count += 1

    def report(self, path: Path, say: Say) -> None:
        """Says how many there were."""
        if self.count:
            found = "1 row has" if self.count == 1 else f"{self.count:,} rows have"
            begin, end = self.first
            say(
                f"{path.name}: {found} several lines that look like rows themselves, the first one lines {begin} to {end}; set "
                "data.quoting none if a quote there is a character like any other"
            )


# --- errors ---------------------------------------------------------------------------------------------------------


def describe_width(
    fields: Sequence[str], lines: Sequence[str], begin: int, *, width: int, dialect: Dialect, config: DataConfig
) -> str:
    """Returns the end of the error about a row that has not `width` fields.

    Args:
        fields: Its fields.
        lines: Its lines.
        begin: The number of the first one.
        width: The number of fields of the first row.
        dialect: How the file is read.
        config: Its settings.
    """
    first = "header" if config.header else "first row"
    message = f"{len(fields)} fields, but the {first} has {width}"
    if way := find_other_quoting(lines, dialect, width):
        return f"{message}; {way}"
    if len(lines) == 1:
        return message
    return (
        f"{message}; a quote in line {begin} ends here: set data.quoting none if quotes are characters like any other"
    )


def describe_swallowed(lines: Sequence[str]) -> str:
    """Returns the end of the error about a row of these lines, which seem to be several rows."""
    message = f"a quote begins a field of {len(lines)} lines, which look like rows"
    if ESCAPED_QUOTE in "".join(lines):
        return f"{message}; {NO_BACKSLASHES}"
    return f"{message}; set data.quoting none if quotes are characters like any other, or quoted if this is one row"


def describe_broken(error: csv.Error, lines: Sequence[str], begin: int, end: int) -> str:
    """Returns the end of the error about a row that cannot be read. It has these lines so far, from `begin` to `end`."""
    if not any('"' in line for line in lines):
        return str(error)
    reason = str(error)
    if "unexpected end" in reason:
        reason = "a quote begins a field and is never closed"
    elif "expected after" in reason:
        place = "" if begin == end else f" in line {end}"
        reason = f"a field goes past the quote that closes it{place}"
    if ESCAPED_QUOTE in "".join(lines):
        return f"{reason}; {NO_BACKSLASHES}"
    return f"{reason}; set data.quoting none if quotes are characters like any other"


def find_other_quoting(lines: Sequence[str], dialect: Dialect, width: int) -> str:
    """Returns in which other way the lines of a row are quoted, and what to do, if that makes `width` fields of them; else ""."""
    for way in OTHER_WAYS:
        if way.mark in "".join(lines):
            options: dict[str, Any] = {**dialect.options, "quotechar": '"', **way.options}
            with contextlib.suppress(csv.Error):
                if [len(row) for row in csv.reader(lines, strict=True, **options)] == [width]:
                    return way.explanation
    return ""
