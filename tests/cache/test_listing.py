"""The entries of the activation cache: listed, verified and pruned."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.entries import (
    HIDDEN,
    ROWS,
    assert_intact,
    build,
    flip,
    get_only_entry,
    make_entry,
    make_features,
    make_values,
    raise_disk_full,
)

from hf_finetune.cache import listing, store
from hf_finetune.cache.reader import StoredActivations
from hf_finetune.cache.store import Entry
from hf_finetune.data.features import collate

pytestmark = pytest.mark.usefixtures("small_chunks")

# The command of a process that holds a lock until its standard input is closed
HOLDER = (
    "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); sys.stdin.read()"
)


# --- verify ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flipped_bit_in_a_manifest_is_never_taken_for_an_intact_entry(tmp_path: Path) -> None:
    """`cache verify` does not fail at any of them, and reports those that concern the bytes of the activations."""
    entry = make_entry(tmp_path, rows={"test": ROWS["test"]})
    build(entry)
    path = entry.folder / store.MANIFEST
    content = path.read_bytes()
    good = store.find_good_chunks(entry.folder / store.ACTIVATIONS, entry.spans(), store.read_digests(entry.folder))
    assert store.is_intact(entry, good)
    reports = []
    for position in range(8 * content.index(b'"digests"')):
        flip(path, position // 8, 1 << position % 8)
        assert not store.is_intact(entry, good), position
        reports.append(listing.find_damage(get_only_entry(tmp_path)))
        path.write_bytes(content)
    assert reports.count("has no readable manifest") > len(reports) / 2
    assert listing.find_damage(get_only_entry(tmp_path)) is None


def test_an_entry_that_verify_reports_is_repaired_by_the_next_run(tmp_path: Path) -> None:
    entry = make_entry(tmp_path)
    build(entry)
    flip(entry.folder / store.MANIFEST, (entry.folder / store.MANIFEST).read_bytes().index(b'"size"') + 8)
    assert listing.find_damage(get_only_entry(tmp_path)) == "has no readable manifest"
    build(entry)
    assert_intact(entry)


# --- prune ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> list[Entry]:
    """Entries last used 3000, 2000 and 1000 seconds ago; the middle one is partial."""
    entries = [make_entry(tmp_path, number=number) for number in range(3)]
    for age, entry in zip((3000, 2000, 1000), entries, strict=True):
        store.find_missing_chunks(entry) if age == 2000 else build(entry)
        for path in (entry.partial if age == 2000 else entry.folder).iterdir():
            os.utime(path, (time.time() - age,) * 2)
    return entries


def list_numbers(root: Path) -> list[Any]:
    """The numbers of the entries, None for partial ones, the least recently used first."""
    return [entry.manifest.get("description", {}).get("number") for entry in listing.list_entries(root)]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((None, None), [0, None, 2]),
        ((10**9, 5000), [0, None, 2]),
        ((None, 1500), [2]),
        ((None, 2500), [None, 2]),
        ((-1, None), [None, 2]),  # one byte less than the entries have
        ((0, None), []),
    ],
)
def test_prune_removes_the_least_recently_used(
    three: list[Entry], limits: tuple[Any, Any], expected: list[Any]
) -> None:
    root = three[0].root
    entries = listing.list_entries(root)
    assert [entry.is_partial for entry in entries] == [False, True, False]
    assert [entry.folder for entry in entries] == [three[0].folder, three[1].partial, three[2].folder]
    total = sum(entry.size for entry in entries)
    assert listing.prune_entries(root, max_bytes=total, older_than_seconds=None) == []
    room = total - 1 if limits[0] == -1 else limits[0]
    removed = listing.prune_entries(root, max_bytes=room, older_than_seconds=limits[1])
    assert [entry.folder for entry in removed] == [entry.folder for entry in entries][: 3 - len(expected)]
    assert list_numbers(root) == expected


def test_prune_skips_an_entry_that_another_process_is_writing(three: list[Entry]) -> None:
    root = three[0].root
    command = [sys.executable, "-c", HOLDER, str(root / f"{three[1].key}.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert len(listing.prune_entries(root, max_bytes=0, older_than_seconds=0)) == 2
        assert list_numbers(root) == [None]
        holder.communicate()
    assert len(listing.prune_entries(root, max_bytes=0, older_than_seconds=None)) == 1


def test_an_interrupted_removal_leaves_no_entry_and_is_finished_later(
    three: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = three[0].root
    monkeypatch.setattr(shutil, "rmtree", raise_disk_full)
    with pytest.raises(OSError, match="No space"):
        listing.prune_entries(root, max_bytes=0, older_than_seconds=None)
    monkeypatch.undo()
    assert list_numbers(root) == [None, 2]
    assert len(list(root.glob(".removing-*"))) == 1
    assert listing.prune_entries(root, max_bytes=None, older_than_seconds=None) == []
    assert not list(root.glob(".removing-*"))


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be removed")
def test_a_run_can_still_read_a_removed_entry(three: list[Entry]) -> None:
    entry = three[2]
    starts = entry.layout.starts["train"]
    stored = StoredActivations(path=entry.folder / store.ACTIVATIONS, dtype="float16", hidden=HIDDEN, starts=starts)
    listing.prune_entries(entry.root, max_bytes=0, older_than_seconds=None)
    assert not entry.folder.exists()
    batch = collate(dataclasses.replace(make_features(ROWS["train"]), activations=stored), np.array([7]), 0)
    assert batch.activations is not None
    assert batch.activations[0].tolist() == make_values(ROWS["train"][7]).tolist()


def test_prune_removes_nothing_but_entries(three: list[Entry]) -> None:
    (three[0].root / "photos" / "holiday").mkdir(parents=True)
    listing.prune_entries(three[0].root, max_bytes=0, older_than_seconds=0)
    assert (three[0].root / "photos" / "holiday").exists()


def test_prune_skips_an_entry_that_was_completed_in_the_meantime(
    three: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = three[0].root
    entries = listing.list_entries(root)
    build(three[1])
    with monkeypatch.context() as patch:
        patch.setattr(listing, "list_entries", lambda _: entries)
        removed = listing.prune_entries(root, max_bytes=0, older_than_seconds=None)
    assert [entry.folder for entry in removed] == [three[0].folder, three[2].folder]
    assert list_numbers(root) == [1]
    assert_intact(three[1])
