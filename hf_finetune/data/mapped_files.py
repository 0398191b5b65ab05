"""Files that are mapped into memory, and arrays in them, whose pages are given back to the operating system.

A page that was read through a map counts as memory of the process until it is given back, and Linux maps up to 2 MB around a
place that is read. A pass over a file, or some batches of random rows, would hold all of it.
"""

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.data.features import Array

BYTES_BEFORE_RELEASE = 4_000_000
BYTES_OF_BLOCK = 256  # read together for scattered items; neighbouring blocks are one read


class MappedFile:
    """A file, mapped to be read. OSError if it cannot be opened, ValueError if it is empty."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.descriptor)
        self.map = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)
        self.bytes_read = 0

    def count(self, num_bytes: int) -> None:
        """Counts bytes that are read, and gives all pages of the map back when they are many."""
        self.bytes_read += num_bytes
        if self.bytes_read > BYTES_BEFORE_RELEASE:
            self.bytes_read = 0
            if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                self.map.madvise(mmap.MADV_DONTNEED)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Returns bytes without the map, so that they are no pages of it."""
        self.count(num_bytes)
        return os.pread(self.descriptor, num_bytes, offset)


class MappedArray(np.ndarray[Any, Any]):
    """An array at the beginning of a mapped file. Items and short slices of it are copies; what is computed from it is plain.

    Attributes:
        file: The file; None for arrays in memory, and for parts of the array.
    """

    file: MappedFile | None = None

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return np.asarray(array)[()]  # a scalar if it has no axis

    def __getitem__(self, key: Any) -> Any:
        """Returns items. Those that are scattered or few are read without the map."""
        if self.file is None or self.nbytes <= BYTES_BEFORE_RELEASE or not hasattr(os, "pread"):
            return super().__getitem__(key)
        first, *others = key if isinstance(key, tuple) else (key,)
        if isinstance(first, (int, np.integer)) and not isinstance(first, bool) and not others:
            return self.read_slice(row := range(len(self))[first], row + 1)[0]
        if isinstance(first, slice) and not others:
            start, stop, step = first.indices(len(self))
            if step == 1 and (stop - start) * self.item_bytes <= BYTES_BEFORE_RELEASE:
                return self.read_slice(start, max(start, stop))
        is_plain = all(isinstance(other, (slice, int, np.integer)) for other in others)  # else numpy pairs the indices
        if is_plain and isinstance(first, np.ndarray) and first.ndim and first.size and first.dtype.kind in "iu":
            return self.read_items(first)[(*[slice(None)] * first.ndim, *others)]
        self.file.count(self.nbytes)  # gives back what was read through an earlier part
        return super().__getitem__(key)

    @property
    def item_bytes(self) -> int:
        """Bytes of an item of the first axis."""
        return self.nbytes // max(1, len(self))

    def read_slice(self, start: int, stop: int) -> Array:
        """Returns the items from `start` to `stop`, a copy."""
        assert self.file is not None
        content = self.file.read(start * self.item_bytes, (stop - start) * self.item_bytes)
        return np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:])

    def read_items(self, indices: Array) -> Array:
        """Returns items, a copy. Blocks of items are read, each once. indices: Any shape. IndexError if an item is not there."""
        assert self.file is not None
        flat = indices.reshape(-1).astype(np.int64)
        flat[flat < 0] += len(self)
        if flat.min() < 0 or flat.max() >= len(self):
            raise IndexError(f"an index is out of bounds for {len(self)} items")
        size = max(1, BYTES_OF_BLOCK // self.item_bytes)
        of_item, places = np.divmod(flat, size)
        starts: Array = np.flatnonzero(np.diff(of_item, prepend=-1))  # of the items that follow each other in one block
        blocks, numbers = np.unique(of_item[starts], return_inverse=True)
        places += np.repeat(numbers * size, np.diff(starts, append=len(flat)))
        ends = np.flatnonzero(np.diff(blocks, append=-1) != 1) + 1  # of blocks that follow each other in the file
        runs = zip(blocks[[0, *ends[:-1]]].tolist(), np.diff(ends, prepend=0).tolist(), strict=True)
        num_bytes, read = size * self.item_bytes, self.file.read
        content = b"".join([read(first * num_bytes, count * num_bytes) for first, count in runs])
        items = np.frombuffer(content, np.uint8, len(content) // self.item_bytes * self.item_bytes).view(self.dtype)
        return items.reshape(-1, *self.shape[1:])[places].reshape(*indices.shape, *self.shape[1:])


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> MappedArray:
    """Returns the array at the beginning of a file, which cannot be written. OSError or ValueError as of MappedFile."""
    file = MappedFile(path)
    array = MappedArray(shape, dtype, buffer=file.map)
    array.file = file
    return array
