"""Encoding equals the tokenizer row by row; its cache on disk is complete or not there."""

import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support.encoded import PAIRS, TEXTS, flat_features, make_tokenizer

from hf_finetune.data import encoded_store, encoding
from hf_finetune.data.encoder import rows_are_independent
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Features
from hf_finetune.data.table import Table
from hf_finetune.system.files import cache_root

LABELS = np.arange(25)


@dataclass(frozen=True, kw_only=True)
class FixedLabels:
    """An Encoder with given labels."""

    rows_are_independent: ClassVar[bool] = True

    columns: tuple[str, ...]
    fixed_labels: Any
    name: str = "fixed labels"

    def encoded_columns(self) -> tuple[str, ...]:
        return self.columns

    def encoding_settings(self) -> dict[str, Any]:
        return {}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        return tokenize([table.columns[name] for name in self.columns], tokenizer, max_length)

    def join(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {}

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Any:
        return self.fixed_labels


def encode(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int, labels: Any, **options: Any) -> Features:
    """Encodes columns of texts through the cache."""
    columns = {f"text{number}": list(column) for number, column in enumerate(texts)}
    encoder = FixedLabels(columns=tuple(columns), fixed_labels=labels)
    table = Table(columns=columns, files=["made.csv"] * len(texts[0]), lines=list(range(1, len(texts[0]) + 1)))
    return encoding.encode(encoder, table, tokenizer, max_length, root=cache_root(), **options)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the entries of an empty cache."""
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows in each call of tokenize(), in the order of the calls."""
    made = []

    def count(num_rows: int) -> None:
        made.append(num_rows)

    monkeypatch.setitem(globals(), "tokenize", call_before(count))
    return made


def call_before(look: Callable[[int], object]) -> Callable[..., dict[str, Array]]:
    """Returns tokenize() with a call before it. It has the same name and module, so the key of what it makes is the same."""
    original = encoding.tokenize

    @functools.wraps(original)
    def looking(texts: Sequence[Sequence[str]], *arguments: Any) -> dict[str, Array]:
        look(len(texts[0]))
        return original(texts, *arguments)

    return looking


@pytest.fixture
def said() -> list[str]:
    """Takes the lines of encode()."""
    return []


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
    monkeypatch.setattr(encoding, "has_plain_backend", lambda tokenizer: False)
    assert flat_features(TEXTS, tokenizer, 8).num_truncated == fast
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
    assert len(list(cache.glob("*/"))) == 1


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
        lambda texts, tokenizer: (texts, (setattr(tokenizer, "truncation_side", "left"), tokenizer)[1], 16),
        lambda texts, tokenizer: (texts, make_tokenizer(token_types=False), 16),
        lambda texts, tokenizer: (texts, (setattr(tokenizer, "chat_template", "{{ messages }}"), tokenizer)[1], 16),
    ],
    ids=[
        "max_length",
        "a pair",
        "another text",
        "another template",
        "another vocabulary",
        "the side that is cut",
        "inputs",
        "chat template",
    ],
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
    assert len(list(cache.glob("*/"))) == 2


def test_labels_are_not_part_of_the_cache(cache: Path, calls: list[int]) -> None:
    encode(TEXTS, make_tokenizer(), 16, LABELS)
    assert (encode(TEXTS, make_tokenizer(), 16, LABELS + 1).labels == LABELS + 1).all()
    assert sum(calls) == 25


# --- parts and workers ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts have 4 rows."""
    monkeypatch.setattr(encoding, "ROWS_IN_PART", 4)


def read_files(cache: Path) -> dict[str, bytes]:
    """The content of the files of the only entry."""
    (entry,) = cache.glob("*/")
    return {path.name: path.read_bytes() for path in entry.iterdir()}


@pytest.mark.parametrize("texts", [TEXTS, PAIRS])
@pytest.mark.usefixtures("small_parts")
def test_the_bytes_are_the_same_for_any_number_of_workers(
    cache: Path, calls: list[int], texts: list[list[str]]
) -> None:
    whole, files = flat_features(texts, make_tokenizer(), 9), []
    for workers in (1, 2, 5, None):
        del calls[:]
        features = encode(texts, make_tokenizer(), 9, LABELS, workers=workers)
        assert same(features, whole)
        assert sorted(calls) == [1, *[4] * 6]
        files.append(read_files(cache))
        shutil.rmtree(cache)
    assert files[1:] == files[:-1]


@pytest.mark.usefixtures("small_parts")
def test_rows_that_depend_on_each_other_are_encoded_together(cache: Path, calls: list[int]) -> None:
    class Derived(FixedLabels):
        """What FixedLabels says of its tokenize() says nothing of this one."""

        def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
            return super().tokenize(table, tokenizer, max_length)

    encoder = Derived(columns=("text",), fixed_labels=LABELS)
    table = Table(columns={"text": TEXTS[0]}, files=["made.csv"] * 25, lines=list(range(25)))
    encoding.encode(encoder, table, make_tokenizer(), 9, root=cache.parent)
    assert calls == [25]
    assert (rows_are_independent(encoder), rows_are_independent(FixedLabels(columns=(), fixed_labels=0))) == (
        False,
        True,
    )


