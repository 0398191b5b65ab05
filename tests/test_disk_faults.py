"""A fault at each call that changes the disk: afterwards the old or the new file is there, complete.

The calls are counted in a run without faults, so a call that is added to the code is tested too.
"""

import builtins
import errno
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support import entries

from hf_finetune.cache import layout, listing, store
from hf_finetune.run import checkpoint
from hf_finetune.system import files
from hf_finetune.system.errors import InputError

pytestmark = pytest.mark.slow

CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "truncate", "posix_fallocate", "utime")
FAULTS = ("ENOSPC", "EIO", "short", "lost", "death")


class DeathError(BaseException):
    """The end of the process: no handler may change the disk after it."""


class Disk:
    """Counts the calls that change files below a folder. The call number `fails_at` fails with `fault`."""

    def __init__(self, folder: Path, fails_at: int = -1, fault: str = "") -> None:
        self.folder, self.fails_at, self.fault = str(folder), fails_at, fault
        self.calls: list[str] = []
        self.is_dead = False

    def call(self, name: str, effect: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Makes one call, or fails. Returns None if the effect is lost."""
        if self.is_dead:
            raise DeathError
        self.calls.append(name)
        if len(self.calls) - 1 != self.fails_at:
            return effect()
        if self.fault == "death":
            self.is_dead = True
            raise DeathError
        if self.fault == "lost" and name in ("replace", "rename"):
            return None
        if self.fault == "short" and half is not None:
            half()
        code = errno.EIO if self.fault == "EIO" else errno.ENOSPC
        raise OSError(code, os.strerror(code))

    def concerns(self, target: Any, options: dict[str, Any]) -> bool:
        """True if a call's target lies below the folder. Removals by descriptor come from shutil.rmtree."""
        return isinstance(target, int) or bool(options.get("dir_fd")) or str(target).startswith(self.folder)

    def wrapped(self, name: str) -> Callable[..., Any]:
        """A function of os that counts its calls and fails."""
        real = getattr(os, name)

        def function(target: Any, *arguments: Any, **options: Any) -> Any:
            if not self.concerns(target, options):
                return real(target, *arguments, **options)
            return self.call(name, lambda: real(target, *arguments, **options))

        return function

    def open(self, target: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        """open(), whose files count their writes and fail."""
        changes = set(mode) & set("wax+") and str(target).startswith(self.folder)
        if not changes:
            return OPEN(target, mode, *arguments, **options)
        return Written(self.call("open", lambda: OPEN(target, mode, *arguments, **options)), self)

    @contextmanager
    def at_work(self) -> Iterator["Disk"]:
        """Sends the calls through this disk until the block ends."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self.wrapped(name))
            patch.setattr(io, "open", self.open)
            patch.setattr(builtins, "open", self.open)
            yield self


OPEN = io.open


class Written:
    """A file that counts its writes and fails."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def write(self, content: Any) -> Any:
        return self.disk.call(
            "write", lambda: self.file.write(content), lambda: self.file.write(content[: len(content) // 2])
        )

    def truncate(self, *arguments: Any) -> Any:
        return self.disk.call("truncate", lambda: self.file.truncate(*arguments))

    def flush(self) -> Any:
        return self.disk.call("flush", self.file.flush)

    def __enter__(self) -> "Written":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def each_fault(
    folder: Path,
    prepare: Callable[[Path], object],
    operate: Callable[[Path], object],
    *,
    errors: tuple[type[BaseException], ...] = (InputError, DeathError),  # anything else is a bug
) -> Iterator[tuple[Path, str, BaseException | None]]:
    """For each call of the operation and each fault: the folder where it happened, a description, and what was raised."""
    counting = folder / "counting"
    counting.mkdir()
    prepare(counting)
    with Disk(counting).at_work() as disk:
        operate(counting)
    assert len(disk.calls) >= 3, disk.calls
    for number, name in enumerate(disk.calls):
        for fault in FAULTS:
            if (fault == "short" and name != "write") or (fault == "lost" and name not in ("replace", "rename")):
                continue
            place = folder / f"{number}-{fault}"
            place.mkdir()
            prepare(place)
            raised: BaseException | None = None
            with Disk(place, number, fault).at_work() as failing:
                try:
                    operate(place)
                except errors as error:
                    raised = error
            assert len(failing.calls) > number, "the operation made other calls than the counted ones"
            yield place, f"{fault} at {name} ({number} of {len(disk.calls)})", raised
            shutil.rmtree(place)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def save(folder: Path, update: int, value: float) -> None:
    """Saves a checkpoint and removes old ones. The second is the best."""
    content: dict[str, Any] = {"epoch": 1, "update": update, "loss": 0.5, "model": torch.full((5,), float(update))}
    saved = checkpoint.save_checkpoint(folder, content, metric="accuracy", value=value, best_update=2)
    checkpoint.remove_old_checkpoints(folder, saved, keep_best=1, keep_last=1, greater_is_better=True, updates={2})


def save_three(folder: Path) -> None:
    """Three saves, which leave the best and the last."""
    for update, value in ((1, 0.5), (2, 0.9), (3, 0.6)):
        save(folder, update, value)


def test_a_save_leaves_the_old_or_the_new_whatever_fails(tmp_path: Path) -> None:
    count = 0
    for folder, what, raised in each_fault(tmp_path, save_three, lambda folder: save(folder, 4, 0.7)):
        count += 1
        newest, _ = checkpoint.find_newest_intact(folder)
        assert newest is not None, what
        content = checkpoint.load_checkpoint(newest)
        assert content["update"] in (3, 4), what
        assert torch.equal(content["model"], torch.full((5,), float(content["update"]))), what
        assert raised is not None or content["update"] == 4, what
        assert checkpoint.find_intact(folder, 2) is not None, what
        assert set(checkpoint.read_references(folder).values()) <= {path.name for path in folder.iterdir()} or raised, (
            what
        )
        save(folder, 5, 0.8)
        assert {each.update for each in checkpoint.read_manifests(folder)} == {2, 5}, what
        assert len(list(folder.iterdir())) == 5, (what, sorted(path.name for path in folder.iterdir()))
    assert count > 40


def test_a_writer_that_is_not_atomic_is_caught(tmp_path: Path) -> None:
    """The guard fails when it should."""

    def careless(folder: Path) -> None:
        with (folder / "file").open("wb") as file:
            for _ in range(10):
                file.write(b"new")
            file.flush()

    found = set()
    errors = (OSError, DeathError)
    for folder, _, _ in each_fault(
        tmp_path, lambda folder: (folder / "file").write_bytes(b"old"), careless, errors=errors
    ):
        found.add((folder / "file").read_bytes())
    assert found - {b"old", b"new" * 10}


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_every_damage_of_every_file_is_found(tmp_path: Path, damage: str, suffix: str) -> None:
    save_three(tmp_path)
    whole = next(path for path in tmp_path.glob(f"ckpt_*update000003*{suffix}"))
    content = whole.read_bytes()
    places = sorted({*range(0, len(content), max(1, len(content) // 60)), len(content) - 1})
    for place in places if damage == "flipped" else places[::7] if damage == "cut" else [0]:
        spoiled = bytearray(content)
        if damage == "flipped":
            spoiled[place] ^= 4
            whole.write_bytes(spoiled)
        elif damage == "cut":
            whole.write_bytes(content[:place])
        else:
            whole.unlink()
        path = whole.with_suffix(".pt")
        if is_harmless(suffix, damage, bytes(spoiled), content):
            continue
        assert checkpoint.find_damage_in_file(path) is not None, place
        newest, _ = checkpoint.find_newest_intact(tmp_path)
        assert newest is not None
        assert checkpoint.load_checkpoint(newest)["update"] == 2, place
        assert checkpoint.find_intact(tmp_path, 3) is None
        states_of = {row.file: row.state for row in checkpoint.list_checkpoints(tmp_path, verify=True)}
        assert states_of[path.name] != "intact" if path.exists() else True


def is_harmless(suffix: str, damage: str, spoiled: bytes, content: bytes) -> bool:
    """True if a changed manifest still has this file, size and digest: its other values say nothing about the bytes."""
    if suffix != ".json" or damage != "flipped":
        return False
    try:
        before, now = json.loads(content), json.loads(spoiled)
        return bool(before.keys() == now.keys() and all(before[key] == now[key] for key in ("file", "size", "sha256")))
    except ValueError:
        return False


def test_loading_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    save_three(tmp_path)
    path = next(tmp_path.glob("ckpt_*update000003*.pt"))
    for make in (
        lambda: path.write_bytes(pickle.dumps({"run": Malicious()})),
        lambda: torch.save({"model": torch.ones(1), "run": Malicious()}, path),
    ):
        make()
        manifest = json.loads(path.with_suffix(".json").read_bytes())
        manifest |= {"size": path.stat().st_size, "sha256": files.hash_file(path)}
        path.with_suffix(".json").write_text(json.dumps(manifest))
        assert checkpoint.find_damage_in_file(path) is None  # whoever wrote it could write its digest too
        with pytest.raises(InputError, match="not an intact checkpoint"):
            checkpoint.load_checkpoint(path)
        assert not marker.exists()


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK_TOKENS", 128)


def make_entry_in(folder: Path) -> store.Entry:
    """An entry of made-up rows in its own folder."""
    return entries.make_entry(folder / "root" / "activations")


def build_damaged(folder: Path) -> None:
    """A complete entry with a flipped bit."""
    entry = make_entry_in(folder)
    entries.build(entry)
    path = entry.folder / store.ACTIVATIONS
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("prepare", [lambda folder: None, build_damaged], ids=["new", "repair"])
def test_an_entry_is_intact_or_not_there(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    count = 0
    for folder, what, raised in each_fault(tmp_path, prepare, lambda folder: entries.build(make_entry_in(folder))):
        count += 1
        entry = make_entry_in(folder)
        if raised is None:
            assert entry.is_complete(), what
        entries.build(entry)
        entries.assert_intact(entry)
    assert count > 40


def test_pruning_removes_an_entry_or_leaves_it(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        entries.build(make_entry_in(folder))

    def prune(folder: Path) -> None:
        listing.prune_entries(folder / "root", max_bytes=0, older_than_seconds=None)

    for folder, what, _ in each_fault(tmp_path, prepare, prune):
        entry = make_entry_in(folder)
        assert not entry.is_complete() or listing.find_damage(entries.get_only_entry(entry.root)) is None, what
        entries.build(entry)
        entries.assert_intact(entry)
