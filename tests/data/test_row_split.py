"""Folds and shares of the training rows. tests/data/test_splits.py has the splits by fraction."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_finetune.config.sections import DataConfig, RunConfig
from hf_finetune.data.row_split import Strata, take_fold, take_share
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import ColumnSpec, Table, text_and_label_spec
from hf_finetune.system.errors import InputError

SPEC = text_and_label_spec(("text",), "label")
MakeConfig = Callable[..., RunConfig]


def make_table(labels: Sequence[Any], texts: Sequence[str] | None = None) -> Table:
    """A table with these labels. Each row has its own text, if none are given."""
    texts = texts or [f"text {row}" for row in range(len(labels))]
    lines = list(range(1, len(labels) + 1))
    return Table(columns={"text": list(texts), "label": list(labels)}, files=["made.csv"] * len(labels), lines=lines)


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_each_row_is_in_one_fold_and_folds_are_stratified(folds: int) -> None:
    labels = np.random.default_rng(folds).choice(["a", "b", "c"], 203, p=[0.6, 0.3, 0.1]).tolist()
    table, seen, counts = make_table(labels), [], []
    for fold in range(1, folds + 1):
        train, rows = take_fold(table, SPEC, folds, fold, seed=1)
        assert sorted([*train, *rows]) == list(range(203))
        assert rows.tolist() == sorted(rows)
        seen += rows.tolist()
        counts.append(Counter(labels[row] for row in rows))
    assert sorted(seen) == list(range(203))
    sizes = [sum(count.values()) for count in counts]
    assert max(sizes) - min(sizes) <= 1
    for label in "abc":
        assert max(count[label] for count in counts) - min(count[label] for count in counts) <= 1
    first, other = (take_fold(table, SPEC, folds, 1, seed=seed)[1].tolist() for seed in (1, 2))
    assert first == take_fold(table, SPEC, folds, 1, seed=1)[1].tolist() != other


def test_equal_texts_stay_in_one_fold() -> None:
    texts = [f"text {row // 3}" for row in range(90)]
    table = make_table(["a", "b", "a"] * 30, texts)
    folds = [set(take_fold(table, SPEC, 4, fold, seed=0)[1].tolist()) for fold in range(1, 5)]
    assert all({row // 3 * 3, row // 3 * 3 + 1, row // 3 * 3 + 2} <= rows for rows in folds for row in rows)
    assert sum(map(len, folds)) == 90


def test_a_label_of_one_row_stays_in_training() -> None:
    table = make_table(["a", "b"] * 10 + ["once"])
    for fold in (1, 2, 3):
        train, rows = take_fold(table, SPEC, 3, fold, seed=0)
        assert 20 in train
        assert 20 not in rows
        assert sorted([*train, *rows]) == list(range(21))


def test_rows_in_order_are_folded_in_pieces() -> None:
    spec = ColumnSpec(inputs=("text",), in_order=True)
    table = make_table([""] * 20)
    assert [take_fold(table, spec, 4, fold, seed=0)[1].tolist() for fold in range(1, 5)] == [
        list(range(start, start + 5)) for start in (0, 5, 10, 15)
    ]


@pytest.mark.parametrize("counts", [[1] * 11, [2] * 10, [6] * 7, [1, 9] * 5, [23], [3, 1, 1, 40, 2]], ids=str)
@pytest.mark.parametrize("folds", [2, 4, 5])
def test_folds_of_rows_in_order_are_of_one_size_for_files_of_any_length(counts: list[int], folds: int) -> None:
    spec = ColumnSpec(inputs=("text",), in_order=True)
    files = [f"{number}.txt" for number, count in enumerate(counts) for _ in range(count)]
    texts = [f"text {row}" for row in range(len(files))]
    table = Table(columns={"text": texts}, files=files, lines=list(range(1, len(files) + 1)))
    parts = [take_fold(table, spec, folds, fold, seed=0)[1].tolist() for fold in range(1, folds + 1)]
    assert sorted(row for part in parts for row in part) == list(range(len(files)))
    assert {len(part) for part in parts} <= {len(files) // folds, -(-len(files) // folds)}
    for part in parts:
        pieces = [(row, later) for row, later in pairwise(part) if files[row] == files[later]]
        assert all(later == row + 1 for row, later in pieces)


def test_a_fold_whose_labels_no_other_fold_has_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {row},label {row}\n" for row in range(6)), encoding="utf-8")
    with pytest.raises(InputError, match=r"data\.folds \(3\): has no row in fold 2: labels .* use fewer folds"):
        load_splits(DataConfig(train=[str(path)], test_fraction=0, folds=3, fold=2), 0)


def test_the_members_of_many_strata_are_found_at_once() -> None:
    """A search for each of them would take seconds."""
    of_group = np.random.default_rng(0).integers(60_000, size=120_000)
    strata = Strata(groups=of_group, of_group=of_group, number=60_001, is_stratified=True, codes=of_group, values=())
    began = time.perf_counter()
    members = list(strata.list_members(None))
    assert time.perf_counter() - began < 1
    assert len(members) == 60_001
    for stratum in (0, 7, 59_999, 60_000):
        assert members[stratum].tolist() == np.flatnonzero(of_group == stratum).tolist()


def test_numbers_are_not_stratified() -> None:
    table = make_table([row / 7 for row in range(40)])
    rows = [take_fold(table, SPEC, 4, fold, seed=0)[1] for fold in range(1, 5)]
    assert [len(fold) for fold in rows] == [10] * 4


def test_shares_are_nested_and_stratified() -> None:
    labels = ["rare"] * 5 + ["some"] * 40 + ["most"] * 155
    table, before = make_table(labels), set[int]()
    for share, num_rows in ((1 / 8, 1 + 5 + 20), (1 / 4, 2 + 10 + 39), (1 / 2, 3 + 20 + 78), (1.0, 200)):
        rows = take_share(table, SPEC, share, seed=3).tolist()
        assert before <= set(rows)
        assert rows == sorted(rows)
        assert len(rows) == num_rows
        before = set(rows)


def test_splits_with_folds(make_config: MakeConfig) -> None:
    base = make_config()
    parts = [
        load_splits(DataConfig(train=base.data.train, test=base.data.test, folds=3, fold=fold), 0) for fold in (1, 2, 3)
    ]
    assert [len(part.validation) for part in parts] == [20, 20, 20]
    assert sorted(line for part in parts for line in part.validation.lines) == list(range(1, 61))
    for part in parts:
        assert sorted([*part.train.lines, *part.validation.lines]) == list(range(1, 61))
        assert part.test is not None
        assert len(part.test) == 24
    assert parts[1].notes == ("validation: fold 2 of 3, 20 of 60 rows, stratified, seed 0",)

    # A test split that is drawn is the same for all folds
    drawn = [load_splits(DataConfig(train=base.data.train, folds=3, fold=fold), 0) for fold in (1, 2, 3)]
    assert len({tuple(part.test.lines) for part in drawn if part.test is not None}) == 1
    assert [len(part.validation) for part in drawn] == [18, 18, 18]

    share = load_splits(
        DataConfig(train=base.data.train, validation=base.data.validation, test_fraction=0, train_fraction=0.25), 0
    )
    assert len(share.train) == 15
    assert share.notes == ("train: 15 of 60 rows, stratified, seed 0",)
    with pytest.raises(InputError, match=r"data\.folds \(61\): must be at most the number of different rows \(\d+\)"):
        load_splits(DataConfig(train=base.data.train, test_fraction=0, folds=61), 0)
