"""Columns of Arrow arrays, in memory or mapped from a file. N rows of a column."""

import bisect
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.data.mapped_files import MappedFile

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 10_000
ROWS_IN_BLOCK = 500  # that are decoded together when rows are read one after the other


class ColumnFile(NamedTuple):
    """The file of columns. path, description: As open_columns() takes them. mapped: The file, mapped."""

    path: Path
    description: Mapping[str, Any]
    mapped: MappedFile


class Column(Sequence[Any]):
    """N values. column[row] is a plain Python value, column[begin:end] a list of them.

    Text is kept as it is, and any other value as its JSON, so that each value comes back as it was.

    Args:
        chunks: Arrow arrays of strings (or of whole numbers), one after the other.
        is_json: For each chunk, True if its strings are JSON.
        digest: The sha256 of the values of all chunks, in hexadecimal.
        rows: The rows of the chunks that the column has, in its order; None for all.
        file: The file that the chunks are mapped from, if they are.
        name: The name of the column in that file.
    """

    def __init__(
        self,
        chunks: "Sequence[pa.Array]",
        is_json: Sequence[bool],
        digest: str,
        rows: "Array | range | None" = None,
        *,
        file: ColumnFile | None = None,
        name: str = "",
    ) -> None:
        self.chunks, self.is_json, self.base_digest, self.rows = chunks, is_json, digest, rows
        self.file, self.name = file, name
        self.starts = [0]
        for chunk in chunks:
            self.starts.append(self.starts[-1] + len(chunk))
        self.block: list[Any] = []
        self.block_start, self.last_row = 0, -2

    def __len__(self) -> int:
        return self.starts[-1] if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, key: int) -> Any: ...

    @overload
    def __getitem__(self, key: slice) -> list[Any]: ...

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return self.gather(range(*key.indices(len(self))))
        row = range(len(self))[key]  # IndexError if there is no such row
        if 0 <= row - self.block_start < len(self.block):
            return self.block[row - self.block_start]
        is_next, self.last_row = row == self.last_row + 1, row
        if not is_next:
            return self.gather(range(row, row + 1))[0]
        self.block_start, self.block = row, self.gather(range(row, min(row + ROWS_IN_BLOCK, len(self))))
        self.last_row = row + len(self.block) - 1
        return self.block[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield from self[start : start + ROWS_AT_ONCE]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Column, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Column({len(self)} values)"

    def __reduce__(self) -> Any:
        """A mapped column is pickled as the name of its file."""
        if self.file is None:
            return Column, (self.chunks, self.is_json, self.base_digest, self.rows)
        return open_pickled, (self.file.path, self.file.description, self.name, self.rows)

    def take(self, rows: "Sequence[int] | Array") -> "Column":
        """Returns a column of these rows, in this order. The values stay where they are."""
        rows = compose(self.rows, rows, len(self))
        return Column(self.chunks, self.is_json, self.base_digest, rows, file=self.file, name=self.name)

    def digest(self) -> str:
        """Returns the sha256 of the values in their order, in hexadecimal."""
        if self.rows is None:
            return self.base_digest
        rows = np.asarray(self.rows, dtype=np.int64) if len(self.rows) < ROWS_AT_ONCE else self.rows
        digest = hashlib.sha256(self.base_digest.encode())
        for start in range(0, len(rows), ROWS_AT_ONCE):
            digest.update(np.asarray(rows[start : start + ROWS_AT_ONCE], dtype=np.int64).tobytes())
        return digest.hexdigest()

    def gather(self, positions: range) -> list[Any]:
        """Returns the values at positions of the column."""
        values: list[Any] = []
        order: Array | None = None
        rows: Any = positions
        if self.rows is not None:
            rows = self.rows[positions.start : positions.stop : positions.step]
        if not isinstance(rows, range) or rows.step < 0:
            rows = np.asarray(rows)
            if len(rows) > 1 and np.any(rows[1:] < rows[:-1]):
                order = np.argsort(rows, kind="stable")
                rows = rows[order]
        for array, is_json in self.slice_chunks(rows):
            values += decode(array, is_json)
        if order is None:
            return values
        unsorted: list[Any] = [None] * len(values)
        for position, value in zip(order.tolist(), values, strict=True):
            unsorted[position] = value
        return unsorted

    def slice_chunks(self, rows: "range | Array") -> "Iterator[tuple[pa.Array, bool]]":
        """Yields the arrays of rows of the chunks, which ascend, and whether they are JSON."""
        position = 0
        while position < len(rows):
            number = bisect.bisect_right(self.starts, int(rows[position])) - 1
            start, end = self.starts[number], self.starts[number + 1]
            stop = (
                position + int(np.searchsorted(rows[position:], end))
                if not isinstance(rows, range)
                else (min(len(rows), position + -(-(end - rows[position]) // rows.step)))
            )
            part, chunk = rows[position:stop], self.chunks[number]
            if isinstance(part, range) and part.step == 1:
                array = chunk = chunk.slice(int(part[0]) - start, len(part))
            else:
                array = chunk.take(np.asarray(part, dtype=np.int64) - start)
            yield array, self.is_json[number]
            if self.file is not None:
                self.file.mapped.count(chunk.nbytes)  # scattered rows are read with all pages between them
            position = stop


def compose(base: "Array | range | None", rows: "Sequence[int] | Array", count: int) -> "Array | range":
    """Returns rows of rows. base: The rows that there are, `count` of them; None if these are 0, 1, 2, ..."""
    if isinstance(rows, range) and rows.step > 0:
        rows = range(count)[rows.start : rows.stop : rows.step]
        return rows if base is None else base[rows.start : rows.stop : rows.step]
    picked = np.asarray(rows, dtype=np.int32 if count < 2**31 else np.int64)
    if base is None:
        return picked
    return base.start + picked * base.step if isinstance(base, range) else base[picked]


def decode(array: "pa.Array", is_json: bool) -> list[Any]:
    """Returns the values of an Arrow array."""
    values: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
    return [json.loads(value) for value in values] if is_json else values


def open_columns(path: Path, description: Mapping[str, Any]) -> dict[str, Column]:
    """Returns the columns of a file that data.column_writer wrote, mapped.

    Raises OSError or ValueError (pyarrow's errors are such) if it is not such a file. description: is_json and digest of each
    column, by name.
    """
    import pyarrow as pa

    file = ColumnFile(path, description, MappedFile(path))
    batches = list(pa.ipc.open_stream(pa.py_buffer(file.mapped.map)))
    return {
        name: Column([batch.column(name) for batch in batches], entry["is_json"], entry["digest"], file=file, name=name)
        for name, entry in description.items()
    }


def open_pickled(path: Path, description: Mapping[str, Any], name: str, rows: Any) -> Column:
    """Returns a column that another process pickled."""
    column = open_once(path, json.dumps(description))[name]
    return column if rows is None else column.take(rows)


@lru_cache(maxsize=8)
def open_once(path: Path, description: str) -> dict[str, Column]:
    """Returns open_columns(), once for each file. description: As JSON."""
    return open_columns(path, json.loads(description))
