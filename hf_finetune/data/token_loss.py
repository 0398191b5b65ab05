"""What the tokenizer loses of the texts: tokens that are cut off, and characters that it does not know.

N features of a split, S sequences.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from hf_finetune.data.encoder import Encoder
from hf_finetune.data.features import ITEMS_AT_ONCE, Array, Features, iterate_array, make_features
from hf_finetune.data.findings import (
    NUM_EXAMPLES,
    Finding,
    describe_percent,
    describe_share,
    join_examples,
    locate,
    shorten,
)
from hf_finetune.data.table import Table

MOST_TOKENS = 1_000_000  # longer than any text
NUM_SAMPLED = 500  # cut texts that are encoded again to measure what they lost
NUM_SEARCHED = 50  # texts with unknown tokens in which unknown characters are looked for
SHARE_OF_CUT_TOKENS = 0.1  # a warning if more tokens are lost
SHARE_OF_TEXTS_WITH_UNKNOWN = 0.01  # a warning if more texts have unknown characters
OTHER_USES = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


def find_cut_texts(
    split: str, table: Table, features: Features, encoder: Encoder, tokenizer: Any, max_length: int
) -> list[Finding]:
    """Returns a finding if texts were cut: how many, the share of the tokens that was lost, and the longest ones.

    Of many cut texts a sample is encoded again, and the loss estimated. Tasks that split long texts into windows lose none.
    """
    examples = features.example_indices
    has_windows = examples is not None and len(np.unique(examples)) < len(examples)
    if not features.num_truncated or has_windows or (examples is None and len(features) != len(table)):
        return []
    sample, num_full = sample_full_features(features)
    part = table.take([features.get_example(index) for index in sample])
    again = make_features(encoder.tokenize(part, tokenizer, MOST_TOKENS), None)
    if len(again) != len(sample):
        return []
    lengths = again.num_tokens
    kept = np.array([count_tokens(features, index) for index in sample])
    lost = float((lengths - kept).clip(0).sum()) * num_full / len(sample)
    share = lost / (lost + float(features.offsets[-1]))
    longest = np.argsort(-lengths, kind="stable")[:NUM_EXAMPLES]
    shown = join_examples([f"{locate(part, int(index))} ({lengths[index]:,} tokens)" for index in longest])
    about = "" if num_full == len(sample) else "about "
    sentence = (
        f"{split}: {describe_share(features.num_truncated, len(features), 'texts')} are longer than {max_length} tokens and were "
        f"cut, which loses {about}{describe_percent(share)} of all tokens, most in {shown}; raise data.max_length if the "
        "model takes more, or shorten the texts"
    )
    return [
        Finding(
            kind="cut_texts",
            split=split,
            count=features.num_truncated,
            sentence=sentence,
            is_warning=share >= SHARE_OF_CUT_TOKENS,
            details={"share_of_tokens": share, "longest": int(lengths.max())},
        )
    ]


def sample_full_features(features: Features) -> tuple[list[int], int]:
    """Returns features with a sequence of the largest length, spread over all of them, and how many such features there are."""
    longest = max(int(lengths.max()) for _, lengths in iterate_lengths(features))
    full = [start + np.flatnonzero(lengths == longest) for start, lengths in iterate_lengths(features)]
    indices = find_features(features, np.concatenate(full))
    picked = np.linspace(0, len(indices) - 1, min(len(indices), NUM_SAMPLED)).astype(np.int64)
    return indices[picked].tolist(), len(indices)


def find_unknown_characters(
    split: str, table: Table, features: Features, encoder: Encoder, tokenizer: Any
) -> list[Finding]:
    """Returns a finding if the texts have characters that the tokenizer does not know, which the model cannot tell apart.

    Tokenizers of bytes know all characters.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or any(getattr(tokenizer, name, None) == unknown for name in OTHER_USES):
        return []
    num_tokens, indices = count_unknown(features, unknown)
    if not num_tokens:
        return []
    is_by_row = features.example_indices is not None or len(features) == len(table)
    rows = [features.get_example(index) if is_by_row else index for index in indices[:NUM_SEARCHED].tolist()]
    if not is_by_row:  # blocks across texts do not know their rows
        rows = list(range(min(len(table), NUM_SEARCHED)))
    places: dict[str, str] = {}  # where each unknown character occurs first
    for row in rows:
        for text in list_texts([table.columns[name][row] for name in encoder.encoded_columns()]):
            for part in list_unknown(text.replace(tokenizer.unk_token, " "), tokenizer, unknown):
                places.setdefault(part, locate(table, row))
    if not places:  # the texts spell the unknown token out, as <unk>
        return []
    shown = join_examples([f"{shorten(part)} ({where})" for part, where in places.items()])
    share = num_tokens / int(features.offsets[-1])
    sentence = (
        f"{split}: {describe_share(len(indices), len(features), 'texts')} have characters or words that the tokenizer does not "
        f"know ({describe_percent(share)} of the tokens), such as {shown}; the model sees the same unknown token for all of "
        "them: choose a backbone for this language or these symbols, or replace them"
    )
    return [
        Finding(
            kind="unknown_characters",
            split=split,
            count=len(indices),
            sentence=sentence,
            is_warning=len(indices) >= SHARE_OF_TEXTS_WITH_UNKNOWN * len(features),
            details={"unknown_tokens": num_tokens, "share_of_tokens": share, "examples": places},
        )
    ]


def count_unknown(features: Features, unknown: int) -> tuple[int, Array]:
    """Returns the number of unknown tokens, and the features that have one."""
    num_tokens = 0
    indices = [np.empty(0, dtype=np.int64)]
    start = 0
    for ids in iterate_array(features.inputs["input_ids"]):
        places = start + np.flatnonzero(ids == unknown)
        start += len(ids)
        num_tokens += len(places)
        indices.append(find_features(features, np.searchsorted(features.offsets, places, side="right") - 1))
    return num_tokens, np.unique(np.concatenate(indices))


def list_unknown(text: str, tokenizer: Any, unknown: int) -> list[str]:
    """Returns the characters of a text that the tokenizer does not know; the word if it knows none of its characters."""

    def is_unknown(part: str) -> bool:
        return unknown in tokenizer(part, add_special_tokens=False)["input_ids"]

    found: list[str] = []
    for word in filter(is_unknown, dict.fromkeys(text.split())):
        characters = [character for character in dict.fromkeys(word) if is_unknown(character)]
        found += characters if 0 < len(characters) < len(set(word)) else [word]
    return found


def list_texts(value: Any) -> Iterator[str]:
    """Yields all texts in a value: in lists and objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from list_texts(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from list_texts(part)


def find_features(features: Features, sequences: Array) -> Array:
    """Returns the features that sequences belong to, each once."""
    if features.sequence_offsets is not None:
        sequences = np.searchsorted(features.sequence_offsets, sequences, side="right") - 1
    return np.unique(sequences)


def count_tokens(features: Features, index: int) -> int:
    """Returns the number of tokens of a feature, over all its sequences."""
    first, last = index, index + 1
    if features.sequence_offsets is not None:
        first, last = features.sequence_offsets[first], features.sequence_offsets[last]
    return int(features.offsets[last] - features.offsets[first])


def iterate_lengths(features: Features) -> Iterator[tuple[int, Array]]:
    """Yields the number of a sequence, and the lengths of the sequences from there on, in parts."""
    for start in range(0, features.num_sequences, ITEMS_AT_ONCE):
        yield start, np.diff(features.offsets[start : start + ITEMS_AT_ONCE + 1])
