"""Rows that are read part by part, so that an input of any length takes little memory: files, pipes and standard input."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.examples import convert_columns
from hf_finetune.data.formats import LINES, find_ending, get_value
from hf_finetune.data.json_values import describe_json_error, parse_json
from hf_finetune.data.missing_columns import missing_column_error
from hf_finetune.data.row_adapter import NumberedRow
from hf_finetune.data.rows import Say, prefix_note
from hf_finetune.data.sources import find_files, read_files
from hf_finetune.data.table import MOST_UNREAD, ColumnSpec, Table
from hf_finetune.system.errors import InputError

STANDARD_INPUT = "-"

MakeRow = Callable[
    [str, str], Mapping[str, Any]
]  # a text and its origin to a row; InputError if the text cannot be used


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive rows of the input, as they are: their texts are not checked, and none are joined.

    Attributes:
        table: The rows.
        problems: What is wrong with a row that could not be read, by its number in the table.
    """

    table: Table
    problems: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """A row of a file, or what is wrong with it, and where it came from (the fields of Table)."""

    file: str
    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def is_stream(locations: Sequence[str]) -> bool:
    """True if the input can be read only once, as it comes: standard input, or a pipe."""
    location = locations[0] if len(locations) == 1 else ""
    path = Path(location)
    return location == STANDARD_INPUT or (path.exists() and not path.is_file() and not path.is_dir())


def say_note(note: str) -> None:
    """Prints on standard error what was recognised in a file, such as its delimiter."""
    print(note, file=sys.stderr, flush=True)


def read_parts(
    locations: Sequence[str],
    config: DataConfig,
    spec: ColumnSpec,
    sizes: Iterable[int],
    make_row: MakeRow,
    say: Say = say_note,
) -> Iterator[Part]:
    """Yields the rows of files, of a pipe, or of standard input if the location is "-", as they are read.

    Args:
        locations: Files, folders, globs, package://NAME/path; or one pipe, or "-".
        config: The names of the columns, and the encodings of text files.
        spec: The columns to read. Rows may lack labels.
        sizes: The number of rows of each part.
        make_row: Makes the row of a line that is a text and not JSON.
        say: Takes sentences about what was recognised in files.

    InputError if there are no rows in a file, if a file cannot be read, or if the first row lacks a column.
    """
    is_read_once = is_stream(locations)
    files = read_source_files(locations, config, spec, make_row, say)
    rows = read_stream(locations[0], spec, make_row, say) if is_read_once else files
    is_first = True
    for size in sizes:
        chunk = list(islice(rows, size))
        if not chunk:
            return
        yield make_part(chunk, config, spec, is_first=is_first, is_in_memory=is_read_once)
        is_first = False


def make_part(
    rows: Sequence[SourceRow], config: DataConfig, spec: ColumnSpec, *, is_first: bool, is_in_memory: bool
) -> Part:
    """Returns the part of these rows. InputError if the first row of all lacks a column that every row must have."""
    present = set().union(*(row.values for row in rows))
    columns: dict[str, list[Any]] = {name: [] for name in (*spec.own_columns, *spec.list_present(present))}
    table = Table(
        columns=columns,
        files=[row.file for row in rows],
        lines=[row.line for row in rows],
        word_lines=[row.values.get("#lines", []) for row in rows]
        if any("#lines" in row.values for row in rows)
        else None,
        is_in_memory=is_in_memory,
        unread=tuple(spec.list_unread(sorted(present))[:MOST_UNREAD]),
    )
    problems: dict[int, str] = {}
    for number, row in enumerate(rows):
        if row.problem:
            problems[number] = row.problem
        for name, values in columns.items():
            try:
                values.append(get_value(row.values, name))
            except KeyError:
                values.append(None)
                if not row.problem and spec.requires(name, row.values, needs_labels=False):
                    error = missing_column_error(
                        table.where(number), name, row.values, config, spec, needs_labels=False
                    )
                    if is_first and not number:
                        raise error from None
                    problems.setdefault(number, str(error))
    return Part(table=convert_columns(table, spec), problems=problems)


# --- files ----------------------------------------------------------------------------------------------------------


def read_source_files(
    locations: Sequence[str], config: DataConfig, spec: ColumnSpec, make_row: MakeRow, say: Say
) -> Iterator[SourceRow]:
    """Yields the rows of files. A .txt file has a text a line, unless the task reads such files in its own way."""
    for path in find_files(locations, "--data"):
        count = 0
        rows = read_plain(path, config, make_row) if is_plain(path, spec) else read_file(path, config, spec, say)
        for count, row in enumerate(rows, 1):  # noqa: B007
            yield row
        if not count:
            raise InputError(f"{path}: is empty")


def read_file(path: Path, config: DataConfig, spec: ColumnSpec, say: Say) -> Iterator[SourceRow]:
    """Yields the rows of a file or folder that the task reads."""
    for _, rows in read_files([str(path)], config, "--data", spec, needs_labels=False, say=say):
        for line, values in rows:
            yield SourceRow(file=str(values[""] if path.is_dir() else path), line=line, values=values)


