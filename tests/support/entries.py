"""Entries of the activation cache with made-up values, for the tests of cache/."""

import errno
import hashlib
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.cache import layout, listing, store
from hf_finetune.cache.store import Entry
from hf_finetune.data.features import Array, Features

Rows = Sequence[Sequence[int]]  # token ids of each sequence

HIDDEN = 3
RANDOM = random.Random(0)
ROWS: dict[str, list[list[int]]] = {
    split: [[RANDOM.randrange(4) for _ in range(RANDOM.randint(1, 9))] for _ in range(count)]
    for split, count in (("train", 50), ("validation", 20), ("test", 10))
}


def make_features(rows: Rows, types: Rows | None = None, label: int = 0) -> Features:
    """Features of these tokens, with these token_type_ids if they are given."""
    columns = {"input_ids": rows}
    if types is not None:
        columns["token_type_ids"] = types
    inputs = {
        name: np.array([token for row in part for token in row], dtype=np.int32) for name, part in columns.items()
    }
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Features(inputs=inputs, offsets=offsets, labels=np.full(len(rows), label), num_truncated=0)


def make_layout(rows: Mapping[str, Rows]) -> layout.Layout:
    """The layout of splits of token ids."""
    return layout.make_layout({split: make_features(part) for split, part in rows.items()})


def make_values(row: Sequence[int]) -> Array:
    """Values that tell sequences and positions apart: whole numbers below 256, which every dtype holds exactly [T, H]."""
    content = hashlib.shake_128(bytes(row)).digest(len(row) * HIDDEN)
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, HIDDEN).astype(np.float32)


def make_entry(root: Path, dtype: str = "float16", rows: Mapping[str, Rows] = ROWS, **description: Any) -> Entry:
    """An entry of the made-up rows."""
    return Entry(root=root, description=description, layout=make_layout(rows), dtype=dtype, hidden=HIDDEN)


def make_chunk(entry: Entry, number: int) -> bytes:
    """The bytes of a chunk, from the tokens alone."""
    begin, end = entry.layout.chunks()[number]
    values = np.concatenate([make_values(ROWS[split][row]) for split, row in entry.layout.source[begin:end]])
    if entry.dtype == "bfloat16":  # numpy has none: the upper half of a float32
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(entry.dtype).tobytes()


def build(entry: Entry, num_processes: int = 1, computed: list[int] | None = None, pause: float = 0) -> list[int]:
    """Completes the entry as the processes of a run do. Returns the chunks that were computed."""
    computed = [] if computed is None else computed

    def compute(number: int) -> bytes:
        time.sleep(pause)
        computed.append(number)
        return make_chunk(entry, number)

    missing, _ = store.find_missing_chunks(entry)
    if entry.is_complete():
        return computed
    for process in reversed(range(num_processes)):
        store.fill_entry(entry, missing[process::num_processes], process, compute)
    store.finish_entry(entry)
    return computed


def assert_intact(entry: Entry) -> None:
    """The entry is complete, its bytes are right, and nothing else is left of it."""
    assert entry.is_complete()
    expected = b"".join(make_chunk(entry, number) for number in range(len(entry.spans())))
    assert (entry.folder / store.ACTIVATIONS).read_bytes() == expected
    assert not entry.partial.exists()
    assert {path.name for path in entry.folder.iterdir()} == {store.MANIFEST, store.ACTIVATIONS}
    assert listing.find_damage(get_only_entry(entry.root)) is None


def get_only_entry(root: Path) -> listing.EntryListing:
    """The only entry in a folder."""
    (entry,) = listing.list_entries(root)
    return entry


def flip(path: Path, position: int, bit: int = 1) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)


def raise_disk_full(*_: Any, **__: Any) -> None:
    """Fails as a write to a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def work() -> None:
    """The work of a second process: completes the entry under argv[1] under its lock, with argv[2] seconds a chunk."""
    layout.CHUNK_TOKENS = 16
    entry, computed = make_entry(Path(sys.argv[1])), PrintingList()
    with store.lock_entry(entry.root, entry.key, lambda line: print(line, flush=True)):
        print("began", flush=True)
        build(entry, computed=computed, pause=float(sys.argv[2]))


class PrintingList(list[int]):
    """A list that prints what is appended."""

    def append(self, item: int) -> None:
        print("computed", item, flush=True)
