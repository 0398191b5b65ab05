"""The values of columns, whether these are lists or Arrow arrays: parts, distinct values, hashes of rows."""

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from hf_finetune.data.arrow_columns import ROWS_AT_ONCE, Column, compose
from hf_finetune.data.features import Array

if TYPE_CHECKING:
    import pyarrow as pa

    from hf_finetune.data.table import Table

NOT_DECODED = object()  # stands for a value that is known by its JSON


def iterate(column: Sequence[Any], size: int = ROWS_AT_ONCE) -> Iterator[list[Any]]:
    """Yields the values of a column in lists of at most `size`."""
    for start in range(0, len(column), size):
        yield list(column[start : start + size])


class FileNames(Sequence[str]):
    """The file of each row, of rows that come file by file: a name and the number of its rows.

    Args:
        runs: Pairs of a name and the number of rows that follow each other.
        rows: The rows of these that there are, in their order; None for all.
    """

    def __init__(self, runs: Iterable[tuple[str, int]], rows: "Array | range | None" = None) -> None:
        self.runs, self.rows = tuple(runs), rows
        self.ends = np.cumsum([count for _, count in self.runs])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, key: int) -> str: ...

    @overload
    def __getitem__(self, key: slice) -> list[str]: ...

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return [self[row] for row in range(*key.indices(len(self)))]
        row = range(len(self))[key]
        return self.runs[int(np.searchsorted(self.ends, row if self.rows is None else self.rows[row], side="right"))][0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (FileNames, list)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: "Sequence[int] | Array") -> "FileNames":
        """Returns the files of these rows, in this order."""
        return FileNames(self.runs, compose(self.rows, rows, len(self)))

    def list_runs(self) -> list[tuple[str, int]]:
        """Returns pairs of a name and the number of rows that follow each other."""
        if self.rows is None:
            return list(self.runs)
        numbers = np.searchsorted(self.ends, np.asarray(self.rows), side="right")
        starts: Array = np.flatnonzero(np.diff(numbers, prepend=-1))
        counts = np.diff(starts, append=len(numbers))
        return [(self.runs[numbers[start]][0], int(count)) for start, count in zip(starts, counts, strict=True)]


def has_values(column: Sequence[Any], blank: Container[Any] = (None,)) -> bool:
    """True if a value of a column is none of `blank`. A column that holds nothing at all is not read for it."""
    if isinstance(column, Column) and all(chunk.null_count == len(chunk) for chunk in column.chunks):
        return False
    return any(value not in blank for value in column)


def take(column: Any, rows: Any) -> Any:
    """Returns a column, which may be a list, of these rows."""
    return column.take(rows) if isinstance(column, (Column, FileNames)) else [column[row] for row in rows]


def find_distinct(column: Sequence[Any]) -> tuple[Array, list[Any]]:
    """Returns the number of each row's value among the distinct values, [N] in the smallest unsigned type, and these values in
    the order in which they occur first.

    1, 1.0, true and "1" are different values. Lists and dicts are equal if their JSON is.
    """
    numbers: dict[tuple[type, Any], int] = {}
    values: list[Any] = []

    parts = [np.empty(0, dtype=np.uint8)]
    for keyed, indices in find_keyed_parts(column):
        codes = []
        for key, value in keyed:
            code = numbers.setdefault(key, len(values))
            if code == len(values):
                values.append(json.loads(key[1]) if value is NOT_DECODED else value)
            codes.append(code)
        parts.append(np.array(codes, dtype=np.min_scalar_type(len(values)))[indices])
    return np.concatenate(parts), values


def find_keyed_parts(column: Sequence[Any]) -> Iterator[tuple[list[tuple[tuple[type, Any], Any]], Array]]:
    """Yields what find_distinct_parts() does, with a key before each value: equal for equal values only. A list or dict of a
    column is NOT_DECODED, since its key is its JSON."""
    if not isinstance(column, Column) or not is_ascending(column):
        for part in iterate(column):
            yield (
                [((str, value) if type(value) is str else make_key(value), value) for value in part],
                np.arange(len(part)),
            )
        return
    for array, is_json, indices in encode_parts(column):
        texts: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
        yield [make_json_key(text) if is_json else ((type(text), text), text) for text in texts], indices


def make_key(value: Any) -> tuple[type, Any]:
    """Returns what is equal for equal values only."""
    if isinstance(value, (list, tuple, dict)):
        return list, json.dumps(value, default=str)
    return type(value), value


def make_json_key(text: str) -> tuple[tuple[type, Any], Any]:
    """Returns the key of a value that is given as JSON, and the value, which is NOT_DECODED if it is a list or dict."""
    if text.startswith(("[", "{")):
        return (list, text), NOT_DECODED
    value = json.loads(text)
    return (type(value), value), value


def find_distinct_parts(column: Sequence[Any]) -> Iterator[tuple[list[Any], Array]]:
    """Yields, for each part of a column, values that hold all of the part's, in the order in which they occur first, and for each
    row the index of its value among these."""
    for keyed, indices in find_keyed_parts(column):
        yield [json.loads(key[1]) if value is NOT_DECODED else value for key, value in keyed], indices


def encode_parts(column: Column) -> "Iterator[tuple[pa.Array, bool, Array]]":
    """Yields, for each part of a column whose rows are in ascending order, an array of its distinct strings, whether these are
    JSON, and for each row the index of its string."""
    rows = range(column.starts[-1]) if column.rows is None else column.rows
    for array, is_json in column.slice_chunks(rows):
        encoded = array.dictionary_encode(null_encoding="encode")
        yield encoded.dictionary, is_json, encoded.indices.to_numpy(zero_copy_only=False)


def is_ascending(column: Column) -> bool:
    """True if the rows of a column are in the order in which they lie."""
    rows = column.rows
    if rows is None or (isinstance(rows, range) and rows.step > 0):
        return True
    return not np.any(np.asarray(rows)[1:] < np.asarray(rows)[:-1])


def hash_rows(table: "Table", names: Sequence[str], change: Callable[[str], str] | None = None) -> Array:
    """Returns a hash of each row's values in these columns, [N] uint64, the same on each machine and in each process.

    Rows are equal as in find_distinct(): 1, 1.0, true and "1" differ, lists and dicts are equal if their JSON is. Rows that
    differ have the same hash by chance in fewer than one of 10 million tables of a million rows: compare the values before a
    row is shown or left out. change: Is applied to each text before.
    """
    hashes = np.empty(len(table), dtype=np.uint64)
    position = 0
    for part in iterate_hashes(table, names, change):
        hashes[position : position + len(part)] = part
        position += len(part)
    return hashes


def iterate_hashes(table: "Table", names: Sequence[str], change: Callable[[str], str] | None = None) -> Iterator[Array]:
    """Yields the hashes of hash_rows() in arrays of at most ROWS_AT_ONCE."""
    for parts in zip(*(iterate(table.columns[name]) for name in names), strict=True):
        columns = [[to_bytes(value, change) for value in part] for part in parts]
        keys = columns[0] if len(columns) == 1 else map(b"\xfe".join, zip(*columns, strict=True))
        digests = b"".join([hashlib.blake2b(key, digest_size=8).digest() for key in keys])
        yield np.frombuffer(digests, dtype="<u8")


def to_bytes(value: Any, change: Callable[[str], str] | None = None) -> bytes:
    """Returns bytes that are equal for equal values only. They never contain 0xFE, which UTF-8 does not use."""
    if isinstance(value, str):
        return (value if change is None else change(value)).encode("utf-8", "surrogatepass")
    return b"\xff" + json.dumps(value, default=str).encode()
