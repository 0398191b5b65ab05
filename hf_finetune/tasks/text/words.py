"""Words as tokens: pieces, and windows of long sentences.

Each word is tokenized by itself, with fast and slow tokenizers alike. It is what `tokenizer(words, is_split_into_words=True)`
does, and needs no word_ids(), which slow ones lack.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.config.sections import check
from hf_finetune.system.errors import InputError


def split_words(text: str) -> list[str]:
    """The words of a text: split at white space, and punctuation and currency signs at a word's edges are words of their own,
    character by character. "Dr. Smith's (old) U.S. flat" is Dr . Smith's ( old ) U.S . flat; @user and #tag stay whole."""
    words: list[str] = []
    for chunk in text.split():
        begin, end = 0, len(chunk)
        while begin < end and is_sign(chunk[begin]) and not (chunk[begin] in "#@" and chunk[begin + 1 :][:1].isalnum()):
            begin += 1
        while end > begin and is_sign(chunk[end - 1]):
            end -= 1
        words += [*chunk[:begin], *([chunk[begin:end]] if begin < end else []), *chunk[end:]]
    return words


def is_sign(character: str) -> bool:
    """Whether a character is punctuation or a currency sign, as Unicode has it."""
    category = unicodedata.category(character)
    return category.startswith("P") or category == "Sc"


@dataclass(frozen=True, kw_only=True)
class Specials:
    """What a tokenizer puts around one text: ids, and the type ids of all three parts, None where it has no such."""

    before: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int]] | None

    @classmethod
    def of(cls, tokenizer: Any) -> "Specials":
        """By what it makes of a letter."""
        bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        encoded = tokenizer("a")
        ids = list(encoded["input_ids"])
        start = next((at for at in range(len(ids)) if ids[at : at + len(bare)] == bare), -1)
        if start < 0:
            raise InputError(
                "model.backbone: its tokenizer gives a word other tokens beside special ones, so words cannot be tagged"
            )
        end, types = start + len(bare), encoded.get("token_type_ids")
        return cls(before=ids[:start], after=ids[end:], types=types and (types[:start], types[start], types[end:]))

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def types_of(self, length: int) -> list[int]:
        """The type ids of so many tokens between the special ones, and of those; [] where there are no types."""
        if self.types is None:
            return []
        return [*self.types[0], *[self.types[1]] * length, *self.types[2]]


def pieces_of(words: Iterable[str], tokenizer: Any) -> dict[str, list[int]]:
    """The ids of each different word; none for what a tokenizer drops, such as control characters."""
    different = list(dict.fromkeys(words))
    pieces: dict[str, list[int]] = {}
    for start in range(0, len(different), 10_000):
        chunk = different[start : start + 10_000]
        encoded = tokenizer(chunk, add_special_tokens=False, return_attention_mask=False)
        pieces |= zip(chunk, encoded["input_ids"], strict=True)
    return pieces


def put_spaces_before_words(tokenizer: Any) -> None:
    """Has a byte-level tokenizer (RoBERTa's, GPT-2's, ModernBERT's) take a word by itself for one behind a space, as in text;
    it is saved with the tokenizer. Others mark words without being told."""
    if not tokenizer.is_fast:
        return
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    if type(splitter).__name__ == "ByteLevel" and not splitter.add_prefix_space:
        splitter.add_prefix_space = True
        tokenizer.add_prefix_space = True
        tokenizer.init_kwargs["add_prefix_space"] = True


def windows(lengths: Sequence[int], capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Ranges of words of these lengths (tokens, none above the capacity) that cover all of them, in order, each as long as the
    capacity lets it. Neighbours share at most `overlap` tokens, in whole words; one range where all fit."""
    found, begin = [], 0
    while True:
        end, used = begin, 0
        while end < len(lengths) and used + lengths[end] <= capacity:
            used += lengths[end]
            end += 1
        found.append((begin, end))
        if end == len(lengths):
            return found
        first, room = begin + 1, min(overlap, capacity - lengths[end])
        begin = end
        while begin > first and lengths[begin - 1] <= room:
            begin -= 1
            room -= lengths[begin]


def owners(lengths: Sequence[int], ranges: Sequence[tuple[int, int]]) -> list[int]:
    """For each word the window in which it has the most context: the one with more tokens on its poorer side; the earlier of
    equals."""
    best = [(-1, 0)] * len(lengths)
    for number, (begin, end) in enumerate(ranges):
        before, behind = 0, sum(lengths[begin:end])
        for word in range(begin, end):
            behind -= lengths[word]
            best[word] = max(best[word], (min(before, behind), -number))
            before += lengths[word]
    return [-number for _, number in best]


def encode(
    rows: Sequence[Sequence[str]], tokenizer: Any, max_length: int, overlap: int | None
) -> "dict[str, np.ndarray[Any, Any]]":
    """Flat arrays of rows of words, as data.make_features() takes them, in windows of max_length tokens that share `overlap` (a
    quarter of what a window holds, if not given).

    words: [T] the number in its row of the word that a token is a piece of; -1 of special tokens and of words that belong to
    another window. firsts: [T] whether it is the first piece of a word with a number. truncated: rows with a word that alone is
    longer than a window, which loses its end. InputError where a window would hold nothing new.
    """
    specials = Specials.of(tokenizer)
    capacity = max_length - len(specials)
    check(capacity >= 1, "data.max_length", max_length, f"holds {len(specials)} special tokens and no word")
    shared = capacity // 4 if overlap is None else overlap
    check(shared < capacity, "task.window_overlap", overlap, f"must be below the {capacity} tokens that a window holds")
    pieces = pieces_of((word for row in rows for word in row), tokenizer)
    nothing = [] if len(specials) else [int(tokenizer.pad_token_id or 0)]  # a sequence has at least one token
    ids: list[int] = []
    numbers: list[int] = []
    types: list[int] = []
    lengths, examples, truncated = [], [], 0
    for example, row in enumerate(rows):
        spelled = [pieces[word][:capacity] for word in row]
        truncated += any(len(pieces[word]) > capacity for word in row)
        sizes = [len(each) for each in spelled]
        ranges = windows(sizes, capacity, shared)
        belongs = owners(sizes, ranges)
        for window, (begin, end) in enumerate(ranges):
            inside = [piece for each in spelled[begin:end] for piece in each] or nothing
            of_words = [[word if belongs[word] == window else -1] * sizes[word] for word in range(begin, end)]
            mine = [number for each in of_words for number in each] or [-1] * len(nothing)
            ids += [*specials.before, *inside, *specials.after]
            numbers += [*[-1] * len(specials.before), *mine, *[-1] * len(specials.after)]
            types += specials.types_of(len(inside))
            lengths.append(len(inside) + len(specials))
            examples.append(example)
    words, offsets = np.array(numbers, dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    before = np.concatenate([[-1], words[:-1]])
    before[offsets[:-1]] = -1
    return {
        "input_ids": np.array(ids, dtype=np.int32),
        **({"token_type_ids": np.array(types, dtype=np.int32)} if types else {}),
        "words": words,
        "firsts": (words >= 0) & (words != before),
        "offsets": offsets,
        "examples": np.array(examples, dtype=np.int64),
        "truncated": np.array(truncated),
    }
