"""The order of an epoch, and the micro-batches of a batch: pure functions in which every feature occurs once."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_finetune.data.batches import SEQUENCES_AT_ONCE, MicroBatchLimit, plan_epoch, plan_evaluation, share_batch
from hf_finetune.data.features import Array

SEEDS = (0, 1, 2, 31)


def make_lengths(count: int, seed: int) -> Array:
    """Returns lengths like those of texts: most short, some long."""
    return np.random.default_rng(seed).lognormal(3.0, 0.8, count).astype(np.int64) + 2


# --- the order of an epoch ------------------------------------------------------------------------------------------

sizes = st.integers(0, 300)
batch_sizes = st.integers(1, 40)


def as_lists(batches: Sequence[Array]) -> list[list[int]]:
    """Returns batches as plain lists."""
    return [batch.tolist() for batch in batches]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(size=sizes, batch_size=batch_sizes, seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 50))
def test_an_epoch_has_every_feature_once_and_only_the_last_batch_may_be_smaller(
    size: int, batch_size: int, seed: int, epoch: int
) -> None:
    batches = as_lists(plan_epoch(make_lengths(size, 0), batch_size, seed, epoch))
    assert sorted(row for batch in batches for row in batch) == list(range(size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == -(-size // batch_size)
    assert not batches or len(batches[-1]) == size % batch_size or size % batch_size == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_is_a_pure_function_and_differs_by_epoch_and_seed(seed: int) -> None:
    lengths = make_lengths(130, seed)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    plans = [as_lists(plan_epoch(lengths, 8, seed, epoch)) for epoch in range(4)]
    np.random.default_rng().random()
    np.random.seed(seed)
    assert plans == [as_lists(plan_epoch(lengths.copy(), 8, seed, epoch)) for epoch in range(4)]
    assert len({str(plan) for plan in plans}) == 4
    assert as_lists(plan_epoch(lengths, 8, seed + 1, 0)) != plans[0]
    np.random.seed(seed)
    plan_epoch(lengths, 8, seed, 0)
    untouched = np.random.get_state()[1].tolist()  # type: ignore[index]
    np.random.seed(seed)
    assert untouched == np.random.get_state()[1].tolist()  # type: ignore[index]
    assert len(before) == len(untouched)


def padding(lengths: Array, batches: Sequence[Array]) -> float:
    """Returns the share of padding in these batches."""
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - float(lengths.sum()) / padded


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1000, 5003])
def test_features_of_similar_length_share_a_batch_so_that_there_is_little_padding(seed: int, size: int) -> None:
    lengths = make_lengths(size, seed)
    order = np.random.default_rng(seed).permutation(size)
    at_random = padding(lengths, [order[start : start + 16] for start in range(0, size, 16)])
    grouped = padding(lengths, plan_epoch(lengths, 16, seed, 0))
    assert at_random > 0.4
    assert grouped < at_random / 3


@pytest.mark.parametrize("seed", SEEDS)
def test_batches_are_not_in_order_of_length(seed: int) -> None:
    lengths = make_lengths(800, seed)
    means = [float(lengths[batch].mean()) for batch in plan_epoch(lengths, 16, seed, 0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5
    longest = {int(np.argmax([lengths[batch].max() for batch in plan_epoch(lengths, 16, seed, epoch)]))
               for epoch in range(5)}  # fmt: skip
    assert len(longest) > 1


@pytest.mark.parametrize("seed", SEEDS)
def test_batches_have_other_members_in_each_epoch(seed: int) -> None:
    lengths = np.full(320, 7)
    first, second = (as_lists(plan_epoch(lengths, 16, seed, epoch)) for epoch in (0, 1))
    assert max(len(set(one) & set(other)) for one in first for other in second) < 10


# --- sharing a batch ------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 70),
    micro_batch_size=st.integers(1, 20),
    tokens=st.none() | st.integers(1, 400),
    num_processes=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_every_feature_occurs_once_and_processes_have_the_same_number_of_micro_batches(
    count: int, micro_batch_size: int, tokens: int | None, num_processes: int, seed: int
) -> None:
    lengths = make_lengths(100, seed)
    rows = np.random.default_rng(seed).permutation(100)[:count]
    limit = MicroBatchLimit(num_examples=micro_batch_size, num_tokens=tokens)
    shares = [share_batch(rows, lengths, limit, process, num_processes) for process in range(num_processes)]
    assert sorted(int(row) for share in shares for piece in share for row in piece) == sorted(rows.tolist())
    assert len({len(share) for share in shares}) == 1
    if tokens is None:
        assert len(shares[0]) == -(-count // (micro_batch_size * num_processes))
    pieces = [piece for share in shares for piece in share if len(piece)]
    assert all(len(piece) <= micro_batch_size for piece in pieces)
    if tokens is not None:
        assert all(len(piece) == 1 or len(piece) * int(lengths[piece].max()) <= tokens for piece in pieces)
        assert len(pieces) <= count  # and no piece could have taken a row of the next: longest first, each is full


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_the_processes_have_similar_work(seed: int, num_processes: int) -> None:
    lengths = make_lengths(96, seed)
    tokens = [
        sum(
            int(lengths[piece].max()) * len(piece)
            for piece in share_batch(np.arange(96), lengths, MicroBatchLimit(num_examples=4), process, num_processes)
        )
        for process in range(num_processes)
    ]  # fmt: skip
    assert max(tokens) - min(tokens) <= 4 * int(lengths.max())


# --- evaluation -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=sizes, batch_size=batch_sizes)
def test_an_evaluation_has_every_feature_once_and_the_longest_first(size: int, batch_size: int) -> None:
    lengths = make_lengths(size, 1)
    batches = plan_evaluation(lengths, batch_size)
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(size))
    assert lengths[rows].tolist() == sorted(lengths.tolist(), reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert as_lists(batches) == as_lists(plan_evaluation(lengths, batch_size))


def test_an_evaluation_batch_has_a_limited_number_of_sequences() -> None:
    """Features with one sequence each are limited by the batch size alone."""
    lengths = make_lengths(200, 0)
    counts = np.random.default_rng(0).integers(1, 200, 200)
    counts[7] = 2 * SEQUENCES_AT_ONCE
    batches = plan_evaluation(lengths, 16, counts)
    assert np.concatenate(batches).tolist() == np.concatenate(plan_evaluation(lengths, 16)).tolist()
    totals = [int(counts[batch].sum()) for batch in batches]
    assert max(len(batch) for batch in batches) <= 16
    assert [len(batch) for batch, total in zip(batches, totals, strict=True) if total > SEQUENCES_AT_ONCE] == [1]
    assert len(batches) < 100
    for size in (16, 3 * SEQUENCES_AT_ONCE):
        ones = plan_evaluation(make_lengths(2000, 0), size, np.ones(2000, dtype=np.int64))
        assert as_lists(ones) == as_lists(plan_evaluation(make_lengths(2000, 0), size))


@pytest.mark.parametrize("size", [0, 1, 7, 31, 32, 1700, 20_000])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_batches_are_those_of_the_first_edition(size: int, batch_size: int) -> None:
    """They were a list of arrays that permutation(N) made. A run that began then goes on with the same batches."""
    lengths = make_lengths(size, 1)
    generator = np.random.default_rng([3, 2, 5])
    order = generator.permutation(size)
    full = size // batch_size * batch_size
    expected: list[Array] = []
    for start in range(0, full, 50 * batch_size):
        group = order[start : min(start + 50 * batch_size, full)]
        expected += np.split(group[np.argsort(lengths[group], kind="stable")], len(group) // batch_size)
    expected = [expected[number] for number in generator.permutation(len(expected))]
    expected += [order[full:]] if full < size else []
    plan = plan_epoch(lengths, batch_size, 3, 5)
    assert as_lists(plan) == as_lists(expected)
    assert {batch.dtype for batch in plan} <= {np.dtype(np.int64)}
    assert as_lists(plan[-2:]) == as_lists(expected[-2:])
