"""A table: columns of equal length, and the file and line that each row came from."""

import hashlib
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.arrow_columns import Column
from hf_finetune.data.column_writer import ColumnWriter, make_column
from hf_finetune.data.columns import FileNames, iterate, take
from hf_finetune.data.features import Array
from hf_finetune.data.formats import CLASS_FOLDERS, TextFormat, find_ending, is_table, name_type
from hf_finetune.data.row_adapter import WORD_LINES, RowAdapter
from hf_finetune.system.errors import InputError

MOST_UNREAD = 20  # columns that an error lists


@dataclass(frozen=True, kw_only=True)
class Table:
    """N rows, and where each came from.

    Attributes:
        columns: The values of each column, N each.
        files: The file of each row, or the name of a Hub data set and its split.
        lines: The line of each row in its file, from 1; 0 if the file is one row.
        class_names: The names of the classes, if the label column holds class numbers and the data set names them.
        word_lines: The line of each word of each row, if a file has one word a line.
        is_in_memory: A program gave the rows. `files` then holds their name, such as train, and `lines` their numbers, from 0.
        index: The label of each row in the index of a data frame, if it is not its number.
        notes: Sentences about what was recognised in the files.
        warnings: Sentences about files that are probably not read as they are meant.
        unread: Columns of the rows that the task does not read, for errors about those that it needs.
    """

    columns: Mapping[str, Sequence[Any]]
    files: Sequence[str]
    lines: Sequence[int]
    class_names: tuple[str, ...] | None = None
    word_lines: Sequence[list[int] | None] | None = None
    is_in_memory: bool = False
    index: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def where(self, row: int) -> str:
        """Returns the origin of a row for error messages, `file:line` or `file`; `train[17]` if a program gave it, and
        `train[17] (index a42)` if it is called otherwise in a data frame."""
        if self.is_in_memory:
            label = "" if self.index is None else f" (index {self.index[row]})"
            return f"{self.files[row]}[{self.lines[row]}]{label}"
        return describe_origin(self.files[row], self.lines[row])

    def describe_unread(self) -> str:
        """Returns the end of an error about columns that are missing: those that are not read; "" if all are."""
        return f"; columns that are not read: {', '.join(self.unread)}" if self.unread else ""

    def take(self, rows: "Sequence[int] | Array") -> "Table":
        """Returns a table of these rows, in this order. The values of columns on disk stay there."""
        return replace(
            self,
            columns={name: take(values, rows) for name, values in self.columns.items()},
            files=take(self.files, rows),
            lines=take(self.lines, rows),
            word_lines=None if self.word_lines is None else take(self.word_lines, rows),
            index=None if self.index is None else take(self.index, rows),
        )

    def digest(self, names: Sequence[str]) -> str:
        """Returns the sha256, in hexadecimal, of the values of these columns in the order of the rows."""
        digest = hashlib.sha256()
        for name in names:
            column = self.columns[name]
            digest.update((column if isinstance(column, Column) else make_column(column)).digest().encode())
        return digest.hexdigest()

    def list_files(self) -> list[tuple[str, int]]:
        """Returns pairs of a file and the number of its rows that follow each other."""
        if isinstance(self.files, FileNames):
            return self.files.list_runs()
        return [(name, sum(1 for _ in rows)) for name, rows in groupby(self.files)]

    def with_columns(self, columns: Mapping[str, Sequence[Any]]) -> "Table":
        """Returns a table with other values in the rows, whose origins stay the same."""
        return replace(self, columns=columns)

    def is_tabular(self, row: int) -> bool:
        """True if a row comes from a table, False if it is a line or a sentence of a text file."""
        return self.is_in_memory or is_table(Path(self.files[row]))

    def is_delimited(self, row: int) -> bool:
        """True if a row comes from a csv or tsv file, whose cells are texts: it has neither null nor lists."""
        return not self.is_in_memory and is_delimited(self.files[row])


def is_delimited(file: str) -> bool:
    """True for the name of a csv or tsv file."""
    return find_ending(Path(file)) in (".csv", ".tsv")


def describe_origin(file: str, line: int) -> str:
    """Returns `file:line`; the file alone if it is one row."""
    return f"{file}:{line}" if line else file


