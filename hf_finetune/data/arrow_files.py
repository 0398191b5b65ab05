"""The rows of parquet, Arrow and Feather files, with Python's plain values."""

import datetime
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_finetune.data.plain import make_plain
from hf_finetune.data.rows import NeedsColumn, Rows, needs_all
from hf_finetune.system.errors import InputError, first_line

ROWS_AT_ONCE = 8192
UNREADABLE = (ValueError, OverflowError, KeyError)  # raised by values that Python does not have


def read_arrow(path: Path, needs: NeedsColumn = needs_all) -> Rows:
    """Yields the rows of a parquet, Arrow or Feather file, with the number of the row, from 1.

    Bytes that are UTF-8 are read as text; others (pictures, say) stay bytes. Decimals are read as whole numbers or floats, dates
    and times as text in ISO 8601.

    Raises InputError if the file is damaged, two columns have one name, or a value cannot be read.

    needs: Whether the column with a name is needed. Others may be null in all rows, since they may be large.
    """
    import pyarrow

    number = 0
    try:
        with open_schema(path) as schema:
            names = list(schema.names)
            check_names(path, names)
            used = {field.name for field in schema if needs(field.name) or may_hold_a_column(field.type)}
        with open_batches(path, used) as batches:
            for batch in batches:
                nulls = [None] * batch.num_rows
                columns = [
                    read_column(path, name, batch.column(name), number) if name in used else nulls for name in names
                ]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(names, values, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        raise not_intact_error(path, error) from None


def read_class_names(path: Path, column: str) -> tuple[str, ...] | None:
    """Returns the names of the classes whose numbers a column holds, itself or in lists, as the datasets library writes them into
    the file; None if the file has none.

    column: Its name; a dotted one for an entry of objects.

    Raises InputError if the file is damaged.
    """
    import pyarrow

    try:
        with open_schema(path) as schema:
            written = (schema.metadata or {}).get(b"huggingface")
    except (pyarrow.ArrowException, OSError) as error:
        raise not_intact_error(path, error) from None
    try:
        feature = json.loads(written or b"{}")["info"]["features"]
        for name in [column] if column in feature else column.split("."):
            feature = feature[name]
        while "names" not in feature:  # of a list
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def not_intact_error(path: Path, error: Exception) -> InputError:
    """Returns the error for a damaged file."""
    kind = "parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    return InputError(f"{path}: not an intact {kind} file: {first_line(error)}")


def read_column(path: Path, name: str, column: Any, num_rows_before: int) -> list[Any]:
    """Returns the values of an Arrow array.

    Raises InputError if a value cannot be read, with its row: strings that are not UTF-8, dates that Python does not have,
    unknown time zones.
    """
    import pyarrow

    convert = find_converter(column.type)
    try:
        values = column.to_pylist()
        return values if convert is None else [convert(value) for value in values]
    except pyarrow.ArrowException:
        raise
    except UNREADABLE:
        for number, value in enumerate(column, start=num_rows_before + 1):
            try:
                plain = value.as_py()
                if convert is not None:
                    convert(plain)
            except UNREADABLE as error:
                raise InputError(f"{path}:{number}: {name!r} holds a value that cannot be read: {error}") from None
        raise


def may_hold_a_column(kind: Any) -> bool:
    """True for the type of objects without bytes: an error about a missing column shows an entry of theirs with its name."""
    from pyarrow import types

    parts = [kind.field(number).type for number in range(kind.num_fields)] if types.is_struct(kind) else []
    return bool(parts) and not any(types.is_binary(part) or types.is_large_binary(part) for part in parts)


@contextmanager
def open_batches(path: Path, used: Collection[str]) -> Iterator[Iterator[Any]]:
    """Opens a file and gives its record batches. Those of parquet files have only the columns that are used."""
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            # A name with a dot would be taken for an entry of an object. A thread would keep memory when it ends
            columns = sorted(used) if used and not any("." in name for name in file.schema_arrow.names) else None
            yield (
                batch
                for groups in join_row_groups(file.metadata)
                for batch in file.iter_batches(ROWS_AT_ONCE, groups, columns, use_threads=False)
            )
        return
    with open_arrow(path) as reader:
        is_stream = not hasattr(reader, "get_batch")
        batches = iter(reader) if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        yield (part for batch in batches for part in cut(batch))


def join_row_groups(metadata: Any) -> Iterator[list[int]]:
    """Yields the numbers of consecutive row groups of a parquet file that are read at once: one reader of all of them would keep
    memory for each, one for each small group would take time."""
    groups: list[int] = []
    count = 0
    for number in range(metadata.num_row_groups):
        groups.append(number)
        count += metadata.row_group(number).num_rows
        if count >= ROWS_AT_ONCE:
            yield groups
            groups, count = [], 0
    if groups:
        yield groups


@contextmanager
def open_schema(path: Path) -> Iterator[Any]:
    """Opens a file and gives its schema."""
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        yield pyarrow.parquet.read_schema(path)
        return
    with open_arrow(path) as reader:
        yield reader.schema


@contextmanager
def open_arrow(path: Path) -> Iterator[Any]:
    """Opens an Arrow or Feather file and gives its reader: a RecordBatchFileReader, or a RecordBatchStreamReader if it is a
    stream, as the datasets library writes."""
    import pyarrow.ipc

    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            reader = pyarrow.ipc.open_stream(source)
        yield reader


def cut(batch: Any) -> Iterator[Any]:
    """Yields the parts of a record batch that are made Python values at once."""
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        yield batch.slice(start, ROWS_AT_ONCE)


def check_names(path: Path, names: list[str]) -> None:
    """Raises InputError if two columns have one name."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: {names.count(name)} columns are called {name!r}")


def find_converter(kind: Any) -> Callable[[Any], Any] | None:
    """Returns the function that makes values of an Arrow type plain; None if they are."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return find_converter(kind.value_type)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind):
        return None
    return None if types.is_string(kind) or types.is_large_string(kind) else read_value


def read_value(value: Any) -> Any:
    """Returns a value as files of text have it: a string, number, true, false, null, or a list or dict of such.

    Bytes that are not UTF-8 stay as they are.
    """
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {key: read_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [read_value(item) for item in value]
    return value if isinstance(value, float) else make_plain(value)
