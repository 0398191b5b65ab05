"""The store of hidden states: layouts, gathering, and entries that are whole or not used, whatever becomes of the disk."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.entries import (
    HIDDEN,
    ROWS,
    Rows,
    assert_good,
    build,
    content_of,
    found_in,
    layout_of,
    made_up,
    make_entry,
    make_features,
)

from hf_finetune.cache import store
from hf_finetune.cache.store import Entry, StoredActivations, make_layout
from hf_finetune.data.features import collate
from hf_finetune.system.errors import InputError

# A process of its own. The store needs no torch, which takes seconds
WORKER = (
    "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); from support import entries; entries.work()"
)
HOLDER = (
    "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); sys.stdin.read()"
)
some_rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=10), min_size=1, max_size=12)


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of few tokens, so that small entries have many."""
    monkeypatch.setattr(store, "CHUNK_TOKENS", 16)


def journaled(entry: Entry) -> set[int]:
    """The chunks that a partial entry notes."""
    lines = [line for path in entry.partial.glob("journal-*") for line in path.read_text().splitlines(keepends=True)]
    return {json.loads(line)[0] for line in lines if line.endswith("\n")}


# --- layouts --------------------------------------------------------------------------------------------------------


@given(train=some_rows, test=some_rows)
def test_a_layout_holds_every_feature_once(train: Rows, test: Rows) -> None:
    splits = {"train": train, "test": test}
    layout = layout_of(splits)
    kept = [splits[split][row] for split, row in layout.source]
    assert sorted(kept) == sorted(map(list, {tuple(row) for row in [*train, *test]}))
    assert np.diff(layout.offsets).tolist() == sorted(map(len, kept), reverse=True) == [len(row) for row in kept]
    flat = [token for row in kept for token in row]
    for split, rows in splits.items():
        for start, row in zip(layout.starts[split].tolist(), rows, strict=True):
            assert flat[start : start + len(row)] == row
            assert start in layout.offsets
    chunks = layout.chunks()
    assert [number for begin, end in chunks for number in range(begin, end)] == list(range(len(kept)))
    assert all((end - begin) * len(kept[begin]) <= store.CHUNK_TOKENS for begin, end in chunks)


def test_a_chunk_is_as_large_as_it_may_be_or_one_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_TOKENS", 4096)
    rows = [[1] * 5000, [1] * 4096, *([index] * 2048 for index in range(3)), *([index] for index in range(5000))]
    assert layout_of({"train": rows}).chunks() == [(0, 1), (1, 2), (2, 4), (4, 6), (6, 4102), (4102, 5005)]


@given(rows=some_rows, data=st.data())
def test_the_digest_is_of_the_inputs_alone(rows: Rows, data: st.DataObject) -> None:
    moved = data.draw(st.permutations([*rows, rows[0]]))
    cut = data.draw(st.integers(0, len(rows)))
    splits = {"validation": make_features(moved[:cut], label=1), "train": make_features(moved[cut:], label=2)}
    assert make_layout(splits).digest == layout_of({"train": rows}).digest


def test_the_digest_changes_with_every_input() -> None:
    rows, types = [[1, 2, 3], [4, 5]], [[0, 0, 1], [0, 1]]
    others = [
        make_features(rows),
        make_features(rows, types),
        make_features([[1, 2, 3], [4, 6]], types),
        make_features(rows, [[0, 0, 1], [0, 0]]),
        make_features([*rows, [4]], [*types, [0]]),
        make_features([[1, 2], [4, 5]], [[0, 0], [0, 1]]),
        make_features([[1, 2], [3, 4, 5]], [[0, 0], [1, 0, 1]]),
    ]
    assert len({make_layout({"train": features}).digest for features in others}) == len(others)


# --- gathering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [0, 100, 2**26])
@pytest.mark.parametrize("kind", store.ITEM_BYTES)
def test_batches_get_the_states_of_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, resident: int
) -> None:
    monkeypatch.setattr(store, "RESIDENT_BYTES", resident)
    entry = make_entry(tmp_path, kind)
    build(entry)
    for split, rows in ROWS.items():
        starts = entry.layout.starts[split]
        stored = StoredActivations(path=entry.folder / store.STATES, kind=kind, hidden=HIDDEN, starts=starts)
        features = dataclasses.replace(make_features(rows), activations=stored)
        for picked in (np.arange(len(rows)), np.array([len(rows) - 1, 0, 0]), np.array([3])):
            batch = collate(features, picked, pad_token_id=9)
            found, mask = batch.activations, batch.inputs["attention_mask"].bool()
            assert found is not None
            assert found.dtype == getattr(torch, kind)
            assert found.shape == (*mask.shape, HIDDEN)
            expected = np.concatenate([made_up(rows[row]) for row in picked])
            assert torch.equal(found[mask].float(), torch.from_numpy(expected))
            assert bool(torch.isfinite(found).all())
            assert stored.unreleased_bytes <= resident
            if sys.platform == "linux" and resident == 0:
                assert resident_kilobytes(stored.path) == 0


