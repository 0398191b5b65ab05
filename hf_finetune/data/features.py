"""Encoded rows, and the padded batches that a model takes.

A feature is one encoded row. It has one sequence of tokens, or several (one for each choice of a question). A long document
gives several features. All features of a split lie in flat arrays with offsets, without padding.

N features of a split, B features of a batch, S sequences, T tokens, H hidden.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hf_finetune.data.reading import TokenReading

if TYPE_CHECKING:
    # --help imports this file, and torch would take it a second
    import torch

Array = np.ndarray[Any, Any]

IGNORED = -100  # a label that does not count in the loss: the default ignore_index of torch's cross_entropy

ITEMS_AT_ONCE = 1 << 18  # of a pass over an array: at most 2 MB, of which data.mapped_files makes a copy

MODEL_INPUTS = ("input_ids", "token_type_ids")


class Activations(Protocol):
    """Cached hidden states of the sequences of a split. dtype: float16, bfloat16 or float32."""

    dtype: str

    def gather(self, sequence_indices: Array, mask: Array, positions: Array | None = None) -> "torch.Tensor":
        """Returns the hidden states of tokens, any values where the mask [S, T] is false. Shape [S, T, H].

        sequence_indices: The sequence of each row [S], or of each token [S, T]. positions: The place of each token in its
        sequence [S, T]; if not given, that in its row.
        """


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """N arrays of different lengths, one after the other.

    Attributes:
        values: All values, [sum of lengths].
        offsets: Array i is values[offsets[i]:offsets[i + 1]]. [N + 1]
    """

    values: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def get(self, index: int) -> Array:
        """Returns one array."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def pad(self, indices: Array, fill: int, width: int | None = None) -> Array:
        """Returns the arrays at `indices`, filled up at their ends with `fill`. Shape [B, width], or [B, longest]."""
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        columns = np.arange(int(lengths.max()) if width is None else width)
        mask = columns[None, :] < lengths[:, None]
        return np.where(mask, self.values[np.where(mask, starts[:, None] + columns[None, :], 0)], fill)

    def gather(self, indices: Array) -> Array:
        """Returns the arrays at `indices` as the targets of a batch: padded with IGNORED. Shape [B, longest]."""
        return self.pad(indices, IGNORED)


@dataclass(frozen=True, kw_only=True)
class ClassSets(Ragged):
    """N sets of class numbers: the labels of texts that may have several. As targets of a batch they are 0 and 1.

    Attributes:
        values: The class numbers of all sets, ascending in each.
        num_classes: The number of classes, C.
    """

    num_classes: int

    def gather(self, indices: Array) -> Array:
        """Returns 1 for the classes in the sets at `indices`, 0 for others. Shape [B, C] float32."""
        targets = np.zeros((len(indices), self.num_classes), dtype=np.float32)
        lengths = self.offsets[indices + 1] - self.offsets[indices]
        members = [self.get(int(index)) for index in indices]
        targets[np.repeat(np.arange(len(indices)), lengths), np.concatenate([*members, self.values[:0]])] = 1.0
        return targets

    def take(self, rows: Array) -> "ClassSets":
        """Returns the sets of rows, in their order."""
        lengths = (self.offsets[1:] - self.offsets[:-1])[rows]
        values = np.concatenate([*(self.get(int(row)) for row in rows), self.values[:0]])
        return replace(self, values=values, offsets=np.concatenate([[0], np.cumsum(lengths)]))

    def count(self) -> Array:
        """Returns the number of sets that hold each class, [C]."""
        return np.bincount(self.values, minlength=self.num_classes)


@dataclass(frozen=True)
class PerFeature:
    """A number for each of N features, computed when it is read: an array of ten million takes 80 MB.

    Attributes:
        size: N.
        compute: Returns the numbers of the features at indices [B], an array [B].
    """

    size: int
    compute: Callable[[Array], Array]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: Any) -> Array:
        return self.compute(indices) if np.ndim(indices) else self.compute(np.array([indices]))[0]

    def collect(self) -> Array:
        """Returns all numbers in the smallest type that holds them, [N]. They are 0 or more."""
        numbers: Array = np.empty(self.size, dtype=np.uint8)  # filled part by part: all parts take 8 bytes a number
        for start in range(0, self.size, ITEMS_AT_ONCE):
            part = shrink(self.compute(np.arange(start, min(start + ITEMS_AT_ONCE, self.size))))
            numbers = numbers.astype(np.promote_types(numbers.dtype, part.dtype), copy=False)
            numbers[start : start + len(part)] = part
        return numbers


