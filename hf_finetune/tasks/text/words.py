"""Words to tokens: pieces of words, special tokens, and windows of long sentences.

Each word is tokenized on its own, with fast and slow tokenizers alike. The result is that of
`tokenizer(words, is_split_into_words=True)`, but slow tokenizers have no word_ids(), which the tags need.

T tokens.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.features import IGNORED, Array
from hf_finetune.system.errors import InputError

WORDS_AT_ONCE = 10_000  # words that one call of the tokenizer takes


def split_words(text: str) -> list[str]:
    """Splits a text into words: at white space, and before and after each punctuation or currency sign at a word's edges.

    "Dr. Smith's (old) U.S. flat" becomes Dr . Smith's ( old ) U.S . flat; @user and #tag stay one word.
    """
    return [text[begin:end] for begin, end in find_words(text)]


def find_words(text: str) -> list[tuple[int, int]]:
    """Returns where each word of split_words() begins and ends in the text."""
    words: list[tuple[int, int]] = []
    for match in re.finditer(r"\S+", text):
        begin, end = match.span()
        while (
            begin < end and is_sign(text[begin]) and not (text[begin] in "#@" and text[begin + 1 : end][:1].isalnum())
        ):
            words.append((begin, begin + 1))
            begin += 1
        last = end
        while last > begin and is_sign(text[last - 1]):
            last -= 1
        if begin < last:
            words.append((begin, last))
        words += [(position, position + 1) for position in range(last, end)]
    return words


def is_sign(character: str) -> bool:
    """True if Unicode classes the character as punctuation or as a currency sign."""
    category = unicodedata.category(character)
    return category.startswith("P") or category == "Sc"


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The special tokens that a tokenizer puts around one text.

    Args:
        before: Their ids before the text.
        after: Their ids after the text.
        type_ids: Token type ids of `before`, of each token of the text, and of `after`; None if the tokenizer has none.
    """

    before: list[int]
    after: list[int]
    type_ids: tuple[list[int], int, list[int]] | None

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def make_type_ids(self, length: int) -> list[int]:
        """Returns the type ids of a text of `length` tokens with its special tokens; [] if the tokenizer has none."""
        if self.type_ids is None:
            return []
        before, inside, after = self.type_ids
        return [*before, *[inside] * length, *after]


def find_special_tokens(tokenizer: Any) -> SpecialTokens | None:
    """Finds the special tokens by tokenizing the letter "a" with and without them.

    Returns None if the tokenizer encodes the letter differently when it adds special tokens.
    """
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    encoded = tokenizer("a")
    ids = list(encoded["input_ids"])
    for start in range(len(ids) - len(bare) + 1):
        end = start + len(bare)
        if ids[start:end] == bare:
            type_ids = encoded.get("token_type_ids")
            if type_ids:
                type_ids = type_ids[:start], type_ids[start], type_ids[end:]
            return SpecialTokens(before=ids[:start], after=ids[end:], type_ids=type_ids or None)
    return None


def tokenize_words(words: Iterable[str], tokenizer: Any) -> dict[str, list[int]]:
    """Returns the token ids of each distinct word. A word that the tokenizer drops, such as a control character, has none."""
    distinct = list(dict.fromkeys(words))
    pieces: dict[str, list[int]] = {}
    for start in range(0, len(distinct), WORDS_AT_ONCE):
        chunk = distinct[start : start + WORDS_AT_ONCE]
        encoded = tokenizer(chunk, add_special_tokens=False, return_attention_mask=False)
        pieces |= zip(chunk, encoded["input_ids"], strict=True)
    return pieces


def put_spaces_before_words(tokenizer: Any) -> None:
    """Makes a byte-level tokenizer (RoBERTa's, GPT-2's, ModernBERT's) encode a single word as it does after a space in a text.

    The setting is saved with the tokenizer. Other tokenizers mark the beginning of a word anyway and are left unchanged.
    """
    if not tokenizer.is_fast:
        return
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    if type(pre_tokenizer).__name__ == "ByteLevel" and not pre_tokenizer.add_prefix_space:
        pre_tokenizer.add_prefix_space = True
        tokenizer.add_prefix_space = True
        tokenizer.init_kwargs["add_prefix_space"] = True