def kill_after(parts: int, texts: Sequence[Sequence[str]]) -> None:
    """Encodes in a child that kills itself while it tokenizes the part after these."""
    child = os.fork()
    if child == 0:
        calls = itertools.count(1)

        def die(num_rows: int) -> None:
            if next(calls) > parts:
                os.kill(os.getpid(), 9)

        globals()["tokenize"] = call_before(die)
        encode(texts, make_tokenizer(), 9, LABELS, workers=1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="encodes in a fork")
@pytest.mark.usefixtures("small_parts")
def test_after_a_kill_only_the_missing_parts_are_computed(cache: Path, calls: list[int], said: list[str]) -> None:
    kill_after(3, PAIRS)
    kill_after(2, PAIRS)  # of the four that are missing
    features = encode(PAIRS, make_tokenizer(), 9, LABELS, say=said.append)
    assert same(features, flat_features(PAIRS, make_tokenizer(), 9))
    assert sorted(calls) == [1, 4]
    assert said == ["encoded text: 5 of 7 parts are there from an interrupted run; the others are computed"]


def test_long_texts_are_tokenized_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenize(TEXTS, make_tokenizer(), 9)
    monkeypatch.setattr(encoding, "CHARACTERS_IN_CHUNK", 100)
    sizes = [sum(map(len, column)) for (column,) in encoding.iterate_chunks(TEXTS)]
    assert len(sizes) > 5
    assert max(sizes) < 200
    ours = tokenize(TEXTS, make_tokenizer(), 9)
    assert all(np.array_equal(ours[name], whole[name]) and ours[name].dtype == whole[name].dtype for name in whole)
    one = [["the cat " * 100, "a", "the dog " * 100]]
    assert [len(column) for (column,) in encoding.iterate_chunks(one)] == [1, 1, 1] or len(one[0]) == 3


# --- folders that cannot be written ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("failing", [1, 2, 5, 9])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("8 of 9 written")])
def test_a_write_that_fails_costs_the_cache_and_not_the_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: OSError, said: list[str]
) -> None:
    original, written = encoded_store.EntryWriter.write_array, []

    def write(self: Any, *arguments: Any) -> Any:
        written.append(self.folder)
        if len(written) == failing:
            raise error
        return original(self, *arguments)

    whole = flat_features(TEXTS, make_tokenizer(), 16)
    with monkeypatch.context() as patch:
        patch.setattr(encoded_store.EntryWriter, "write_array", write)
        assert same(encode(TEXTS, make_tokenizer(), 16, LABELS, say=said.append), whole)
    assert said == [
        f"warning: the encoded text cannot be written to {cache} ({error.strerror or error}), so that the next run encodes it "
        "again; cache.dir or HF_FINETUNE_CACHE names another folder"
    ]
    assert not any(folder.exists() for folder in written[failing:])
    assert bool(list(cache.glob("*/"))) == (error.errno != 28)  # a full disk gets its space back
    assert same(encode(TEXTS, make_tokenizer(), 16, LABELS), whole)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("has_temporary_folder", [True, False])
def test_a_run_goes_on_without_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], has_temporary_folder: bool
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path / "file"))
    if not has_temporary_folder:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    for _ in range(2):
        features = encode(TEXTS, make_tokenizer(), 16, LABELS, say=said.append)
        assert same(features, flat_features(TEXTS, make_tokenizer(), 16))
    assert len(said) == (2 if has_temporary_folder else 4)
    assert said[0].startswith(f"warning: the encoded text cannot be written to {tmp_path / 'file' / 'encoded'} (")


@pytest.mark.usefixtures("small_parts")
def test_an_entry_whose_lock_cannot_be_made_is_read(
    cache: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """As in the folder of another user."""
    whole = encode(TEXTS, make_tokenizer(), 16, LABELS)
    del calls[:]

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(encoding, "lock_entry", refuse)
    assert same(encode(TEXTS, make_tokenizer(), 16, LABELS, say=said.append), whole)
    assert (calls, said) == ([], [])


def test_the_fingerprint_tells_features_apart(cache: Path) -> None:
    one = encode(TEXTS, make_tokenizer(), 16, LABELS)
    others = [encode(TEXTS, make_tokenizer(), 16, LABELS + 1), encode(TEXTS, make_tokenizer(), 15, LABELS),
              encode([TEXTS[0][::-1]], make_tokenizer(), 16, LABELS)]  # fmt: skip
    assert one.fingerprint() == encode(TEXTS, make_tokenizer(), 16, LABELS).fingerprint()
    assert len({one.fingerprint(), *(other.fingerprint() for other in others)}) == 4
