"""Rows that several examples of a micro-batch share, so that little or no padding is computed (train.shared_rows).

The tokens of an example lie together in a row. Its positions start at 0, and no mask of padding is given: from positions that
start again a model sees where an example begins, and attends to no other. forward/shared_rows.py shows that on a probe of the
model. This is about the rows of one forward; task.packing joins texts to examples of a fixed length, before training.

S sequences of a batch, R rows, W tokens of the longest row, T tokens of the longest sequence, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hf_finetune.data.features import IGNORED, Array, Batch, RowLayout

if TYPE_CHECKING:
    # --help imports data/, and torch would take it a second
    import torch


@dataclass(frozen=True, kw_only=True)
class RowSharing:
    """How the examples of a micro-batch share rows.

    Attributes:
        in_one_row: All of them lie in one row without padding, for attention that computes only what an example needs of it. Else
            no row is longer than the longest example of the update: the cost of attention grows with the square of the row.
    """

    in_one_row: bool

    def find_row_length(self, lengths: Array) -> int:
        """Returns the most tokens of a row. lengths: Tokens of each example of the update, [B]."""
        return int(lengths.sum() if self.in_one_row else lengths.max())


def find_row(free: list[int], length: int) -> int:
    """Returns the first row that has room for a sequence, or the number of the rows if none has. free: Tokens for which each row
    has room."""
    return next((number for number, room in enumerate(free) if room >= length), len(free))


def plan_rows(lengths: Array, row_length: int) -> list[Array]:
    """Returns which sequences share a row. The longest comes first, and each goes into the first row that has room for it
    (first-fit decreasing). A sequence that is longer than a row has one of its own.

    A pure function of its arguments. If only the sequences of some of the rows are planned, it makes the same rows of them.

    Args:
        lengths: Number of tokens of each sequence, [S].
        row_length: The most tokens of a row.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        number = find_row(free, length := int(lengths[sequence]))
        if number == len(rows):
            rows.append([])
            free.append(row_length)
        rows[number].append(sequence)
        free[number] -= length
    return [np.array(row) for row in rows]


def plan_micro_batches(lengths: Array, row_length: int, num_rows: int, num_examples: int) -> list[Array]:
    """Returns micro-batches of examples that fit into a number of rows. Each example goes into the first micro-batch that has
    room for it, in rows as plan_rows() makes them.

    Args:
        lengths: Number of tokens of each example, longest first, [B].
        row_length: The most tokens of a row.
        num_rows: The most rows of a micro-batch.
        num_examples: The most examples of a micro-batch.
    """
    micro_batches: list[list[int]] = []
    free: list[list[int]] = []  # of the rows of each micro-batch
    for example, length in enumerate(lengths.tolist()):
        open_ones = (number for number, members in enumerate(micro_batches) if len(members) < num_examples)
        number = next((number for number in open_ones if find_row(free[number], length) < num_rows), len(free))
        if number == len(free):
            micro_batches.append([])
            free.append([])
        row = find_row(free[number], length)
        if row == len(free[number]):
            free[number].append(row_length)
        free[number][row] -= length
        micro_batches[number].append(example)
    return [np.array(members) for members in micro_batches]


def lay_out(rows: Sequence[Array], lengths: Array) -> tuple[Array, Array]:
    """Returns the sequence of each token, -1 for padding, and its position in that sequence, both [R, W]. Padding counts from 0,
    too, so that it is a sequence of its own for the model."""
    width = max(int(lengths[row].sum()) for row in rows)
    sequences = np.full((len(rows), width), -1, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        parts = [*lengths[row].tolist(), width - int(lengths[row].sum())]
        sequences[number, : width - parts[-1]] = np.repeat(row, lengths[row])
        positions[number] = np.concatenate([np.arange(length) for length in parts])
    return sequences, positions


def share_rows(batch: Batch, row_length: int) -> Batch:
    """Returns a collated batch with its sequences in rows that they share. It has position_ids in place of attention_mask.

    The label of an example's first token is IGNORED: it is the token before that predicts it, which is another example's.

    Args:
        batch: On the CPU, without activations; its labels are those of tokens, [S, T].
        row_length: The most tokens of a row.
    """
    import torch

    inputs = dict(batch.inputs)
    lengths = inputs.pop("attention_mask").sum(1).numpy()
    sequences, positions = (torch.from_numpy(array) for array in lay_out(plan_rows(lengths, row_length), lengths))
    layout = RowLayout(sequences=sequences, positions=positions)

    def take(tensor: "torch.Tensor", fill: int) -> "torch.Tensor":
        return tensor[sequences, positions.clamp(max=tensor.shape[1] - 1)].masked_fill(sequences < 0, fill)

    # Padding is an example of its own that nobody reads. Without a mask, transformers warns of the token that pads
    shared = {name: take(tensor, int(tensor[0, 0])) for name, tensor in inputs.items()}
    labels = None if batch.labels is None else take(batch.labels, IGNORED).masked_fill(positions == 0, IGNORED)
    return replace(batch, inputs={**shared, "position_ids": positions}, labels=labels, rows=layout)
