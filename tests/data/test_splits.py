"""Splits, encoding and its cache, padding, and batch plans that are pure functions."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from hf_finetune.config.sections import DataConfig
from hf_finetune.data import encoding, splits
from hf_finetune.data.batches import MicroBatchLimit, plan_epoch, plan_evaluation, share_batch
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Features, Ragged, collate, make_features
from hf_finetune.data.splits import format_stratum, load_splits, split_off
from hf_finetune.data.table import Table, text_and_label_spec
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_dir
from hf_finetune.tasks.classify import Classification, guess_problem

Array = np.ndarray[Any, Any]
SEEDS = (0, 1, 2, 31)
BOTH = {"validation": 0.1, "test": 0.2}
FORM = text_and_label_spec(("text",), "label")


def make_table(labels: Sequence[Any], texts: Sequence[str] | None = None) -> Table:
    """A table with these labels, and a text of its own for every row unless given."""
    texts = texts or [f"text {row}" for row in range(len(labels))]
    lines = list(range(1, len(labels) + 1))
    columns = {"text": list(texts), "label": list(labels)}
    return Table(columns=columns, files=["made.csv"] * len(labels), lines=lines)


def make_tokenizer(*, token_types: bool = True, **options: Any) -> Any:
    """The small tokenizer, with token types as BERT's, or without as RoBERTa's."""
    tokenizer = tiny.make_tokenizer(**options)
    tokenizer.model_input_names = ["input_ids", *["token_type_ids"] * token_types, "attention_mask"]
    return tokenizer


def make_lengths(count: int, seed: int) -> Array:
    """Lengths as text has them: most short, some long."""
    return np.random.default_rng(seed).lognormal(3.0, 0.8, count).astype(np.int64) + 2


# --- carving splits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_carved_splits_are_disjoint_and_complete_and_of_the_right_size(seed: int) -> None:
    labels = np.random.default_rng(seed).choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1]).tolist()
    kept, carved = split_off(make_table(labels), FORM, BOTH, seed)
    assert sorted([*kept, *carved["validation"], *carved["test"]]) == list(range(200))
    assert (len(carved["validation"]), len(carved["test"])) == (20, 40)
    assert [kept, *carved.values()] == [sorted(rows) for rows in (kept, *carved.values())]


@pytest.mark.parametrize(("count", "sizes"), [(35, [4, 7]), (36, [4, 7]), (38, [4, 8]), (34, [3, 7])])
@pytest.mark.parametrize("labels", [1, 3])
def test_the_sizes_are_rounded_over_all_labels_together(count: int, sizes: list[int], labels: int) -> None:
    for seed in SEEDS:
        _, carved = split_off(make_table([row % labels for row in range(count)]), FORM, BOTH, seed)
        assert [len(carved["validation"]), len(carved["test"])] == sizes


@pytest.mark.parametrize("seed", SEEDS)
def test_carving_is_stratified(seed: int) -> None:
    labels = ["rare"] * 10 + ["some"] * 40 + ["most"] * 150
    _, carved = split_off(make_table(labels), FORM, BOTH, seed)
    for split, fraction in BOTH.items():
        counts = Counter(labels[row] for row in carved[split])
        for label, total in Counter(labels).items():
            assert abs(counts[label] - fraction * total) <= 1, (split, label)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_labels_of_one_row_cannot_give_is_not_taken_from_others(seed: int) -> None:
    labels = [f"a{number}" for number in range(50)] + ["b"] * 100 + ["c"] * 100
    _, carved = split_off(make_table(labels), FORM, BOTH, seed)
    for split, most in (("validation", 10), ("test", 20)):
        counts = Counter(labels[row] for row in carved[split])
        assert set(counts) == {"b", "c"}
        assert max(counts.values()) <= most


def test_carving_is_a_function_of_the_seed() -> None:
    table = make_table(["a", "b"] * 50)
    carvings = [split_off(table, FORM, BOTH, seed) for seed in range(5)]
    assert carvings == [split_off(table, FORM, BOTH, seed) for seed in range(5)]
    assert len({str(carving) for carving in carvings}) == 5


def test_carving_draws_and_does_not_take_the_first_rows() -> None:
    _, carved = split_off(make_table(["a"] * 100), FORM, {"test": 0.1}, 0)
    assert carved["test"] not in (list(range(10)), list(range(90, 100)))


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
    kept, carved = split_off(make_table(labels, texts), FORM, given_fractions, seed)
    assert sorted([*kept, *carved["validation"], *carved["test"]]) == list(range(len(rows)))
    sides: dict[str, set[str]] = {}
    for side, members in {"train": kept, **carved}.items():
        for row in members:
            sides.setdefault(texts[row], set()).add(side)
    assert all(len(members) == 1 for members in sides.values())

    table = make_table(labels)
    problem, _ = guess_problem(table, "label", None)
    if problem == "regression":
        return
    task = Classification(problem=problem, label_names=(), label_column="label")

    def names(row: int) -> list[str]:
        return task.labels_of(table, row)

    in_training = {name for row in kept for name in names(row)}
    assert in_training == {name for row in range(len(rows)) for name in names(row)}


def test_the_first_text_of_a_pair_alone_makes_no_texts_equal() -> None:
    config = DataConfig(train=("x",), text_columns=("text", "other"))
    table = make_table(["a", "b"] * 20, ["same"] * 40)
    table.columns["other"] = [str(row) for row in range(40)]
    assert len(split_off(table, text_and_label_spec(config.text_columns, str(config.label_column)), {"test": 0.25}, 0)[1]["test"]) == 10
    assert split_off(table, FORM, {"test": 0.25}, 0)[1]["test"] == []


@pytest.mark.parametrize(
    ("label", "expected"),
    [("name", "name"), ("3", "3"), (3, "3"), (3.0, "3"), ("3.0", "3.0"), (True, "True"), (None, "None"), (2.5, "2.5"),
     (float("nan"), "nan"), (["a"], ""), (("a",), ""), ({"a": 1}, ""), ("", "")],
)  # fmt: skip
def test_labels_are_strata_and_lists_are_one_stratum(label: Any, expected: str) -> None:
    assert format_stratum(label) == expected


# --- load_splits ----------------------------------------------------------------------------------------------------


def write_rows(path: Path, count: int, *, seed: int = 0, **options: Any) -> str:
    """The path of a JSON lines file with made rows, no two of equal text."""
    rows = tiny.make_rows(count, seed=seed, **options)
    for number, row in enumerate(rows):
        row["text"] += f" {seed}-{number}"
    return str(tiny.write_jsonl(path, rows))


def test_given_splits_are_read_and_nothing_is_carved(tmp_path: Path) -> None:
    files = {split: (write_rows(tmp_path / f"{split}.jsonl", count, seed=count),)
             for split, count in (("train", 9), ("validation", 5), ("test", 4))}  # fmt: skip
    splits = load_splits(DataConfig(**files), 0)
    assert {split: len(table) for split, table in splits.tables().items()} == {"train": 9, "validation": 5, "test": 4}
    assert splits.notes == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_splits_are_carved_out_of_training_and_told(tmp_path: Path, seed: int) -> None:
    splits = load_splits(DataConfig(train=(write_rows(tmp_path / "all.jsonl", 60),)), seed)
    tables = splits.tables()
    assert {split: len(table) for split, table in tables.items()} == {"train": 48, "validation": 6, "test": 6}
    assert len({text for table in tables.values() for text in table.columns["text"]}) == 60
    assert splits.notes == (
        f"validation: 6 of the 60 training rows, stratified, seed {seed}",
        f"test: 6 of the 60 training rows, stratified, seed {seed}",
    )
    assert tables["test"].where(0).startswith(f"{tmp_path}/all.jsonl:")


def test_only_the_split_that_is_missing_is_carved(tmp_path: Path) -> None:
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
        whole = load_splits(DataConfig(train=(path,)), seed)
        assert splits.validation == whole.validation
        assert splits.test == whole.test
        assert set(splits.train.columns["text"]) < set(whole.train.columns["text"])
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


def test_rows_with_equal_texts_only_leave_nothing_to_carve(tmp_path: Path) -> None:
    path = tiny.write_jsonl(tmp_path / "a.jsonl", [{"text": "same", "label": label} for label in "ababab"])
    with pytest.raises(InputError, match=r"^data\.validation_fraction"):
        load_splits(DataConfig(train=(str(path),)), 0)


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that datasets.load_dataset loads: train and test, no validation."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "dataset").mkdir()
    write_rows(tmp_path / "dataset" / "train.jsonl", 30)
    write_rows(tmp_path / "dataset" / "test.jsonl", 6, seed=1)
    return tmp_path / "dataset"


def test_a_validation_split_is_carved_out_of_a_data_set_that_has_none(dataset_folder: Path) -> None:
    splits = load_splits(DataConfig(dataset=str(dataset_folder)), 0)
    assert {split: len(table) for split, table in splits.tables().items()} == {"train": 27, "validation": 3, "test": 6}


def test_a_data_set_without_validation_needs_a_fraction(dataset_folder: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.validation_fraction \(0\.0\): leaves no validation split"):
        load_splits(DataConfig(dataset=str(dataset_folder), validation_fraction=0.0), 0)


def test_a_data_set_without_training_rows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, full = make_table([]), make_table(["a", "b"])
    monkeypatch.setattr(
        splits, "read_hub_dataset", lambda config, form: {"train": empty, "validation": full, "test": full}
    )
    with pytest.raises(InputError, match=r"^data\.train \(\[\]\): leaves no row to train on"):
        load_splits(DataConfig(dataset="empty"), 0)


# --- encoding and its cache -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Labelled(Classification):
    """A task whose labels are given."""

    given: Any = None

    def labels(self, table: Table, arrays: Any) -> Any:
        return self.given


def encode(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int, labels: Any) -> Features:
    """Features of columns of texts, through the cache."""
    columns = {f"text{number}": list(column) for number, column in enumerate(texts)}
    task = Labelled(
        problem="single_label", label_names=("a", "b"), label_column="label", text_columns=tuple(columns), given=labels
    )
    table = Table(columns=columns, files=["made.csv"] * len(texts[0]), lines=list(range(1, len(texts[0]) + 1)))
    return encoding.encode(task, table, tokenizer, max_length)


def flat_features(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> Features:
    """Features of columns of texts, without the cache."""
    return make_features(tokenize(texts, tokenizer, max_length), np.zeros(len(texts[0])))


TEXTS = [[row["text"] for row in tiny.make_rows(25, seed=3)]]
PAIRS = [TEXTS[0], [row["text"] for row in tiny.make_rows(25, seed=4)]]
LABELS = np.arange(25)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own; the folder of its entries."""
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each call of any tokenizer."""
    kind, made = type(make_tokenizer()), []
    original = kind.__call__

    def counting(self: Any, text: Any, *rest: Any, **options: Any) -> Any:
        made.append(len(text))
        return original(self, text, *rest, **options)

    monkeypatch.setattr(kind, "__call__", counting)
    return made


def same(ours: Features, theirs: Features) -> bool:
    """Whether two sets of features hold the same arrays."""
    return (
        ours.inputs.keys() == theirs.inputs.keys()
        and all(np.array_equal(ours.inputs[name], theirs.inputs[name]) for name in ours.inputs)
        and np.array_equal(ours.offsets, theirs.offsets)
        and ours.num_truncated == theirs.num_truncated
    )


@pytest.mark.parametrize("texts", [TEXTS, PAIRS])
def test_encoding_equals_the_tokenizer_row_by_row(cache: Path, texts: list[list[str]]) -> None:
    tokenizer = make_tokenizer()
    features = encode(texts, tokenizer, 12, LABELS)
    assert len(features) == 25
    for row in range(25):
        alone = tokenizer(*(column[row] for column in texts), truncation=True, max_length=12)
        where = slice(features.offsets[row], features.offsets[row + 1])
        assert {name: array[where].tolist() for name, array in features.inputs.items()} == {
            name: alone[name] for name in ("input_ids", "token_type_ids")
        }
    assert features.lengths.tolist() == np.diff(features.offsets).tolist()
    assert {array.dtype for array in features.inputs.values()} == {np.dtype(np.int32)}
    assert (features.labels == LABELS).all()


@pytest.mark.parametrize("max_length", [5, 8, 64])
def test_texts_that_were_cut_are_counted(cache: Path, max_length: int) -> None:
    tokenizer = make_tokenizer()
    longer = sum(len(tokenizer(text)["input_ids"]) > max_length for text in TEXTS[0])
    features = encode(TEXTS, tokenizer, max_length, LABELS)
    assert features.num_truncated == longer == flat_features(TEXTS, tokenizer, max_length).num_truncated
    assert features.lengths.max() <= max_length
    assert (longer > 0) == (max_length < 12)


def test_texts_that_were_cut_are_counted_for_slow_tokenizers_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    tokenizer = make_tokenizer()
    fast = flat_features(TEXTS, tokenizer, 8).num_truncated
    monkeypatch.setattr(transformers.BatchEncoding, "encodings", property(lambda self: None))
    assert flat_features(TEXTS, tokenizer, 8).num_truncated == fast > 0
    assert flat_features(TEXTS, tokenizer, 64).num_truncated == 0


def test_more_texts_than_a_chunk_are_all_encoded(cache: Path) -> None:
    texts = [[f"{row % 7} the cat " * (row % 5 + 1) for row in range(2345)]]
    features = encode(texts, make_tokenizer(), 64, np.zeros(2345))
    assert features.lengths.tolist() == [3 * (row % 5 + 1) + 2 for row in range(2345)]


def test_the_second_encoding_comes_from_the_disk(cache: Path, calls: list[int]) -> None:
    tokenizer = make_tokenizer()
    first = encode(TEXTS, tokenizer, 16, LABELS)
    assert sum(calls) == 25
    assert same(encode(TEXTS, tokenizer, 16, LABELS), first)
    assert same(encode(TEXTS, make_tokenizer(), 16, LABELS), first)
    assert sum(calls) == 25
    assert len(list(cache.iterdir())) == 1


def test_what_the_tokenizer_did_before_makes_no_other_entry(cache: Path, calls: list[int]) -> None:
    tokenizer = make_tokenizer()
    encode(TEXTS, tokenizer, 16, LABELS)
    tokenizer(["a cat"], truncation=True, max_length=4, padding="max_length")
    encode(PAIRS, tokenizer, 16, LABELS)
    del calls[:]
    again = make_tokenizer()  # as another process has it
    encode(PAIRS, again, 16, LABELS)
    encode(TEXTS, again, 16, LABELS)
    assert calls == []


@pytest.mark.parametrize(
    "change",
    [
        lambda texts, tokenizer: (texts, tokenizer, 17),
        lambda texts, tokenizer: (PAIRS, tokenizer, 16),
        lambda texts, tokenizer: ([[*texts[0][1:], "another"]], tokenizer, 16),
        lambda texts, tokenizer: (texts, make_tokenizer(ends_only=True), 16),
        lambda texts, tokenizer: (texts, (tokenizer.add_tokens(["cat dog"]), tokenizer)[1], 16),
    ],
    ids=["max_length", "a pair", "another text", "another template", "another vocabulary"],
)
def test_whatever_the_encoding_depends_on_makes_another_entry(
    cache: Path, calls: list[int], change: Callable[..., tuple[Any, Any, int]]
) -> None:
    tokenizer = make_tokenizer()
    encode(TEXTS, tokenizer, 16, LABELS)
    del calls[:]
    texts, other, max_length = change(TEXTS, tokenizer)
    encode(texts, other, max_length, LABELS)
    assert sum(calls) == 25
    assert len(list(cache.iterdir())) == 2


def test_labels_are_no_part_of_the_cache(cache: Path, calls: list[int]) -> None:
    encode(TEXTS, make_tokenizer(), 16, LABELS)
    assert (encode(TEXTS, make_tokenizer(), 16, LABELS + 1).labels == LABELS + 1).all()
    assert sum(calls) == 25


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device"), OSError("8 of 9 written")]
)
def test_an_interrupted_write_leaves_no_half_entry(
    cache: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: Any
) -> None:
    original, written = np.save, []

    def save(path: Path, array: Array) -> None:
        written.append(path)
        if len(written) == failing:
            raise error
        original(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save)
        with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            encode(TEXTS, make_tokenizer(), 16, LABELS)
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{cache}: the encoded text cannot be kept there (")
        assert (error.strerror or str(error)) in str(caught.value)
        assert "HF_FINETUNE_CACHE" in str(caught.value)
    assert len(written) == failing
    assert list(cache.iterdir()) == []
    assert len(encode(TEXTS, make_tokenizer(), 16, LABELS)) == 25


def test_what_a_killed_process_left_is_not_read(cache: Path, calls: list[int]) -> None:
    whole = encode(TEXTS, make_tokenizer(), 16, LABELS)
    entry = next(cache.iterdir())
    for name in ("done", "offsets.npy"):
        (entry / name).unlink()
    np.save(entry / "offsets.npy", np.array([0, 1]))
    assert same(encode(TEXTS, make_tokenizer(), 16, LABELS), whole)
    assert sum(calls) == 50


@pytest.mark.parametrize("keep", [0, 0.1, 0.9, None])
@pytest.mark.parametrize("name", ["input_ids.npy", "offsets.npy", "truncated.npy"])
def test_an_entry_with_a_damaged_file_is_made_again(
    cache: Path, calls: list[int], name: str, keep: float | None
) -> None:
    whole = encode(TEXTS, make_tokenizer(), 16, LABELS)
    path = next(cache.iterdir()) / name
    content = path.read_bytes()
    path.unlink()  # not in place: `whole` may be a memory map of it
    if keep is not None:
        path.write_bytes(content[: int(len(content) * keep)])
    for _ in range(2):
        assert same(encode(TEXTS, make_tokenizer(), 16, LABELS), whole)
    assert sum(calls) == 50


def test_two_runs_that_encode_the_same_at_once_do_not_disturb_each_other(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Labelled.tokenize

    def slower(self: Labelled, table: Table, tokenizer: Any, max_length: int) -> Any:
        arrays = original(self, table, tokenizer, max_length)
        texts = [table.columns[name] for name in self.text_columns]
        with monkeypatch.context() as patch:  # the other run is done before this one writes
            patch.setattr(Labelled, "tokenize", original)
            others.append(encode(texts, make_tokenizer(), max_length, LABELS))
        inodes.append(next(cache.iterdir()).stat().st_ino)
        return arrays

    others: list[Features] = []
    inodes: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Labelled, "tokenize", slower)
        ours = encode(TEXTS, make_tokenizer(), 16, LABELS)
    assert same(ours, others[0])
    assert [folder.stat().st_ino for folder in cache.iterdir()] == inodes  # the other may be reading it
    assert same(encode(TEXTS, make_tokenizer(), 16, LABELS), ours)


def test_a_cache_that_cannot_be_made_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="HF_FINETUNE_CACHE"):
        encode(TEXTS, make_tokenizer(), 16, LABELS)


def test_the_cache_is_in_the_home_folder_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_FINETUNE_CACHE", "/some/where")
    assert cache_dir() == Path("/some/where")
    monkeypatch.delenv("HF_FINETUNE_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "hf_finetune"


def test_the_fingerprint_tells_features_apart(cache: Path) -> None:
    one = encode(TEXTS, make_tokenizer(), 16, LABELS)
    others = [encode(TEXTS, make_tokenizer(), 16, LABELS + 1), encode(TEXTS, make_tokenizer(), 15, LABELS),
              encode([TEXTS[0][::-1]], make_tokenizer(), 16, LABELS)]  # fmt: skip
    assert one.fingerprint() == encode(TEXTS, make_tokenizer(), 16, LABELS).fingerprint()
    assert len({one.fingerprint(), *(other.fingerprint() for other in others)}) == 4


# --- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [TEXTS, PAIRS])
@pytest.mark.parametrize("ends_only", [False, True])
@pytest.mark.parametrize("token_types", [False, True])
@pytest.mark.parametrize("pad_token", ["[PAD]", "[SEP]"])
def test_a_batch_equals_the_tokenizers_own_padding(
    texts: list[list[str]], ends_only: bool, token_types: bool, pad_token: str
) -> None:
    tokenizer = make_tokenizer(ends_only=ends_only, token_types=token_types)
    tokenizer.pad_token = pad_token
    features = flat_features(texts, tokenizer, 16)
    for seed in SEEDS:
        rows = np.random.default_rng(seed).permutation(25)[: seed % 7 + 1]
        columns = [[column[row] for row in rows] for column in texts]
        theirs = tokenizer(*columns, truncation=True, max_length=16, padding=True, return_tensors="pt")
        batch = collate(features, rows, tokenizer.pad_token_id)
        ours = batch.inputs
        assert set(ours) == set(theirs) == {*tokenizer.model_input_names}
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert {tensor.dtype for tensor in ours.values()} == {torch.int64}
        assert batch.labels is not None
        assert len(batch.labels) == len(rows)
        assert batch.sequence_counts.tolist() == [1] * len(rows)


@pytest.mark.parametrize("labels", [np.arange(25), np.arange(25, dtype=np.float32), np.eye(25, 3, dtype=np.float32)])
def test_a_batch_has_the_labels_of_its_rows(labels: Array) -> None:
    features = Features(**vars(flat_features(TEXTS, make_tokenizer(), 16)) | {"labels": labels})
    batch = collate(features, np.array([7, 0, 24]), 0)
    assert batch.labels is not None
    assert np.array_equal(batch.labels.numpy(), labels[[7, 0, 24]])
    assert batch.labels.dtype == torch.from_numpy(labels).dtype


def test_a_batch_of_ragged_labels_is_padded_with_what_no_loss_counts() -> None:
    values = Ragged(values=np.arange(60), offsets=np.concatenate([[0], np.cumsum(np.arange(25) % 5)]))
    features = Features(**vars(flat_features(TEXTS, make_tokenizer(), 16)) | {"labels": values})
    batch = collate(features, np.array([3, 0, 7]), 0)
    assert batch.labels is not None
    assert batch.labels.tolist() == [[3, 4, 5], [-100, -100, -100], [11, 12, -100]]
    assert len(features.fingerprint()) == 16


def test_a_batch_of_features_with_several_sequences_has_them_all_in_order() -> None:
    whole = flat_features(TEXTS, make_tokenizer(), 16)
    several = Features(**vars(whole) | {"rows": np.array([0, 2, 3, 7, 25]), "labels": np.arange(4)})
    assert len(several) == 4
    assert several.num_sequences == 25
    assert several.lengths.tolist() == [int(whole.lengths[a:b].max()) for a, b in ((0, 2), (2, 3), (3, 7), (7, 25))]
    assert several.num_tokens.tolist() == [int(whole.lengths[a:b].sum()) for a, b in ((0, 2), (2, 3), (3, 7), (7, 25))]
    batch, alone = collate(several, np.array([2, 0]), 0), collate(whole, np.array([3, 4, 5, 6, 0, 1]), 0)
    assert batch.sequence_indices.tolist() == [3, 4, 5, 6, 0, 1]
    assert batch.sequence_counts.tolist() == [4, 2]
    assert all(torch.equal(batch.inputs[name], alone.inputs[name]) for name in alone.inputs)
    assert several.fingerprint() != Features(**vars(whole) | {"labels": np.arange(4)}).fingerprint()


# --- the order of an epoch ------------------------------------------------------------------------------------------

sizes = st.integers(0, 300)
batch_sizes = st.integers(1, 40)


def as_lists(batches: Sequence[Array]) -> list[list[int]]:
    """Batches as plain lists."""
    return [batch.tolist() for batch in batches]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(size=sizes, batch_size=batch_sizes, seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 50))
def test_an_epoch_has_every_row_once_in_full_batches_but_the_last(
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
    """Share of padding in these batches."""
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - float(lengths.sum()) / padded


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1000, 5003])
def test_rows_of_like_length_meet_so_that_little_is_padded(seed: int, size: int) -> None:
    lengths = make_lengths(size, seed)
    order = np.random.default_rng(seed).permutation(size)
    at_random = padding(lengths, [order[start : start + 16] for start in range(0, size, 16)])
    grouped = padding(lengths, plan_epoch(lengths, 16, seed, 0))
    assert at_random > 0.4
    assert grouped < at_random / 3


@pytest.mark.parametrize("seed", SEEDS)
def test_batches_come_in_no_order_of_length(seed: int) -> None:
    lengths = make_lengths(800, seed)
    means = [float(lengths[batch].mean()) for batch in plan_epoch(lengths, 16, seed, 0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5
    longest = {int(np.argmax([lengths[batch].max() for batch in plan_epoch(lengths, 16, seed, epoch)]))
               for epoch in range(5)}  # fmt: skip
    assert len(longest) > 1


@pytest.mark.parametrize("seed", SEEDS)
def test_who_meets_whom_changes_from_epoch_to_epoch(seed: int) -> None:
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
def test_a_batch_is_shared_row_by_row_exactly_once_in_as_many_micro_batches_on_each_process(
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
def test_the_processes_have_like_work(seed: int, num_processes: int) -> None:
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
def test_evaluation_has_every_row_once_the_longest_first(size: int, batch_size: int) -> None:
    lengths = make_lengths(size, 1)
    batches = plan_evaluation(lengths, batch_size)
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(size))
    assert lengths[rows].tolist() == sorted(lengths.tolist(), reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert as_lists(batches) == as_lists(plan_evaluation(lengths, batch_size))