class TableBuilder:
    """Takes rows one after the other and makes a table of them, whose columns lie in memory or in a file.

    Args:
        names: The names of the columns. add_columns() adds others when a row has them.
        path: The file; None for memory.
    """

    LINES, WORD_LINES = "#line", "#word_lines"

    def __init__(self, names: Sequence[str], path: Path | None = None) -> None:
        self.names, self.path = list(names), path
        self.writer = ColumnWriter([self.LINES, self.WORD_LINES, *self.names], path, numbers=[self.LINES])
        self.runs: list[tuple[str, int]] = []
        self.file, self.num_rows = "", 0  # of the last run
        self.has_word_lines = False
        self.unread: dict[str, None] = {}

    def add_columns(self, names: Iterable[str]) -> None:
        """Adds those of the columns that the table does not have yet. They are null in the rows before."""
        for name in names:
            if name not in self.names:
                self.names.append(name)
                self.writer.add_column(name)

    def add_unread(self, names: Iterable[str]) -> None:
        """Notes the first columns of the rows that the table does not have."""
        for name in names:
            if len(self.unread) < MOST_UNREAD:
                self.unread[str(name)] = None

    def add(self, values: Sequence[Any], file: str, line: int, word_lines: list[int] | None = None) -> None:
        """Adds a row: a value for each column, its file and line, and the lines of its words if it has one on each."""
        self.writer.add([line, word_lines, *values])
        self.has_word_lines = self.has_word_lines or word_lines is not None
        if file != self.file:
            self.end_run()
            self.file = file
        self.num_rows += 1

    def end_run(self) -> None:
        """Notes the rows of the last file."""
        if self.num_rows:
            self.runs.append((self.file, self.num_rows))
        self.num_rows = 0

    def describe(self) -> dict[str, Any]:
        """Returns what assemble_table() needs besides the columns. Called after the last row."""
        self.end_run()
        self.writer.flush()
        return {
            "names": self.names,
            "files": self.runs,
            "has_word_lines": self.has_word_lines,
            "unread": list(self.unread),
        }

    def finish(self, **attributes: Any) -> Table:
        """Returns the table. attributes: Further ones of Table."""
        return replace(assemble_table(self.writer.finish(), self.describe()), **attributes)


