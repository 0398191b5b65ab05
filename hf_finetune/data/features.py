"""From tables to splits, features, batches and batch plans.

A feature is one encoded row: one sequence of tokens, or several (the choices of a question). A long document gives several
features. All features of a split lie in flat arrays with offsets (no padding), so that a batch is one gather. The order of
features is a pure function of (size, seed, epoch).

N features, S sequences, T tokens.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
IGNORED = -100  # a label that no loss counts, as torch's cross_entropy has it

MODEL_INPUTS = ("input_ids", "token_type_ids")


# --- features -------------------------------------------------------------------------------------------------------


class Activations(Protocol):
    """What gives the hidden states of rows."""

    def gather(self, rows: "np.ndarray[Any, Any]", mask: "np.ndarray[Any, Any]") -> "torch.Tensor":
        """[B, T, H] states of the rows, of any value where the mask [B, T] is false."""


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Rows of different lengths, one after the other. values: [sum of lengths]. offsets: [N + 1]."""

    values: "np.ndarray[Any, Any]"
    offsets: "np.ndarray[Any, Any]"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def get(self, number: int) -> "np.ndarray[Any, Any]":
        """One of them."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def pad(self, rows: "np.ndarray[Any, Any]", fill: int, width: int | None = None) -> "np.ndarray[Any, Any]":
        """[B, longest, or `width`] of these rows, `fill` behind their ends."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        columns = np.arange(int(lengths.max()) if width is None else width)
        mask = columns[None, :] < lengths[:, None]
        return np.where(mask, self.values[np.where(mask, starts[:, None] + columns[None, :], 0)], fill)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Encoded rows.

    inputs: what the tokenizer gives a token (input_ids, token_type_ids), each [T] int32. offsets: [S + 1] tokens of the
    sequences. labels: [N, ...], Ragged [N], or None where nothing is known to be right. num_truncated: rows that were longer
    than data.max_length and lost something. rows: [N + 1] sequences of the features; None where each has one. examples: [N]
    rows of the table; None where each row gave one. extras: what else the task's tokenize() returned. states: hidden states
    at the boundary of the frozen prefix, where they are stored, by sequence.
    """

    inputs: dict[str, "np.ndarray[Any, Any]"]
    offsets: "np.ndarray[Any, Any]"
    labels: "np.ndarray[Any, Any] | Ragged | None"
    num_truncated: int
    sequence_offsets: "np.ndarray[Any, Any] | None" = None
    example_indices: "np.ndarray[Any, Any] | None" = None
    extras: Mapping[str, "np.ndarray[Any, Any]"] = field(default_factory=dict)
    activations: Activations | None = None

    def __len__(self) -> int:
        return self.num_sequences if self.sequence_offsets is None else len(self.sequence_offsets) - 1

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def sequence_lengths(self) -> "np.ndarray[Any, Any]":
        """Tokens of each sequence, [S]."""
        return np.diff(self.offsets)

    @property
    def lengths(self) -> "np.ndarray[Any, Any]":
        """Tokens of each feature's longest sequence, [N]."""
        longest = self.sequence_lengths
        return longest if self.sequence_offsets is None else np.maximum.reduceat(longest, self.sequence_offsets[:-1])

    @property
    def num_tokens(self) -> "np.ndarray[Any, Any]":
        """Tokens of each feature, [N]."""
        return self.sequence_lengths if self.sequence_offsets is None else np.diff(self.offsets[self.sequence_offsets])

    def get_sequence_indices(self, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Numbers of the sequences of these features, in their order."""
        if self.sequence_offsets is None:
            return rows
        return np.concatenate([np.arange(self.sequence_offsets[row], self.sequence_offsets[row + 1]) for row in rows])

    def count_sequences(self, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Sequences of each of these features, [B]."""
        return (
            np.ones(len(rows), dtype=np.int64)
            if self.sequence_offsets is None
            else np.diff(self.sequence_offsets)[rows]
        )

    def get_labels(self, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any] | None":
        """Labels [B, ...] of these features, padded with IGNORED where they are ragged."""
        if self.labels is None:
            return None
        return self.labels.pad(rows, IGNORED) if isinstance(self.labels, Ragged) else self.labels[rows]

    def get_example(self, row: int) -> int:
        """The row of the table that a feature was made of."""
        return row if self.example_indices is None else int(self.example_indices[row])

    def fingerprint(self) -> str:
        """Digest of all that training sees of these rows."""
        digest = hashlib.sha256()
        ragged = (self.labels.values, self.labels.offsets) if isinstance(self.labels, Ragged) else (self.labels,)
        for array in (*self.inputs.values(), self.offsets, *ragged, self.sequence_offsets):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def make_features(
    arrays: Mapping[str, "np.ndarray[Any, Any]"], labels: "np.ndarray[Any, Any] | Ragged | None"
) -> Features:
    """Features of what a task's tokenize() returned: input_ids (and token_type_ids), offsets, truncated; where they are not
    one each, rows and examples; all else are extras."""
    known = (*MODEL_INPUTS, "offsets", "truncated", "rows", "examples")
    return Features(
        inputs={name: arrays[name] for name in MODEL_INPUTS if name in arrays},
        offsets=arrays["offsets"],
        labels=labels,
        num_truncated=int(arrays["truncated"]),
        sequence_offsets=arrays.get("rows"),
        example_indices=arrays.get("examples"),
        extras={name: array for name, array in arrays.items() if name not in known},
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward takes. B features, S sequences of T tokens with padding.

    rows: [B] numbers of the features. sequences: [S] numbers of their sequences. counts: [B] sequences of each feature.
    inputs: what the model is called with, input_ids and attention_mask (and token_type_ids) [S, T] int64. labels: [B, ...] or
    None. states: [S, T, H], where the features have stored ones.
    """

    feature_indices: "np.ndarray[Any, Any]"
    sequence_indices: "np.ndarray[Any, Any]"
    sequence_counts: "np.ndarray[Any, Any]"
    inputs: dict[str, "torch.Tensor"]
    labels: "torch.Tensor | None"
    activations: "torch.Tensor | None" = None

    def to(self, device: "torch.device") -> "Batch":
        """The batch on the device; copied beside the computation where that is a GPU."""

        def move(tensor: "torch.Tensor | None") -> "torch.Tensor | None":
            if tensor is None or device.type != "cuda":
                return tensor if tensor is None else tensor.to(device)
            return tensor.pin_memory().to(device, non_blocking=True)

        moved: dict[str, Any] = {name: move(tensor) for name, tensor in self.inputs.items()}
        return replace(self, inputs=moved, labels=move(self.labels), activations=move(self.activations))


def collate(features: Features, rows: "np.ndarray[Any, Any]", pad_token_id: int) -> Batch:
    """The padded batch of these features."""
    import torch

    sequences = features.get_sequence_indices(rows)
    starts = features.offsets[sequences]
    lengths = features.offsets[sequences + 1] - starts
    columns = np.arange(int(lengths.max()))
    mask = columns[None, :] < lengths[:, None]
    positions = np.where(mask, starts[:, None] + columns[None, :], 0)
    arrays = {
        name: np.where(mask, flat[positions], pad_token_id if name == "input_ids" else 0).astype(np.int64)
        for name, flat in features.inputs.items()
    } | {"attention_mask": mask.astype(np.int64)}
    labels = features.get_labels(rows)
    return Batch(
        feature_indices=rows,
        sequence_indices=sequences,
        sequence_counts=features.count_sequences(rows),
        inputs={name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
        labels=None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)),
        activations=None if features.activations is None else features.activations.gather(sequences, mask),
    )
