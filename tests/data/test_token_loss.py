"""Texts that are cut, and characters that the tokenizer does not know."""

from typing import Any

import numpy as np
import pytest
from support import tiny
from support.encoded import make_tokenizer

from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Features, make_features
from hf_finetune.data.table import Table
from hf_finetune.data.token_loss import find_cut_texts, find_unknown_characters


class Encoder:
    """Encodes the column text; in windows or in several sequences as a test asks."""

    name = "test"

    def encoded_columns(self) -> tuple[str, ...]:
        return ("text",)

    def encoding_settings(self) -> dict[str, Any]:
        return {}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        return tokenize([table.columns["text"]], tokenizer, max_length)

    def labels(self, table: Table, arrays: Any) -> None:
        return None


class PairEncoder(Encoder):
    """Encodes the two texts of a row as two sequences."""

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        texts = [text for pair in table.columns["text"] for text in pair]
        arrays = tokenize([texts], tokenizer, max_length)
        return {**arrays, "rows": np.arange(0, len(texts) + 1, 2)}


def encode(texts: list[Any], max_length: int, encoder: Encoder | None = None) -> tuple[Table, Features, Any]:
    table = Table(columns={"text": texts}, files=["a.csv"] * len(texts), lines=list(range(2, len(texts) + 2)))
    tokenizer = make_tokenizer()
    return table, make_features((encoder or Encoder()).tokenize(table, tokenizer, max_length), None), tokenizer


def find_cut(texts: list[Any], max_length: int, encoder: Encoder | None = None) -> list[Any]:
    encoder = encoder or Encoder()
    table, features, tokenizer = encode(texts, max_length, encoder)
    return find_cut_texts("train", table, features, encoder, tokenizer, max_length)


def test_the_lost_tokens_are_counted() -> None:
    # With [CLS] and [SEP]: 4 tokens, 10 (2 are lost), 22 (14 are lost), exactly 8
    (finding,) = find_cut(["cat dog", "cat " * 8, "dog " * 20, "cat " * 6], 8)
    assert finding.count == 2
    assert finding.details == {"share_of_tokens": pytest.approx(16 / 44), "longest": 22}
    assert "2 of 4 texts (50.0 %) are longer than 8 tokens and were cut, which loses 36.4 %" in finding.sentence
    assert "a.csv:4 (22 tokens) and a.csv:3 (10 tokens)" in finding.sentence
    assert finding.is_warning


def test_few_lost_tokens_are_no_warning() -> None:
    (finding,) = find_cut(["cat " * 9, *["cat dog"] * 20], 10)
    assert finding.count == 1
    assert not finding.is_warning
    assert find_cut(["cat " * 8, *["cat dog"] * 20], 10) == []


def test_of_many_cut_texts_a_sample_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_finetune.data.token_loss.NUM_SAMPLED", 10)
    monkeypatch.setattr("hf_finetune.data.token_loss.ITEMS_AT_ONCE", 7)
    (finding,) = find_cut(["cat " * 18] * 100, 10)
    assert finding.details["share_of_tokens"] == pytest.approx(0.5)
    assert "about 50.0 %" in finding.sentence


def test_features_of_several_sequences_are_measured_together() -> None:
    (finding,) = find_cut([["cat", "dog " * 10], ["cat", "dog"]], 6, PairEncoder())
    assert finding.count == 1
    assert finding.details == {"share_of_tokens": pytest.approx(6 / 21), "longest": 15}


def test_windows_lose_nothing() -> None:
    table, features, tokenizer = encode(["cat " * 20, "dog"], 8)
    windows = make_features(
        {"input_ids": features.inputs["input_ids"], "offsets": features.offsets, "truncated": np.array(1),
         "examples": np.array([0, 0])}, None
    )  # fmt: skip
    assert find_cut_texts("train", table, windows, Encoder(), tokenizer, 8) == []


def find_unknown(texts: list[Any], tokenizer: Any = None) -> list[Any]:
    table, features, made = encode(texts, 64)
    return find_unknown_characters("train", table, features, Encoder(), tokenizer or made)


def test_unknown_words_are_counted_and_shown() -> None:
    (finding,) = find_unknown(["cat \u2603 dog", "dog \u2603 \u2603", "cat", "cat \u4f60"])
    assert finding.count == 3
    assert finding.details["unknown_tokens"] == 4
    assert finding.details["examples"] == {"\u2603": "a.csv:2", "\u4f60": "a.csv:5"}
    assert "3 of 4 texts (75.0 %)" in finding.sentence
    assert finding.is_warning


def test_few_unknown_characters_are_no_warning() -> None:
    (finding,) = find_unknown(["cat \u2603", *["dog"] * 120])
    assert not finding.is_warning


def test_known_texts_have_no_finding() -> None:
    assert find_unknown(["cat dog", "the old horse"]) == []


def test_an_unknown_token_that_is_written_out_is_no_finding() -> None:
    assert find_unknown(["cat [UNK] dog"]) == []


def test_an_end_token_that_stands_for_unknown_ones_is_not_counted() -> None:
    """As in GPT-2, whose tokenizer of bytes knows all characters."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = tokenizer.unk_token
    assert find_unknown(["cat \u2603"], tokenizer) == []
