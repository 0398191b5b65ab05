"""The order of a stream is a pure function of (shards, buffer, seed, epoch), and takes each row once an epoch."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_finetune.data.batches import plan_block
from hf_finetune.data.stream import Row, Shard, cut_into_blocks, make_block_table, shuffle_rows

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=6)
NUMBERS = st.integers(0, 2**31 - 1)


def make_shards(sizes: list[int], *, in_order: bool = False) -> list[Shard]:
    """Shards of these sizes. A row's values are the numbers of shard and row."""

    def make_shard(number: int, size: int) -> Shard:
        rows = [Row(f"shard{number}", line, (number, line)) for line in range(1, size + 1)]
        return Shard(name=f"shard{number}", read=lambda: iter(rows), in_order=in_order)

    return [make_shard(number, size) for number, size in enumerate(sizes)]


@given(SIZES, st.integers(1, 50), NUMBERS, st.integers(0, 9))
def test_each_row_comes_once_an_epoch_in_an_order_that_the_arguments_decide(
    sizes: list[int], buffer_size: int, seed: int, epoch: int
) -> None:
    rows = list(shuffle_rows(make_shards(sizes), buffer_size, seed, epoch))
    expected = [(number, line) for number, size in enumerate(sizes) for line in range(1, size + 1)]
    assert sorted(row.values for row in rows) == expected
    assert rows == list(shuffle_rows(make_shards(sizes), buffer_size, seed, epoch))


def test_seed_epoch_and_buffer_change_the_order() -> None:
    shards = make_shards([30, 30, 30])
    orders = {
        tuple(row.values for row in shuffle_rows(shards, buffer, seed, epoch))
        for buffer, seed, epoch in ((20, 0, 0), (20, 0, 1), (20, 1, 0), (10, 0, 0))
    }
    assert len(orders) == 4


def test_a_buffer_of_all_rows_is_a_random_order_and_one_of_one_row_keeps_that_of_the_shards() -> None:
    shards = make_shards([2000])
    places = [row.line for row in shuffle_rows(shards, 2000, 0, 0)]
    assert abs(np.corrcoef(places, range(2000))[0, 1]) < 0.1
    assert [row.line for row in shuffle_rows(shards, 1, 0, 0)] == list(range(1, 2001))


@given(SIZES, st.integers(1, 50))
def test_no_row_is_read_further_ahead_than_the_buffer(sizes: list[int], buffer_size: int) -> None:
    """Memory: between what was read and what was given there is never more than the buffer and the next row."""
    read = 0

    def count(shard: Shard) -> Iterator[Row]:
        nonlocal read
        for row in shard.read():
            read += 1
            yield row

    shards = [
        Shard(name=shard.name, read=lambda shard=shard: count(shard))  # type: ignore[misc]
        for shard in make_shards(sizes)
    ]
    most = 0
    for given_rows, _ in enumerate(shuffle_rows(shards, buffer_size, 0, 0), 1):
        most = max(most, read - given_rows)
    assert most <= buffer_size


@given(SIZES, NUMBERS)
def test_lines_of_texts_keep_their_order_within_a_shard(sizes: list[int], seed: int) -> None:
    rows = list(shuffle_rows(make_shards(sizes, in_order=True), 10, seed, 0))
    for number, size in enumerate(sizes):
        assert [row.line for row in rows if row.values[0] == number] == list(range(1, size + 1))


@given(SIZES, st.integers(1, 30), st.data())
def test_reading_on_after_any_row_gives_the_rest(sizes: list[int], block_size: int, data: st.DataObject) -> None:
    shards = make_shards(sizes)
    total = sum(sizes)
    taken = data.draw(st.integers(0, total))
    rest = list(islice(shuffle_rows(shards, 7, 3, 1), taken, None))
    assert rest == list(shuffle_rows(shards, 7, 3, 1))[taken:]
    blocks = list(cut_into_blocks(rest, block_size))
    assert [row for block, _ in blocks for row in block] == rest
    assert [is_last for _, is_last in blocks] == [False] * (len(blocks) - 1) + [True] * bool(rest)
    assert all(len(block) == block_size for block, _ in blocks[:-1])


@given(st.integers(1, 300), st.integers(1, 40), NUMBERS, st.integers(0, 9))
def test_the_batches_of_a_block_have_each_feature_once_and_nearly_equal_sizes(
    count: int, batch_size: int, seed: int, block: int
) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, count)
    batches = plan_block(lengths, batch_size, seed, block)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    if count % batch_size == 0:
        assert set(sizes) == {batch_size}


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_row_of_a_block_knows_where_it_came_from(in_memory: bool) -> None:
    rows = [Row("a.jsonl", 3, ("x", 1)), Row("b.jsonl", 1, ("y", 0))]
    table = make_block_table(rows, ("text", "label"), is_in_memory=in_memory)
    assert dict(table.columns) == {"text": ["x", "y"], "label": [1, 0]}
    assert [table.where(row) for row in range(2)] == (
        ["a.jsonl[3]", "b.jsonl[1]"] if in_memory else ["a.jsonl:3", "b.jsonl:1"]
    )
