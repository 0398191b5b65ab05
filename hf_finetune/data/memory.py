"""Rows that a program gives: data frames, data sets of the datasets library, lists of dicts, dicts of lists.

They become the same tables as files. Errors call row 17 of the training data `train[17]`; rows count from 0.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.examples import make_examples
from hf_finetune.data.formats import get_value, name_type
from hf_finetune.data.headers import find_repeated_name
from hf_finetune.data.hub_datasets import make_hub_table
from hf_finetune.data.missing_columns import missing_column_error
from hf_finetune.data.plain import check_cell, is_dataset, is_frame, make_plain, name_library
from hf_finetune.data.rows import prefix_note, sort_notes
from hf_finetune.data.table import MOST_UNREAD, ColumnSpec, Table, TableBuilder
from hf_finetune.system.errors import InputError

HEAD_ROWS = 1000  # of a frame, with which the names of its columns are compared
MEMORY = "memory://"  # in a config, stands before the name of rows that were given from Python

KINDS = "a pandas or polars frame, a datasets.Dataset, a list of dicts (rows), or a dict of lists (columns)"


def not_given_error(split: str) -> InputError:
    """Returns the error for a config that names rows of a program which are not there."""
    return InputError(
        f"data.{split} ({MEMORY}{split}): a program or notebook gave these rows; run it again, or name files"
    )


def read_memory(
    value: Any, name: str, config: DataConfig, spec: ColumnSpec, *, needs_labels: bool = True, first: int = 0
) -> Table:
    """Returns the table of rows that a program gave. Texts and labels are as a file would give them: a missing value is null.

    Args:
        value: One of KINDS, or a table that was read before.
        name: What errors call the rows, such as train.
        config: The names of the columns.
        spec: The columns to read.
        needs_labels: False if rows may lack the label columns. Labels are read if there are any.
        first: The number of the first row.

    Raises InputError, with the row, if a row lacks a column, if a text is null, empty or not a string, or if a cell is of a type
    that files do not have, such as a date.
    """
    if isinstance(value, Table):
        return value
    if spec.adapter is not None and has_columns(value) and spec.adapter.adapts(get_first_row(value, name)):
        table = make_row_table(iterate_rows(value, name), name, config, spec, needs_labels=needs_labels, first=first)
        if (index := read_index(value)) is not None:
            table = replace(table, index=[index[number - first] for number in table.lines])
    elif is_dataset(value):
        table = make_dataset_table(value, name, config, spec, needs_labels=needs_labels)
    elif is_frame(value) or isinstance(value, Mapping):
        table = make_column_table(value, name, config, spec, needs_labels=needs_labels)
    else:
        table = make_row_table(value, name, config, spec, needs_labels=needs_labels, first=first)
    return make_examples(table, spec, needs_labels=needs_labels)


# --- columns --------------------------------------------------------------------------------------------------------


def make_column_table(value: Any, name: str, config: DataConfig, spec: ColumnSpec, *, needs_labels: bool) -> Table:
    """Returns the table of a frame, or of a dict of lists."""
    names = name_columns(value, name)
    wanted = {*spec.columns, *(column.partition(".")[0] for column in spec.columns)}
    columns = {column: read_column(value, key, name) for column, key in names.items() if column in wanted}
    count = count_rows(value, columns, name)
    chosen: dict[str, Sequence[Any]] = {}
    for column in spec.columns:
        outer = column.partition(".")[0]
        if column in columns:
            chosen[column] = columns[column]
        elif outer in columns and all(isinstance(cell, Mapping) for cell in columns[outer]):
            cells = [{outer: cell} for cell in columns[outer]]
            inner = ColumnSpec(inputs=(column,))
            chosen[column] = make_row_table(cells, name, config, inner, needs_labels=True).columns[column]
        elif spec.requires(column, names, needs_labels=needs_labels):
            error = missing_column_error(name, column, names, config, spec, needs_labels=needs_labels)
            raise explain_missing(error, column, name, spec)
        elif column in spec.own_columns:
            chosen[column] = [None] * count
    table = make_table(chosen, name, count, index=read_index(value))
    warnings = find_row_as_names(chosen, name) if is_frame(value) else ()
    return replace(table, warnings=warnings, unread=tuple(spec.list_unread(names)[:MOST_UNREAD]))


def find_row_as_names(columns: Mapping[str, Sequence[Any]], name: str) -> tuple[str, ...]:
    """Returns the warning about the columns of a frame whose names seem to be a row; () if they do not."""
    cells = [["" if cell is None else str(cell) for cell in islice(column, HEAD_ROWS)] for column in columns.values()]
    repeated = find_repeated_name(list(columns), list(zip(*cells, strict=True)))
    if repeated is None:
        return ()
    return (
        f"{name}: the names of the frame's columns may be a row of the data: {repeated!r} is a value of its column, too; if they "
        "are, read the file without names, as pandas.read_csv(FILE, header=None) does",
    )


def name_columns(value: Any, name: str) -> dict[str, Any]:
    """Returns the columns of a frame or of a dict by their names as strings. InputError if two have one name."""
    keys = list(value.columns if is_frame(value) else value)
    names = {str(key): key for key in keys}
    if len(names) < len(keys):
        raise InputError(f"{name}: has two columns of one name ({', '.join(map(str, keys))})")
    return names


def read_column(value: Any, key: Any, name: str) -> list[Any]:
    """Returns a column as plain Python values. InputError if it is not a list of values."""
    column: Any = value[key]
    if isinstance(column, (str, bytes, Mapping, set)) or is_frame(column) or not isinstance(column, Iterable):
        hint = "give [row] for a single row" if isinstance(column, str) else f"give {KINDS}"
        raise InputError(f"{name}: the column {key} is {name_type(column)}, not a list; {hint}")
    if name_library(column) in ("pandas", "polars"):
        cells: Any = column
        column = cells.tolist() if name_library(cells) == "pandas" else cells.to_list()
    return [make_plain(cell) for cell in column]


def count_rows(value: Any, columns: Mapping[str, Sequence[Any]], name: str) -> int:
    """Returns the number of rows. InputError if there are none, or if lists have different lengths."""
    if is_frame(value):
        count = len(value)
    else:
        lengths = {column: len(cells) for column, cells in columns.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{column} {length}" for column, length in lengths.items())
            raise InputError(f"{name}: the columns have different lengths ({shown})")
        count = next(iter(lengths.values()), 1 if value else 0)
    if not count:
        raise InputError(f"{name}: has no rows")
    return count


def read_index(value: Any) -> list[str] | None:
    """Returns the index of a pandas frame, which errors show next to the number of a row; None if it is 0, 1, 2, ..."""
    if name_library(value) != "pandas":
        return None
    index = value.index.tolist()
    return None if index == list(range(len(index))) else [str(label) for label in index]


# --- rows -----------------------------------------------------------------------------------------------------------


def make_row_table(
    rows: Any, name: str, config: DataConfig, spec: ColumnSpec, *, needs_labels: bool, first: int = 0
) -> Table:
    """Returns the table of rows that are dicts. InputError if they are anything else. first: The number of the first row."""
    if isinstance(rows, (str, bytes, set, frozenset)) or not isinstance(rows, Iterable):
        raise InputError(f"{name}: is {name_type(rows)}; give {KINDS}")
    notes: list[str] = []
    builder, number = TableBuilder(spec.own_columns), first - 1
    keys: tuple[str, ...] = ()
    numbered = number_rows(rows, name, first)
    if spec.adapter is not None:
        numbered = spec.adapter.adapt(
            make_plain_rows(numbered),
            where=lambda number: f"{name}[{number}]",
            say=lambda note: notes.append(prefix_note(note, f"{name}: ")),
            needs_labels=needs_labels,
        )
    for number, row in numbered:
        where, values = f"{name}[{number}]", []
        if keys != tuple(row):
            keys = tuple(row)
            builder.add_columns(spec.list_present(row))
            builder.add_unread(spec.list_unread(row))
        for column in builder.names:
            try:
                values.append(check_cell(make_plain(get_value(row, column)), where, column))
            except KeyError:
                if spec.requires(column, row, needs_labels=needs_labels):
                    error = missing_column_error(where, column, row, config, spec, needs_labels=needs_labels)
                    raise explain_missing(error, column, name, spec) from None
                values.append(None)
        builder.add(values, name, number)
    if number < first:
        raise InputError(f"{name}: has no rows")
    return builder.finish(is_in_memory=True, **sort_notes(notes))


def number_rows(rows: Iterable[Any], name: str, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields rows with their numbers. InputError if one is anything else than a dict."""
    for number, row in enumerate(rows, first):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}[{number}]: is {name_type(row)}, not a dict; give {KINDS}")
        yield number, row  # type: ignore[misc]


