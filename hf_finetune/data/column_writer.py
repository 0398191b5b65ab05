"""Rows to columns, in memory or in an Arrow file that is written as they come. `datasets.Dataset.from_file` opens such a file."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.data.arrow_columns import Column, open_columns
from hf_finetune.system.files import remove_quietly

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_IN_CHUNK = 16_384
CHARACTERS_IN_CHUNK = 8_000_000


class ColumnWriter:
    """Takes rows and makes columns of them, in memory or in a file.

    Args:
        names: The names of the columns.
        path: The file to write; None to keep the columns in memory.
        numbers: Those of the columns that hold whole numbers.
    """

    def __init__(self, names: Sequence[str], path: Path | None = None, numbers: Sequence[str] = ()) -> None:
        self.names, self.path, self.numbers = list(names), path, frozenset(numbers)
        self.values: list[list[Any]] = [[] for _ in self.names]
        self.chunks: list[list[pa.Array]] = [[] for _ in self.names]
        self.is_json: list[list[bool]] = [[] for _ in self.names]
        self.digests = [ValueDigest() for _ in self.names]
        self.sizes: list[int] = []  # rows of the chunks
        self.num_characters = 0
        self.stream: Any = None

    def add_column(self, name: str) -> None:
        """Adds a column, which is null in the rows that were added before."""
        self.names.append(name)
        self.values.append([None] * len(self.values[0]))
        digest = ValueDigest()
        chunks = [make_array([None] * size)[0] for size in self.sizes]
        for chunk in chunks:
            digest.update(chunk, is_json=False)
        self.digests.append(digest)
        self.is_json.append([False] * len(chunks))
        self.chunks.append([] if self.path is not None else chunks)
        if self.stream is not None:
            self.extend_file(name, chunks)

    def extend_file(self, name: str, chunks: "Sequence[pa.Array]") -> None:
        """Writes the file again with one more column. chunks: Its values."""
        import pyarrow as pa

        assert self.path is not None
        self.stream.close()
        before = self.path.with_name(f"{self.path.name}.before")
        self.path.replace(before)
        with pa.OSFile(str(before)) as file, pa.ipc.open_stream(file) as batches:
            schema = batches.schema.append(pa.field(name, pa.string()))
            self.stream = pa.ipc.new_stream(str(self.path), schema)
            for batch, chunk in zip(batches, chunks, strict=True):
                self.stream.write_batch(pa.record_batch([*batch.columns, chunk], schema=schema))
        remove_quietly(before)

    def add(self, row: Sequence[Any]) -> None:
        """Adds a row: a value for each column."""
        for values, value in zip(self.values, row, strict=True):
            values.append(value)
            if type(value) is str:
                self.num_characters += len(value)
        if len(self.values[0]) >= ROWS_IN_CHUNK or self.num_characters >= CHARACTERS_IN_CHUNK:
            self.flush()

    def flush(self) -> None:
        """Turns the rows since the last call into a chunk of each column."""
        import pyarrow as pa

        if not self.values or not self.values[0]:
            return
        arrays = []
        for number, (name, values) in enumerate(zip(self.names, self.values, strict=True)):
            array, is_json = (pa.array(values, pa.int32()), False) if name in self.numbers else make_array(values)
            self.digests[number].update(array, is_json)
            self.is_json[number].append(is_json)
            arrays.append(array)
        self.sizes.append(len(self.values[0]))
        for values in self.values:
            values.clear()
        self.num_characters = 0
        if self.path is None:
            for chunks, array in zip(self.chunks, arrays, strict=True):
                chunks.append(array)
            return
        batch = pa.record_batch(arrays, names=self.names)
        if self.stream is None:
            self.stream = pa.ipc.new_stream(str(self.path), batch.schema)
        self.stream.write_batch(batch)

    def close(self) -> None:
        """Writes what is left, closes the file, and gives back what Arrow keeps of memory that it no longer needs."""
        import pyarrow as pa

        self.flush()
        if self.stream is not None:
            self.stream.close()
        pa.default_memory_pool().release_unused()

    def finish(self) -> dict[str, Column]:
        """Returns the columns by name. Those of a file are opened."""
        self.close()
        if self.path is not None:
            return open_columns(self.path, self.describe())
        parts = zip(self.names, self.chunks, self.is_json, self.digests, strict=True)
        return {name: Column(chunks, is_json, digest.hexdigest()) for name, chunks, is_json, digest in parts}

    def describe(self) -> dict[str, Any]:
        """Returns what open_columns() needs besides the file, as plain values."""
        parts = zip(self.names, self.is_json, self.digests, strict=True)
        return {name: {"is_json": is_json, "digest": digest.hexdigest()} for name, is_json, digest in parts}


def make_column(values: Iterable[Any]) -> Column:
    """Returns a column of values, in memory."""
    writer = ColumnWriter([""])
    for value in values:
        writer.add([value])
    return writer.finish()[""]


class ValueDigest:
    """A sha256 of values and of the chunks that they come in, which are the same for the same rows of the same columns."""

    def __init__(self) -> None:
        self.lengths, self.content = hashlib.sha256(), hashlib.sha256()

    def update(self, array: "pa.Array", is_json: bool) -> None:
        """Adds the values of a new Arrow array."""
        import pyarrow as pa

        self.lengths.update(bytes([is_json]))
        self.lengths.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(array.type):
            offsets = np.frombuffer(array.buffers()[1], dtype=np.int32, count=len(array) + 1)
            self.lengths.update(np.diff(offsets).tobytes())
            self.content.update(memoryview(array.buffers()[2] or b"")[: offsets[-1]])
        else:
            self.content.update(array.to_numpy(zero_copy_only=False).tobytes())

    def hexdigest(self) -> str:
        """Returns the digest, in hexadecimal."""
        return hashlib.sha256(self.lengths.digest() + self.content.digest()).hexdigest()


def make_array(values: Sequence[Any]) -> "tuple[pa.Array, bool]":
    """Returns values as an Arrow array of strings, and whether these are JSON: text and null stay as they are."""
    import pyarrow as pa

    if all(type(value) is str or value is None for value in values):
        try:
            return pa.array(values, pa.string()), False
        except UnicodeEncodeError:  # half a surrogate pair, which only JSON can write
            pass
    return pa.array([json.dumps(value, default=str) for value in values], pa.string()), True
