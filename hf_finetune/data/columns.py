"""The values of a column, whether it is a list or lies on disk."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.data.features import Array

if TYPE_CHECKING:
    from hf_finetune.data.table import Table

ROWS_AT_ONCE = 10_000


def iterate(column: Sequence[Any], size: int = ROWS_AT_ONCE) -> Iterator[list[Any]]:
    """Yields the values of a column in lists of at most `size`."""
    for start in range(0, len(column), size):
        yield list(column[start : start + size])


def find_distinct(column: Sequence[Any]) -> tuple[Array, list[Any]]:
    """Returns the number of each row's value among the distinct values [N] int32, and these values in the order in which they
    occur first.

    1, 1.0, true and "1" are different values. Lists and dicts are equal if their JSON is.
    """
    numbers: dict[tuple[type, Any], int] = {}
    values: list[Any] = []
    codes = np.empty(len(column), dtype=np.int32)
    position = 0
    for part in iterate(column):
        for value in part:
            key = (type(value), json.dumps(value, default=str) if isinstance(value, (list, tuple, dict)) else value)
            code = numbers.setdefault(key, len(values))
            if code == len(values):
                values.append(value)
            codes[position] = code
            position += 1
    return codes, values


def hash_rows(table: "Table", names: Sequence[str], change: Callable[[str], str] | None = None) -> Array:
    """Returns a hash of each row's values in these columns, [N] uint64, the same on each machine and in each process.

    Rows are equal as in find_distinct(): 1, 1.0, true and "1" differ, lists and dicts are equal if their JSON is. Rows that
    differ have the same hash by chance in fewer than one of 10 million tables of a million rows: compare the values before a
    row is shown or left out. change: Is applied to each text before.
    """
    hashes = np.empty(len(table), dtype=np.uint64)
    position = 0
    for parts in zip(*(iterate(table.columns[name]) for name in names), strict=True):
        keys = (b"\xfe".join(to_bytes(value, change) for value in row) for row in zip(*parts, strict=True))
        digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
        part = np.frombuffer(digests, dtype="<u8")
        hashes[position : position + len(part)] = part
        position += len(part)
    return hashes


def to_bytes(value: Any, change: Callable[[str], str] | None = None) -> bytes:
    """Returns bytes that are equal for equal values only. They never contain 0xFE, which UTF-8 does not use."""
    if isinstance(value, str):
        return (value if change is None else change(value)).encode("utf-8", "surrogatepass")
    return b"\xff" + json.dumps(value, default=str).encode()
