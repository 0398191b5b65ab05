"""Rows that a task joins to examples: where they can be cut so that no example is in two parts."""

from array import array
from collections.abc import Hashable, Iterable, Iterator

import numpy as np

from hf_finetune.data.features import Array

ALL_ROWS = 10**12  # the size of a part that has all rows


def find_cuts(keys: Iterable[Hashable]) -> Array:
    """Returns the numbers of rows, rising, after which rows can be cut: no key has rows before and after. The last is that of
    all rows. Keeps 8 bytes a row.

    keys: The key of each row; rows with the same key are joined.
    """
    hashes = array("q", map(hash, keys))  # if two keys have the same one, there is one cut less
    _, numbers = np.unique(np.array(hashes, np.int64), return_inverse=True)
    rows = np.arange(len(numbers))
    last = np.zeros(len(numbers), np.int64)
    np.maximum.at(last, numbers, rows)
    return np.flatnonzero(np.maximum.accumulate(last[numbers]) == rows) + 1


def cut_sizes(cuts: Array, sizes: Iterable[int]) -> Iterator[int]:
    """Yields the number of rows of each part: the fewest that are at least the next of `sizes` and end at a cut, and at last all
    that remain."""
    start = 0
    for size in sizes:
        position = np.searchsorted(cuts, start + size)
        if position == len(cuts):
            break
        yield int(cuts[position]) - start
        start = int(cuts[position])
    yield ALL_ROWS
