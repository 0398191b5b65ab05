"""Texts to sequences of tokens for language modelling: blocks across texts, or pieces of each text. No token is lost.

T tokens.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.data.table import Table, describe_value
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.words import find_special_tokens

# Most characters that the tokenizer gets at once. A longer file is divided at line ends, so that memory has a limit
CHUNK_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """Tokens in their order.

    Args:
        ids: Token ids [T] int32.
        word_indices: Index of the word that each token is a piece of, counted over the sequence; -1 for special tokens [T].
        rows: The table's row that each token comes from [T].
    """

    ids: Array
    word_indices: Array
    rows: Array

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, end: int) -> "TokenSequence":
        """Returns the tokens from `start` up to `end`."""
        part = slice(start, end)
        return TokenSequence(ids=self.ids[part], word_indices=self.word_indices[part], rows=self.rows[part])

    def wrap(self, before: Sequence[int], after: Sequence[int]) -> "TokenSequence":
        """Returns the tokens, at least one, with special tokens before and after them."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        return concatenate([make_special_tokens(before, first), self, make_special_tokens(after, last)])


def make_special_tokens(ids: Sequence[int], row: int) -> TokenSequence:
    """Returns a sequence of special tokens that belong to a row."""
    return TokenSequence(
        ids=np.array(ids, dtype=np.int32),
        word_indices=np.full(len(ids), -1, dtype=np.int32),
        rows=np.full(len(ids), row, dtype=np.int64),
    )


def concatenate(sequences: Sequence[TokenSequence]) -> TokenSequence:
    """Joins sequences to one. The words of each are counted on from those of the sequences before it."""
    word_indices, num_words = [], 0
    for sequence in sequences:
        shifted = np.where(sequence.word_indices < 0, -1, sequence.word_indices + num_words)
        word_indices.append(shifted.astype(np.int32))
        num_words += int(sequence.word_indices.max(initial=-1)) + 1
    return TokenSequence(
        ids=np.concatenate([sequence.ids for sequence in sequences]),
        word_indices=np.concatenate(word_indices),
        rows=np.concatenate([sequence.rows for sequence in sequences]),
    )


def get_text(table: Table, column: str, row: int) -> str:
    """Returns the text of a row, which may be empty. Raises InputError with file and line if it is not a string."""
    value = table.columns[column][row]
    if not isinstance(value, str):
        raise InputError(f"{table.where(row)}: {column} is {describe_value(value)}")
    return value


def iterate_documents(table: Table, column: str, *, join_lines: bool) -> Iterator[tuple[list[int], list[str]]]:
    """Yields rows and texts of each document that is not blank.

    A row is a document, unless `join_lines` is set: then all lines of a text file are one document.
    """
    for _, group in groupby(range(len(table)), key=table.files.__getitem__):
        rows = list(group)
        has_lines = bool(table.lines[rows[0]]) and not table.is_tabular(rows[0])
        documents = [rows] if join_lines and has_lines else [[row] for row in rows]
        for document in documents:
            texts = [get_text(table, column, row) for row in document]
            if any(text.strip() for text in texts):
                yield document, texts


def tokenize_documents(
    table: Table, column: str, tokenizer: Any, *, join_lines: bool, whole_words: bool = False
) -> list[TokenSequence]:
    """Tokenizes each document that has tokens, without special tokens.

    Raises InputError if no row has text. whole_words: assign tokens to words, not each token to a word of its own.
    """
    documents = [
        tokenize_document(tokenizer, rows, texts, whole_words=whole_words)
        for rows, texts in iterate_documents(table, column, join_lines=join_lines)
    ]
    documents = [document for document in documents if len(document)]
    if not documents:
        raise InputError(f"{table.where(0)}: the column {column} has no text in any of its {len(table)} rows")
    return documents


def tokenize_document(tokenizer: Any, rows: Sequence[int], texts: Sequence[str], *, whole_words: bool) -> TokenSequence:
    """Tokenizes lines joined by newlines, without special tokens, CHUNK_CHARACTERS at a time."""
    chunks, begin = [], 0
    while begin < len(rows):
        end, size = begin, 0
        while end < len(rows) and (end == begin or size + len(texts[end]) < CHUNK_CHARACTERS):
            size += len(texts[end]) + 1
            end += 1
        text = "\n".join(texts[begin:end])
        if end < len(rows):
            text += "\n"
        chunks.append(tokenize_text(tokenizer, text, rows[begin:end], texts[begin:end], whole_words=whole_words))
        begin = end
    return concatenate(chunks)


def tokenize_text(
    tokenizer: Any, text: str, rows: Sequence[int], lines: Sequence[str], *, whole_words: bool
) -> TokenSequence:
    """Tokenizes a text and assigns each token to the table row of its line.

    Slow tokenizers have no offsets: every token goes to the first row. Raises InputError if `whole_words` is set and the
    tokenizer does not divide a text into words.
    """
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
        return_offsets_mapping=tokenizer.is_fast,
    )
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    starts = [start for start, _ in encoded["offset_mapping"]] if tokenizer.is_fast else [0] * len(ids)
    line_starts = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])
    word_indices = np.arange(len(ids))
    if whole_words:
        word_ids = encoded.word_ids(0)
        word_indices = np.array([-1 if word is None else word for word in word_ids])
        if len(set(word_ids)) < 2 <= len(text.split()):
            raise InputError(
                "task.whole_word_masks (True): needs a backbone whose tokenizer divides a text into words; "
                "this one's does not"
            )
    return TokenSequence(
        ids=ids,
        word_indices=np.where(np.isin(ids, tokenizer.all_special_ids), -1, word_indices).astype(np.int32),
        rows=np.array([rows[bisect_right(line_starts, start) - 1] for start in starts], dtype=np.int64),
    )


def find_wrapping(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the special tokens that a tokenizer puts before and after a text; none if they cannot be found."""
    special = find_special_tokens(tokenizer)
    return ([], []) if special is None else (special.before, special.after)


def get_end_token(tokenizer: Any) -> int:
    """Returns the token that ends a text: eos, else sep. Raises InputError if the tokenizer has neither."""
    token = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if token is None:
        raise InputError("model.backbone: its tokenizer has no end token (eos or sep) to put between texts")
    return int(token)


def pack(documents: Sequence[TokenSequence], tokenizer: Any) -> TokenSequence:
    """Joins documents to one sequence, with an end token between two. One document alone needs no end token."""
    parts = [documents[0]]
    for before, document in pairwise(documents):
        parts += [make_special_tokens([get_end_token(tokenizer)], int(before.rows[-1])), document]
    return concatenate(parts)


def cut_into_pieces(sequence: TokenSequence, length: int) -> list[TokenSequence]:
    """Cuts a sequence into pieces of `length` tokens. The last piece has the rest."""
    return [sequence.cut(start, start + length) for start in range(0, len(sequence), length)]


def make_arrays(pieces: Sequence[TokenSequence], *, with_words: bool) -> dict[str, Array]:
    """Returns flat arrays as data.features.make_features() takes them, one feature for each piece.

    with_words: add word_indices [T].
    """
    joined = concatenate(pieces)
    lengths = [len(piece) for piece in pieces]
    arrays = {
        "input_ids": joined.ids,
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "truncated": np.array(0),
        "examples": np.array([int(piece.rows[0]) for piece in pieces], dtype=np.int64),
    }
    if with_words:
        arrays["word_indices"] = joined.word_indices
    return arrays
