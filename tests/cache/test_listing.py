"""The entries of all caches: listed, verified and pruned."""

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.encoded import TEXTS, make_tokenizer
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
from support.locked import held_lock

from hf_finetune import cli
from hf_finetune.cache import listing, store
from hf_finetune.cache.reader import StoredActivations
from hf_finetune.cache.store import Entry
from hf_finetune.data import encoding, table_store
from hf_finetune.data.features import Padding, attach_activations, collate
from hf_finetune.data.table import TableBuilder
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import TextEncoding

pytestmark = pytest.mark.usefixtures("small_chunks")


# --- verify ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flipped_bit_in_a_manifest_is_never_taken_for_an_intact_entry(tmp_path: Path) -> None:
    """`cache verify` does not fail at any of them, and reports those that concern the bytes of the activations."""
    entry = make_entry(tmp_path / "activations", rows={"test": ROWS["test"]})
    build(entry)
    path = entry.folder / store.MANIFEST
    content = path.read_bytes()
    good = store.find_good_chunks(entry.folder / store.ACTIVATIONS, entry.spans(), store.read_digests(entry.folder))
    assert store.is_intact(entry, good)
    reports = []
    for position in range(8 * content.index(b'"digests"')):
        flip(path, position // 8, 1 << position % 8)
        assert not store.is_intact(entry, good), position
        reports.append(listing.find_damage(get_only_entry(tmp_path / "activations")))
        path.write_bytes(content)
    assert reports.count("has no readable manifest") > len(reports) / 2
    assert listing.find_damage(get_only_entry(tmp_path / "activations")) is None


def test_an_entry_that_verify_reports_is_repaired_by_the_next_run(tmp_path: Path) -> None:
    entry = make_entry(tmp_path / "activations")
    build(entry)
    flip(entry.folder / store.MANIFEST, (entry.folder / store.MANIFEST).read_bytes().index(b'"size"') + 8)
    assert listing.find_damage(get_only_entry(tmp_path / "activations")) == "has no readable manifest"
    build(entry)
    assert_intact(entry)


# --- prune ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> list[Entry]:
    """Entries last used 3000, 2000 and 1000 seconds ago; the middle one is partial."""
    entries = [make_entry(tmp_path / "activations", number=number) for number in range(3)]
    for age, entry in zip((3000, 2000, 1000), entries, strict=True):
        store.find_missing_chunks(entry) if age == 2000 else build(entry)
        for path in (entry.partial if age == 2000 else entry.folder).iterdir():
            os.utime(path, (time.time() - age,) * 2)
    return entries


def list_numbers(root: Path) -> list[Any]:
    """The numbers of the entries, None for partial ones, the least recently used first."""
    return [entry.manifest.get("description", {}).get("number") for entry in listing.list_all_entries(root)]


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
    root = three[0].root.parent
    entries = listing.list_all_entries(root)
    assert [entry.is_partial for entry in entries] == [False, True, False]
    assert [entry.folder for entry in entries] == [three[0].folder, three[1].partial, three[2].folder]
    total = sum(entry.size for entry in entries)
    assert listing.prune_entries(root, max_bytes=total, older_than_seconds=None) == []
    room = total - 1 if limits[0] == -1 else limits[0]
    removed = listing.prune_entries(root, max_bytes=room, older_than_seconds=limits[1])
    assert [entry.folder for entry in removed] == [entry.folder for entry in entries][: 3 - len(expected)]
    assert list_numbers(root) == expected


def test_prune_skips_an_entry_that_another_process_is_writing(three: list[Entry]) -> None:
    root = three[0].root.parent
    with held_lock(three[1].folder.with_name(f"{three[1].key}.lock"), "here") as holder:
        assert len(listing.prune_entries(root, max_bytes=0, older_than_seconds=0)) == 2
        assert list_numbers(root) == [None]
        holder.end()
    assert len(listing.prune_entries(root, max_bytes=0, older_than_seconds=None)) == 1


def test_an_interrupted_removal_leaves_no_entry_and_is_finished_later(
    three: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = three[0].root.parent
    monkeypatch.setattr(shutil, "rmtree", raise_disk_full)
    with pytest.raises(InputError, match="No space"):
        listing.prune_entries(root, max_bytes=0, older_than_seconds=None)
    monkeypatch.undo()
    assert list_numbers(root) == [None, 2]
    assert len(list(root.glob("activations/.removing-*"))) == 1
    assert listing.prune_entries(root, max_bytes=None, older_than_seconds=None) == []
    assert not list(root.glob("activations/.removing-*"))


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be removed")
def test_a_run_can_still_read_a_removed_entry(three: list[Entry]) -> None:
    entry = three[2]
    starts = entry.layout.starts["train"]
    stored = StoredActivations(path=entry.folder / store.ACTIVATIONS, dtype="float16", hidden=HIDDEN, starts=starts)
    listing.prune_entries(entry.root.parent, max_bytes=0, older_than_seconds=None)
    assert not entry.folder.exists()
    features = dataclasses.replace(make_features(ROWS["train"]), activations=stored)
    batch = attach_activations(collate(features, np.array([7]), Padding(0)), features)
    assert batch.activations is not None
    assert batch.activations[0].tolist() == make_values(ROWS["train"][7]).tolist()


def test_prune_removes_nothing_but_entries(three: list[Entry]) -> None:
    (three[0].root / "photos" / "holiday").mkdir(parents=True)
    listing.prune_entries(three[0].root.parent, max_bytes=0, older_than_seconds=0)
    assert (three[0].root / "photos" / "holiday").exists()


def test_prune_skips_an_entry_that_was_completed_in_the_meantime(
    three: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = three[0].root.parent
    entries = listing.list_all_entries(root)
    build(three[1])
    with monkeypatch.context() as patch:
        patch.setattr(listing, "list_all_entries", lambda _: entries)
        removed = listing.prune_entries(root, max_bytes=0, older_than_seconds=None)
    assert [entry.folder for entry in removed] == [three[0].folder, three[2].folder]
    assert list_numbers(root) == [1]
    assert_intact(three[1])


# --- encoded text and tables ----------------------------------------------------------------------------------------


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one entry of each kind."""
    build(make_entry(tmp_path / "activations"))
    monkeypatch.setattr(encoding, "ROWS_IN_PART", 10)
    rows = "".join(f'{{"text": "{text}", "label": "a"}}\n' for text in TEXTS[0])
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    names = ("text", "label")

    def fill_table(builder: TableBuilder) -> dict[str, Any]:
        for line, text in enumerate(TEXTS[0], 1):
            builder.add([text, "a"], "rows.jsonl", line)
        return {}

    table = table_store.open_or_build(tmp_path, ["made"], names, fill_table)
    encoding.encode(
        TextEncodingWithoutLabels(texts=("text",)), table, make_tokenizer(), 8, root=tmp_path, has_labels=False
    )
    return tmp_path


class TextEncodingWithoutLabels(TextEncoding):
    """The encoding of texts."""

    def labels(self, table: Any, arrays: Any) -> None:
        return None


def run(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines that a command prints."""
    capsys.readouterr()
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def find_kind(root: Path, kind: str) -> listing.EntryListing:
    """The only entry of a kind."""
    (entry,) = [entry for entry in listing.list_all_entries(root) if entry.kind == kind]
    return entry


def test_each_kind_is_listed_and_verified(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "cache", "list", "--dir", str(caches))
    assert len(lines) == 4
    assert lines[-1].startswith("3 entries, ")
    for kind, content in (
        ("activations", "tokens, float16"),
        ("encoded text", "25 rows, "),
        ("tables", "25 rows of text"),
    ):
        (line,) = [line for line in lines[:3] if f"  {kind}  " in line]
        assert content in line
    verified = run(capsys, "cache", "verify", "--dir", str(caches))
    assert [line.endswith("is intact") for line in verified] == [True] * 3


@pytest.mark.parametrize(
    ("kind", "file", "expected"),
    [
        ("encoded text", "input_ids.bin", "is damaged in 1 of 3 parts"),
        ("encoded text", "parts.jsonl", "is damaged in 1 of 3 parts"),
        ("tables", "rows.arrow", "is damaged"),
        ("tables", "meta.json", "is damaged"),
    ],
)
def test_damage_of_any_kind_is_found(
    caches: Path, capsys: pytest.CaptureFixture[str], kind: str, file: str, expected: str
) -> None:
    entry = find_kind(caches, kind)
    flip(entry.folder / file, 100)
    assert expected in str(listing.find_damage(find_kind(caches, kind)))
    assert cli.main(["cache", "verify", "--dir", str(caches)]) == 2
    assert "1 entries are damaged" in capsys.readouterr().err


def test_what_a_killed_run_leaves_is_listed_and_removed(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = find_kind(caches, "encoded text").folder / "parts.jsonl"
    parts.write_text(parts.read_text().splitlines(keepends=True)[0])
    entry = find_kind(caches, "encoded text")
    assert (entry.is_partial, entry.content) == (True, "not finished: 1 of 3 parts")
    for age, name in ((2000, "old"), (5, "new")):
        folder = caches / "tables" / f".writing-{name}"
        folder.mkdir()
        (folder / "rows.arrow").write_bytes(b"x" * 1000)
        os.utime(folder / "rows.arrow", (time.time() - age,) * 2)
    assert run(capsys, "cache", "list", "--dir", str(caches))[-1].startswith("1 leftovers of killed runs, 0.0 MB")
    run(capsys, "cache", "prune", "--dir", str(caches), "--older-than", "30d")
    assert [path.name for path in (caches / "tables").glob(".writing-*")] == [".writing-new"]
    assert len(listing.list_all_entries(caches)) == 3


def test_a_folder_that_is_finished_meanwhile_hides_no_other_one(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the folders that are written, those of living processes stay, even if one of them vanishes."""
    for name in ("gone", "new"):
        (caches / "tables" / f".writing-{name}").mkdir()

    def measure(folder: Path) -> tuple[int, float]:
        if folder.name == ".writing-gone":
            raise FileNotFoundError
        return 0, time.time()

    monkeypatch.setattr(listing, "measure_folder", measure)
    assert listing.find_leftovers(caches) == []


def test_a_clock_that_is_a_day_ahead_makes_nothing_old(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a file server, which gives files their times, and that of this machine differ."""
    (caches / "tables" / ".writing-new").mkdir()
    tomorrow = time.time() + 86400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert listing.find_leftovers(caches) == []
    assert listing.prune_entries(caches, max_bytes=None, older_than_seconds=43200) == []


def test_encoded_text_of_an_earlier_version_is_not_damaged(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = caches / "encoded" / ("0" * 32)
    folder.mkdir()
    for name in ("done", "input_ids.npy"):
        (folder / name).write_bytes(b"x")
    [line] = [line for line in run(capsys, "cache", "verify", "--dir", str(caches)) if line.startswith("0" * 32)]
    assert line.endswith("was written by an earlier version, and no run reads it; cache prune can remove it")
    [line] = [line for line in run(capsys, "cache", "list", "--dir", str(caches)) if line.startswith("0" * 32)]
    assert line.endswith("written by an earlier version")


def test_prune_to_nothing_leaves_nothing(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (caches / "tables" / ".writing-new").mkdir()
    (caches / "encoded" / f"{'0' * 32}").mkdir()
    lines = run(capsys, "cache", "prune", "--dir", str(caches), "--max-size", "0")
    assert len(lines) == 5
    assert [list((caches / folder).iterdir()) for folder in ("activations", "encoded", "tables")] == [[], [], []]
    assert run(capsys, "cache", "list", "--dir", str(caches)) == [f"0 entries, 0.0 MB in {caches}"]
