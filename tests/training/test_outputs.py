"""Outputs of all features as arrays: the same values in the right order, whatever the entries are, in little memory."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from hf_finetune.training.outputs import RaggedEntries, join, pack

GENERATOR = np.random.default_rng(0)


def make_entries(kind: str, count: int) -> list[Any]:
    """Returns entries as the tasks' reduce() returns them."""
    lengths = GENERATOR.integers(0, 5, count)
    return {
        "numbers": lambda: list(np.arange(count)),
        "logits": lambda: list(GENERATOR.random((count, 3), dtype=np.float32)),
        "vectors": lambda: list(GENERATOR.random((count, 2, 4), dtype=np.float32)),
        "tags": lambda: [np.arange(length, dtype=np.int32) for length in lengths],
        "spans": lambda: [GENERATOR.random((length, 2), dtype=np.float32) for length in lengths],
        "objects": lambda: [[(number, "x")] for number in range(count)],
        "mixed": lambda: [np.arange(2, dtype=np.int32 if number % 2 else np.float32) for number in range(count)],
        "mixed batches": lambda: [
            np.arange(2, dtype=np.int32 if number < 8 else np.float32) for number in range(count)
        ],
    }[kind]()


def join_all(entries: list[Any], batch_size: int = 4) -> Any:
    """Returns the joined entries of batches in a random order."""
    order = np.arange(len(entries)) if batch_size > len(entries) else GENERATOR.permutation(len(entries))
    positions = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return join([pack([entries[place] for place in places]) for places in positions], positions)


@pytest.mark.parametrize("kind", ["numbers", "logits", "vectors", "tags", "spans", "objects", "mixed", "mixed batches"])
@pytest.mark.parametrize("count", [18, 1, 0])
def test_entries_come_back_in_their_order(kind: str, count: int) -> None:
    entries = make_entries(kind, count)
    joined = join_all(entries)
    assert len(joined) == count
    for ours, theirs in zip(joined, entries, strict=True):
        assert getattr(ours, "dtype", type(ours)) == getattr(theirs, "dtype", type(theirs))
        assert np.array_equal(ours, theirs)
    for ours, theirs in zip(joined[1:4], entries[1:4], strict=True):
        assert np.array_equal(ours, theirs)


def test_batches_of_one_length_and_of_several_become_one() -> None:
    """A batch whose entries happen to have one length is an array, and the next one has several."""
    entries = [np.full((length, 2), length, dtype=np.float32) for length in (3, 3, 1, 2)]
    joined = join([pack(entries[:2]), pack(entries[2:])], [np.array([2, 0]), np.array([1, 3])])
    assert isinstance(joined, RaggedEntries)
    assert [len(entry) for entry in joined] == [3, 1, 3, 2]
    assert np.array_equal(joined[-1], entries[3])
    assert np.array_equal(np.concatenate(joined), joined.values)


def test_a_feature_takes_the_bytes_of_its_numbers() -> None:
    """20,000 features with 5 logits are 0.4 MB; an array for each took over 2 MB."""
    logits = GENERATOR.random((20_000, 5), dtype=np.float32)
    tracemalloc.start()
    joined = join_all(list(logits), batch_size=64)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(joined, np.ndarray)
    assert kept < 1.5 * logits.nbytes
