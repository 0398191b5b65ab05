"""Texts to sequences of tokens: nothing is lost, words are counted on, each token knows its row."""

from typing import Any

import numpy as np
import pytest
from support import tiny

from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text import packing
from hf_finetune.tasks.text.packing import TokenSequence


def make_sequence(ids: list[int], words: list[int], row: int = 0) -> TokenSequence:
    """A sequence of one row."""
    return TokenSequence(ids=np.array(ids), word_indices=np.array(words), rows=np.full(len(ids), row))


def make_table(texts: list[Any], file: str = "a.txt") -> Table:
    """A table whose rows are the lines of a file."""
    count = len(texts)
    return Table(columns={"text": texts}, files=[file] * count, lines=list(range(1, count + 1)))


def test_words_are_counted_on_over_sequences() -> None:
    sequences = [make_sequence([7, 8, 3], [0, 0, -1]), make_sequence([9], [0], 1), make_sequence([4, 5], [-1, 0], 2)]
    joined = packing.concatenate(sequences)
    assert joined.ids.tolist() == [7, 8, 3, 9, 4, 5]
    assert joined.word_indices.tolist() == [0, 0, -1, 1, -1, 2]
    assert joined.rows.tolist() == [0, 0, 0, 1, 2, 2]


def test_special_tokens_belong_to_no_word_and_to_the_row_next_to_them() -> None:
    wrapped = packing.concatenate([make_sequence([7], [0], 4), make_sequence([8], [0], 5)]).wrap([2], [3, 3])
    assert wrapped.ids.tolist() == [2, 7, 8, 3, 3]
    assert wrapped.word_indices.tolist() == [-1, 0, 1, -1, -1]
    assert wrapped.rows.tolist() == [4, 4, 5, 5, 5]


def test_pieces_hold_all_tokens_and_the_last_has_the_rest() -> None:
    pieces = packing.cut_into_pieces(make_sequence(list(range(10)), [0] * 10), 4)
    assert [piece.ids.tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_documents_are_packed_with_an_end_token_between_them() -> None:
    tokenizer = tiny.make_tokenizer()
    documents = [make_sequence([7], [0], 0), make_sequence([8], [0], 1)]
    end = packing.get_end_token(tokenizer)
    assert packing.pack(documents, tokenizer).ids.tolist() == [7, end, 8]
    tokenizer.eos_token = tokenizer.sep_token = None
    assert packing.pack(documents[:1], tokenizer).ids.tolist() == [7]  # one document alone needs no end token
    with pytest.raises(InputError, match="no end token"):
        packing.pack(documents, tokenizer)


@pytest.mark.parametrize(
    ("file", "join_lines", "documents"),
    [
        ("a.txt", True, [([0, 1, 2], ["one", " ", "two"])]),
        ("a.txt", False, [([0], ["one"]), ([2], ["two"])]),
        ("a.jsonl", True, [([0], ["one"]), ([2], ["two"])]),
    ],
)
def test_a_document_is_a_row_or_a_text_file(file: str, join_lines: bool, documents: list[Any]) -> None:
    table = make_table(["one", " ", "two"], file)
    assert list(packing.iterate_documents(table, "text", join_lines=join_lines)) == documents


def test_tokens_know_the_row_of_their_line_and_those_of_slow_tokenizers_the_first() -> None:
    fast = tiny.make_tokenizer()
    lines, rows = ["the cat", "", "a dog"], [4, 5, 6]
    sequence = packing.tokenize_text(fast, "\n".join(lines), rows, lines, whole_words=False)
    assert sequence.rows.tolist() == [4, 4, 6, 6]
    assert sequence.word_indices.tolist() == [0, 1, 2, 3]

    class Slow:
        is_fast, all_special_ids = False, (2, 3)

        def __call__(self, text: str, **options: Any) -> Any:
            options.pop("return_offsets_mapping")
            return fast(text, **options)

    sequence = packing.tokenize_text(Slow(), "\n".join(lines), rows, lines, whole_words=False)
    assert sequence.rows.tolist() == [4, 4, 4, 4]


def test_special_tokens_in_a_text_belong_to_no_word() -> None:
    sequence = packing.tokenize_text(tiny.make_tokenizer(), "the [SEP] cat", [0], ["the [SEP] cat"], whole_words=False)
    assert sequence.word_indices.tolist() == [0, -1, 2]


def test_texts_that_are_not_texts_are_refused_with_their_line() -> None:
    assert packing.get_text(make_table(["", "a"]), "text", 0) == ""
    for value, fault in ((None, "null"), (7, "an int, not a string"), (["a"], "a list, not a string")):
        with pytest.raises(InputError, match=rf"a\.txt:1: text is {fault}"):
            packing.get_text(make_table([value]), "text", 0)
    with pytest.raises(InputError, match=r"a\.txt:1: the column text has no text in any of its 2 rows"):
        packing.tokenize_documents(make_table(["", " "]), "text", tiny.make_tokenizer(), join_lines=True)


def test_arrays_have_one_feature_for_each_piece() -> None:
    pieces = [make_sequence([7, 8], [0, 1], 3), make_sequence([9], [0], 5)]
    arrays = packing.make_arrays(pieces, with_words=True)
    assert arrays["offsets"].tolist() == [0, 2, 3]
    assert arrays["examples"].tolist() == [3, 5]
    assert arrays["word_indices"].tolist() == [0, 1, 2]
    assert "word_indices" not in packing.make_arrays(pieces, with_words=False)