def is_plain(path: Path, spec: ColumnSpec) -> bool:
    """True if a file has a text a line, and the task has no way of its own to read it."""
    is_own = spec.text_files is not None and spec.text_files.takes(path)
    return not is_own and path.is_file() and find_ending(path) == ".txt"


def read_plain(path: Path, config: DataConfig, make_row: MakeRow) -> Iterator[SourceRow]:
    """Yields the lines of a text file."""
    for line, values in LINES.read(path, config):
        yield make_source_row(values[config.text_columns[0]], str(path), line, f"{path}:{line}", make_row)


def make_source_row(text: str, file: str, line: int, where: str, make_row: MakeRow) -> SourceRow:
    """Returns the row of a text, or what is wrong with it. where: The origin of the text, for errors."""
    try:
        return SourceRow(file=file, line=line, values=make_row(text, where))
    except InputError as error:
        return SourceRow(file=file, line=line, problem=str(error))


# --- pipes and standard input ---------------------------------------------------------------------------------------


def read_stream(location: str, spec: ColumnSpec, make_row: MakeRow, say: Say) -> Iterator[SourceRow]:
    """Yields the lines of a pipe or of standard input: JSON objects, in every form that the task reads from files, if the first
    line that is not blank is one; else a text each, of which blank ones are problems.

    Says which. Lines count from 0, as in stdin[3]. InputError for a line that is not UTF-8, or not a JSON object among those that
    are.
    """
    name = "stdin" if location == STANDARD_INPUT else location
    shown = "standard input" if location == STANDARD_INPUT else name
    if (ending := find_ending(Path(location))) not in ("", ".", ".jsonl", ".txt"):
        raise InputError(
            f"--data ({location}): is a pipe, which is read as JSON lines or as a text a line, not as {ending}; give a file"
        )
    lines: Iterator[tuple[int, str]] = enumerate(decode_lines(location, name))
    begun: list[tuple[int, str]] = []  # up to the first line that is not blank, which decides
    for entry in lines:
        begun.append(entry)
        if entry[1].strip():
            break
    if not begun:
        return
    is_json, lines = is_object(begun[-1][1]), chain(begun, lines)
    say(f"{shown}: {'JSON lines' if is_json else 'plain lines, a text each'}")
    yield from read_objects(lines, name, spec, say) if is_json else read_texts(lines, name, make_row)


def read_texts(lines: Iterable[tuple[int, str]], name: str, make_row: MakeRow) -> Iterator[SourceRow]:
    """Yields the rows of numbered lines that are a text each."""
    for number, line in lines:
        yield make_source_row(line, name, number, f"{name}[{number}]", make_row)


def read_objects(lines: Iterable[tuple[int, str]], name: str, spec: ColumnSpec, say: Say) -> Iterator[SourceRow]:
    """Yields the rows of numbered lines that are JSON objects or blank, in the task's own columns (ColumnSpec.adapter)."""

    def where(number: int) -> str:
        return f"{name}[{number}]"

    rows: Iterator[NumberedRow] = ((number, read_object(line, where(number))) for number, line in lines if line.strip())
    if spec.adapter is not None:
        rows = spec.adapter.adapt(
            rows, where=where, say=lambda note: say(prefix_note(note, f"{name}: ")), needs_labels=False
        )
    for number, values in rows:
        yield SourceRow(file=name, line=number, values=values)


def decode_lines(location: str, name: str) -> Iterator[str]:
    """Yields the lines of a pipe or of standard input as they come, without their ends."""
    if location == STANDARD_INPUT:
        if sys.stdin is None:
            raise InputError("--data (-): standard input is closed")
        yield from iterate_lines(getattr(sys.stdin, "buffer", sys.stdin), name)
        return
    try:
        with Path(location).open("rb") as file:
            yield from iterate_lines(file, name)
    except OSError as error:
        raise InputError(f"--data ({location}): cannot be read: {error.strerror}") from None


def iterate_lines(lines: Iterable[str | bytes], name: str) -> Iterator[str]:
    """Yields lines as text. InputError, with the number of the line, if one is not UTF-8."""
    for number, line in enumerate(lines):
        try:
            text = line if isinstance(line, str) else line.decode()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise InputError(f"{name}[{number}]: byte 0x{byte:02x} is not utf-8") from None
        yield text.removeprefix("\ufeff" if number == 0 else "").rstrip("\r\n")


def is_object(line: str) -> bool:
    """True if a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_object(line: str, where: str) -> dict[str, Any]:
    """Returns the JSON object of a line. InputError if it is none, or has half a surrogate pair."""
    if not is_object(line):
        raise InputError(f"{where}: is not a JSON object, and the first line is one")
    try:
        row: dict[str, Any] = parse_json(line)
    except ValueError as error:
        raise InputError(f"{where}: broken JSON: {describe_json_error(error)}") from None
    return row
