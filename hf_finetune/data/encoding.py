"""Tables to features. What a task's tokenize() returns is stored on disk for the next run."""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hf_finetune.data.features import Array, Features, Ragged, make_features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

VERSION = 2  # of the entries on disk: raise it if the same key would give other arrays
ROWS_IN_CHUNK = 1000  # rows that the tokenizer gets in one call


class Encoder(Protocol):
    """The members of a task's encoding (tasks.base.Encoding) that encode() uses."""

    @property
    def name(self) -> str:
        """A name that no other encoding has."""

    def encoded_columns(self) -> tuple[str, ...]:
        """The columns that tokenize() reads."""

    def encoding_settings(self) -> dict[str, Any]:
        """The plain settings that tokenize() depends on, apart from max_length."""

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Flat arrays as make_features() takes them."""

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array | Ragged | None:
        """Targets of the features."""


def encode(
    encoder: Encoder, table: Table, tokenizer: Any, max_length: int, *, root: Path, has_labels: bool = True
) -> Features:
    """Encodes a table, or reads its encoding from disk. Targets are computed from the table each time.

    Args:
        encoder: The encoding of the task.
        table: The rows of a split.
        tokenizer: A tokenizer of transformers.
        max_length: Longest input in tokens.
        root: The folder of the caches; encoded text lies in its subfolder `encoded`.
        has_labels: False for rows without targets.
    """
    folder = root / "encoded" / make_encoding_key(encoder, table, tokenizer, max_length)
    arrays = read_encoded(folder)
    if arrays is None:
        write_encoded(folder, encoder.tokenize(table, tokenizer, max_length))
        arrays = read_encoded(folder)
    assert arrays is not None  # it was just written
    return make_features(arrays, encoder.labels(table, arrays) if has_labels else None)


def read_encoded(folder: Path) -> dict[str, Array] | None:
    """Returns the arrays of a cache entry as memory maps, None if the entry is missing or damaged."""
    try:
        names = (folder / "done").read_text(encoding="utf-8").split()
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names} or None
    except (OSError, ValueError, EOFError):  # after a power cut, or after someone edited the cache
        return None


def make_encoding_key(encoder: Encoder, table: Table, tokenizer: Any, max_length: int) -> str:
    """Returns a digest of everything that tokenize() depends on. The tokenizer enters it as the bytes of
    its saved files."""
    import transformers

    if tokenizer.is_fast:  # its files hold the padding and truncation of its last call, which tokenize() sets again
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    digest = hashlib.sha256(f"{VERSION} {encoder.name} {transformers.__version__} {max_length}".encode())
    digest.update(json.dumps(encoder.encoding_settings()).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
    digest.update(table.digest(encoder.encoded_columns()).encode())
    first_row = 0
    for _, num_rows in table.list_files():  # some tasks join the lines of a text file
        digest.update(f"{num_rows} {table.is_tabular(first_row)} ".encode())
        first_row += num_rows
    return digest.hexdigest()[:32]


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
    lengths: list[int] = []
    num_truncated = 0
    for start in range(0, len(texts[0]), ROWS_IN_CHUNK):
        chunk = [list(column[start : start + ROWS_IN_CHUNK]) for column in texts]
        encoded = tokenizer(*chunk, truncation=True, max_length=max_length, return_attention_mask=False)
        lengths += [len(ids) for ids in encoded["input_ids"]]
        for name in ("input_ids", "token_type_ids"):
            if name in encoded:
                parts[name].append(np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded[name]]))
        num_truncated += count_truncated(encoded, tokenizer, chunk, max_length)
    return {
        **{name: np.concatenate(arrays) for name, arrays in parts.items()},
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "truncated": np.array(num_truncated),
    }


def count_truncated(encoded: Any, tokenizer: Any, texts: list[list[str]], max_length: int) -> int:
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


def write_encoded(folder: Path, arrays: Mapping[str, Array]) -> None:
    """Writes a cache entry to a temporary folder and renames it to `folder`, so that it is complete or not there."""
    temporary = folder.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "done").write_text(" ".join(arrays), encoding="utf-8")
        if read_encoded(folder) is None:  # else another run was faster, and may be reading it
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    except OSError as error:
        if read_encoded(folder) is None:
            raise InputError(
                f"{folder.parent}: the encoded text cannot be written there ({error.strerror or error}); set cache.dir or "
                "HF_FINETUNE_CACHE to a folder with free space"
            ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