def make_plain_rows(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields rows whose cells are plain Python values."""
    for number, row in rows:
        yield number, {str(column): make_plain(cell) for column, cell in row.items()}


def has_columns(value: Any) -> bool:
    """True for a frame, a dict of lists, and a data set whose classes have no names (which its rows would lose), with rows."""
    if is_dataset(value):
        features = [getattr(feature, "feature", feature) for feature in value.features.values()]
        return len(value) > 0 and not any(hasattr(feature, "names") for feature in features)
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(column, (list, tuple)) and column for column in value.values())
    return is_frame(value) and len(value) > 0


def get_first_row(value: Any, name: str) -> dict[str, Any]:
    """Returns the first row of something with columns."""
    if is_frame(value):
        value = value.head(1)
    return next(
        iter(iterate_rows({key: value[key][:1] for key in value} if isinstance(value, Mapping) else value, name))
    )


def iterate_rows(value: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of something with columns. InputError if lists have different lengths."""
    if is_dataset(value):
        yield from value
        return
    columns = {column: read_column(value, key, name) for column, key in name_columns(value, name).items()}
    count_rows(value, columns, name)
    for cells in zip(*columns.values(), strict=True):
        yield dict(zip(columns, cells, strict=True))


def make_dataset_table(rows: Any, name: str, config: DataConfig, spec: ColumnSpec, *, needs_labels: bool) -> Table:
    """Returns the table of a datasets.Dataset. Class numbers keep the names that its features give them."""
    if not hasattr(rows, "__len__"):
        raise InputError(f"{name}: is {name_type(rows)}; load it without streaming, or give list(rows)")
    if not len(rows):
        raise InputError(f"{name}: has no rows")
    if not needs_labels:
        spec = replace(spec, labels=(), optional=(*spec.labels, *spec.optional))
    return replace(make_hub_table(rows, name, config, spec, first=0), is_in_memory=True)


def make_table(columns: Mapping[str, Sequence[Any]], name: str, count: int, *, index: list[str] | None) -> Table:
    """Returns the table of columns. index: the labels of a frame's index, if they are not 0, 1, 2, ..."""
    builder = TableBuilder(tuple(columns))
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        label = "" if index is None else f" (index {index[number]})"
        where = f"{name}[{number}]{label}"
        builder.add(
            [check_cell(value, where, column) for column, value in zip(columns, values, strict=True)], name, number
        )
    if not columns:
        raise InputError(f"{name}: has no columns to read")
    return builder.finish(is_in_memory=True, index=index)


def explain_missing(error: InputError, column: str, name: str, spec: ColumnSpec) -> InputError:
    """Returns the error for a missing column; for the labels of validation or test data with what such rows are good for."""
    if column in spec.labels and name in ("validation", "test"):
        return InputError(f"{error}; rows without labels can be predicted after training, but not evaluated")
    return error
