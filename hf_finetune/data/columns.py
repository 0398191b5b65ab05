"""The values of a column, whether it is a list or lies on disk."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hf_finetune.data.features import Array

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