@dataclass(frozen=True, kw_only=True)
class Features:
    """The encoded rows of a split.

    Attributes:
        inputs: Flat arrays by name (input_ids, token_type_ids), each [tokens of all sequences] int32.
        offsets: Sequence i has the tokens offsets[i]:offsets[i + 1]. [S + 1]
        labels: Targets, an array [N, ...] or a Ragged of N; None for rows without targets. Whole numbers may be in a smaller type
            than the task's: get_labels() returns them in that.
        label_type: The type of the task's targets; None for that of `labels`.
        num_truncated: Number of rows that were longer than data.max_length and lost tokens.
        sequence_offsets: Feature i has the sequences sequence_offsets[i]:sequence_offsets[i + 1]; None if each has one. [N + 1]
        example_indices: The row of the table that each feature came from; None if each row gave one. [N]
        weights: How much each feature counts in the loss [N] float32; None if each counts 1.
        extras: Whatever else the task's tokenize() returned.
        activations: Cached hidden states at the boundary of the frozen prefix, if there are any.
    """

    inputs: dict[str, Array]
    offsets: Array
    labels: Array | Ragged | None
    num_truncated: int
    label_type: np.dtype[Any] | None = None
    sequence_offsets: Array | None = None
    example_indices: Array | None = None
    weights: Array | None = None
    extras: Mapping[str, Array] = field(default_factory=dict)
    activations: Activations | None = None

    def __len__(self) -> int:
        return self.num_sequences if self.sequence_offsets is None else len(self.sequence_offsets) - 1

    @property
    def num_sequences(self) -> int:
        """The number of sequences, S."""
        return len(self.offsets) - 1

    @property
    def sequence_lengths(self) -> Array:
        """The number of tokens of each sequence, [S]."""
        return np.diff(self.offsets)

    @property
    def lengths(self) -> Array:
        """The number of tokens of each feature's longest sequence, [N]."""
        lengths = self.sequence_lengths
        return lengths if self.sequence_offsets is None else np.maximum.reduceat(lengths, self.sequence_offsets[:-1])

    @property
    def num_tokens(self) -> Array:
        """The number of tokens of each feature, over all its sequences, [N]."""
        return self.sequence_lengths if self.sequence_offsets is None else np.diff(self.offsets[self.sequence_offsets])

    def get_sequence_indices(self, indices: Array) -> Array:
        """Returns the indices of the sequences of these features, in the order of the features. Shape [S]."""
        if self.sequence_offsets is None:
            return indices
        offsets = self.sequence_offsets
        return np.concatenate([np.arange(offsets[index], offsets[index + 1]) for index in indices])

    def count_sequences(self, indices: Array) -> Array:
        """Returns the number of sequences of each of these features. Shape [B]."""
        if self.sequence_offsets is None:
            return np.ones(len(indices), dtype=np.int64)
        return self.sequence_offsets[indices + 1] - self.sequence_offsets[indices]

    def get_lengths(self, indices: Array) -> Array:
        """Returns the number of tokens of the longest sequence of each of these features. Shape [B]."""
        if self.sequence_offsets is None or not len(indices):
            return self.get_num_tokens(indices)
        sequences = self.get_sequence_indices(indices)
        counts = self.count_sequences(indices)
        return np.maximum.reduceat(self.offsets[sequences + 1] - self.offsets[sequences], np.cumsum(counts) - counts)

    def get_num_tokens(self, indices: Array) -> Array:
        """Returns the number of tokens of each of these features, over all its sequences. Shape [B]."""
        if self.sequence_offsets is None:
            return self.offsets[indices + 1] - self.offsets[indices]
        first, last = self.sequence_offsets[indices], self.sequence_offsets[indices + 1]
        return self.offsets[last] - self.offsets[first]

    def get_labels(self, indices: Array) -> Array | None:
        """Returns the targets of these features, as Ragged.gather() makes them if they are ragged. Shape [B, ...]."""
        if self.labels is None:
            return None
        if isinstance(self.labels, Ragged):
            return self.labels.gather(indices)
        return np.asarray(self.labels[indices], dtype=self.label_type)

    def get_targets(self, indices: Array) -> Array:
        """As get_labels(), of features that have targets."""
        targets = self.get_labels(indices)
        assert targets is not None
        return targets

    def take_targets(self, indices: Array) -> "Array | ClassSets":
        """As get_targets(), but sets of classes as they are."""
        return self.labels.take(indices) if isinstance(self.labels, ClassSets) else self.get_targets(indices)

    def get_example(self, index: int) -> int:
        """Returns the row of the table that a feature came from."""
        return index if self.example_indices is None else int(self.example_indices[index])

    def fingerprint(self) -> str:
        """Returns a digest of inputs and targets: all of these rows that training depends on."""
        digest = hashlib.sha256()
        arrays: list[tuple[Array, np.dtype[Any] | None]] = [
            (array, None) for array in (*self.inputs.values(), self.offsets)
        ]
        if isinstance(self.labels, Ragged):
            arrays += [(self.labels.values, None), (self.labels.offsets, None)]
        elif self.labels is not None:
            arrays.append((self.labels, self.label_type))
        if self.sequence_offsets is not None:
            arrays.append((self.sequence_offsets, None))
        for array, kind in arrays:
            for part in iterate_array(array):
                digest.update(np.ascontiguousarray(part, dtype=kind).data)
        return digest.hexdigest()[:16]


