"""Rows that a program gives: data frames, data sets of the datasets library, lists of dicts, dicts of lists.

They become the same tables as files. Errors call row 17 of the training data `train[17]`; rows count from 0.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import get_value, name_type
from hf_finetune.data.sources import make_hub_table, missing_column_error
from hf_finetune.data.table import ColumnSpec, Table, check_texts
from hf_finetune.system.errors import InputError

MEMORY = "memory://"  # in a config, stands before the name of rows that were given from Python

KINDS = (
    "a pandas or polars frame, a datasets.Dataset, a list of dicts (rows), a dict of lists (columns), or paths of files"
)


def is_frame(value: Any) -> bool:
    """True if the value is a data frame of pandas or polars. Imports neither."""
    return name_library(value) in ("pandas", "polars") and hasattr(value, "columns")


def is_dataset(value: Any) -> bool:
    """True if the value is a datasets.Dataset. Does not import the library."""
    return name_library(value) == "datasets" and hasattr(value, "column_names") and hasattr(value, "features")


def name_library(value: Any) -> str:
    """Returns the name of the package that the value's type comes from."""
    return type(value).__module__.partition(".")[0]


def read_memory(value: Any, name: str, config: DataConfig, spec: ColumnSpec, *, needs_labels: bool = True) -> Table:
    """Returns the table of rows that a program gave. Texts and labels are as a file would give them: a missing value is null.

    Args:
        value: One of KINDS, without the paths.
        name: What errors call the rows, such as train.
        config: The names of the columns.
        spec: The columns to read.
        needs_labels: False if rows may lack the label columns. Labels are read if there are any.

    Raises InputError, with the row, if a row lacks a column, or if a text is null, empty or not a string.
    """
    if is_dataset(value):
        table = make_dataset_table(value, name, config, spec, needs_labels=needs_labels)
    elif is_frame(value) or isinstance(value, Mapping):
        table = make_column_table(read_columns(value, name), name, config, spec, needs_labels=needs_labels)
    else:
        table = make_row_table(value, name, config, spec, needs_labels=needs_labels)
    check_texts(table, spec)
    return table


def read_columns(value: Any, name: str) -> dict[str, list[Any]]:
    """Returns the columns of a frame, or of a dict of lists, as plain Python values. InputError if their lengths differ."""
    if is_frame(value):
        read = "tolist" if name_library(value) == "pandas" else "to_list"
        if len(set(value.columns)) < len(value.columns):
            raise InputError(f"{name}: the frame has two columns of one name ({', '.join(map(str, value.columns))})")
        return {str(column): make_plain(getattr(value[column], read)()) for column in value.columns}
    columns: dict[str, list[Any]] = {}
    for column, values in value.items():
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise InputError(f"{name}: the column {column} is {name_type(values)}, not a list; give {KINDS}")
        columns[str(column)] = make_plain(list(values))
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{column} {length}" for column, length in lengths.items())
        raise InputError(f"{name}: the columns have different lengths ({shown})")
    return columns


def make_plain(value: Any) -> Any:
    """Returns a cell, or nested lists of cells, as plain Python values: nan, NA and NaT as None, numpy's numbers and arrays as
    Python's."""
    if isinstance(value, (str, bytes, bool, int, type(None))):
        return value
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, Mapping):
        return {key: make_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [make_plain(item) for item in value]
    if name_library(value) == "numpy" and hasattr(value, "tolist"):
        return make_plain(value.tolist())
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return None
    return value


def make_column_table(
    columns: Mapping[str, list[Any]], name: str, config: DataConfig, spec: ColumnSpec, *, needs_labels: bool
) -> Table:
    """Returns the table of columns by their names."""
    count = len(next(iter(columns.values()), ()))
    if not count:
        raise InputError(f"{name}: has no rows")
    required = {*spec.inputs, *(spec.labels if needs_labels else ())}
    chosen: dict[str, list[Any]] = {}
    for column in spec.columns:
        outer = column.partition(".")[0]
        if column in columns:
            chosen[column] = columns[column]
        elif outer in columns and all(isinstance(value, Mapping) for value in columns[outer]):
            values = [{outer: value} for value in columns[outer]]
            chosen[column] = make_row_table(values, name, config, one_column(column), needs_labels=True).columns[column]
        elif column in required:
            raise missing_column_error(name, column, columns, config, spec)
        else:
            chosen[column] = [None] * count
    return make_table(chosen, name, count)


def one_column(column: str) -> ColumnSpec:
    """Returns the spec of a single column that must be there."""
    return ColumnSpec(inputs=(column,))


def make_row_table(rows: Any, name: str, config: DataConfig, spec: ColumnSpec, *, needs_labels: bool) -> Table:
    """Returns the table of rows that are dicts. InputError if they are anything else."""
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise InputError(f"{name}: is {name_type(rows)}; give {KINDS}")
    columns: dict[str, list[Any]] = {column: [] for column in spec.columns}
    required = {*spec.inputs, *(spec.labels if needs_labels else ())}
    count = 0
    for count, row in enumerate(rows, 1):
        where = f"{name}[{count - 1}]"
        if not isinstance(row, Mapping):
            raise InputError(f"{where}: is {name_type(row)}, not a dict; give {KINDS}")
        for column, values in columns.items():
            try:
                values.append(make_plain(get_value(row, column)))
            except KeyError:
                if column in required:
                    raise missing_column_error(where, column, row, config, spec) from None
                values.append(None)
    if not count:
        raise InputError(f"{name}: has no rows")
    return make_table(columns, name, count)


def make_dataset_table(rows: Any, name: str, config: DataConfig, spec: ColumnSpec, *, needs_labels: bool) -> Table:
    """Returns the table of a datasets.Dataset. Class numbers keep the names that its features give them."""
    if not len(rows):
        raise InputError(f"{name}: has no rows")
    if not needs_labels:
        spec = ColumnSpec(inputs=spec.inputs, optional=(*spec.labels, *spec.optional), settings=spec.settings)
    table = make_hub_table(rows, name, config, spec)
    columns = {column: make_plain(values) for column, values in table.columns.items()}
    return make_table(columns, name, len(rows), table.class_names)


def make_table(
    columns: dict[str, list[Any]], name: str, count: int, class_names: tuple[str, ...] | None = None
) -> Table:
    """Returns the table of columns with `count` values each."""
    return Table(
        columns=columns, files=[name] * count, lines=list(range(count)), class_names=class_names, is_in_memory=True
    )
