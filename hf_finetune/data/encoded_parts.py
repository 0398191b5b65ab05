"""Encoded text on disk, in parts of rows, each with its digests.

An entry is a folder, named by its key, in the subfolder `encoded` of the caches:
    NAME.bin     the values of one array, part after part
    parts.jsonl  a line for each part: where its values lie in the files, their digests, and the digest of the line
Next to it lies KEY.lock, which is held while the entry is written. Every byte is compared with its digest before it is used. A
part that is missing or damaged is computed again at its place, so that the entry of a killed run keeps the parts that it has.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.data.mapped_files import map_array
from hf_finetune.system.files import open_regular

PARTS = "parts.jsonl"
DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
BYTES_AT_ONCE = 1 << 20
LIMIT = 1 << 40  # items of an array, and bytes of an item; more is damage or malice

Rows = tuple[int, int]  # first row, and the row after the last


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """Where the values of one array of a part lie in its file.

    Attributes:
        dtype: One of DTYPES.
        begin, end: Places of the values in the file, counted in items of the first axis.
        width: Shape of an item; () for flat arrays.
        is_number: The part has a single number, which adds up over the parts.
        sha256: Digest of the values.
    """

    dtype: str
    begin: int
    end: int
    width: tuple[int, ...]
    is_number: bool
    sha256: str

    def __post_init__(self) -> None:
        numbers = (self.begin, self.end, *self.width)
        if self.dtype not in DTYPES or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("not the values of an array")
        if type(self.is_number) is not bool or type(self.sha256) is not str:
            raise ValueError("not a number, not a digest")
        if not self.begin <= self.end < LIMIT or self.item_bytes >= LIMIT:
            raise ValueError("not a place in a file")

    @property
    def item_bytes(self) -> int:
        """Bytes of an item of the first axis."""
        return np.dtype(self.dtype).itemsize * math.prod(self.width)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of an entry. number, of: its number, from 0, and the number of all parts. rows: those of the table."""

    number: int
    of: int
    rows: Rows
    arrays: dict[str, StoredArray]

    def follows(self, before: "Part | None") -> bool:
        """True if the values begin where those of the part before end, with the same types."""
        if before is None:
            return all(array.begin == 0 for array in self.arrays.values())
        return self.arrays.keys() == before.arrays.keys() and all(
            (array.begin, array.dtype, array.width, array.is_number)
            == (earlier.end, earlier.dtype, earlier.width, earlier.is_number)
            for array, earlier in ((array, before.arrays[name]) for name, array in self.arrays.items())
        )


class InconsistentEntryError(Exception):
    """The parts of an entry do not fit together, although their digests are right."""


def read_parts(folder: Path) -> dict[int, Part]:
    """Returns the parts in the list of an entry by number. Lines that are damaged are left out."""
    parts: dict[int, Part] = {}
    with contextlib.suppress(OSError), open_regular(folder / PARTS, os.O_RDONLY) as file:
        for line in iter(lambda: file.readline(BYTES_AT_ONCE), b""):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                part = parse_part(line.decode("ascii"))
                parts[part.number] = part
    return parts


def parse_part(line: str) -> Part:
    """Returns the part that a line describes. ValueError, KeyError, TypeError or AttributeError if it is damaged."""
    digest, _, content = line.rstrip("\n").partition(" ")
    if hashlib.sha256(content.encode()).hexdigest() != digest:
        raise ValueError("a damaged line")
    values = json.loads(content)
    (first, last), number, of = values["rows"], values["number"], values["of"]
    if any(type(value) is not int for value in (first, last, number, of)) or not 0 <= number < of or first > last:
        raise ValueError("not a part")
    arrays = {
        name: StoredArray(**{**array, "width": tuple(array["width"])}) for name, array in values["arrays"].items()
    }
    if not arrays or not all(re.fullmatch(r"\w+", name, re.ASCII) for name in arrays):
        raise ValueError("not the names of arrays")
    return Part(number=number, of=of, rows=(first, last), arrays=arrays)


def format_part(part: Part) -> str:
    """Returns the line that describes a part."""
    content = json.dumps(asdict(part))
    return f"{hashlib.sha256(content.encode()).hexdigest()} {content}\n"


def find_good_parts(folder: Path, parts: Mapping[int, Part]) -> dict[int, Part]:
    """Returns the parts whose bytes are as they were written. Reads the files at the speed of sha256, about 1 GB a second: 0.1 s
    for a million short texts."""
    good: dict[int, Part] = {}
    with contextlib.ExitStack() as stack:
        files: dict[str, BinaryIO | None] = {}
        for number, part in sorted(parts.items()):
            for name in part.arrays.keys() - files.keys():
                files[name] = None
                with contextlib.suppress(OSError):
                    files[name] = stack.enter_context(open_regular(folder / f"{name}.bin", os.O_RDONLY))
            if all(is_intact(files[name], array) for name, array in part.arrays.items()):
                good[number] = part
    return good


def is_intact(file: BinaryIO | None, array: StoredArray) -> bool:
    """True if the values of an array in a file are those of its digest."""
    begin, end = array.begin * array.item_bytes, array.end * array.item_bytes
    if file is None or os.fstat(file.fileno()).st_size < end:
        return False
    digest = hashlib.sha256()
    with contextlib.suppress(OSError):  # a block of the disk that cannot be read
        file.seek(begin)
        for start in range(begin, end, BYTES_AT_ONCE):
            digest.update(file.read(min(BYTES_AT_ONCE, end - start)))
        return digest.hexdigest() == array.sha256
    return False


def find_whole_entry(folder: Path, spans: Sequence[Rows]) -> list[Part] | None:
    """Returns the parts of an entry if it has all of them, undamaged, for these spans of rows; else None."""
    parts = find_good_parts(folder, select_parts(read_parts(folder), spans))
    ordered = [parts[number] for number in sorted(parts)]
    fits = all(part.follows(before) for before, part in zip([None, *ordered], ordered, strict=False))
    return ordered if fits and len(ordered) == len(spans) else None


def select_parts(parts: Mapping[int, Part], spans: Sequence[Rows]) -> dict[int, Part]:
    """Returns those of the parts that are parts of these spans of rows."""
    return {
        number: part
        for number, part in parts.items()
        if part.of == len(spans) and number < len(spans) and part.rows == tuple(spans[number])
    }


def open_arrays(folder: Path, parts: Sequence[Part]) -> dict[str, Array]:
    """Returns the arrays of all parts, mapped (data.mapped_files). A number is the sum of the parts' numbers."""
    arrays: dict[str, Array] = {}
    for name, last in parts[-1].arrays.items():
        shape = (last.end, *last.width)
        values: Array = np.empty(shape, last.dtype)
        if values.size:
            values = map_array(folder / f"{name}.bin", last.dtype, shape)
        arrays[name] = np.array(values.sum(dtype=last.dtype)) if last.is_number else values
    return arrays