def resident_kilobytes(path: Path) -> int:
    """What this process holds of a mapped file in memory."""
    maps = Path("/proc/self/smaps").read_text().split(f"{path}\n")
    assert len(maps) > 1
    return sum(int(part.split("Rss:")[1].split()[0]) for part in maps[1:])


# --- the life of an entry -------------------------------------------------------------------------------------------


def test_an_entry_is_filled_once_and_its_use_is_noted(tmp_path: Path) -> None:
    entry = make_entry(tmp_path, blocks=4)
    everything = list(range(len(entry.spans())))
    assert len(everything) > 20
    assert store.find_missing_chunks(entry) == (everything, [])
    assert not entry.is_complete()
    assert found_in(tmp_path).is_partial
    assert found_in(tmp_path).size >= entry.num_bytes  # the room is taken
    assert build(entry) == everything
    assert_good(entry)
    manifest = found_in(tmp_path).manifest
    assert manifest["description"] == {"blocks": 4}
    assert manifest["num_tokens"] == sum(map(len, {tuple(row) for rows in ROWS.values() for row in rows}))
    for path in entry.folder.iterdir():
        os.utime(path, (1e9, 1e9))
    assert store.find_missing_chunks(entry) == ([], [])
    assert time.time() - found_in(tmp_path).used < 60


def test_the_key_is_of_all_that_the_states_depend_on(tmp_path: Path) -> None:
    fewer = {"train": ROWS["train"]}
    entries = [make_entry(tmp_path), make_entry(tmp_path, weights="a"), make_entry(tmp_path, weights="b")]
    entries += [make_entry(tmp_path, "bfloat16"), make_entry(tmp_path, "float32"), make_entry(tmp_path, rows=fewer)]
    assert len({entry.key for entry in entries}) == len(entries)
    assert make_entry(tmp_path / "elsewhere", a=1, b=2).key == make_entry(tmp_path, b=2, a=1).key


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_chunks(tmp_path: Path, num_processes: int) -> None:
    entry = make_entry(tmp_path)
    assert len(build(entry, num_processes)) == len(entry.spans())
    assert_good(entry)


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int, bit: int = 1) -> None:
    """Changes one bit."""
    raw = bytearray(path.read_bytes())
    raw[place] ^= bit
    path.write_bytes(raw)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: flip(path, -1 if path.name == store.STATES else path.read_bytes().index(b'digests"') + 12),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "removed": Path.unlink,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "no object": lambda path: path.write_bytes(b"[null]"),
}
NO_MANIFEST = (None, "has no manifest that can be read")
FOUND = {  # the chunks that are computed anew (None: all), and what `cache verify` says
    (store.STATES, "flipped"): ({-1}, "is damaged in 1 of "),
    (store.STATES, "cut"): ({-1}, "bytes of states instead of"),
    (store.STATES, "removed"): (None, "has 0 bytes of states instead of"),
    (store.STATES, "longer"): (set(), "bytes of states instead of"),
    (store.STATES, "empty"): (None, "has 0 bytes of states instead of"),
    (store.MANIFEST, "flipped"): ({0}, "is damaged in 1 of "),
    **{(store.MANIFEST, damage): NO_MANIFEST for damage in ("cut", "removed", "longer", "empty", "no object")},
}


@pytest.mark.parametrize(("name", "damage"), FOUND)
def test_damage_is_found_and_only_that_is_computed_anew(tmp_path: Path, name: str, damage: str) -> None:
    entry = make_entry(tmp_path)
    everything = build(entry)
    DAMAGE[damage](entry.folder / name)
    numbers, told = FOUND[name, damage]
    expected = everything if numbers is None else [everything[number] for number in numbers]
    assert told in str(store.find_damage(found_in(tmp_path)))
    missing, (note,) = store.find_missing_chunks(entry)
    assert missing == expected
    told = f"is damaged in {len(expected)} of {len(everything)} chunks" if expected else "has a file of the wrong size"
    assert f"{entry.folder} {told}" in note
    assert "is not finished" in str(store.find_damage(found_in(tmp_path)))
    assert build(entry) == expected
    assert_good(entry)


