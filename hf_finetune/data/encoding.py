"""Tables to features. What a task's tokenize() returns is stored on disk for the next run."""

import errno
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.data.encoded_parts import InconsistentEntryError, Rows, find_whole_entry, open_arrays
from hf_finetune.data.encoded_store import fill_entry, lock_entry
from hf_finetune.data.encoder import Encoder, make_encoding_key, rows_are_independent
from hf_finetune.data.encoding_workers import PartsComputer
from hf_finetune.data.features import MODEL_INPUTS, Array, Features, make_features
from hf_finetune.data.table import Table
from hf_finetune.system.files import FULL_DISK

ROWS_IN_PART = 8192  # rows that are tokenized, written and checked together: half a second of work, if they are short
ROWS_IN_CHUNK = 1000  # rows that the tokenizer gets in one call
CHARACTERS_IN_CHUNK = 1_000_000  # about that many, if rows are long: the tokenizer holds 100 bytes a character


def encode(
    encoder: Encoder,
    table: Table,
    tokenizer: Any,
    max_length: int,
    *,
    root: Path,
    has_labels: bool = True,
    workers: int | None = None,
    say: Callable[[str], object] | None = None,
) -> Features:
    """Encodes a table, or reads its encoding from disk. Targets are computed from the table each time.

    If the folder of the caches cannot be written, the text is encoded without it.

    Args:
        encoder: The encoding of the task.
        table: The rows of a split.
        tokenizer: A tokenizer of transformers.
        max_length: Longest input in tokens.
        root: The folder of the caches; encoded text lies in its subfolder `encoded`.
        has_labels: False for rows without targets.
        workers: As data.workers. The arrays are the same for any number.
        say: Takes lines about progress, damage, and a folder that cannot be written. If not given, nothing is shown.
    """
    spans: list[Rows] = [(0, len(table))]
    if rows_are_independent(encoder) and len(table) > ROWS_IN_PART:
        starts = range(0, len(table), ROWS_IN_PART)
        spans = [(start, min(start + ROWS_IN_PART, len(table))) for start in starts]

    def tokenize_rows(number: int, tokenizer: Any) -> dict[str, Array]:
        first, last = spans[number]
        part = table if len(spans) == 1 else table.take(range(first, last))
        return encoder.tokenize(part, tokenizer, max_length)

    folder = root / "encoded" / make_encoding_key(encoder, table, tokenizer, max_length)
    compute = PartsComputer(
        spans=spans, tokenize=tokenize_rows, tokenizer=tokenizer, workers=workers, is_shown=say is not None
    )
    arrays = load_arrays(folder, spans, compute, say or (lambda _: None))
    if arrays is None:
        arrays = encoder.tokenize(table, tokenizer, max_length)
    elif len(spans) > 1:
        arrays |= encoder.join(arrays)
    return make_features(arrays, encoder.labels(table, arrays) if has_labels else None)


def load_arrays(
    folder: Path, spans: Sequence[Rows], compute: PartsComputer, say: Callable[[str], object]
) -> dict[str, Array] | None:
    """Returns the arrays of an entry, and computes the parts that it does not have. If the entry cannot be written, they are
    computed into a temporary folder; None if that cannot be written either."""
    try:
        with lock_entry(folder, say):
            try:
                return fill_entry(folder, spans, compute, say)
            except InconsistentEntryError:
                say(f"encoded text: {folder} is damaged; it is computed again")
                shutil.rmtree(folder)
                return fill_entry(folder, spans, compute, say)
    except OSError as error:
        if (parts := find_whole_entry(folder, spans)) is not None:  # in a folder that can only be read
            return open_arrays(folder, parts)
        if error.errno in FULL_DISK:
            shutil.rmtree(folder, ignore_errors=True)
        say(
            f"warning: the encoded text cannot be written to {folder.parent} ({error.strerror or error}), so that the next run "
            "encodes it again; cache.dir or HF_FINETUNE_CACHE names another folder"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="hf_finetune-", ignore_cleanup_errors=True) as temporary:
            return fill_entry(Path(temporary) / "encoded", spans, compute, say)  # maps outlive the names of their files
    except OSError as error:
        say(
            f"warning: nor to the folder of temporary files ({error.strerror or errno.errorcode.get(error.errno or 0)})"
        )
        return None


