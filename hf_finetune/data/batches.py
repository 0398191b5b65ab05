"""The order of examples, and how a batch is shared among processes and micro-batches. Pure functions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

GROUPED_BATCHES = 50  # batches in a window that is sorted by length; transformers' LengthGroupedSampler has 50 too


def plan_epoch(lengths: "np.ndarray[Any, Any]", batch_size: int, seed: int, epoch: int) -> list["np.ndarray[Any, Any]"]:
    """The batches of an epoch, each an array of row numbers; every row once. Law 2: a pure function of its arguments.

    Rows of like length meet in a batch (sorted within windows of 50 batches of a random order), the batches come in
    random order, and the one that is not full comes last.
    """
    generator = np.random.default_rng([seed, 2, epoch])
    order = generator.permutation(len(lengths))
    num_full = len(order) // batch_size * batch_size
    window = GROUPED_BATCHES * batch_size
    batches: list[np.ndarray[Any, Any]] = []
    for start in range(0, num_full, window):
        rows = order[start : min(start + window, num_full)]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += np.split(rows, len(rows) // batch_size)
    batches = [batches[index] for index in generator.permutation(len(batches))]
    return [*batches, order[num_full:]] if num_full < len(order) else batches


@dataclass(frozen=True, kw_only=True)
class MicroBatchLimit:
    """The most that one forward on one process takes. tokens: counted with padding; one row always fits."""

    num_examples: int
    num_tokens: int | None = None

    def split(
        self,
        ordered: "np.ndarray[Any, Any]",
        lengths: "np.ndarray[Any, Any]",
        counts: "np.ndarray[Any, Any] | None" = None,
    ) -> list["np.ndarray[Any, Any]"]:
        """Pieces of rows that go longest first. counts: sequences of each row; one if not given."""
        pieces, begin = [], 0
        while begin < len(ordered):
            count = self.num_examples
            if self.num_tokens is not None:
                room = self.num_tokens // max(1, int(lengths[ordered[begin]]))  # sequences
                taken = ordered[begin : begin + count]
                sequences = np.cumsum(np.ones(len(taken)) if counts is None else counts[taken])
                count = max(1, int((sequences <= room).sum()))
            pieces.append(ordered[begin : begin + count])
            begin += count
        return pieces


def share_batch(
    rows: "np.ndarray[Any, Any]",
    lengths: "np.ndarray[Any, Any]",
    limit: MicroBatchLimit,
    process: int,
    num_processes: int,
    counts: "np.ndarray[Any, Any] | None" = None,
) -> list["np.ndarray[Any, Any]"]:
    """The micro-batches of one process for one update: the same number on each, some perhaps empty.

    Rows go by length, so that micro-batches pad little, and are dealt so that each process has the same work.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    pieces = limit.split(ordered, lengths, counts)
    rounds = -(-len(pieces) // num_processes)
    pieces += [ordered[:0]] * (rounds * num_processes - len(pieces))
    return pieces[process::num_processes]


def plan_evaluation(lengths: "np.ndarray[Any, Any]", batch_size: int) -> list["np.ndarray[Any, Any]"]:
    """All rows in length order, longest first, in batches that do not depend on the number of processes."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
