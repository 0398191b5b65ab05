"""From texts to sequences of tokens for language modelling: blocks across texts, or each text by itself. Nothing is lost.

T tokens, N features.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.data.features import MODEL_INPUTS
from hf_finetune.data.formats import is_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

# Characters of a file that are tokenized at once; longer ones are divided at line ends, so that memory has a limit
CHUNK_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tokens in their order. ids: [T]. words: [T] the word that each is a piece of, numbered through; -1 of what is no word,
    special tokens. rows: [T] the row of the table that each comes from."""

    ids: "np.ndarray[Any, Any]"
    words: "np.ndarray[Any, Any]"
    rows: "np.ndarray[Any, Any]"

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int) -> "Stream":
        """The tokens from `start` up to `end`."""
        return Stream(ids=self.ids[start:end], words=self.words[start:end], rows=self.rows[start:end])

    def between(self, before: Sequence[int], after: Sequence[int]) -> "Stream":
        """The tokens with special ones before and after them. They must not be none."""
        return joined([special(before, int(self.rows[0])), self, special(after, int(self.rows[-1]))])


def special(ids: Sequence[int], row: int) -> Stream:
    """Special tokens."""
    return Stream(
        ids=np.array(ids, dtype=np.int32),
        words=np.full(len(ids), -1, dtype=np.int32),
        rows=np.full(len(ids), row, dtype=np.int64),
    )


def joined(streams: Sequence[Stream]) -> Stream:
    """One stream of several, words numbered through."""
    words, above = [], 0
    for stream in streams:
        words.append(np.where(stream.words < 0, -1, stream.words + above).astype(np.int32))
        above += int(stream.words.max(initial=-1)) + 1
    return Stream(
        ids=np.concatenate([stream.ids for stream in streams]),
        words=np.concatenate(words),
        rows=np.concatenate([stream.rows for stream in streams]),
    )


def text_in(table: Table, column: str, row: int) -> str:
    """The text of a row, which may be empty; InputError where it is none."""
    value = table.columns[column][row]
    if not isinstance(value, str):
        kind = "null" if value is None else f"a {type(value).__name__}, not a string"
        raise InputError(f"{table.where(row)}: {column} is {kind}")
    return value


def documents(table: Table, column: str, *, join_lines: bool) -> Iterator[tuple[list[int], list[str]]]:
    """Rows and texts of each document that is not blank: all lines of a text file where `join_lines`, else each row."""
    for file, group in groupby(range(len(table)), key=table.files.__getitem__):
        rows = list(group)
        is_lines = bool(table.lines[rows[0]]) and not is_table(Path(file))
        for members in [rows] if join_lines and is_lines else [[row] for row in rows]:
            texts = [text_in(table, column, row) for row in members]
            if any(text.strip() for text in texts):
                yield members, texts


def encode_document(tokenizer: Any, rows: Sequence[int], texts: Sequence[str], *, whole_words: bool) -> Stream:
    """The tokens of lines that were joined by newlines, without special tokens of the tokenizer's own."""
    streams, begin = [], 0
    while begin < len(rows):
        end, size = begin, 0
        while end < len(rows) and (end == begin or size + len(texts[end]) < CHUNK_CHARACTERS):
            size += len(texts[end]) + 1
            end += 1
        text = "\n".join(texts[begin:end]) + ("\n" if end < len(rows) else "")
        streams.append(encode_text(tokenizer, text, rows[begin:end], texts[begin:end], whole_words=whole_words))
        begin = end
    return joined(streams)


def encode_text(tokenizer: Any, text: str, rows: Sequence[int], texts: Sequence[str], *, whole_words: bool) -> Stream:
    """The tokens of a text; its lines tell their rows. Of a tokenizer that is not fast, all are of the first."""
    encoded = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False,
                        return_offsets_mapping=tokenizer.is_fast)  # fmt: skip
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    begins = np.cumsum([0, *(len(line) + 1 for line in texts[:-1])])
    places = np.array([start for start, _ in encoded["offset_mapping"]] if tokenizer.is_fast else [0] * len(ids))
    words = np.arange(len(ids))
    if whole_words:
        found = encoded.word_ids(0)
        words = np.array([-1 if word is None else word for word in found])
        if len(set(found)) < 2 <= len(text.split()):
            raise InputError(
                "task.whole_word_masks (True): this backbone's tokenizer does not divide a text into words"
            )
    words = np.where(np.isin(ids, tokenizer.all_special_ids), -1, words).astype(np.int32)
    of = np.array([rows[bisect_right(begins, place) - 1] for place in places.tolist()], dtype=np.int64)
    return Stream(ids=ids, words=words, rows=of)


def wrapping(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def end_token(tokenizer: Any) -> int:
    """The token that a text ends with."""
    found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if found is None:
        raise InputError("model.backbone: its tokenizer has no end token (eos, sep) to put between texts")
    return int(found)


def packed(streams: Sequence[Stream], end: Callable[[], int]) -> Stream:
    """All texts as one, an end token between two."""
    parts = [streams[0]]
    for before, stream in pairwise(streams):
        parts += [special([end()], int(before.rows[-1])), stream]
    return joined(parts)


def cut(stream: Stream, length: int) -> list[Stream]:
    """Pieces of at most `length` tokens, the last one with what is left."""
    return [stream.part(start, start + length) for start in range(0, len(stream), length)]


def as_arrays(pieces: Sequence[Stream], *, with_words: bool) -> dict[str, "np.ndarray[Any, Any]"]:
    """What data.make_features() takes: a feature of each piece. With `words` [T] where the task needs them."""
    whole = joined(pieces)
    lengths = [len(piece) for piece in pieces]
    return {
        MODEL_INPUTS[0]: whole.ids,
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "truncated": np.array(0),
        "examples": np.array([int(piece.rows[0]) for piece in pieces], dtype=np.int64),
        **({"words": whole.words} if with_words else {}),
    }
