"""A lock has one holder at a time and ends with it, on machines and file systems of all kinds. The holders are processes."""

import errno
import fcntl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.locked import FAST, held_lock

from hf_finetune.system import locks
from hf_finetune.system.errors import InputError
from hf_finetune.system.locks import HeldError, Lock, hold_lock, read_record

pytestmark = pytest.mark.processes
PLACES = ("here", "elsewhere", "no locks")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in FAST.items():
        monkeypatch.setattr(locks, name, seconds)


def remove_locks(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOLCK) -> None:
    """Makes the file system one without locks."""

    def refuse(*_: Any) -> None:
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("place", PLACES)
def test_a_lock_that_is_held_is_refused_and_that_of_a_killed_process_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path, said = tmp_path / ".lock", list[str]()
    if place == "no locks":
        remove_locks(monkeypatch)
    with held_lock(path, place) as holder:
        for _ in range(2):
            with pytest.raises(HeldError, match=rf"^\S+ process {holder.id}$"):
                Lock(path).acquire(said.append)
        assert holder.ask() == "held"
        holder.kill()
    assert read_record(path)["process"] == holder.id  # it could not remove it
    said.clear()
    began = time.monotonic()
    with hold_lock(path, said.append) as lock:
        seconds = time.monotonic() - began
        assert read_record(path)["token"] == lock.record["token"]
        lock.check()
    assert not path.exists()
    if place == "here":
        assert (seconds < 0.5, said) == (True, [])
    else:
        assert seconds > FAST["STALE_SECONDS"]
        assert f"process {holder.id}, which may be on another machine; waiting 1 s for a sign of life" in said[0]


@pytest.mark.parametrize("place", PLACES)
def test_a_lock_that_is_released_is_free_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    if place == "no locks":
        remove_locks(monkeypatch)
    with held_lock(tmp_path / ".lock", place) as holder:
        holder.end()
        assert list(tmp_path.iterdir()) == []
        with hold_lock(tmp_path / ".lock", pytest.fail):
            pass


@pytest.mark.parametrize("code", locks.NO_LOCKS)
def test_a_file_system_without_locks_is_one_of_these_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    remove_locks(monkeypatch, code)
    with hold_lock(tmp_path / ".lock", pytest.fail) as lock:
        time.sleep(3 * FAST["BEAT_SECONDS"])
        assert read_record(lock.path)["beat"] > 0
    remove_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="no locks"), hold_lock(tmp_path / ".lock", pytest.fail):
        pass


def test_a_process_that_was_stopped_learns_that_another_one_has_its_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held_lock(path, "elsewhere") as holder:
        holder.stop()
        with hold_lock(path, lambda _: None) as lock:
            holder.go_on()
            time.sleep(5 * FAST["BEAT_SECONDS"])
            assert "another run took this folder over while this one did not run" in holder.ask()
            lock.check()
            holder.end()
            assert path.exists()  # that of the other one
            time.sleep(3 * FAST["BEAT_SECONDS"])
            lock.check()


@pytest.mark.parametrize("is_left", [False, True], ids=["free", "left by a killed process"])
def test_of_processes_that_find_a_lock_free_at_once_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_left: bool
) -> None:
    remove_locks(monkeypatch)
    path, together = tmp_path / ".lock", threading.Barrier(6)
    if is_left:
        path.write_text('{"host": "pod-1", "process": 7, "token": "x", "machine": "another"}', encoding="utf-8")
    taken: list[Lock] = []

    def take() -> None:
        lock = Lock(path)
        together.wait()
        try:
            lock.acquire(lambda _: None)
        except HeldError:
            return
        taken.append(lock)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert read_record(path)["token"] == taken[0].record["token"]
    taken[0].release()


def test_those_that_wait_get_the_lock_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.05)
    path, inside, most, said = tmp_path / ".lock", list[int](), list[int](), list[str]()

    def work(number: int) -> None:
        for _ in range(5):
            with hold_lock(path, said.append, seconds=60, waiting="waiting"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.005)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (25, 1)
    assert set(said) == {"waiting"}
    assert not path.exists()


def test_a_wait_ends_after_its_seconds(tmp_path: Path) -> None:
    with hold_lock(tmp_path / ".lock", print):
        began = time.monotonic()
        with pytest.raises(HeldError), hold_lock(tmp_path / ".lock", pytest.fail, seconds=0.3):
            pass
        assert time.monotonic() - began >= 0.3


def test_the_file_of_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(OSError, match=r"symbolic link|too many"), hold_lock(tmp_path / ".lock", pytest.fail):
        pass
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_only_the_run_folder_of_a_lost_lock_is_given_up(tmp_path: Path) -> None:
    lock = Lock(tmp_path / ".lock")
    lock.check()
    lock.is_lost = True
    with pytest.raises(InputError, match="only that one may continue"):
        lock.check()