def shrink(numbers: Array) -> Array:
    """Returns whole numbers in the smallest type that holds all of them."""
    if not numbers.size:
        return numbers
    return numbers.astype(np.promote_types(np.min_scalar_type(numbers.min()), np.min_scalar_type(numbers.max())))


def iterate_array(array: Array, size: int = ITEMS_AT_ONCE) -> Iterator[Array]:
    """Yields parts of an array of at most `size` items."""
    return (array[start : start + size] for start in range(0, len(array), size))


def make_features(arrays: Mapping[str, Array], labels: Array | Ragged | None) -> Features:
    """Returns the features that an encoding's tokenize() and labels() describe.

    Args:
        arrays: input_ids, offsets and truncated (see Features.inputs, offsets, num_truncated); token_type_ids if the model
            takes them; rows (Features.sequence_offsets) if features have several sequences; examples (Features.example_indices)
            and weights (Features.weights) if rows gave several features. All others become Features.extras.
        labels: Targets of the features.
    """
    label_type = None
    if (
        isinstance(labels, np.ndarray) and labels.dtype == np.int64
    ):  # class numbers: 8 bytes for each of many million rows
        labels, label_type = shrink(labels), labels.dtype
    known = (*MODEL_INPUTS, "offsets", "truncated", "rows", "examples", "weights")
    return Features(
        inputs={name: arrays[name] for name in MODEL_INPUTS if name in arrays},
        offsets=arrays["offsets"],
        labels=labels,
        label_type=label_type,
        num_truncated=int(arrays["truncated"]),
        sequence_offsets=arrays.get("rows"),
        example_indices=arrays.get("examples"),
        weights=arrays.get("weights"),
        extras={name: array for name, array in arrays.items() if name not in known},
    )


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Where the tokens of sequences lie in rows that they share (data/shared_rows.py). R rows, W tokens of the longest row.

    Attributes:
        sequences: The sequence of each token, as its number in the batch, and -1 for padding. [R, W] int64
        positions: The place of each token in its sequence. [R, W] int64
    """

    sequences: "torch.Tensor"
    positions: "torch.Tensor"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The input of one forward pass.

    Attributes:
        feature_indices: Indices of the features in their split, [B].
        sequence_indices: Indices of their sequences in the split, [S].
        sequence_counts: Number of sequences of each feature, [B].
        inputs: Arguments of the model: input_ids, attention_mask and, for some models, token_type_ids. Each [S, T] int64; of
            shared rows [R, W], with position_ids in place of attention_mask.
        labels: Targets, [B, ...]; None for features without. Of shared rows [R, W].
        weights: How much each feature counts in the loss [B] float32; None if each counts 1.
        activations: Cached hidden states of the sequences, if the features have them, [S, T, H]; of shared rows [R, W, H].
        rows: Where the sequences lie in rows that they share; None if each has a row of its own.
        reading: The output tokens that are read, if not all are (data/reading.py): those whose outputs the loss gets, or that the
            model itself chooses; its outputs are then its own, [B, C].
    """

    feature_indices: Array
    sequence_indices: Array
    sequence_counts: Array
    inputs: dict[str, "torch.Tensor"]
    labels: "torch.Tensor | None"
    weights: "torch.Tensor | None" = None
    activations: "torch.Tensor | None" = None
    rows: RowLayout | None = None
    reading: "TokenReading | None" = None

    def to(self, device: "torch.device") -> "Batch":
        """Returns the batch on a device. To a GPU it is copied from pinned memory, so that the CPU does not wait."""

        def move(tensor: "torch.Tensor") -> "torch.Tensor":
            if device.type != "cuda":
                return tensor.to(device)
            return tensor.pin_memory().to(device, non_blocking=True)

        return replace(
            self,
            inputs={name: move(tensor) for name, tensor in self.inputs.items()},
            labels=None if self.labels is None else move(self.labels),
            weights=None if self.weights is None else move(self.weights),
            activations=None if self.activations is None else move(self.activations),
            rows=self.rows and RowLayout(sequences=move(self.rows.sequences), positions=move(self.rows.positions)),
            reading=None if self.reading is None else self.reading.move(move),
        )