def test_the_manifest_of_another_entry_is_no_manifest(tmp_path: Path) -> None:
    entry, other = make_entry(tmp_path / "one"), make_entry(tmp_path / "two", "bfloat16")
    everything = build(entry)
    build(other)
    shutil.copy(other.folder / store.MANIFEST, entry.folder / store.MANIFEST)
    assert "is damaged in " in str(store.find_damage(found_in(entry.root)))
    assert build(entry) == everything
    assert_good(entry)


def test_verify_survives_every_flipped_bit_of_a_manifest(tmp_path: Path) -> None:
    entry = make_entry(tmp_path, rows={"test": ROWS["test"]})
    build(entry)
    path = entry.folder / store.MANIFEST
    good = path.read_bytes()
    for place in range(8 * good.index(b'"digests"')):
        flip(path, place // 8, 1 << place % 8)
        store.find_damage(found_in(tmp_path))
        path.write_bytes(good)


def test_what_verify_calls_damaged_is_mended(tmp_path: Path) -> None:
    entry = make_entry(tmp_path)
    build(entry)
    flip(entry.folder / store.MANIFEST, (entry.folder / store.MANIFEST).read_bytes().index(b'"size"') + 8)
    assert store.find_damage(found_in(tmp_path)) == "has no manifest that can be read"
    build(entry)
    assert_good(entry)


GARBAGE = b'\xff\0\n[]\n[9]\n{"a": 1}\n7\n[null, 1]'
PARTIAL_DAMAGE: dict[str, tuple[str, set[int], Callable[[Path], object]]] = {  # file, what is lost of 0 to 4, how
    "flipped": (store.STATES, {2}, lambda path: flip(path, 2 * 54)),  # the first chunks have 9 tokens each
    "cut states": (store.STATES, {1, 2, 3, 4}, lambda path: os.truncate(path, 2 * 54 - 1)),
    "no states": (store.STATES, {0, 1, 2, 3, 4}, Path.unlink),
    "cut line": ("journal-0", {4}, lambda path: os.truncate(path, path.stat().st_size - 3)),
    "no journal": ("journal-0", {0, 1, 2, 3, 4}, Path.unlink),
    "garbage": ("journal-1", set(), lambda path: path.write_bytes(GARBAGE)),
    "false line": ("journal-1", {3}, lambda path: path.write_text('[3, "00"]\n[-1, "00"]\n[999, "00"]\n')),
}


@pytest.mark.parametrize("damage", PARTIAL_DAMAGE)
def test_a_damaged_partial_entry_goes_on_from_what_is_good(tmp_path: Path, damage: str) -> None:
    entry = make_entry(tmp_path)
    everything, _ = store.find_missing_chunks(entry)
    store.fill_entry(entry, range(5), 0, lambda number: content_of(entry, number))
    name, lost, harm = PARTIAL_DAMAGE[damage]
    harm(entry.partial / name)
    assert build(entry) == sorted({*everything[5:], *lost})
    assert_good(entry)


# --- interruption ---------------------------------------------------------------------------------------------------


def start(root: Path, pause: float) -> "subprocess.Popen[str]":
    """A second process; it says when it has the lock, and what it computes."""
    command = [sys.executable, "-c", WORKER, str(root), str(pause)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)


def test_a_killed_capture_goes_on_where_it_was(tmp_path: Path) -> None:
    entry = make_entry(tmp_path)
    num_computed = 0
    for moment in (0.0, 0.15, 0.3, 0.2):
        before = journaled(entry)
        with start(tmp_path, 0.04) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "began\n"
            time.sleep(moment)
            worker.kill()
            computed = {int(line.split()[1]) for line in worker.stdout if line.endswith("\n")}
        assert worker.returncode != 0
        assert not entry.is_complete()
        assert not computed & before
        num_computed += len(computed)
    assert (before := journaled(entry))
    assert not {*(last := build(entry))} & before
    assert len(entry.spans()) <= num_computed + len(last) <= len(entry.spans()) + 4  # one was under way at each kill
    assert_good(entry)


def test_two_processes_that_want_an_entry_build_it_once(tmp_path: Path) -> None:
    entry = make_entry(tmp_path)
    with start(tmp_path, 0.06) as one, start(tmp_path, 0.06) as two:
        told = [worker.communicate(timeout=60)[0].splitlines() for worker in (one, two)]
    assert sorted(told, key=len) == [
        [f"waiting for another run that fills {entry.folder}", "began"],
        ["began", *(f"computed {number}" for number in range(len(entry.spans())))],
    ]
    assert_good(entry)


def end_at(context: pytest.MonkeyPatch, step: int) -> list[str]:
    """From here on the process ends before its `step`-th change of the disk. The list holds the changes it made."""
    made: list[str] = []

    def guard(change: Any) -> Any:
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            if len(made) == step:
                raise KilledError
            made.append(change.__name__)
            return change(*arguments, **keywords)

        return guarded

    for name in ("rename", "unlink", "write_text", "mkdir", "open"):
        context.setattr(Path, name, guard(getattr(Path, name)))
    for name in ("replace", "posix_fallocate", "fsync"):
        context.setattr(os, name, guard(getattr(os, name)))
    return made


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_a_capture_may_end_at_any_step(tmp_path: Path, damaged: bool, twice: bool) -> None:
    """Whole and right after the next run; and with `twice`, no chunk is computed again but the one under way."""
    again: dict[int, int] = {}
    for step in range(1000):
        entry = make_entry(tmp_path / str(step), rows={"test": ROWS["test"]})
        before: list[int] = []
        if damaged:
            before = build(entry)[:-1]
            DAMAGE["flipped"](entry.folder / store.STATES)
        with pytest.MonkeyPatch.context() as context, contextlib.suppress(KilledError):
            made = end_at(context, step)
            build(entry, computed=before)
        again[step] = len(before + build(entry)) - len(entry.spans())
        assert_good(entry)
        if len(made) < step:
            break
    assert 8 < step < 100
    assert not twice or max(again.values()) <= 1, again


@pytest.mark.parametrize("case", ["killed before finish", "longer"])
def test_a_run_gets_a_whole_entry_where_no_chunk_is_missing(tmp_path: Path, case: str) -> None:
    from hf_finetune.cache import capture

    entry = make_entry(tmp_path)
    if case == "longer":
        build(entry)
        DAMAGE["longer"](entry.folder / store.STATES)
    else:
        store.fill_entry(entry, store.find_missing_chunks(entry)[0], 0, lambda number: content_of(entry, number))
    runtime = SimpleNamespace(on_main=lambda do: do(), say=print)
    capture.complete_entry(SimpleNamespace(runtime=runtime), None, entry)  # type: ignore[arg-type]
    assert_good(entry)


# --- disks ----------------------------------------------------------------------------------------------------------


def fail(*_: Any, **__: Any) -> None:
    """What a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def build_on_full_disk(entry: Entry, context: pytest.MonkeyPatch, place: str) -> None:
    """Builds the entry; the disk is full when `place` is reached."""
    if place in ("posix_fallocate", "write_journal"):
        context.setattr(os if place == "posix_fallocate" else store, place, fail)
    missing, _ = store.find_missing_chunks(entry)
    if place in ("states.bin", "journal-1"):
        (entry.partial / place).unlink(missing_ok=True)
        (entry.partial / place).symlink_to("/dev/full")
    store.fill_entry(entry, missing, 1, lambda number: content_of(entry, number))
    if place == "manifest":
        context.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    if place == "rename":
        context.setattr(store, "rename", fail)
    store.finish_entry(entry)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's disk that is always full")
@pytest.mark.parametrize("place", ["posix_fallocate", "write_journal", "states.bin", "journal-1", "manifest", "rename"])
def test_a_full_disk_is_an_error_and_no_entry(tmp_path: Path, place: str) -> None:
    entry = make_entry(tmp_path)
    with pytest.MonkeyPatch.context() as context, pytest.raises(InputError, match=f"^{tmp_path}.*the disk is full"):
        build_on_full_disk(entry, context, place)
    assert not entry.is_complete()
    if place == "posix_fallocate":
        assert not entry.partial.exists(), "it would look as if its room were taken"
    for path in entry.partial.glob("*"):
        path.unlink() if path.is_symlink() else None  # the full disk: it is read without end
    build(entry)
    assert_good(entry)


def test_what_does_not_read_back_is_no_entry(tmp_path: Path) -> None:
    entry = make_entry(tmp_path)
    store.fill_entry(entry, store.find_missing_chunks(entry)[0], 0, lambda number: content_of(entry, number))
    flip(entry.partial / store.STATES, 0)
    with pytest.raises(InputError, match=f"{entry.partial}: 1 chunks do not read back"):
        store.finish_entry(entry)
    assert build(entry) == [0]
    assert_good(entry)


@pytest.mark.parametrize("place", ["file", "file/under", "readonly/under", "/proc/under"])
def test_a_root_that_cannot_be_is_an_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "readonly").mkdir(mode=0o500)
    if place.startswith("readonly") and os.access(tmp_path / "readonly", os.W_OK):
        pytest.skip("this user may write anywhere")
    root = tmp_path / place
    with pytest.raises(InputError, match=rf"prefix\.dir \({root}\): cannot be made"), store.lock_entry(root, "key"):
        pass


# --- hf-finetune cache ----------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> list[Entry]:
    """Entries last used 3000, 2000 and 1000 seconds ago; the middle one is partial."""
    entries = [make_entry(tmp_path, number=number) for number in range(3)]
    for age, entry in zip((3000, 2000, 1000), entries, strict=True):
        store.find_missing_chunks(entry) if age == 2000 else build(entry)
        for path in (entry.partial if age == 2000 else entry.folder).iterdir():
            os.utime(path, (time.time() - age,) * 2)
    return entries


def left(root: Path) -> list[Any]:
    """The numbers of the entries there are, None for partial ones, the least recently used first."""
    return [found.manifest.get("description", {}).get("number") for found in store.list_entries(root)]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((None, None), [0, None, 2]),
        ((10**9, 5000), [0, None, 2]),
        ((None, 1500), [2]),
        ((None, 2500), [None, 2]),
        ((-1, None), [None, 2]),  # a byte less than there is
        ((0, None), []),
    ],
)
def test_prune_removes_the_least_recently_used(
    three: list[Entry], limits: tuple[Any, Any], expected: list[Any]
) -> None:
    root = three[0].root
    found = store.list_entries(root)
    assert [each.is_partial for each in found] == [False, True, False]
    assert [each.folder for each in found] == [three[0].folder, three[1].partial, three[2].folder]
    total = sum(each.size for each in found)
    assert store.prune_entries(root, max_bytes=total, older_than_seconds=None) == []
    room = total - 1 if limits[0] == -1 else limits[0]
    removed = store.prune_entries(root, max_bytes=room, older_than_seconds=limits[1])
    assert [each.folder for each in removed] == [each.folder for each in found][: 3 - len(expected)]
    assert left(root) == expected


def test_prune_leaves_alone_what_another_process_fills(three: list[Entry]) -> None:
    root = three[0].root
    command = [sys.executable, "-c", HOLDER, str(root / f"{three[1].key}.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert len(store.prune_entries(root, max_bytes=0, older_than_seconds=0)) == 2
        assert left(root) == [None]
        holder.communicate()
    assert len(store.prune_entries(root, max_bytes=0, older_than_seconds=None)) == 1


def test_an_interrupted_removal_leaves_no_entry_and_is_done_later(
    three: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = three[0].root
    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(OSError, match="No space"):
        store.prune_entries(root, max_bytes=0, older_than_seconds=None)
    monkeypatch.undo()
    assert left(root) == [None, 2]
    assert len(list(root.glob(".removing-*"))) == 1
    assert store.prune_entries(root, max_bytes=None, older_than_seconds=None) == []
    assert not list(root.glob(".removing-*"))


@pytest.mark.skipif(os.name == "nt", reason="what is open cannot be removed there")
def test_what_a_run_reads_stays_readable(three: list[Entry]) -> None:
    entry = three[2]
    starts = entry.layout.starts["train"]
    stored = StoredActivations(path=entry.folder / store.STATES, kind="float16", hidden=HIDDEN, starts=starts)
    store.prune_entries(entry.root, max_bytes=0, older_than_seconds=None)
    assert not entry.folder.exists()
    batch = collate(dataclasses.replace(make_features(ROWS["train"]), activations=stored), np.array([7]), 0)
    assert batch.activations is not None
    assert batch.activations[0].tolist() == made_up(ROWS["train"][7]).tolist()


def test_prune_removes_nothing_but_entries(three: list[Entry]) -> None:
    (three[0].root / "photos" / "holiday").mkdir(parents=True)
    store.prune_entries(three[0].root, max_bytes=0, older_than_seconds=0)
    assert (three[0].root / "photos" / "holiday").exists()


def test_prune_passes_over_what_was_finished_meanwhile(three: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = store.list_entries(three[0].root)
    build(three[1])
    monkeypatch.setattr(store, "found_entries", lambda _: listed)
    store.prune_entries(three[0].root, max_bytes=0, older_than_seconds=None)
