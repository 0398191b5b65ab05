"""The rows of parquet, Arrow and Feather files, with Python's plain values."""

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_finetune.data.plain import make_plain
from hf_finetune.data.rows import Rows
from hf_finetune.system.errors import InputError, first_line

ROWS_AT_ONCE = 8192


def read_arrow(path: Path) -> Rows:
    """Yields the rows of a parquet, Arrow or Feather file, with the number of the row, from 1.

    Bytes are read as UTF-8 text, decimals as whole numbers or floats, dates and times as text in ISO 8601.

    Raises InputError if the file is damaged, two columns have one name, or a value cannot be read.
    """
    import pyarrow

    number = 0
    kind = "parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    try:
        with open_batches(path) as batches:
            for batch in batches:
                names = list(batch.schema.names)
                check_names(path, names)
                converters = [find_converter(field.type) for field in batch.schema]
                columns = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield (
                        number,
                        {
                            name: value if convert is None else convert(value)
                            for name, value, convert in zip(names, values, converters, strict=True)
                        },
                    )
    except UnicodeDecodeError:
        raise InputError(f"{path}:{number}: bytes that are not UTF-8 text") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not an intact {kind} file: {first_line(error)}") from None
    except (ValueError, OverflowError, KeyError) as error:  # dates that Python does not have, unknown time zones
        raise InputError(f"{path}: holds a value that cannot be read: {error}") from None


@contextmanager
def open_batches(path: Path) -> Iterator[Iterator[Any]]:
    """Opens a file and gives its record batches."""
    import pyarrow.ipc
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file.iter_batches(batch_size=ROWS_AT_ONCE)
        return
    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:  # a stream, as the datasets library writes
            source.seek(0)
            batches = iter(pyarrow.ipc.open_stream(source))
        yield (part for batch in batches for part in cut(batch))


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

    Raises UnicodeDecodeError if bytes are not UTF-8.
    """
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {key: read_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [read_value(item) for item in value]
    return value if isinstance(value, float) else make_plain(value)