def tokenize(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> dict[str, Array]:
    """Tokenizes N texts, or N pairs of texts, to one sequence each.

    Args:
        texts: One column of N texts, or two columns whose rows are pairs.
        tokenizer: A tokenizer of transformers.
        max_length: Longer sequences are cut to this number of tokens.

    Returns:
        input_ids and, for some models, token_type_ids (flat, int32), offsets [N + 1] int64, and truncated: how many were cut.
    """
    parts: dict[str, list[Array]] = defaultdict(list)
    num_truncated = 0
    run = run_backend if has_plain_backend(tokenizer) else run_tokenizer
    for chunk in iterate_chunks(texts):
        arrays, count = run(tokenizer, chunk, max_length)
        num_truncated += count
        for name, array in arrays.items():
            parts[name].append(array)
    lengths = np.concatenate(parts.pop("lengths"))
    return {
        **{name: np.concatenate(arrays) for name, arrays in parts.items()},
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "truncated": np.array(num_truncated),
    }


def iterate_chunks(texts: Sequence[Sequence[str]]) -> Iterator[list[list[str]]]:
    """Yields the columns in chunks of at most ROWS_IN_CHUNK rows, and of one text or about CHARACTERS_IN_CHUNK."""
    for start in range(0, len(texts[0]), ROWS_IN_CHUNK):
        columns = [list(column[start : start + ROWS_IN_CHUNK]) for column in texts]
        sizes = np.cumsum([sum(map(len, row)) for row in zip(*columns, strict=True)]) // CHARACTERS_IN_CHUNK
        ends = [*(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            yield [column[begin:end] for column in columns]


def has_plain_backend(tokenizer: Any) -> bool:
    """True if a tokenizer does no more than its part in Rust does."""
    from transformers import PreTrainedTokenizerFast as Plain

    return isinstance(tokenizer, Plain) and all(
        getattr(type(tokenizer), name, None) is getattr(Plain, name, None) for name in ("__call__", "_encode_plus")
    )


def run_backend(tokenizer: Any, chunk: Sequence[Sequence[str]], max_length: int) -> tuple[dict[str, Array], int]:
    """As run_tokenizer(), in two thirds of its time: no lists of tokens, words and places in the text are made."""
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": False}
    first = tokenizer(*[column[:1] for column in chunk], **options)  # sets how the backend cuts, pads and splits
    rows = list(zip(*chunk, strict=True)) if len(chunk) > 1 else list(chunk[0])
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(rows)
    lengths = [len(encoding) for encoding in encodings]
    arrays = {"lengths": np.array(lengths)}
    for name, values in (
        ("input_ids", (encoding.ids for encoding in encodings)),
        ("token_type_ids", (encoding.type_ids for encoding in encodings)),
    ):
        if name in first:
            arrays[name] = np.fromiter(chain.from_iterable(values), np.int32, sum(lengths))
    return arrays, sum(bool(encoding.overflowing) for encoding in encodings)


def run_tokenizer(tokenizer: Any, chunk: Sequence[Sequence[str]], max_length: int) -> tuple[dict[str, Array], int]:
    """Tokenizes texts, or pairs of texts. Returns MODEL_INPUTS, flat, and `lengths` [B]; and how many texts lost tokens."""
    encoded = tokenizer(*chunk, truncation=True, max_length=max_length, return_attention_mask=False)
    arrays = {"lengths": np.array([len(ids) for ids in encoded["input_ids"]])}
    for name in MODEL_INPUTS:
        if name in encoded:
            arrays[name] = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded[name]])
    return arrays, count_truncated(encoded, tokenizer, chunk, max_length)


def count_truncated(encoded: Any, tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int) -> int:
    """Returns how many rows lost tokens.

    Fast tokenizers return what they cut. With a slow tokenizer, rows of exactly max_length tokens are tokenized again with
    one more token allowed.
    """
    if encoded.encodings is not None:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    full_rows = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) == max_length]
    if not full_rows:
        return 0
    columns = [[column[row] for row in full_rows] for column in texts]
    longer = tokenizer(*columns, truncation=True, max_length=max_length + 1)
    return sum(len(ids) > max_length for ids in longer["input_ids"])
