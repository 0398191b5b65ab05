"""What evaluation keeps of a model's outputs: arrays of all features, and not an object for each.

N features of a split, B features of a batch. A NumPy array of a number takes over 100 bytes of memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from hf_finetune.data.features import Array, Ragged

Entries = Sequence[Any]  # what Scoring.reduce() returned for each feature: see pack()


@dataclass(frozen=True, kw_only=True, eq=False)
class RaggedEntries(Ragged, Sequence[Array]):
    """N arrays that differ in their first axis alone, as a sequence. values: All of them, [sum of lengths, ...]."""

    @overload
    def __getitem__(self, key: int) -> Array: ...

    @overload
    def __getitem__(self, key: slice) -> list[Array]: ...

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return [self.get(number) for number in range(*key.indices(len(self)))]
        return self.get(range(len(self))[key])


def pack(entries: Sequence[Any]) -> Entries:
    """Returns the entries of a batch as one array [B, ...] if they have one shape, as RaggedEntries if they differ in the first
    axis alone, or as they are if they are anything else, such as one array. The values stay the same, bit for bit."""
    if isinstance(entries, np.ndarray):
        return entries
    if not entries or not all(isinstance(entry, (np.ndarray, np.generic)) for entry in entries):
        return entries
    if len({(entry.dtype, entry.ndim, entry.shape[1:]) for entry in entries}) > 1 or entries[0].dtype.hasobject:
        return entries
    if len({entry.shape for entry in entries}) == 1:
        return np.stack(entries)  # type: ignore[return-value]  # a sequence of its rows
    offsets = np.cumsum([0, *map(len, entries)])
    return RaggedEntries(values=np.concatenate(entries), offsets=offsets)


def join(parts: Sequence[Entries], positions: Sequence[Array]) -> Entries:
    """Returns the entries of all N features in their order, packed as pack() does.

    Args:
        parts: The packed entries of each batch.
        positions: The places of a batch's entries among the N, for each batch.
    """
    size = sum(map(len, positions))
    arrays: list[Any] = [part for part in parts if isinstance(part, np.ndarray)]
    if parts and len(arrays) == len(parts) and len({(part.dtype, part.shape[1:]) for part in arrays}) == 1:
        joined = np.empty((size, *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for part, places in zip(arrays, positions, strict=True):
            joined[places] = part
        return joined  # type: ignore[return-value]
    ragged = [split_rows(part) for part in parts]
    values = [part.values for part in ragged if part is not None]
    if len(values) < len(parts) or len({(part.dtype, part.shape[1:]) for part in values}) != 1:
        entries: list[Any] = [None] * size
        for entry_part, places in zip(parts, positions, strict=True):
            for place, entry in zip(places.tolist(), entry_part, strict=True):
                entries[place] = entry
        return entries
    return join_ragged([part for part in ragged if part is not None], positions, size)


def split_rows(part: Entries) -> RaggedEntries | None:
    """Returns packed entries as arrays of the lengths that they have; None if they are not arrays with an axis."""
    if isinstance(part, np.ndarray) and part.ndim > 1:
        offsets = np.arange(len(part) + 1) * part.shape[1]
        return RaggedEntries(values=part.reshape(-1, *part.shape[2:]), offsets=offsets)
    return part if isinstance(part, RaggedEntries) else None


def join_ragged(parts: Sequence[RaggedEntries], positions: Sequence[Array], size: int) -> RaggedEntries:
    """Returns the arrays of all parts in their order. positions, size: As in join()."""
    lengths = np.empty(size, dtype=np.int64)
    for part, places in zip(parts, positions, strict=True):
        lengths[places] = np.diff(part.offsets)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty((int(offsets[-1]), *parts[0].values.shape[1:]), dtype=parts[0].values.dtype)
    for part, places in zip(parts, positions, strict=True):
        for place, entry in zip(places.tolist(), part, strict=True):
            values[offsets[place] : offsets[place + 1]] = entry
    return RaggedEntries(values=values, offsets=offsets)