def assemble_table(columns: Mapping[str, Column], description: Mapping[str, Any]) -> Table:
    """Returns the table of columns that a TableBuilder wrote. description: What its describe() returned."""
    return Table(
        columns={name: columns[name] for name in description["names"]},
        files=FileNames((str(name), int(count)) for name, count in description["files"]),
        lines=columns[TableBuilder.LINES],
        word_lines=columns[TableBuilder.WORD_LINES] if description["has_word_lines"] else None,
        unread=tuple(description["unread"]),
    )


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How the task's own columns are made of others.

    Attributes:
        convert: Takes the columns of some rows, and returns those that change, with as many values. No value is checked.
        notes: Sentences about it.
    """

    convert: Callable[[Mapping[str, Sequence[Any]]], Mapping[str, Iterable[Any]]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """The columns that a task reads, and how its rows may be split.

    Attributes:
        inputs: Columns that every row must have.
        labels: Columns that every row must have in training and evaluation.
        optional: Columns that are read if a row has them; None if not.
        texts: Those of the columns that must be strings with some text in them.
        text_files: How the task reads files that are not tables; None if it cannot.
        together: Rows with equal values in these columns stay in one split, so that no test text was trained on.
        strata: The column whose values are spread evenly over the splits.
        in_order: True if splits are taken from the end of the rows instead of drawn at random.
        settings: The setting that names a column, for errors, if it is not data.text_columns or data.label_column.
        kept: Columns that every row must have for another purpose than the task's.
        alternatives: Sets of columns, each of which a row may have instead of the inputs and labels.
        also_read: Columns that the conversion takes, too, if a row has them.
        find_conversion: Returns how the task's own columns are made of those two, by all rows of a table; None if they are not.
        adapter: Makes rows of tables that have other columns, or another form, rows of these columns; None if there is no other.
        join_rows: Returns the examples of a table's rows, if an example may be several of them; None if each row is one.
        join_keys: Yields a key for each row of some tables: join_rows joins those with the same key.
        keep_labelled: Returns the rows that may be learned from and scored, if the settings leave some out by their labels.
            NoExamplesError if they leave out all.
    """

    inputs: tuple[str, ...]
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    text_files: TextFormat | None = None
    together: tuple[str, ...] = ()
    strata: str | None = None
    in_order: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    alternatives: tuple[tuple[str, ...], ...] = ()
    also_read: tuple[str, ...] = ()
    find_conversion: Callable[[Table], Conversion | None] | None = None
    adapter: RowAdapter | None = None
    join_rows: Callable[[Table], Table] | None = None
    join_keys: Callable[[Iterable[Table]], Iterator[Hashable]] | None = None
    keep_labelled: Callable[[Table], Table] | None = None

    @cached_property
    def own_columns(self) -> tuple[str, ...]:
        """The columns of the task's examples, each once."""
        return tuple(dict.fromkeys((*self.inputs, *self.labels, *self.optional, *self.kept)))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once. A table has the task's own ones, and the others as far as its rows have them."""
        others = (name for names in self.alternatives for name in names)
        return tuple(dict.fromkeys((*self.own_columns, *others, *self.also_read)))

    @cached_property
    def outer_columns(self) -> frozenset[str]:
        """The columns of files in which the columns lie: those themselves, and of an entry of an object the column of the
        object."""
        return frozenset(part for name in self.columns for part in (name, name.partition(".")[0]))

    def needs(self, name: str) -> bool:
        """True if a column of a file may be read, from its name."""
        return name in self.outer_columns or (self.adapter is not None and self.adapter.needs(name))

    def list_present(self, names: Container[str]) -> list[str]:
        """Returns the columns to read from rows with these columns."""
        return [name for name in self.columns if name in names or name.partition(".")[0] in names]

    def list_unread(self, names: Iterable[str]) -> list[str]:
        """Returns the columns of rows that are not read."""
        return [name for name in names if name not in self.outer_columns and name not in ("", WORD_LINES)]

    def list_missing(self, present: Container[str], *, needs_labels: bool) -> list[str]:
        """Returns the columns that rows with the columns `present` need and do not have."""
        return [
            name
            for name in dict.fromkeys((*self.inputs, *self.labels, *self.kept))
            if name not in present
            and name.partition(".")[0] not in present
            and self.requires(name, present, needs_labels=needs_labels)
        ]

    def requires(self, column: str, present: Container[str], *, needs_labels: bool = True) -> bool:
        """True if rows that have the columns `present` cannot be read without `column`. needs_labels: Rows need labels."""
        if column in self.kept:
            return True
        if column not in self.inputs and not (needs_labels and column in self.labels):
            return False
        return not any(all(name in present for name in names) for names in self.alternatives)


def text_and_label_spec(texts: tuple[str, ...], label: str, *, numbers: bool = False) -> ColumnSpec:
    """Returns the columns of texts with a label. numbers: the labels are numbers to predict, which are not stratified."""
    return ColumnSpec(
        inputs=texts,
        labels=(label,),
        texts=texts,
        text_files=CLASS_FOLDERS,
        together=texts,
        strata=None if numbers else label,
    )


def find_column_setting(column: str, config: DataConfig, spec: ColumnSpec) -> str:
    """Returns the dotted key of the setting that names a column."""
    if column in config.label_columns:
        return "data.label_column"
    return spec.settings.get(column, "data.text_columns")


def describe_value(value: Any, expected: str = "a string") -> str:
    """Returns what is wrong with a value, for error messages: "null", "empty", or "an int, not a string".

    Args:
        value: The value of a row that cannot be used.
        expected: What the value should be, with an article.
    """
    if value is None:
        return name_type(value)
    if (isinstance(value, str) and not value.strip()) or (isinstance(value, (list, tuple, dict)) and not value):
        return "empty"
    return f"{name_type(value)}, not {expected}"


class NoExamplesError(InputError):
    """None of the rows of a table is an example, because none has a label."""


def pack_table(table: Table) -> Table:
    """Returns a table whose columns are Arrow arrays, which take less memory than lists."""
    columns = {
        name: values if isinstance(values, Column) else make_column(values) for name, values in table.columns.items()
    }
    return table.with_columns(columns)


def check_texts(table: Table, spec: ColumnSpec) -> None:
    """Raises InputError at the first text that is null, empty or not a string."""
    for name in spec.texts:
        row = 0
        for values in iterate(table.columns[name]):
            for value in values:
                if not is_text(value):
                    raise InputError(f"{table.where(row)}: {name} is {describe_value(value)}")
                row += 1


def is_text(value: Any) -> bool:
    """True if a value is a string that is not blank."""
    return isinstance(value, str) and bool(value) and not value.isspace()
