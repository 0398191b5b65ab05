"""The layout of cached activations: every distinct sequence once, the longest first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.entries import Rows, make_features, make_layout

from hf_finetune.cache import layout as layout_module

pytestmark = pytest.mark.usefixtures("small_chunks")

some_rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=10), min_size=1, max_size=12)


@given(train=some_rows, test=some_rows)
def test_a_layout_holds_every_feature_once(train: Rows, test: Rows) -> None:
    splits = {"train": train, "test": test}
    layout = make_layout(splits)
    kept = [splits[split][row] for split, row in layout.source]
    assert sorted(kept) == sorted(map(list, {tuple(row) for row in [*train, *test]}))
    assert np.diff(layout.offsets).tolist() == sorted(map(len, kept), reverse=True) == [len(row) for row in kept]
    flat = [token for row in kept for token in row]
    for split, rows in splits.items():
        for start, row in zip(layout.starts[split].tolist(), rows, strict=True):
            assert flat[start : start + len(row)] == row
            assert start in layout.offsets
    chunks = layout.chunks()
    assert [number for begin, end in chunks for number in range(begin, end)] == list(range(len(kept)))
    assert all((end - begin) * len(kept[begin]) <= layout_module.CHUNK_TOKENS for begin, end in chunks)


def test_a_chunk_is_as_large_as_it_may_be_or_one_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "CHUNK_TOKENS", 4096)
    rows = [[1] * 5000, [1] * 4096, *([index] * 2048 for index in range(3)), *([index] for index in range(5000))]
    assert make_layout({"train": rows}).chunks() == [(0, 1), (1, 2), (2, 4), (4, 6), (6, 4102), (4102, 5005)]


@given(rows=some_rows, data=st.data())
def test_the_digest_is_of_the_inputs_alone(rows: Rows, data: st.DataObject) -> None:
    moved = data.draw(st.permutations([*rows, rows[0]]))
    cut = data.draw(st.integers(0, len(rows)))
    splits = {"validation": make_features(moved[:cut], label=1), "train": make_features(moved[cut:], label=2)}
    assert layout_module.make_layout(splits).digest == make_layout({"train": rows}).digest


def test_the_digest_changes_with_every_input() -> None:
    rows, types = [[1, 2, 3], [4, 5]], [[0, 0, 1], [0, 1]]
    others = [
        make_features(rows),
        make_features(rows, types),
        make_features([[1, 2, 3], [4, 6]], types),
        make_features(rows, [[0, 0, 1], [0, 0]]),
        make_features([*rows, [4]], [*types, [0]]),
        make_features([[1, 2], [4, 5]], [[0, 0], [0, 1]]),
        make_features([[1, 2], [3, 4, 5]], [[0, 0], [1, 0, 1]]),
    ]
    assert len({layout_module.make_layout({"train": features}).digest for features in others}) == len(others)
