"""Encoded text is written to disk in parts of rows (data.encoded_parts), under a lock: those that are missing or damaged."""

import contextlib
import errno
import hashlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hf_finetune.data.encoded_parts import (
    DTYPES,
    PARTS,
    InconsistentEntryError,
    Part,
    Rows,
    StoredArray,
    find_good_parts,
    format_part,
    open_arrays,
    read_parts,
    select_parts,
)
from hf_finetune.data.features import Array
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import open_regular
from hf_finetune.system.locks import hold_lock


@contextlib.contextmanager
def lock_entry(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Holds the lock of an entry. If another process holds it, passes a line about it to `say` and waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"waiting for another run that encodes the same text ({folder})"
    with hold_lock(folder.with_name(f"{folder.name}.lock"), say, seconds=math.inf, waiting=waiting):
        yield


def fill_entry(
    folder: Path,
    spans: Sequence[Rows],
    compute: Callable[[Sequence[int]], Generator[Mapping[str, Array]]],
    say: Callable[[str], object],
) -> dict[str, Array]:
    """Computes the parts that an entry does not have, writes them, and returns the arrays of all parts.

    Args:
        folder: The folder of the entry.
        spans: The rows of each part.
        compute: Yields the arrays of the parts with these numbers, in this order.
        say: Takes a line about damage, or about parts that were there.

    Raises OSError if the disk is full or cannot be written. The parts that were written before stay.
    """
    known = read_parts(folder)
    good = find_good_parts(folder, select_parts(known, spans))
    missing = [number for number in range(len(spans)) if number not in good]
    if missing:
        describe_missing(folder, known, good, len(spans), say)
        folder.mkdir(parents=True, exist_ok=True)
        with EntryWriter(folder) as writer, contextlib.closing(compute(missing)) as results:
            for number, arrays in zip(missing, results, strict=True):
                part = writer.write(good.get(number - 1), number, spans, arrays)
                good[number] = part
                if number + 1 in good and not good[number + 1].follows(part):
                    raise InconsistentEntryError
    parts = [good[number] for number in range(len(spans))]
    if not all(part.follows(before) for before, part in zip([None, *parts], parts, strict=False)):
        raise InconsistentEntryError
    with contextlib.suppress(OSError):  # another user's cache
        os.utime(folder / PARTS)  # `cache prune` removes the least recently used entries first
    return open_arrays(folder, parts)


def describe_missing(
    folder: Path, known: Mapping[int, Part], good: Mapping[int, Part], count: int, say: Callable[[str], object]
) -> None:
    """Passes a line about the parts of an entry that are damaged, or that an interrupted run left, to `say`."""
    num_known = max(known, default=-1) + 1
    if not num_known and any(folder.glob("*.bin")):
        num_known = count
    num_damaged = min(num_known, count) - len(good)
    if num_damaged > 0:
        say(f"encoded text: {num_damaged} of {count} parts are damaged or missing and are computed again ({folder})")
    elif good:
        say(f"encoded text: {len(good)} of {count} parts are there from an interrupted run; the others are computed")


class EntryWriter:
    """Writes parts into the files of an entry. A context manager. Raises OSError if the disk is full or cannot be written."""

    def __init__(self, folder: Path) -> None:
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "is a symbolic link")
        self.folder = folder
        self.files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "EntryWriter":
        self.list = open_regular(self.folder / PARTS, os.O_RDWR | os.O_CREAT)
        if size := self.list.seek(0, os.SEEK_END):
            self.list.seek(size - 1)
            if self.list.read(1) != b"\n":  # a line that was cut off
                self.list.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.list, *self.files.values()):
            with contextlib.suppress(OSError):  # what is still in a buffer of a full disk
                file.close()

    def write(self, before: Part | None, number: int, spans: Sequence[Rows], arrays: Mapping[str, Array]) -> Part:
        """Writes the arrays of a part after those of the part before it, then its line in the list. Returns the part."""
        if (number > 0) != (before is not None):
            raise InconsistentEntryError
        stored = {
            name: self.write_array(
                name, np.asarray(array), before.arrays.get(name) if before else None, spans[number][0]
            )
            for name, array in arrays.items()
        }
        part = Part(number=number, of=len(spans), rows=spans[number], arrays=stored)
        if not part.follows(before):
            raise InputError(
                f"tokenize() gives other arrays for the rows {spans[number][0]:,} to {spans[number][1]:,} than for those before "
                "them: names, types or shapes differ; if rows are not encoded independently, leave rows_are_independent False"
            )
        self.list.write(format_part(part).encode())
        self.list.flush()
        return part

    def write_array(self, name: str, array: Array, before: StoredArray | None, first_row: int) -> StoredArray:
        """Writes one array, shifted as its place among all rows wants it."""
        if array.dtype.name not in DTYPES:
            raise InputError(f"tokenize() gives the array {name} of type {array.dtype}; give numbers")
        if name not in self.files:
            self.files[name] = open_regular(self.folder / f"{name}.bin", os.O_RDWR | os.O_CREAT)
        file, begin = self.files[name], before.end if before else 0
        values = array.reshape(1) if array.ndim == 0 else array
        item_bytes = values.dtype.itemsize * math.prod(values.shape[1:])
        if is_offsets(name) and begin:
            file.seek((begin - 1) * item_bytes)
            last = np.frombuffer(file.read(item_bytes), values.dtype)[0]
            values = values[1:] + last
        elif name == "examples":
            values = values + np.asarray(first_row, values.dtype)
        content = np.ascontiguousarray(values)
        file.seek(begin * item_bytes)
        file.write(content.data)
        file.flush()
        return StoredArray(
            dtype=content.dtype.name,
            begin=begin,
            end=begin + len(content),
            width=content.shape[1:],
            is_number=array.ndim == 0,
            sha256=hashlib.sha256(content.data).hexdigest(),
        )


def is_offsets(name: str) -> bool:
    """True if the values of an array are places in another one: those of a later part are counted on."""
    return name == "rows" or name.endswith("offsets")
