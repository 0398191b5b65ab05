"""A file is complete or not there; the folder of the caches."""

import errno
import hashlib
import os
import re
import stat
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_finetune.system import files
from hf_finetune.system.errors import InputError


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    files.write_atomically(path, b"old")

    def fail(file: Any) -> None:
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="the disk is full"):
        files.replace_atomically(path, fail, 10)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_write_returns_the_digest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    written = files.replace_atomically(path, lambda file: (file.write(b"one"), file.write(b"two"), file.flush()), 6)
    assert path.read_bytes() == b"onetwo"
    assert (written.size, written.sha256) == (6, files.hash_file(path))


def test_a_file_is_synced_before_it_is_renamed_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    replace = os.replace

    def sync(descriptor: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    files.write_atomically(tmp_path / "results.json", b"{}")
    assert calls == ["sync file", "rename", "sync folder"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error", "a.txt"), "^a.txt: cannot be read or written: Input/output error"),
        (
            OSError(28, "No space left on device"),
            "^outputs: cannot be written: No space left on device; free some space",
        ),
        (OSError("no answer from the host"), "^OSError: no answer from the host"),
        (TimeoutError("30 s"), "^TimeoutError: 30 s"),
    ],
)
def test_an_error_of_a_disk_names_the_file_and_one_of_a_network_does_not(error: OSError, message: str) -> None:
    assert re.search(message, str(files.disk_error(Path("outputs"), error)))


def test_a_rename_that_did_not_happen_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").touch()
    monkeypatch.setattr(files.os, "replace", lambda source, target: None)
    with pytest.raises(OSError, match="still there after it was renamed"):
        files.rename(tmp_path / "old", tmp_path / "new")


def test_the_digest_of_tensors_depends_on_names_dtypes_shapes_and_values() -> None:
    tensor = torch.arange(4)
    variants = [
        ({"a": tensor}, ["a"]),
        ({"b": tensor}, ["b"]),
        ({"a": tensor.double()}, ["a"]),
        ({"a": tensor.reshape(2, 2)}, ["a"]),
        ({"a": tensor + 1}, ["a"]),
        ({"a": tensor, "b": tensor}, ["a", "b"]),
        ({"a": tensor, "b": tensor}, ["b", "a"]),
    ]
    digests = [files.digest_tensors(tensors, names) for tensors, names in variants]
    assert len(set(digests)) == len(variants)
    assert files.digest_tensors({"a": tensor.clone(), "c": tensor}, ["a"]) == digests[0]


def test_the_cache_is_cache_dir_or_the_environments_or_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_FINETUNE_CACHE", "/some/where")
    assert files.cache_root("/given") == Path("/given")
    assert files.cache_root() == Path("/some/where")
    monkeypatch.delenv("HF_FINETUNE_CACHE")
    assert files.cache_root(None) == Path.home() / ".cache" / "hf_finetune"


def test_a_file_is_hashed_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "rows.csv", []
    hash_file = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda given: read.append(given) or hash_file(given))

    def write(content: bytes, age: float) -> None:
        path.write_bytes(content)
        os.utime(path, (time.time() - age,) * 2)

    write(b"one", 10)
    digests = [files.hash_unchanged(path), files.hash_unchanged(path)]
    assert digests == [hash_file(path)] * 2
    assert len(read) == 1
    write(b"two", 9)
    assert files.hash_unchanged(path) == hash_file(path) != digests[0]
    write(b"six", 0)  # its time may be that of another change in the same moment
    assert (files.hash_unchanged(path), files.hash_unchanged(path)) == (hash_file(path),) * 2
    assert len(read) == 4


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.delenv("HF_FINETUNE_CACHE")
    monkeypatch.setenv("HOME", home)
    with pytest.raises(InputError, match=r"set cache\.dir, or the environment variable"):
        files.cache_root()
    assert files.cache_root("/given") == Path("/given")