def split_into_windows(lengths: Sequence[int], capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Splits a sentence into windows that cover all its words in order. Returns [begin, end) of the words of each window.

    Each window is as long as the capacity allows. Neighbouring windows share whole words of at most `overlap` tokens. A
    sentence that fits gives one window.

    Args:
        lengths: Number of tokens of each word, none above the capacity.
        capacity: Most tokens of a window, without special tokens.
        overlap: Most tokens that two neighbouring windows share.
    """
    windows, begin = [], 0
    while True:
        end, used = begin, 0
        while end < len(lengths) and used + lengths[end] <= capacity:
            used += lengths[end]
            end += 1
        windows.append((begin, end))
        if end == len(lengths):
            return windows
        earliest, room = begin + 1, min(overlap, capacity - lengths[end])
        begin = end
        while begin > earliest and lengths[begin - 1] <= room:
            begin -= 1
            room -= lengths[begin]


def assign_words_to_windows(lengths: Sequence[int], windows: Sequence[tuple[int, int]]) -> list[int]:
    """Returns for each word the window that gives it the most context: the largest min(tokens before, tokens after).

    Ties go to the earlier window.
    """
    best = [(-1, 0)] * len(lengths)
    for number, (begin, end) in enumerate(windows):
        before, after = 0, sum(lengths[begin:end])
        for word in range(begin, end):
            after -= lengths[word]
            best[word] = max(best[word], (min(before, after), -number))
            before += lengths[word]
    return [-number for _, number in best]


def encode_words(
    rows: Sequence[Sequence[str]], tokenizer: Any, max_length: int, overlap: int | None
) -> dict[str, Array]:
    """Encodes rows of words, in windows of max_length tokens. Returns flat arrays as data.features.make_features() takes them.

    Besides the usual arrays there are two more. word_indices: the index in its row of the word that a token is a piece of; -1
    for special tokens and for words that belong to another window [T]. is_first_piece: true for the first piece of each word
    with an index [T]. truncated: number of rows with a word that is longer than a window, which loses the word's end.

    Raises InputError if a window would hold no word, or no more than it shares with the one before.

    Args:
        rows: The words of each row.
        tokenizer: Any tokenizer of transformers.
        max_length: Most tokens of a window, with special tokens.
        overlap: Most tokens that neighbouring windows share; a quarter of what a window holds if None.
    """
    special = find_special_tokens(tokenizer)
    if special is None:
        raise InputError(
            "model.backbone: its tokenizer encodes a word differently when it adds special tokens, so words cannot be tagged; "
            "choose another backbone"
        )
    capacity = max_length - len(special)
    require(
        capacity >= 1,
        "data.max_length",
        max_length,
        f"must be above {len(special)}, the number of special tokens, so that a window holds a word",
    )
    shared = capacity // 4 if overlap is None else overlap
    require(
        shared < capacity, "task.window_overlap", overlap, f"must be below the {capacity} tokens that a window holds"
    )
    pieces = tokenize_words(chain.from_iterable(rows), tokenizer)
    windows = (
        window
        for example, row in enumerate(rows)
        for window in make_windows(example, [pieces[word][:capacity] for word in row], capacity, shared)
    )
    if_empty = [] if len(special) else [int(tokenizer.pad_token_id or 0)]  # a sequence has at least one token
    truncated = sum(any(len(pieces[word]) > capacity for word in row) for row in rows)
    return {**flatten_windows(windows, special, if_empty), "truncated": np.array(truncated)}


@dataclass(frozen=True, kw_only=True)
class WordWindow:
    """A window of a sentence, without special tokens.

    Args:
        example: The row that it is a part of.
        ids: Token ids of the pieces.
        word_indices: For each piece the index of its word; -1 if the word belongs to another window.
    """

    example: int
    ids: list[int]
    word_indices: list[int]


def make_windows(example: int, pieces: Sequence[Sequence[int]], capacity: int, overlap: int) -> Iterator[WordWindow]:
    """Yields the windows of one row. pieces: the token ids of each of its words, at most `capacity` for each."""
    lengths = [len(ids) for ids in pieces]
    spans = split_into_windows(lengths, capacity, overlap)
    window_of_word = assign_words_to_windows(lengths, spans)
    for number, (begin, end) in enumerate(spans):
        ids: list[int] = []
        indices: list[int] = []
        for word in range(begin, end):
            ids += pieces[word]
            indices += [word if window_of_word[word] == number else -1] * lengths[word]
        yield WordWindow(example=example, ids=ids, word_indices=indices)


def flatten_windows(windows: Iterable[WordWindow], special: SpecialTokens, if_empty: Sequence[int]) -> dict[str, Array]:
    """Puts special tokens around each window, and `if_empty` into a window without a piece. Returns the flat arrays."""
    ids: list[int] = []
    indices: list[int] = []
    type_ids: list[int] = []
    lengths: list[int] = []
    examples: list[int] = []
    for window in windows:
        inside = window.ids or if_empty
        ids += [*special.before, *inside, *special.after]
        indices += [-1] * len(special.before)
        indices += window.word_indices or [-1] * len(if_empty)
        indices += [-1] * len(special.after)
        type_ids += special.make_type_ids(len(inside))
        lengths.append(len(inside) + len(special))
        examples.append(window.example)
    arrays = {"input_ids": np.array(ids, dtype=np.int32)}
    if type_ids:
        arrays["token_type_ids"] = np.array(type_ids, dtype=np.int32)
    word_indices = np.array(indices, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    index_before = np.concatenate([[-1], word_indices[:-1]])
    index_before[offsets[:-1]] = -1
    return {
        **arrays,
        "word_indices": word_indices,
        "is_first_piece": (word_indices >= 0) & (word_indices != index_before),
        "offsets": offsets,
        "examples": np.array(examples, dtype=np.int64),
    }


def label_pieces(tags: Sequence[Sequence[int]], arrays: Mapping[str, Array], later_tags: Sequence[int] | None) -> Array:
    """Returns the label of each token: its word's tag at the first piece, IGNORED at tokens without a word [T].

    Args:
        tags: The tags of each row, one for each word, as numbers; IGNORED for words that are not labelled.
        arrays: What encode_words() returned for these rows.
        later_tags: For each tag the label of a word's later pieces; None if they are IGNORED.
    """
    row_starts = np.cumsum([0, *map(len, tags)])[:-1]
    flat_tags = np.array([tag for row in tags for tag in row], dtype=np.int64)
    rows = np.repeat(arrays["examples"], np.diff(arrays["offsets"]))  # of each token
    is_piece = arrays["word_indices"] >= 0
    labels = np.full(len(is_piece), IGNORED, dtype=np.int64)
    labels[is_piece] = flat_tags[row_starts[rows[is_piece]] + arrays["word_indices"][is_piece]]
    is_later_piece = is_piece & ~arrays["is_first_piece"]
    if later_tags is None:
        labels[is_later_piece] = IGNORED
    else:
        is_labelled = is_later_piece & (labels != IGNORED)
        labels[is_labelled] = np.array(later_tags)[labels[is_labelled]]
    return labels
