"""Splits: read if they are given, split off from training if not."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from hf_finetune.config.sections import DataConfig
from hf_finetune.data import row_split, splits
from hf_finetune.data.row_split import format_stratum
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import ColumnSpec, Table, text_and_label_spec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import canonical_label
from hf_finetune.tasks.text.label_reader import LabelReader, guess_problem

SEEDS = (0, 1, 2, 31)
BOTH = {"validation": 0.1, "test": 0.2}
SPEC = text_and_label_spec(("text",), "label")


def make_table(labels: Sequence[Any], texts: Sequence[str] | None = None) -> Table:
    """Returns a table with these labels. Each row has its own text, if none are given."""
    texts = texts or [f"text {row}" for row in range(len(labels))]
    lines = list(range(1, len(labels) + 1))
    columns = {"text": list(texts), "label": list(labels)}
    return Table(columns=columns, files=["made.csv"] * len(labels), lines=lines)


def split_off(
    table: Table, spec: ColumnSpec, fractions: Mapping[str, float], seed: int
) -> tuple[list[int], dict[str, list[int]]]:
    """Returns what row_split.split_off() returns, as lists."""
    train_rows, split_rows = row_split.split_off(table, spec, fractions, seed)
    return train_rows.tolist(), {split: rows.tolist() for split, rows in split_rows.items()}


# --- split_off -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_new_splits_are_disjoint_and_complete_and_of_the_right_size(seed: int) -> None:
    labels = np.random.default_rng(seed).choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1]).tolist()
    train_rows, split_rows = split_off(make_table(labels), SPEC, BOTH, seed)
    assert sorted([*train_rows, *split_rows["validation"], *split_rows["test"]]) == list(range(200))
    assert (len(split_rows["validation"]), len(split_rows["test"])) == (20, 40)
    assert [train_rows, *split_rows.values()] == [sorted(rows) for rows in (train_rows, *split_rows.values())]


@pytest.mark.parametrize(("count", "sizes"), [(35, [4, 7]), (36, [4, 7]), (38, [4, 8]), (34, [3, 7])])
@pytest.mark.parametrize("labels", [1, 3])
def test_the_sizes_are_rounded_over_all_labels_together(count: int, sizes: list[int], labels: int) -> None:
    for seed in SEEDS:
        _, split_rows = split_off(make_table([row % labels for row in range(count)]), SPEC, BOTH, seed)
        assert [len(split_rows["validation"]), len(split_rows["test"])] == sizes


@pytest.mark.parametrize("seed", SEEDS)
def test_splits_are_stratified(seed: int) -> None:
    labels = ["rare"] * 10 + ["some"] * 40 + ["most"] * 150
    _, split_rows = split_off(make_table(labels), SPEC, BOTH, seed)
    for split, fraction in BOTH.items():
        counts = Counter(labels[row] for row in split_rows[split])
        for label, total in Counter(labels).items():
            assert abs(counts[label] - fraction * total) <= 1, (split, label)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_labels_with_one_row_cannot_give_is_not_taken_from_others(seed: int) -> None:
    labels = [f"a{number}" for number in range(50)] + ["b"] * 100 + ["c"] * 100
    _, split_rows = split_off(make_table(labels), SPEC, BOTH, seed)
    for split, most in (("validation", 10), ("test", 20)):
        counts = Counter(labels[row] for row in split_rows[split])
        assert set(counts) == {"b", "c"}
        assert max(counts.values()) <= most


def test_splits_are_a_function_of_the_seed() -> None:
    table = make_table(["a", "b"] * 50)
    results = [split_off(table, SPEC, BOTH, seed) for seed in range(5)]
    assert results == [split_off(table, SPEC, BOTH, seed) for seed in range(5)]
    assert len({str(result) for result in results}) == 5


def test_rows_are_drawn_and_not_the_first_or_last() -> None:
    _, split_rows = split_off(make_table(["a"] * 100), SPEC, {"test": 0.1}, 0)
    assert split_rows["test"] not in (list(range(10)), list(range(90, 100)))


# Label columns of single labels, of lists, and of numbers
label_columns = st.sampled_from([
    st.sampled_from(["a", "b", "1", "01", "1.0", "nan", "1e0"]),
    st.one_of(st.integers(0, 3), st.sampled_from([0.0, 1.0, 2.0])),
    st.lists(st.sampled_from(["x", "y", "z", "w"]), max_size=3),
    st.floats(0, 1),
])  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=label_columns.flatmap(lambda one: st.lists(st.tuples(st.integers(0, 25), one), min_size=1, max_size=60)),
    fractions=st.tuples(st.floats(0.01, 0.45), st.floats(0.01, 0.45)),
    seed=st.integers(0, 5),
)
def test_equal_texts_go_together_and_every_label_keeps_a_row_in_training(
    rows: list[tuple[int, Any]], fractions: tuple[float, float], seed: int
) -> None:
    texts, labels = [str(text) for text, _ in rows], [label for _, label in rows]
    given_fractions = dict(zip(("validation", "test"), fractions, strict=True))
    train_rows, split_rows = split_off(make_table(labels, texts), SPEC, given_fractions, seed)
    assert sorted([*train_rows, *split_rows["validation"], *split_rows["test"]]) == list(range(len(rows)))
    sides: dict[str, set[str]] = {}
    for side, members in {"train": train_rows, **split_rows}.items():
        for row in members:
            sides.setdefault(texts[row], set()).add(side)
    assert all(len(members) == 1 for members in sides.values())

    table = make_table(labels)
    problem, _ = guess_problem(table, "label", None)
    if problem == "regression":
        return
    codes, lists = LabelReader(problem=problem, columns=("label",)).read_lists(table)

    def names(row: int) -> list[str]:
        return [str(canonical_label(value)) for value in lists[codes[row]]]

    in_training = {name for row in train_rows for name in names(row)}
    assert in_training == {name for row in range(len(rows)) for name in names(row)}


def test_the_first_text_of_a_pair_alone_does_not_make_rows_equal() -> None:
    table = make_table(["a", "b"] * 20, ["same"] * 40)
    table = table.with_columns({**table.columns, "other": [str(row) for row in range(40)]})
    pairs = text_and_label_spec(("text", "other"), "label")
    assert len(split_off(table, pairs, {"test": 0.25}, 0)[1]["test"]) == 10
    assert split_off(table, SPEC, {"test": 0.25}, 0)[1]["test"] == []


@pytest.mark.parametrize(
    ("label", "expected"),
    [("name", "name"), ("3", "3"), (3, "3"), (3.0, "3"), ("3.0", "3.0"), (True, "True"), (None, "None"), (2.5, "2.5"),
     (float("nan"), "nan"), (["a"], ""), (("a",), ""), ({"a": 1}, ""), ("", "")],
)  # fmt: skip
def test_labels_are_strata_and_lists_are_one_stratum(label: Any, expected: str) -> None:
    assert format_stratum(label) == expected


# --- load_splits ----------------------------------------------------------------------------------------------------


def write_rows(path: Path, count: int, *, seed: int = 0, **options: Any) -> str:
    """Writes a JSON lines file of rows with different texts. Returns its path."""
    rows = tiny.make_rows(count, seed=seed, **options)
    for number, row in enumerate(rows):
        row["text"] += f" {seed}-{number}"
    return str(tiny.write_jsonl(path, rows))


def test_given_splits_are_read_and_nothing_is_split_off(tmp_path: Path) -> None:
    files = {split: (write_rows(tmp_path / f"{split}.jsonl", count, seed=count),)
             for split, count in (("train", 9), ("validation", 5), ("test", 4))}  # fmt: skip
    splits = load_splits(DataConfig(**files), 0)
    assert {split: len(table) for split, table in splits.tables().items()} == {"train": 9, "validation": 5, "test": 4}
    assert splits.notes == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_splits_are_taken_from_training_and_reported(tmp_path: Path, seed: int) -> None:
    splits = load_splits(DataConfig(train=(write_rows(tmp_path / "all.jsonl", 60),)), seed)
    tables = splits.tables()
    assert {split: len(table) for split, table in tables.items()} == {"train": 48, "validation": 6, "test": 6}
    assert len({text for table in tables.values() for text in table.columns["text"]}) == 60
    assert splits.notes == (
        f"validation: 6 of the 60 training rows, stratified, seed {seed}",
        f"test: 6 of the 60 training rows, stratified, seed {seed}",
    )
    assert tables["test"].where(0).startswith(f"{tmp_path}/all.jsonl:")


def test_only_the_missing_split_is_taken_from_training(tmp_path: Path) -> None:
    train, test = (write_rows(tmp_path / f"{name}.jsonl", 30, seed=number) for number, name in enumerate("ab"))
    splits = load_splits(DataConfig(train=(train,), test=(test,), validation_fraction=0.2), 0)
    assert {split: len(table) for split, table in splits.tables().items()} == {"train": 24, "validation": 6, "test": 30}


def test_a_test_fraction_of_0_makes_no_test_split(tmp_path: Path) -> None:
    splits = load_splits(DataConfig(train=(write_rows(tmp_path / "a.jsonl", 30),), test_fraction=0.0), 0)
    assert splits.test is None
    assert list(splits.tables()) == ["train", "validation"]


def test_fewer_training_examples_are_drawn_with_the_seed_and_other_splits_stay(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 60)
    drawn = []
    for seed in (0, 0, 1):
        splits = load_splits(DataConfig(train=(path,), max_train_examples=10), seed)
        complete = load_splits(DataConfig(train=(path,)), seed)
        assert splits.validation == complete.validation
        assert splits.test == complete.test
        assert set(splits.train.columns["text"]) < set(complete.train.columns["text"])
        assert splits.train.lines == sorted(splits.train.lines)
        assert len(splits.train) == 10
        drawn.append(splits.train.lines)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(load_splits(DataConfig(train=(path,), max_train_examples=1000), 0).train) == 48


@pytest.mark.parametrize(("fraction", "split"), [(0.01, "validation"), (0.0, "test")])
def test_a_fraction_that_takes_no_row_is_an_error(tmp_path: Path, fraction: float, split: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", 6)
    config = DataConfig(train=(path,), validation_fraction=fraction or 0.4, test_fraction=0.01)
    with pytest.raises(InputError, match=rf"^data\.{split}_fraction \(0\.01\): takes none of the 6 training rows"):
        load_splits(config, 0)


def test_rows_with_one_text_cannot_be_split(tmp_path: Path) -> None:
    path = tiny.write_jsonl(tmp_path / "a.jsonl", [{"text": "same", "label": label} for label in "ababab"])
    with pytest.raises(InputError, match=r"^data\.validation_fraction"):
        load_splits(DataConfig(train=(str(path),)), 0)


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that datasets.load_dataset loads, with train and test, and without validation."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "dataset").mkdir()
    write_rows(tmp_path / "dataset" / "train.jsonl", 30)
    write_rows(tmp_path / "dataset" / "test.jsonl", 6, seed=1)
    return tmp_path / "dataset"


def test_a_data_set_without_validation_gets_it_from_training(dataset_folder: Path) -> None:
    splits = load_splits(DataConfig(dataset=str(dataset_folder)), 0)
    assert {split: len(table) for split, table in splits.tables().items()} == {"train": 27, "validation": 3, "test": 6}


def test_a_data_set_without_validation_needs_a_fraction(dataset_folder: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.validation_fraction \(0\.0\): leaves no validation split"):
        load_splits(DataConfig(dataset=str(dataset_folder), validation_fraction=0.0), 0)


def test_a_data_set_without_training_rows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, full = make_table([]), make_table(["a", "b"])
    monkeypatch.setattr(
        splits, "read_hub_dataset", lambda config, spec, root: {"train": empty, "validation": full, "test": full}
    )
    with pytest.raises(InputError, match=r"^data\.train \(\[\]\): leaves no row to train on"):
        load_splits(DataConfig(dataset="empty"), 0)