def test_the_clock_of_a_folder_is_that_of_its_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: 5.0)  # this machine's clock is wrong
    assert abs(files.read_clock(tmp_path) - now) < 60
    assert list(tmp_path.iterdir()) == []
    assert files.read_clock(tmp_path / "nowhere") == 5.0


@pytest.mark.parametrize("is_flushed", [False, True])
@pytest.mark.parametrize("sizes", [(), (0, 0), (10, 3), (2**20, 5, 3 * 2**20), (7, (files.BLOCKS_TO_HASH + 3) * 2**20)])
def test_a_file_has_the_digests_of_its_bytes_whatever_its_parts(
    tmp_path: Path, sizes: tuple[int, ...], is_flushed: bool
) -> None:
    parts = [os.urandom(size) for size in sizes]

    def write(file: Any) -> None:
        for part in parts:
            assert file.write(memoryview(part)) == len(part)
            if is_flushed:
                file.flush()

    written = files.replace_atomically(tmp_path / "file", write, sum(sizes))
    content = b"".join(parts)
    assert (tmp_path / "file").read_bytes() == content
    assert written == files.Written(
        size=len(content), sha256=hashlib.sha256(content).hexdigest(), crc32=zlib.crc32(content)
    )
    assert written.sha256 == files.hash_file(tmp_path / "file")
    assert files.find_difference(tmp_path / "file", written) is None


def test_what_is_written_may_change_when_write_has_returned(tmp_path: Path) -> None:
    """The digests are computed later, and torch reuses its memory."""
    memory = bytearray(2**20)

    def write(file: Any) -> None:
        for value in range(40):
            memory[:] = bytes([value]) * len(memory)
            file.write(memory)

    written = files.replace_atomically(tmp_path / "file", write, 40 * len(memory))
    assert written.sha256 == files.hash_file(tmp_path / "file")


def test_a_small_file_needs_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest can be written where a limit on processes allows no thread."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    small = bytes(files.BLOCK_BYTES - 1)
    files.write_atomically(tmp_path / "file", small)
    assert (tmp_path / "file").read_bytes() == small
    with pytest.raises(InputError, match="can't start new thread"):
        files.write_atomically(tmp_path / "file", bytes(files.BLOCK_BYTES))


def test_the_thread_that_hashes_ends_with_the_write(tmp_path: Path) -> None:
    before = threading.active_count()

    def fail(file: Any) -> None:
        file.write(bytes(2**21))
        raise OSError(errno.EIO, "Input/output error")

    files.write_atomically(tmp_path / "file", bytes(2**21))
    with pytest.raises(InputError, match="Input/output error"):
        files.replace_atomically(tmp_path / "file", fail, 10)
    assert threading.active_count() == before


@pytest.mark.parametrize("place", [0, 2**20, -1])
def test_a_file_that_is_not_what_was_written_is_found(tmp_path: Path, place: int) -> None:
    path, content = tmp_path / "file", bytearray(os.urandom(2**20 + 9))
    written = files.replace_atomically(path, lambda file: file.write(content), len(content))
    content[place] ^= 1
    path.write_bytes(content)
    assert files.find_difference(path, written) == "has other bytes than were written"
    path.write_bytes(content[:-1])
    assert files.find_difference(path, written) == "has 1048584 bytes instead of 1048585"
    path.unlink()
    assert files.find_difference(path, written) == "is missing"


@pytest.mark.parametrize(("code", "is_error"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EOPNOTSUPP, False)])
def test_room_is_reserved_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_error: bool
) -> None:
    files.check_room(tmp_path, 10**6)
    with pytest.raises(InputError, match=r"the disk is full: 1000000000000\.0 MB are needed"):
        files.check_room(tmp_path, 10**18)

    def fail(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    if is_error:
        with pytest.raises(InputError, match="the disk is full"):
            files.check_room(tmp_path, 10**6)
    else:
        files.check_room(tmp_path, 10**6)
    assert list(tmp_path.iterdir()) == []
