"""The key of encoded text holds everything that the text's tokens depend on, and is made without writing a file."""

import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
from support.encoded import make_tokenizer

from hf_finetune.data.encoder import digest_tokenizer, make_encoding_key
from hf_finetune.data.table import Table
from hf_finetune.tasks.classify import TextEncoding


class UnlabelledEncoding(TextEncoding):
    """The encoding of texts."""

    def labels(self, table: Any, arrays: Any) -> None:
        return None


def make_key(texts: list[str], max_length: int = 8, columns: tuple[str, ...] = ("text",)) -> str:
    table = Table(columns=dict.fromkeys(columns, texts), files=["a.csv"] * len(texts), lines=[*range(len(texts))])
    return make_encoding_key(UnlabelledEncoding(texts=columns), table, make_tokenizer(), max_length)


def test_no_folder_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full folder of temporary files once ended a run with a traceback."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert make_key(["a", "b"]) == make_key(["a", "b"])


def test_rows_columns_and_length_change_the_key() -> None:
    keys = [make_key(["a", "b"]), make_key(["b", "a"]), make_key(["ab", ""]), make_key(["a", "b"], max_length=9),
            make_key(["a", "b"], columns=("other",)), make_key(["a", "b"], columns=("text", "other"))]  # fmt: skip
    assert len(set(keys)) == 5  # the name of a column changes nothing
    assert keys[0] == keys[4]


def test_the_folder_of_a_tokenizer_does_not_count(tmp_path: Path) -> None:
    import transformers

    digests = set()
    for name in ("one", "two"):
        make_tokenizer().save_pretrained(tmp_path / name)
        digests.add(digest_tokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path / name)))
    assert len(digests) == 1


def test_slow_tokenizers_are_told_apart() -> None:
    import transformers

    kinds = [transformers.ByT5Tokenizer(), transformers.ByT5Tokenizer(extra_ids=10), transformers.CanineTokenizer()]
    assert not any(tokenizer.is_fast for tokenizer in kinds)
    assert len({digest_tokenizer(tokenizer) for tokenizer in kinds}) == 3
    assert digest_tokenizer(transformers.ByT5Tokenizer()) == digest_tokenizer(kinds[0])


def test_the_vocabulary_file_of_a_slow_tokenizer_counts(tmp_path: Path) -> None:
    import transformers

    tokenizer, path = transformers.ByT5Tokenizer(), tmp_path / "words"
    tokenizer.vocab_files_names, tokenizer.vocab_file = {"vocab_file": "words"}, str(path)
    digests = set()
    for content in (b"a", b"b"):
        path.write_bytes(content)
        digests.add(digest_tokenizer(tokenizer))
    assert len(digests) == 2


OWN = """
from hf_finetune.tasks.classify import TextEncoding

class Base(TextEncoding):
    def tokenize(self, table, tokenizer, max_length):
        return super().tokenize(table, tokenizer, max_length // LONGEST)

class OwnEncoding(Base):
    def labels(self, table, arrays):
        return None
"""


def make_own_key(longest: int) -> str:
    """The key of an encoding whose base class, in a module of the user's own, divides by `longest`."""
    module = types.ModuleType("own_module")
    exec(OWN.replace("LONGEST", str(longest)), module.__dict__)
    table = Table(columns={"text": ["a"]}, files=["a.csv"], lines=[1])
    return make_encoding_key(module.OwnEncoding(texts=("text",)), table, make_tokenizer(), 8)


def test_the_code_of_an_own_encoding_counts() -> None:
    """A run with a corrected tokenize() once read the text that the old one had encoded."""
    assert make_own_key(1) != make_own_key(2)
    assert make_own_key(1) == make_own_key(1)
