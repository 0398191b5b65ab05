"""A table: columns of equal length, and for each row the file and line it came from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import TextFiles
from hf_finetune.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length, and for each row where it came from."""

    columns: dict[str, list[Any]]
    files: list[str]  # of each row
    lines: list[int]  # of each row, counted from 1; 0 where the whole file is the row
    class_names: tuple[str, ...] | None = None  # of an integer label column of a Hub data set
    word_lines: list[list[int]] | None = None  # of each row's words, where they have lines of their own

    def __len__(self) -> int:
        return len(self.files)

    def where(self, row: int) -> str:
        """`file:line` of a row."""
        return f"{self.files[row]}:{self.lines[row]}" if self.lines[row] else self.files[row]

    def take(self, rows: Sequence[int]) -> "Table":
        """The table of these rows, in this order."""
        return Table(
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
            files=[self.files[row] for row in rows],
            lines=[self.lines[row] for row in rows],
            class_names=self.class_names,
            word_lines=self.word_lines and [self.word_lines[row] for row in rows],
        )


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """What a task needs of its rows, by the names of columns.

    inputs: in every row. labels: in every row that is trained or evaluated on. optional: taken where they are there. texts:
    those of them that must be strings with something in them. text_files: what files that are no tables hold. together: rows
    that are equal in these stay in one split. strata: the column whose values every split gets its share of. in_order: splits
    are taken from the end and not drawn.
    """

    inputs: tuple[str, ...]
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    text_files: TextFiles = ""
    together: tuple[str, ...] = ()
    strata: str | None = None
    in_order: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys((*self.inputs, *self.labels, *self.optional)))


def text_and_label_spec(texts: tuple[str, ...], label: str, *, numbers: bool = False) -> ColumnSpec:
    """The columns of texts with a label, or with a number."""
    return ColumnSpec(inputs=texts, labels=(label,), texts=texts, text_files="classes", together=texts,
                     strata=None if numbers else label)  # fmt: skip


def find_column_setting(column: str, config: DataConfig) -> str:
    """The setting that names a column."""
    choices = "task.choice_columns" if column in config.choice_columns else "data.text_columns"
    return "data.label_column" if column == config.label_column else choices


def has_fractions(values: Iterable[Any]) -> bool:
    """Whether all values are numbers (or strings of such) and some are not whole."""
    some = False
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return False
        try:
            some = not float(value).is_integer() or some  # nan too: encode_labels says where it is
        except (ValueError, OverflowError):
            return False
    return some


def describe_value(value: Any, expected: str = "a string") -> str:
    """Says in an error what is wrong with a value: "null", "empty", or "an int, not a string".

    Args:
        value: the value of a row that cannot be used.
        expected: what it should be, with its article.
    """
    if value is None:
        return "null"
    if isinstance(value, str) and not value.strip():
        return "empty"
    if isinstance(value, (list, tuple, dict)) and not value:
        return "empty"
    name = type(value).__name__
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name}, not {expected}"


def check_texts(table: Table, spec: ColumnSpec) -> None:
    """Raises InputError at the first text that is null, empty or not a string."""
    for name in spec.texts:
        for row, value in enumerate(table.columns[name]):
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{table.where(row)}: {name} is {describe_value(value)}")
