"""The order of examples, and how a batch is divided among processes and micro-batches. Pure functions.

N features of a split, B features of a batch. `indices` are the numbers of features in their split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from hf_finetune.data.features import Array, PerFeature
from hf_finetune.data.shared_rows import RowSharing, plan_micro_batches

SEQUENCES_AT_ONCE = 512  # in evaluation, unless the batch size is larger: a query may have a thousand documents
GROUPED_BATCHES = 50  # batches whose features are sorted by length together, as in transformers' LengthGroupedSampler


@dataclass(frozen=True, kw_only=True)
class EpochPlan(Sequence[Array]):
    """The batches of an epoch: arrays of indices, [batch_size] each, the last one perhaps shorter.

    Attributes:
        order: All features, [N] int32. A full batch lies in consecutive places.
        batch_order: Which of the full batches of `order` comes when. [number of full batches] int32
        batch_size: Features of a full batch.
    """

    order: Array
    batch_order: Array
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    @overload
    def __getitem__(self, position: int) -> Array: ...
    @overload
    def __getitem__(self, position: slice) -> list[Array]: ...
    def __getitem__(self, position: int | slice) -> Array | list[Array]:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        number = range(len(self))[position]  # the last batch is not full if it has no place in batch_order
        start = int(self.batch_order[number] if number < len(self.batch_order) else number) * self.batch_size
        return self.order[start : start + self.batch_size].astype(np.int64)

    def __iter__(self) -> Iterator[Array]:
        return (self[number] for number in range(len(self)))


def plan_epoch(lengths: Array | PerFeature, batch_size: int, seed: int, epoch: int) -> EpochPlan:
    """Returns the batches of an epoch, each index once. A pure function of its arguments (law 2), so that a run can resume at
    any update.

    Features of similar length share a batch, so that there is little padding: a random order is sorted by length within
    groups of 50 batches. The batches come in random order; the last one may be smaller.

    Args:
        lengths: Number of tokens of each feature, [N].
        batch_size: Features of a batch, over all processes.
        seed: The seed of the run.
        epoch: The number of the epoch.
    """
    generator = np.random.default_rng([seed, 2, epoch])
    order = np.arange(len(lengths), dtype=np.int32)
    generator.shuffle(order)  # the same order as permutation(N), in half of its bytes
    num_full_batches = len(order) // batch_size
    lengths = lengths.collect() if isinstance(lengths, PerFeature) else lengths
    for start in range(0, num_full_batches * batch_size, GROUPED_BATCHES * batch_size):
        group = order[start : min(start + GROUPED_BATCHES * batch_size, num_full_batches * batch_size)]
        group[:] = group[np.argsort(lengths[group], kind="stable")]
    batch_order = generator.permutation(num_full_batches).astype(np.int32)
    return EpochPlan(order=order, batch_order=batch_order, batch_size=batch_size)


def plan_block(lengths: Array, batch_size: int, seed: int, block: int) -> list[Array]:
    """Returns the batches of a block of a stream (data/stream.py): a pure function of its arguments.

    Features of similar length share a batch; the batches come in random order and have nearly equal sizes, at most `batch_size`.

    Args:
        lengths: Number of tokens of each feature of the block, [N].
        batch_size: Most features of a batch, over all processes.
        seed: The seed of the run.
        block: The number of the block in the run.

    Returns:
        Arrays of indices. Every index occurs once.
    """
    generator = np.random.default_rng([seed, 5, block])
    order = generator.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    batches = np.array_split(order, -(-len(order) // batch_size))
    return [batches[number] for number in generator.permutation(len(batches))]


@dataclass(frozen=True, kw_only=True)
class MicroBatchLimit:
    """The most that one forward pass takes on one process.

    Attributes:
        num_examples: Number of features.
        num_tokens: Number of tokens with padding, if limited. A single feature is always allowed.
        row_sharing: How features share rows, if they do.
    """

    num_examples: int
    num_tokens: int | None = None
    row_sharing: RowSharing | None = None

    def split(
        self, indices: Array, lengths: Array | PerFeature, sequence_counts: Array | PerFeature | None = None
    ) -> list[Array]:
        """Splits features into micro-batches.

        Args:
            indices: The features, longest first, [B].
            lengths: Number of tokens of each feature's longest sequence, [N].
            sequence_counts: Number of sequences of each feature, [N]; 1 if not given.
        """
        if self.row_sharing is not None and len(indices):
            return [indices[members] for members in self.plan_shared(lengths[indices], self.row_sharing)]
        micro_batches, start = [], 0
        while start < len(indices):
            size = self.num_examples
            if self.num_tokens is not None:
                max_sequences = self.num_tokens // max(1, int(lengths[indices[start]]))
                candidates = indices[start : start + size]
                counts = np.ones(len(candidates)) if sequence_counts is None else sequence_counts[candidates]
                size = max(1, int((np.cumsum(counts) <= max_sequences).sum()))
            micro_batches.append(indices[start : start + size])
            start += size
        return micro_batches

    def plan_shared(self, lengths: Array, row_sharing: RowSharing) -> list[Array]:
        """Returns the micro-batches of features that share rows, as places among them. lengths: Tokens of each, longest first."""
        row_length, num_rows = row_sharing.find_row_length(lengths), len(lengths)
        if self.num_tokens is not None:
            row_length = min(row_length, self.num_tokens)
            num_rows = self.num_tokens // row_length
        return plan_micro_batches(lengths, row_length, num_rows, self.num_examples)


def share_batch(
    indices: Array,
    lengths: Array | PerFeature,
    limit: MicroBatchLimit,
    process: int,
    num_processes: int,
    sequence_counts: Array | PerFeature | None = None,
) -> list[Array]:
    """Returns the micro-batches of one process for one update.

    All processes get the same number of micro-batches, as collectives need; some may be empty. Features are sorted by length,
    so that micro-batches have little padding, and dealt in turn, so that processes have similar work.

    Args:
        indices: The features of the batch, over all processes, [B].
        lengths: Number of tokens of each feature's longest sequence, [N].
        limit: The size of a micro-batch.
        process: The rank of the process.
        num_processes: The number of processes.
        sequence_counts: Number of sequences of each feature, [N]; 1 if not given.
    """
    longest_first = indices[np.argsort(-lengths[indices], kind="stable")]
    micro_batches = limit.split(longest_first, lengths, sequence_counts)
    num_each = -(-len(micro_batches) // num_processes)
    micro_batches += [longest_first[:0]] * (num_each * num_processes - len(micro_batches))
    return micro_batches[process::num_processes]


def plan_evaluation(lengths: Array, batch_size: int, sequence_counts: Array | None = None) -> list[Array]:
    """Returns the batches of an evaluation: all indices, longest first. They do not depend on the number of processes.

    A batch has at most `batch_size` features. If features have several sequences, it has at most SEQUENCES_AT_ONCE of these; a
    single feature is always allowed. sequence_counts: Number of sequences of each feature, [N]; 1 if not given.
    """
    order = np.argsort(-lengths, kind="stable")
    counts = np.ones(len(order), dtype=np.int64) if sequence_counts is None else sequence_counts[order]
    most = max(SEQUENCES_AT_ONCE, batch_size)
    batches, start = [], 0
    while start < len(order):
        size = max(1, int((np.cumsum(counts[start : start + batch_size]) <= most).sum()))
        batches.append(order[start : start + size])
        start += size
    return batches
