"""Tables to features: tokenized once, kept on disk."""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hf_finetune.data.features import Features, Ragged, make_features
from hf_finetune.data.formats import is_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError


class Encoder(Protocol):
    """What encode() needs of a task."""

    @property
    def name(self) -> str:
        """Part of the key of what is kept on disk."""

    def encoded_columns(self) -> tuple[str, ...]:
        """The columns that tokenize() reads."""

    def encoding_settings(self) -> dict[str, Any]:
        """The plain settings that tokenize() depends on, besides max_length."""

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """Flat arrays as make_features() takes them."""

    def labels(
        self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]"
    ) -> "np.ndarray[Any, Any] | Ragged | None":
        """Targets of the features."""


def encode(task: Encoder, table: Table, tokenizer: Any, max_length: int, *, root: Path, has_labels: bool = True) -> Features:
    """Features of a table. What the task's tokenize() returns is kept on disk under HF_FINETUNE_CACHE, by the columns that it
    reads, its settings, the tokenizer and max_length."""
    folder = root / "encoded" / encoding_key(task, table, tokenizer, max_length)
    if (encoded := read_encoded(folder)) is None:
        write_encoded(folder, task.tokenize(table, tokenizer, max_length))
        encoded = read_encoded(folder)
    assert encoded is not None  # it was just written
    return make_features(encoded, task.labels(table, encoded) if has_labels else None)


def read_encoded(folder: Path) -> dict[str, "np.ndarray[Any, Any]"] | None:
    """The arrays of a cache entry, the long ones as memory maps; None where it is missing or damaged."""
    try:
        names = (folder / "done").read_text(encoding="utf-8").split()
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names} or None
    except (OSError, ValueError, EOFError):  # of a disk that lost power, or a hand in the cache
        return None


def encoding_key(task: Encoder, table: Table, tokenizer: Any, max_length: int) -> str:
    """Digest of everything the encoding depends on; the tokenizer by the bytes of its saved files."""
    import transformers

    if tokenizer.is_fast:  # its files hold the padding and truncation of its last call, which encoding sets anew
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    digest = hashlib.sha256(f"2 {task.name} {transformers.__version__} {max_length}".encode())
    digest.update(json.dumps(task.encoding_settings()).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
    for column in task.encoded_columns():
        digest.update(json.dumps(table.columns[column], default=str).encode())
    for file, rows in groupby(table.files):  # some tasks join the lines of a text file
        digest.update(f"{sum(1 for _ in rows)} {is_table(Path(file))} ".encode())
    return digest.hexdigest()[:32]


def tokenize(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> dict[str, "np.ndarray[Any, Any]"]:
    """Flat token arrays, offsets, and how many rows were cut."""
    flat: dict[str, list[Any]] = defaultdict(list)
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(texts[0]), 1000):
        chunk = [list(column[start : start + 1000]) for column in texts]
        encoded = tokenizer(*chunk, truncation=True, max_length=max_length, return_attention_mask=False)
        lengths += [len(ids) for ids in encoded["input_ids"]]
        for name in ("input_ids", "token_type_ids"):
            if name in encoded:
                flat[name].append(np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded[name]]))
        truncated += count_truncated(encoded, tokenizer, chunk, max_length)
    arrays = {name: np.concatenate(parts) for name, parts in flat.items()}
    return {
        **arrays,
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "truncated": np.array(truncated),
    }


def count_truncated(encoded: Any, tokenizer: Any, texts: list[list[str]], max_length: int) -> int:
    """How many rows lost tokens. The fast tokenizers keep what they cut; for the others, rows that fill max_length are
    encoded once more with one token more."""
    if encoded.encodings is not None:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    full = [index for index, ids in enumerate(encoded["input_ids"]) if len(ids) == max_length]
    if not full:
        return 0
    longer = tokenizer(
        *[[column[index] for index in full] for column in texts], truncation=True, max_length=max_length + 1
    )
    return sum(len(ids) > max_length for ids in longer["input_ids"])


def write_encoded(folder: Path, arrays: Mapping[str, "np.ndarray[Any, Any]"]) -> None:
    """Writes the arrays beside `folder` and renames them into place; a folder is there whole or not at all."""
    temporary = folder.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "done").write_text(" ".join(arrays), encoding="utf-8")
        if read_encoded(folder) is None:  # else another run was faster, and may be reading
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    except OSError as error:
        if read_encoded(folder) is None:
            raise InputError(
                f"{folder.parent}: the encoded text cannot be kept there ({error.strerror or error}); "
                "set HF_FINETUNE_CACHE to a folder with room"
            ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
