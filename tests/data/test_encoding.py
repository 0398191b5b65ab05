"""Encoding equals the tokenizer row by row; its cache on disk is complete or not there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.encoded import PAIRS, TEXTS, flat_features, make_tokenizer

from hf_finetune.data import encoding
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_root

LABELS = np.arange(25)


@dataclass(frozen=True, kw_only=True)
class FixedLabels:
    """An Encoder with given labels."""

    columns: tuple[str, ...]
    fixed_labels: Any
    name: str = "fixed labels"

    def encoded_columns(self) -> tuple[str, ...]:
        return self.columns

    def encoding_settings(self) -> dict[str, Any]:
        return {}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        return tokenize([table.columns[name] for name in self.columns], tokenizer, max_length)

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Any:
        return self.fixed_labels


def encode(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int, labels: Any) -> Features:
    """Encodes columns of texts through the cache."""
    columns = {f"text{number}": list(column) for number, column in enumerate(texts)}
    encoder = FixedLabels(columns=tuple(columns), fixed_labels=labels)
    table = Table(columns=columns, files=["made.csv"] * len(texts[0]), lines=list(range(1, len(texts[0]) + 1)))
    return encoding.encode(encoder, table, tokenizer, max_length, root=cache_root())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the entries of an empty cache."""
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each call of a tokenizer, in the order of the calls."""
    kind, made = type(make_tokenizer()), []
    original = kind.__call__

    def counting(self: Any, text: Any, *rest: Any, **options: Any) -> Any:
        made.append(len(text))
        return original(self, text, *rest, **options)

    monkeypatch.setattr(kind, "__call__", counting)
    return made


def same(ours: Features, theirs: Features) -> bool:
    """True if two sets of features have the same arrays."""
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


def test_the_last_call_of_a_tokenizer_does_not_change_the_key(cache: Path, calls: list[int]) -> None:
    tokenizer = make_tokenizer()
    encode(TEXTS, tokenizer, 16, LABELS)
    tokenizer(["a cat"], truncation=True, max_length=4, padding="max_length")
    encode(PAIRS, tokenizer, 16, LABELS)
    del calls[:]
    again = make_tokenizer()  # as in another process
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
def test_everything_that_the_encoding_depends_on_changes_the_key(
    cache: Path, calls: list[int], change: Callable[..., tuple[Any, Any, int]]
) -> None:
    tokenizer = make_tokenizer()
    encode(TEXTS, tokenizer, 16, LABELS)
    del calls[:]
    texts, other, max_length = change(TEXTS, tokenizer)
    encode(texts, other, max_length, LABELS)
    assert sum(calls) == 25
    assert len(list(cache.iterdir())) == 2


def test_labels_are_not_part_of_the_cache(cache: Path, calls: list[int]) -> None:
    encode(TEXTS, make_tokenizer(), 16, LABELS)
    assert (encode(TEXTS, make_tokenizer(), 16, LABELS + 1).labels == LABELS + 1).all()
    assert sum(calls) == 25


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device"), OSError("8 of 9 written")]
)
def test_an_interrupted_write_leaves_nothing(
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
        assert str(caught.value).startswith(f"{cache}: the encoded text cannot be written there (")
        assert (error.strerror or str(error)) in str(caught.value)
        assert "HF_FINETUNE_CACHE" in str(caught.value)
    assert len(written) == failing
    assert list(cache.iterdir()) == []
    assert len(encode(TEXTS, make_tokenizer(), 16, LABELS)) == 25


def test_the_remains_of_a_killed_process_are_not_read(cache: Path, calls: list[int]) -> None:
    complete = encode(TEXTS, make_tokenizer(), 16, LABELS)
    entry = next(cache.iterdir())
    for name in ("done", "offsets.npy"):
        (entry / name).unlink()
    np.save(entry / "offsets.npy", np.array([0, 1]))
    assert same(encode(TEXTS, make_tokenizer(), 16, LABELS), complete)
    assert sum(calls) == 50


@pytest.mark.parametrize("keep", [0, 0.1, 0.9, None])
@pytest.mark.parametrize("name", ["input_ids.npy", "offsets.npy", "truncated.npy"])
def test_an_entry_with_a_damaged_file_is_made_again(
    cache: Path, calls: list[int], name: str, keep: float | None
) -> None:
    complete = encode(TEXTS, make_tokenizer(), 16, LABELS)
    path = next(cache.iterdir()) / name
    content = path.read_bytes()
    path.unlink()  # not in place: `complete` may be a memory map of it
    if keep is not None:
        path.write_bytes(content[: int(len(content) * keep)])
    for _ in range(2):
        assert same(encode(TEXTS, make_tokenizer(), 16, LABELS), complete)
    assert sum(calls) == 50


def test_two_runs_can_encode_the_same_rows_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FixedLabels.tokenize

    def slower(self: FixedLabels, table: Table, tokenizer: Any, max_length: int) -> Any:
        arrays = original(self, table, tokenizer, max_length)
        texts = [table.columns[name] for name in self.columns]
        with monkeypatch.context() as patch:  # the other run is done before this one writes
            patch.setattr(FixedLabels, "tokenize", original)
            others.append(encode(texts, make_tokenizer(), max_length, LABELS))
        inodes.append(next(cache.iterdir()).stat().st_ino)
        return arrays

    others: list[Features] = []
    inodes: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(FixedLabels, "tokenize", slower)
        ours = encode(TEXTS, make_tokenizer(), 16, LABELS)
    assert same(ours, others[0])
    assert [folder.stat().st_ino for folder in cache.iterdir()] == inodes  # the other may be reading it
    assert same(encode(TEXTS, make_tokenizer(), 16, LABELS), ours)


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"set cache\.dir or HF_FINETUNE_CACHE"):
        encode(TEXTS, make_tokenizer(), 16, LABELS)


def test_the_fingerprint_tells_features_apart(cache: Path) -> None:
    one = encode(TEXTS, make_tokenizer(), 16, LABELS)
    others = [encode(TEXTS, make_tokenizer(), 16, LABELS + 1), encode(TEXTS, make_tokenizer(), 15, LABELS),
              encode([TEXTS[0][::-1]], make_tokenizer(), 16, LABELS)]  # fmt: skip
    assert one.fingerprint() == encode(TEXTS, make_tokenizer(), 16, LABELS).fingerprint()
    assert len({one.fingerprint(), *(other.fingerprint() for other in others)}) == 4
