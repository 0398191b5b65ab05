"""The order of the cached activations in their file: every distinct sequence once, the longest first.

U distinct sequences, S sequences of one split.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np

from hf_finetune.data.features import Array, Features

CHUNK_TOKENS = 4096  # padded tokens of one forward of the capture: enough for full speed, little memory


SEQUENCES_AT_ONCE = 10_000  # that are digested together


@dataclass(frozen=True, kw_only=True)
class Source(Sequence[tuple[str, int]]):
    """Split and number of sequences, in memory of 8 bytes each.

    Attributes:
        splits: The names of the splits.
        ends: The number of sequences of the splits up to each of them.
        numbers: The sequences, counted over all splits [U].
    """

    splits: tuple[str, ...]
    ends: Array
    numbers: Array

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, key: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, key: slice) -> list[tuple[str, int]]: ...
    def __getitem__(self, key: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(key, slice):
            return [self[place] for place in range(*key.indices(len(self)))]
        number = int(self.numbers[key])
        split = int(np.searchsorted(self.ends, number, side="right"))
        return self.splits[split], number - (int(self.ends[split - 1]) if split else 0)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The position of each sequence's activations in the file. Equal sequences share one place, also across splits.

    Args:
        offsets: First token of each distinct sequence, and the end of the last [U + 1].
        source: Split and sequence number of each distinct sequence.
        starts: By split, the first token of each of its sequences [S].
        digest: Digest of all inputs. It does not depend on how they were split.
    """

    offsets: Array
    source: Source
    starts: Mapping[str, Array]
    digest: str

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the file."""
        return int(self.offsets[-1])

    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of distinct sequences that are computed and written together. They depend on the features alone."""
        lengths, ranges, begin = np.diff(self.offsets), [], 0
        while begin < len(lengths):
            end = min(len(lengths), begin + max(1, CHUNK_TOKENS // max(1, int(lengths[begin]))))
            ranges.append((begin, end))
            begin = end
        return ranges


def make_layout(features: Mapping[str, Features]) -> Layout:
    """Returns the layout of the features of all splits."""
    words = np.concatenate([digest_sequences(split) for split in features.values()])
    lengths = np.concatenate([split.sequence_lengths for split in features.values()])
    order = np.lexsort((words[:, 1], words[:, 0], -lengths))
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (words[order][1:] != words[order][:-1]).any(1)
    first = order[is_new]
    offsets = np.concatenate([[0], np.cumsum(lengths[first])]).astype(np.int64)
    starts = np.empty(len(order), dtype=np.int64)
    starts[order] = offsets[:-1][np.cumsum(is_new) - 1]
    ends = np.cumsum([split.num_sequences for split in features.values()])
    names = sorted({name for split in features.values() for name in split.inputs})
    digest = hashlib.sha256(json.dumps(names).encode() + words[first].tobytes() + lengths[first].tobytes())
    return Layout(
        offsets=offsets,
        source=Source(splits=tuple(features), ends=ends, numbers=first),
        starts=dict(zip(features, np.split(starts, ends[:-1]), strict=True)),
        digest=digest.hexdigest(),
    )


def digest_sequences(split: Features) -> Array:
    """Returns the digest of the inputs of each sequence as two 64-bit words [S, 2]."""
    words = np.empty((split.num_sequences, 2), dtype=np.uint64)
    for first in range(0, len(words), SEQUENCES_AT_ONCE):
        offsets = split.offsets[first : first + SEQUENCES_AT_ONCE + 1]
        arrays = [split.inputs[key][offsets[0] : offsets[-1]] for key in sorted(split.inputs)]
        digests = []
        for begin, end in pairwise((offsets - offsets[0]).tolist()):
            digest = hashlib.blake2b(digest_size=16)
            for array in arrays:
                digest.update(array[begin:end].tobytes())
            digests.append(digest.digest())
        words[first : first + len(digests)] = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    return words