@dataclass(frozen=True)
class Padding:
    """What the sequences of a batch are filled up with, and how far.

    Attributes:
        token_id: Fills input_ids after the end of a sequence. Other inputs are filled with 0.
        step: The number of tokens of the longest sequence is rounded up to a multiple of it (docs/performance.md, "What makes an
            update fast").
        max_length: No sequence is rounded up to more tokens, which the model may not take.
    """

    token_id: int
    step: int = 1
    max_length: int = 0

    @property
    def token_step(self) -> int:
        """The number of tokens that are computed alone, because others are not read, is rounded up to a multiple of it."""
        return 4 * self.step if self.step > 1 else 1

    def round_up(self, longest: int) -> int:
        """Returns the number of tokens T of a batch, from that of its longest sequence."""
        return max(longest, min(-(-longest // self.step) * self.step, self.max_length))


def pad_sequences(parts: Sequence[tuple[Features, Array]], padding: Padding) -> dict[str, Array]:
    """Returns the inputs of a forward pass over sequences of one split or several.

    Args:
        parts: Pairs of the features of a split, and indices of sequences in it. S sequences in all.
        padding: Of the sequences.

    Returns:
        The inputs of the features, and attention_mask: 1 for tokens, 0 for padding. Each [S, T] int64.
    """
    longest = max(int((features.offsets[indices + 1] - features.offsets[indices]).max()) for features, indices in parts)
    columns = np.arange(padding.round_up(longest))[None, :]
    arrays: dict[str, list[Array]] = defaultdict(list)
    for features, indices in parts:
        starts, ends = features.offsets[indices, None], features.offsets[indices + 1, None]
        mask = columns < ends - starts
        positions = np.where(mask, starts + columns, 0)
        for name, values in features.inputs.items():
            fill = padding.token_id if name == "input_ids" else 0
            arrays[name].append(np.where(mask, values[positions], fill).astype(np.int64))
        arrays["attention_mask"].append(mask.astype(np.int64))
    return {name: np.concatenate(padded) for name, padded in arrays.items()}


def collate(features: Features, indices: Array, padding: Padding) -> Batch:
    """Returns the padded batch of the features at `indices` [B], without activations."""
    import torch

    sequences = features.get_sequence_indices(indices)
    arrays = pad_sequences([(features, sequences)], padding)
    labels = fill_up_labels(features, indices, arrays["input_ids"].shape[1])
    return Batch(
        feature_indices=indices,
        sequence_indices=sequences,
        sequence_counts=features.count_sequences(indices),
        inputs={name: torch.from_numpy(array) for name, array in arrays.items()},
        labels=None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)),
        weights=None if features.weights is None else torch.from_numpy(features.weights[indices]),
    )


def fill_up_labels(features: Features, indices: Array, width: int) -> Array | None:
    """Returns the targets of the features at `indices` [B, ...]; if there is one for each token, filled up to this width [B, T].

    A decoder's targets and the documents of a query have their own width.
    """
    labels = features.get_labels(indices)
    if not isinstance(features.labels, Ragged) or isinstance(features.labels, ClassSets) or labels is None:
        return labels
    are_of_tokens = features.sequence_offsets is None and np.array_equal(
        features.labels.offsets[indices + 1] - features.labels.offsets[indices], features.get_lengths(indices)
    )
    missing = width - labels.shape[1] if are_of_tokens else 0
    return np.pad(labels, ((0, 0), (0, missing)), constant_values=IGNORED)


def attach_activations(batch: Batch, features: Features) -> Batch:
    """Returns the batch, which is on the CPU, with the cached activations of its sequences, if the features have them."""
    if features.activations is None:
        return batch
    if batch.rows is None:
        mask = batch.inputs["attention_mask"].numpy() > 0
        return replace(batch, activations=features.activations.gather(batch.sequence_indices, mask))
    sequences, positions = batch.rows.sequences.numpy(), batch.rows.positions.numpy()
    indices = batch.sequence_indices[sequences]
    return replace(batch, activations=features.activations.gather(indices, sequences >= 0, positions))
