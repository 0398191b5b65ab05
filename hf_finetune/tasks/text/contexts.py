"""Questions with their contexts to windows of tokens, and answers to the tokens that hold them.

T tokens.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.features import Array
from hf_finetune.system.errors import InputError

DEFAULT_OVERLAP = 128  # tokens; the doc_stride of BERT's run_squad.py and of transformers' run_qa.py

QUESTIONS_AT_ONCE = 1000  # questions that one call of the tokenizer takes


def encode_questions(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: Any, max_length: int, window_overlap: int | None
) -> dict[str, Array]:
    """Encodes questions with their contexts, in windows of max_length tokens. Returns flat arrays as
    data.features.make_features() takes them.

    Besides the usual arrays there are two more. char_starts, char_ends: the characters of the context that each token stands
    for; -1 outside the context [T]. truncated: number of questions that are longer than half a window and were cut to that.

    Raises InputError if the tokenizer is not a fast one, or if a window has no room for both texts or for the overlap.

    Args:
        questions: Non-empty texts.
        contexts: The text that each question is about.
        tokenizer: A fast tokenizer of transformers.
        max_length: Most tokens of a window, with special tokens.
        window_overlap: Most tokens that neighbouring windows share, and never more than half of what the question leaves of a
            window; DEFAULT_OVERLAP if None.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"model.backbone: its tokenizer ({type(tokenizer).__name__}) does not give the position of a token in the text; "
            "question answering needs a fast tokenizer (tokenizer.json)"
        )
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    require(room >= 4, "data.max_length", max_length, "leaves no room for a question and a context; must be larger")
    require(
        window_overlap is None or window_overlap <= room // 2,
        "task.window_overlap",
        window_overlap,
        f"must be at most {room // 2}, half of a window of {max_length} tokens; see data.max_length",
    )
    overlap = DEFAULT_OVERLAP if window_overlap is None else window_overlap
    stripped = [question.strip() for question in questions]
    shortened, lengths = truncate_questions(stripped, tokenizer, room // 2)
    windows: list[list[dict[str, Array]]] = [[] for _ in shortened]
    rows_by_overlap: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        rows_by_overlap[min(overlap, (room - length) // 2)].append(row)
    for shared, rows in rows_by_overlap.items():
        for start in range(0, len(rows), QUESTIONS_AT_ONCE):
            chunk = rows[start : start + QUESTIONS_AT_ONCE]
            texts = [shortened[row] for row in chunk], [contexts[row] for row in chunk]
            for number, window in make_windows(*texts, tokenizer, max_length, shared):
                windows[chunk[number]].append(window)
    flat = [window for windows_of_row in windows for window in windows_of_row]
    num_truncated = sum(short != text for short, text in zip(shortened, stripped, strict=True))
    return {
        **{name: np.concatenate([window[name] for window in flat]) for name in flat[0]},
        "offsets": np.cumsum([0, *(len(window["input_ids"]) for window in flat)], dtype=np.int64),
        "examples": np.repeat(np.arange(len(windows)), [len(windows_of_row) for windows_of_row in windows]),
        "truncated": np.array(num_truncated),
    }


def truncate_questions(questions: Sequence[str], tokenizer: Any, longest: int) -> tuple[list[str], list[int]]:
    """Cuts the end of questions of more than `longest` tokens. Returns the questions and their numbers of tokens."""
    texts, lengths = [], []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        chunk = list(questions[start : start + QUESTIONS_AT_ONCE])
        # verbose=False: a fast tokenizer warns of texts longer than the model's limit, but these are cut below
        encodings = tokenizer(chunk, add_special_tokens=False, verbose=False).encodings
        for question, encoding in zip(chunk, encodings, strict=True):
            while len(encoding.ids) > longest:  # repeated, since a word that is cut may have more tokens than before
                question = question[: min(encoding.offsets[longest - 1][1], len(question) - 1)]
                encoding = tokenizer([question], add_special_tokens=False, verbose=False).encodings[0]
            texts.append(question)
            lengths.append(len(encoding.ids))
    return texts, lengths


def make_windows(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: Any, max_length: int, overlap: int
) -> list[tuple[int, dict[str, Array]]]:
    """Returns the windows of these questions, in their order: index of the question, and the arrays of the window."""
    encoded = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        stride=overlap,
        max_length=max_length,
        return_overflowing_tokens=True,
    )
    has_types = "token_type_ids" in encoded
    windows = []
    for number, encoding in zip(encoded["overflow_to_sample_mapping"], encoded.encodings, strict=True):
        windows.append((number, make_window_arrays(encoding, contexts[number], has_types=has_types)))
    return windows


def make_window_arrays(encoding: Any, context: str, *, has_types: bool) -> dict[str, Array]:
    """Returns ids, token type ids if there are any, and the characters of each token without white space at both ends [T]."""
    char_starts, char_ends = np.full((2, len(encoding.ids)), -1, dtype=np.int32)
    for token, (sequence, (begin, end)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True)):
        if sequence != 1:
            continue
        while begin < end and context[begin].isspace():  # byte-level tokens contain the space before the word
            begin += 1
        while begin < end and context[end - 1].isspace():
            end -= 1
        char_starts[token], char_ends[token] = begin, end
    arrays = {
        "input_ids": np.array(encoding.ids, dtype=np.int32),
        "char_starts": char_starts,
        "char_ends": char_ends,
    }
    if has_types:
        arrays["token_type_ids"] = np.array(encoding.type_ids, dtype=np.int32)
    return arrays


def find_answer_tokens(answer: tuple[str, int], char_starts: Array, char_ends: Array) -> tuple[int, int]:
    """Returns the tokens of a window in which an answer begins and ends; (0, 0) if the window does not hold all of it.

    Args:
        answer: Its text and the position of its first character in the context.
        char_starts, char_ends: The characters of each token of the window; -1 outside the context [T].
    """
    text, position = answer
    start = position + len(text) - len(text.lstrip())
    end = position + len(text.rstrip())
    inside = np.flatnonzero(char_starts >= 0)
    if not len(inside) or char_starts[inside[0]] > start or char_ends[inside[-1]] < end:
        return 0, 0
    first = int(np.searchsorted(char_starts[inside], start, side="right")) - 1
    last = int(np.searchsorted(char_ends[inside], end, side="left"))
    return int(inside[first]), int(inside[last])
