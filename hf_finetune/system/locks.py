"""Locks that end with their holder: one process at a time writes to a run folder, an entry of a cache, or a file.

The lock of the operating system (flock) ends with its process. But some file systems have none, and on others it holds within one
machine only. So the holder also writes a record into the file: who it is, and a number that it changes every BEAT_SECONDS. If
the operating system cannot tell, a holder counts as alive as long as its record changes. That needs no clocks that agree.

A process that was stopped for STALE_SECONDS (a suspended machine, a file system that did not answer) may find that another one on
another machine holds the lock. check() raises an error then.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hf_finetune.system.errors import InputError
from hf_finetune.system.files import remove_quietly

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

BEAT_SECONDS = 3.0
STALE_SECONDS = 20.0  # several beats, because a busy process and a busy disk delay some
SETTLE_SECONDS = 2.0  # more than a process needs to write its record after it has read another's
POLL_SECONDS = 0.2
SILENT_SECONDS = 0.5  # a wait that is shorter is not reported

RECORD_BYTES = 512  # each record replaces all of the one before
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # of file systems without locks
HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)  # by another process

Record = dict[str, Any]


class HeldError(Exception):
    """Another process holds the lock: its host name and process id, as far as they are known."""


class Lock:
    """The lock on a file, which exists only as long as the lock is held.

    Attributes:
        path: The file.
        is_lost: True once another process has taken the lock over.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.is_lost = path, False
        self.record: Record = {
            "machine": find_machine(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "token": uuid.uuid4().hex,
            "beat": 0,
        }
        self.descriptor = -1
        self.has_said = False  # that it waits for a sign of life
        self.released = threading.Event()
        self.heart = threading.Thread(target=self.beat, name=f"lock {path.name}", daemon=True)

    def acquire(self, say: Callable[[str], object], *, seconds: float = 0.0, waiting: str = "") -> None:
        """Takes the lock.

        Args:
            say: Takes a line if this takes long.
            seconds: How long to wait for another holder.
            waiting: The line about that.

        Raises HeldError if another process holds the lock, and OSError if the file cannot be made or written.
        """
        began, is_said = time.monotonic(), False
        while (holder := self.try_to_take(say)) is not None:
            if time.monotonic() - began >= seconds:
                raise HeldError(f"{holder.get('host', 'unknown host')} process {holder.get('process', 'unknown')}")
            if waiting and not is_said and time.monotonic() - began > SILENT_SECONDS:
                say(waiting)
                is_said = True
            time.sleep(POLL_SECONDS)
        self.heart.start()

    def try_to_take(self, say: Callable[[str], object]) -> Record | None:
        """Takes the lock and returns None, or returns the record of the process that holds it, {} if it has none."""
        descriptor, is_locked = open_locked(self.path)
        try:
            holder = read_record(self.path)
            if is_locked is False:
                return holder
            # Whether a holder on this machine is alive, the lock of the operating system has told
            is_certain = is_locked and holder.get("machine", self.record["machine"]) == self.record["machine"]
            if not is_certain and holder and not self.is_dead(holder, say):
                return holder
            try:
                write_record(descriptor, self.record)
            except OSError:
                if is_certain:  # that this process has the lock
                    remove_quietly(self.path)
                raise
            if not is_certain:
                # Of several processes that found it free, the last to write its record has it (Fischer's algorithm; Lamport
                # 1987, "A Fast Mutual Exclusion Algorithm", section 1)
                time.sleep(SETTLE_SECONDS)
                holder = read_record(self.path)
                if holder.get("token") != self.record["token"]:
                    return holder
            self.descriptor, descriptor = descriptor, -1
            return None
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def is_dead(self, holder: Record, say: Callable[[str], object]) -> bool:
        """True if the record of a holder does not change for STALE_SECONDS."""
        if not self.has_said:
            self.has_said = True
            say(
                f"{self.path.parent}: was in use by {holder.get('host')} process {holder.get('process')}, which may be on "
                f"another machine; waiting {STALE_SECONDS:.0f} s for a sign of life"
            )
        began = time.monotonic()
        while time.monotonic() - began < STALE_SECONDS:
            time.sleep(POLL_SECONDS)
            if read_record(self.path) != holder:
                return False
        return True

    def beat(self) -> None:
        """Changes the record now and then, until the lock is released or lost."""
        while not self.released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a later beat may succeed
                if read_record(self.path).get("token", self.record["token"]) != self.record["token"]:
                    self.is_lost = True
                    return
                self.record["beat"] += 1
                write_record(self.descriptor, self.record)

    def check(self) -> None:
        """Raises InputError if another process has taken the lock over, because this one did not run for a while."""
        if self.is_lost:
            raise InputError(
                f"{self.path.parent}: another run took this folder over while this one did not run for {STALE_SECONDS:.0f} s or "
                "longer (a stopped process, a suspended machine, a disk that did not answer); only that one may continue"
            )

    def release(self) -> None:
        """Releases the lock, and removes the file."""
        self.released.set()
        try:
            self.heart.join()
            if not self.is_lost and os.name != "nt":  # Windows does not remove an open file
                remove_quietly(self.path)
        finally:
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
        if not self.is_lost and os.name == "nt":
            remove_quietly(self.path)


@contextlib.contextmanager
def hold_lock(path: Path, say: Callable[[str], object], *, seconds: float = 0.0, waiting: str = "") -> Iterator[Lock]:
    """Holds the lock on a file within the block (Lock.acquire)."""
    lock = Lock(path)
    lock.acquire(say, seconds=seconds, waiting=waiting)
    try:
        yield lock
    finally:
        lock.release()


@cache
def find_machine() -> str:
    """Returns what tells machines apart: their last start. Containers of one machine share it, as they share its locks."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


def open_locked(path: Path) -> tuple[int, bool | None]:
    """Opens or makes the file of a lock, but no link. Returns its descriptor, and what lock_descriptor() returns."""
    while True:
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            is_locked = lock_descriptor(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if is_locked is False or is_at(descriptor, path):
            return descriptor, is_locked
        os.close(descriptor)  # its holder removed it before this process could lock it


def lock_descriptor(descriptor: int) -> bool | None:
    """Takes the operating system's lock on an open file, which ends with the process. False if another process has it, None if
    the file system has no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the record, which others read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """True if an open file is the one at `path`. Its holder may have removed it before this process could lock it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def read_record(path: Path) -> Record:
    """Returns the record in a file, {} if it has none."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(descriptor: int, record: Record) -> None:
    """Writes a record, and makes it visible to other machines."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(record).encode().ljust(RECORD_BYTES))
    os.fsync(descriptor)
