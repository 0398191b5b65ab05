"""Entries of the activation cache with made states, for the tests of cache/."""

import hashlib
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.cache import store
from hf_finetune.cache.store import Entry, Layout, make_layout
from hf_finetune.data.features import Features

Array = np.ndarray[Any, Any]


Rows = Sequence[Sequence[int]]


HIDDEN = 3


DRAWN = random.Random(0)


ROWS: dict[str, list[list[int]]] = {
    split: [[DRAWN.randrange(4) for _ in range(DRAWN.randint(1, 9))] for _ in range(count)]
    for split, count in (("train", 50), ("validation", 20), ("test", 10))
}


def make_features(rows: Rows, types: Rows | None = None, label: int = 0) -> Features:
    """Features of these tokens, with token_type_ids where they are given."""
    given = {"input_ids": rows} | ({} if types is None else {"token_type_ids": types})
    inputs = {name: np.array([token for row in of for token in row], dtype=np.int32) for name, of in given.items()}
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Features(inputs=inputs, offsets=offsets, labels=np.full(len(rows), label), num_truncated=0)


def layout_of(rows: Mapping[str, Rows]) -> Layout:
    """The layout of splits of tokens."""
    return make_layout({split: make_features(of) for split, of in rows.items()})


def made_up(row: Sequence[int]) -> Array:
    """[T, H] states that tell rows and places apart: whole numbers below 256, which every kind holds exactly."""
    content = hashlib.shake_128(bytes(row)).digest(len(row) * HIDDEN)
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, HIDDEN).astype(np.float32)


def make_entry(root: Path, kind: str = "float16", rows: Mapping[str, Rows] = ROWS, **description: Any) -> Entry:
    """An entry of the made-up rows."""
    return Entry(root=root, description=description, layout=layout_of(rows), kind=kind, hidden=HIDDEN)


def content_of(entry: Entry, number: int) -> bytes:
    """The bytes of a chunk, from the tokens alone."""
    begin, end = entry.layout.chunks()[number]
    values = np.concatenate([made_up(ROWS[split][row]) for split, row in entry.layout.source[begin:end]])
    if entry.kind == "bfloat16":  # numpy has none: the upper half of a float32
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(entry.kind).tobytes()


def build(entry: Entry, num_processes: int = 1, computed: list[int] | None = None, pause: float = 0) -> list[int]:
    """Makes the entry whole as the processes of a run do; returns what was computed."""
    computed = [] if computed is None else computed

    def compute(number: int) -> bytes:
        time.sleep(pause)
        computed.append(number)
        return content_of(entry, number)

    missing, _ = store.find_missing_chunks(entry)
    if entry.is_complete():
        return computed
    for process in reversed(range(num_processes)):
        store.fill_entry(entry, missing[process::num_processes], process, compute)
    store.finish_entry(entry)
    return computed


def assert_good(entry: Entry) -> None:
    """The entry is whole, its bytes are the right ones, and nothing else is left of it."""
    assert entry.is_complete()
    expected = b"".join(content_of(entry, number) for number in range(len(entry.spans())))
    assert (entry.folder / store.STATES).read_bytes() == expected
    assert not entry.partial.exists()
    assert [path.name for path in sorted(entry.folder.iterdir())] == [store.MANIFEST, store.STATES]
    assert store.find_damage(found_in(entry.root)) is None


def found_in(root: Path) -> store.FoundEntry:
    """The one entry there is."""
    (found,) = store.list_entries(root)
    return found


def work() -> None:
    """What a second process does: the entry under argv[1] is made whole under its lock, argv[2] seconds a chunk."""
    store.CHUNK_TOKENS = 16
    entry, computed = make_entry(Path(sys.argv[1])), Spoken()
    with store.lock_entry(entry.root, entry.key, lambda line: print(line, flush=True)):
        print("began", flush=True)
        build(entry, computed=computed, pause=float(sys.argv[2]))


class Spoken(list[int]):
    """A list that says what is appended."""

    def append(self, item: int) -> None:
        print("computed", item, flush=True)
