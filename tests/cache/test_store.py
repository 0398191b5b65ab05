"""The entries of the activation cache: complete and right, or not used, whatever happens to the process and the disk."""

import contextlib
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

import pytest
from support.entries import ROWS, assert_intact, build, flip, get_only_entry, make_chunk, make_entry, raise_disk_full

from hf_finetune.cache import capture, listing, store
from hf_finetune.cache.store import Entry
from hf_finetune.config.sections import CacheConfig
from hf_finetune.system.errors import InputError

pytestmark = pytest.mark.usefixtures("small_chunks")

# The command of a second process. The store needs no torch, whose import takes seconds
WORKER = (
    "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); from support import entries; entries.work()"
)


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it."""


def read_journaled_chunks(entry: Entry) -> set[int]:
    """The chunks in the journals of a partial entry."""
    lines = [line for path in entry.partial.glob("journal-*") for line in path.read_text().splitlines(keepends=True)]
    return {json.loads(line)[0] for line in lines if line.endswith("\n")}


# --- an entry from start to end -------------------------------------------------------------------------------------


def test_an_entry_is_written_once_and_its_use_is_recorded(tmp_path: Path) -> None:
    entry = make_entry(tmp_path, blocks=4)
    everything = list(range(len(entry.spans())))
    assert len(everything) > 20
    assert store.find_missing_chunks(entry) == (everything, [])
    assert not entry.is_complete()
    assert get_only_entry(tmp_path).is_partial
    assert get_only_entry(tmp_path).size >= entry.num_bytes  # its disk space is reserved
    assert build(entry) == everything
    assert_intact(entry)
    manifest = get_only_entry(tmp_path).manifest
    assert manifest["description"] == {"blocks": 4}
    assert manifest["num_tokens"] == sum(map(len, {tuple(row) for rows in ROWS.values() for row in rows}))
    for path in entry.folder.iterdir():
        os.utime(path, (1e9, 1e9))
    assert store.find_missing_chunks(entry) == ([], [])
    assert time.time() - get_only_entry(tmp_path).used < 60


def test_the_key_depends_on_everything_that_the_activations_depend_on(tmp_path: Path) -> None:
    fewer = {"train": ROWS["train"]}
    entries = [make_entry(tmp_path), make_entry(tmp_path, weights="a"), make_entry(tmp_path, weights="b")]
    entries += [make_entry(tmp_path, "bfloat16"), make_entry(tmp_path, "float32"), make_entry(tmp_path, rows=fewer)]
    assert len({entry.key for entry in entries}) == len(entries)
    assert make_entry(tmp_path / "elsewhere", a=1, b=2).key == make_entry(tmp_path, b=2, a=1).key


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_chunks(tmp_path: Path, num_processes: int) -> None:
    entry = make_entry(tmp_path)
    assert len(build(entry, num_processes)) == len(entry.spans())
    assert_intact(entry)


# --- damage ---------------------------------------------------------------------------------------------------------


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: flip(
        path, -1 if path.name == store.ACTIVATIONS else path.read_bytes().index(b'digests"') + 12
    ),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "removed": Path.unlink,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "no object": lambda path: path.write_bytes(b"[null]"),
}
NO_MANIFEST = (None, "has no readable manifest")
DAMAGE_REPORTS = {  # the chunks that are computed again (None: all), and what `cache verify` says
    (store.ACTIVATIONS, "flipped"): ({-1}, "is damaged in 1 of "),
    (store.ACTIVATIONS, "cut"): ({-1}, "bytes of activations instead of"),
    (store.ACTIVATIONS, "removed"): (None, "has 0 bytes of activations instead of"),
    (store.ACTIVATIONS, "longer"): (set(), "bytes of activations instead of"),
    (store.ACTIVATIONS, "empty"): (None, "has 0 bytes of activations instead of"),
    (store.MANIFEST, "flipped"): ({0}, "is damaged in 1 of "),
    **{(store.MANIFEST, damage): NO_MANIFEST for damage in ("cut", "removed", "longer", "empty", "no object")},
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE_REPORTS)
def test_damage_is_found_and_only_damaged_chunks_are_computed_again(tmp_path: Path, name: str, damage: str) -> None:
    entry = make_entry(tmp_path)
    everything = build(entry)
    DAMAGE[damage](entry.folder / name)
    numbers, expected_note = DAMAGE_REPORTS[name, damage]
    expected = everything if numbers is None else [everything[number] for number in numbers]
    assert expected_note in str(listing.find_damage(get_only_entry(tmp_path)))
    missing, (note,) = store.find_missing_chunks(entry)
    assert missing == expected
    expected_note = (
        f"is damaged in {len(expected)} of {len(everything)} chunks" if expected else "has a file of the wrong size"
    )
    assert f"{entry.folder} {expected_note}" in note
    assert "is not finished" in str(listing.find_damage(get_only_entry(tmp_path)))
    assert build(entry) == expected
    assert_intact(entry)


def test_the_manifest_of_another_entry_is_damage(tmp_path: Path) -> None:
    entry, other = make_entry(tmp_path / "one"), make_entry(tmp_path / "two", "bfloat16")
    everything = build(entry)
    build(other)
    shutil.copy(other.folder / store.MANIFEST, entry.folder / store.MANIFEST)
    assert "is damaged in " in str(listing.find_damage(get_only_entry(entry.root)))
    assert build(entry) == everything
    assert_intact(entry)


GARBAGE = b'\xff\0\n[]\n[9]\n{"a": 1}\n7\n[null, 1]'
PARTIAL_DAMAGE: dict[str, tuple[str, set[int], Callable[[Path], object]]] = {  # file, what is lost of 0 to 4, how
    "flipped": (store.ACTIVATIONS, {2}, lambda path: flip(path, 2 * 54)),  # the first chunks have 9 tokens each
    "cut file": (store.ACTIVATIONS, {1, 2, 3, 4}, lambda path: os.truncate(path, 2 * 54 - 1)),
    "no file": (store.ACTIVATIONS, {0, 1, 2, 3, 4}, Path.unlink),
    "cut line": ("journal-0", {4}, lambda path: os.truncate(path, path.stat().st_size - 3)),
    "no journal": ("journal-0", {0, 1, 2, 3, 4}, Path.unlink),
    "garbage": ("journal-1", set(), lambda path: path.write_bytes(GARBAGE)),
    "false line": ("journal-1", {3}, lambda path: path.write_text('[3, "00"]\n[-1, "00"]\n[999, "00"]\n')),
}


@pytest.mark.parametrize("damage", PARTIAL_DAMAGE)
def test_a_damaged_partial_entry_keeps_its_good_chunks(tmp_path: Path, damage: str) -> None:
    entry = make_entry(tmp_path)
    everything, _ = store.find_missing_chunks(entry)
    store.fill_entry(entry, range(5), 0, lambda number: make_chunk(entry, number))
    name, lost, harm = PARTIAL_DAMAGE[damage]
    harm(entry.partial / name)
    assert build(entry) == sorted({*everything[5:], *lost})
    assert_intact(entry)


# --- interruption ---------------------------------------------------------------------------------------------------


def start(root: Path, pause: float) -> "subprocess.Popen[str]":
    """A second process; it says when it has the lock, and what it computes."""
    command = [sys.executable, "-c", WORKER, str(root), str(pause)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)


@pytest.mark.processes
def test_a_killed_capture_resumes_where_it_stopped(tmp_path: Path) -> None:
    entry = make_entry(tmp_path)
    num_computed = 0
    for moment in (0.0, 0.15, 0.3, 0.2):
        before = read_journaled_chunks(entry)
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
    assert (before := read_journaled_chunks(entry))
    assert not {*(last := build(entry))} & before
    assert len(entry.spans()) <= num_computed + len(last) <= len(entry.spans()) + 4  # one was under way at each kill
    assert_intact(entry)


def test_two_processes_that_need_an_entry_build_it_once(tmp_path: Path) -> None:
    entry = make_entry(tmp_path)
    with start(tmp_path, 0.06) as one, start(tmp_path, 0.06) as two:
        expected_note = [worker.communicate(timeout=60)[0].splitlines() for worker in (one, two)]
    assert sorted(expected_note, key=len) == [
        [f"waiting for another run that is writing {entry.folder}", "began"],
        ["began", *(f"computed {number}" for number in range(len(entry.spans())))],
    ]
    assert_intact(entry)


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
    """The entry is intact after the next run. With `twice`, only the chunk in progress is computed again."""
    again: dict[int, int] = {}
    for step in range(1000):
        entry = make_entry(tmp_path / str(step), rows={"test": ROWS["test"]})
        before: list[int] = []
        if damaged:
            before = build(entry)[:-1]
            DAMAGE["flipped"](entry.folder / store.ACTIVATIONS)
        with pytest.MonkeyPatch.context() as context, contextlib.suppress(KilledError):
            made = end_at(context, step)
            build(entry, computed=before)
        again[step] = len(before + build(entry)) - len(entry.spans())
        assert_intact(entry)
        if len(made) < step:
            break
    assert 8 < step < 100
    assert not twice or max(again.values()) <= 1, again


@pytest.mark.parametrize("case", ["killed before the manifest", "longer"])
def test_a_run_completes_an_entry_without_missing_chunks(tmp_path: Path, case: str) -> None:
    entry = make_entry(tmp_path)
    if case == "longer":
        build(entry)
        DAMAGE["longer"](entry.folder / store.ACTIVATIONS)
    else:
        store.fill_entry(entry, store.find_missing_chunks(entry)[0], 0, lambda number: make_chunk(entry, number))
    runtime = SimpleNamespace(on_main=lambda do: do(), say=print)
    run = SimpleNamespace(runtime=runtime, config=SimpleNamespace(cache=CacheConfig()))
    capture.complete_entry(run, None, entry)  # type: ignore[arg-type]
    assert_intact(entry)


# --- disks ----------------------------------------------------------------------------------------------------------


def build_on_full_disk(entry: Entry, context: pytest.MonkeyPatch, place: str) -> None:
    """Builds the entry; the disk is full when `place` is reached."""
    if place in ("posix_fallocate", "write_journal"):
        context.setattr(os if place == "posix_fallocate" else store, place, raise_disk_full)
    missing, _ = store.find_missing_chunks(entry)
    if place == store.ACTIVATIONS:
        context.setattr(store, "open_regular", lambda *_: open("/dev/full", "r+b"))  # noqa: SIM115
    if place == "journal-1":
        (entry.partial / place).symlink_to("/dev/full")
    store.fill_entry(entry, missing, 1, lambda number: make_chunk(entry, number))
    if place == "manifest":
        context.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    if place == "rename":
        context.setattr(store, "rename", raise_disk_full)
    store.finish_entry(entry)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's disk that is always full")
@pytest.mark.parametrize(
    "place", ["posix_fallocate", "write_journal", store.ACTIVATIONS, "journal-1", "manifest", "rename"]
)
def test_a_full_disk_is_an_error_and_leaves_no_complete_entry(tmp_path: Path, place: str) -> None:
    entry = make_entry(tmp_path)
    with pytest.MonkeyPatch.context() as context, pytest.raises(InputError, match=f"^{tmp_path}.*the disk is full"):
        build_on_full_disk(entry, context, place)
    assert not entry.is_complete()
    if place == "posix_fallocate":
        assert not entry.partial.exists(), "it would look as if its disk space were reserved"
    for path in entry.partial.glob("*"):
        path.unlink() if path.is_symlink() else None  # /dev/full can be read without end
    build(entry)
    assert_intact(entry)


def test_an_entry_that_does_not_read_back_is_not_completed(tmp_path: Path) -> None:
    entry = make_entry(tmp_path)
    store.fill_entry(entry, store.find_missing_chunks(entry)[0], 0, lambda number: make_chunk(entry, number))
    flip(entry.partial / store.ACTIVATIONS, 0)
    with pytest.raises(InputError, match=f"{entry.partial}: 1 chunks do not read back"):
        store.finish_entry(entry)
    assert build(entry) == [0]
    assert_intact(entry)


@pytest.mark.parametrize("place", ["file", "file/under", "readonly/under", "/proc/under"])
def test_a_cache_folder_that_cannot_be_created_is_an_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "readonly").mkdir(mode=0o500)
    if place.startswith("readonly") and os.access(tmp_path / "readonly", os.W_OK):
        pytest.skip("this user may write anywhere")
    root = tmp_path / place
    with pytest.raises(InputError, match=rf"cache\.dir \({root}\): cannot be created"), store.lock_entry(root, "key"):
        pass
