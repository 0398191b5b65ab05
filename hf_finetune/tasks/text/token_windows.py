"""Long texts as windows of tokens that overlap, and scores of windows to scores of texts.

W windows, R texts, T tokens.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.columns import iterate
from hf_finetune.data.features import Array
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.words import find_special_tokens

TEXTS_AT_ONCE = 1000  # that one call of the tokenizer takes


def encode_windows(texts: Sequence[str], tokenizer: Any, max_length: int, overlap: int | None) -> dict[str, Array]:
    """Returns the windows of texts as flat arrays for data.features.make_features(), with `weights`: 1 divided by the number of
    windows of the text [W] float32.

    A text that fits is one window, with the tokens that it has without windows. Raises InputError if the tokenizer does not put
    special tokens around a text alone, or if a window would hold no more than it shares with the one before.

    Args:
        texts: The texts.
        tokenizer: Any tokenizer of transformers.
        max_length: Most tokens of a window, with special tokens.
        overlap: Tokens that neighbouring windows share; a quarter of what a window holds if None.
    """
    special = find_special_tokens(tokenizer)
    if special is None:
        raise InputError(
            "task.long_texts (windows): the tokenizer of model.backbone encodes a text differently when it adds special tokens; "
            "set task.long_texts cut, or choose another backbone"
        )
    capacity = max_length - len(special)
    shared = max(0, capacity) // 4 if overlap is None else overlap
    fix = f"must be below the {capacity} tokens that a window of data.max_length {max_length} holds"
    require(shared < capacity, "task.window_overlap", shared, fix)
    if_empty = [] if len(special) else [int(tokenizer.pad_token_id or 0)]  # a sequence has at least one token
    ids: list[Array] = []
    counts: list[int] = []
    for part in iterate(texts, TEXTS_AT_ONCE):
        encoded = tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for tokens in encoded:
            windows = list(cut(tokens, capacity, shared))
            counts.append(len(windows))
            ids += [
                np.array([*special.before, *(window or if_empty), *special.after], dtype=np.int32) for window in windows
            ]
    lengths = [len(window) for window in ids]
    arrays = {"input_ids": np.concatenate(ids)}
    if special.type_ids is not None:
        type_ids = [special.make_type_ids(length - len(special)) for length in lengths]
        arrays["token_type_ids"] = np.array([number for window in type_ids for number in window], dtype=np.int32)
    return {
        **arrays,
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "examples": np.repeat(np.arange(len(counts)), counts),
        "weights": np.repeat(1 / np.array(counts), counts).astype(np.float32),
        "truncated": np.array(0),
    }


def cut(tokens: Sequence[int], capacity: int, overlap: int) -> Iterable[Sequence[int]]:
    """Yields windows of at most `capacity` tokens that hold all of them. Neighbours share `overlap` tokens; the last may be
    shorter than the others."""
    start = 0
    while True:
        yield tokens[start : start + capacity]
        if start + capacity >= len(tokens):
            return
        start += capacity - overlap


def pool_windows(scores: Array, examples: Array, pooling: str) -> Array:
    """Returns the scores of texts [R, C], in the order of their numbers: the mean or the maximum over their windows.

    Args:
        scores: Those of windows [W, C].
        examples: The number of the text of each window [W].
        pooling: mean or max.
    """
    order = np.argsort(examples, kind="stable")
    _, starts = np.unique(examples[order], return_index=True)
    if pooling == "max":
        return np.maximum.reduceat(scores[order], starts)
    counts = np.diff(starts, append=len(order))
    sums: Array = np.add.reduceat(scores[order].astype(np.float64), starts) / counts[:, None]
    return sums.astype(scores.dtype)
