"""A disk that fails at one chosen call of the operating system, for the tests of everything that writes.

Python's calls go through a Disk: functions of os, fcntl.flock, and the raw files under what open() returns, so that buffers,
short writes and errors at the end of a file are Python's own. What Rust and C++ write (tokenizers, safetensors, pyarrow) meets a
real limit instead: RLIMIT_FSIZE, which gives EFBIG (limit_files).
"""

import builtins
import contextlib
import errno
import fcntl
import io
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest

READS = ("stat", "lstat", "fstat", "listdir", "scandir", "statvfs", "open to read", "read")
SPACE = ("open to write", "mkdir", "write", "truncate", "posix_fallocate", "fsync", "replace", "rename")  # that need it
NAMES = ("open to write", "mkdir", "replace", "rename", "unlink", "remove", "rmdir")  # that change a folder
CHANGES = {*SPACE, *NAMES, "utime", "chmod", "flock"}
FUNCTIONS = [*READS[:6], "mkdir", "rmdir", "unlink", "remove", "rename", "replace", "truncate", "ftruncate", "fsync"]
FUNCTIONS += ["write", "read", "pread", "posix_fallocate", "utime", "chmod"]
CALL_OF = {"ftruncate": "truncate", "pread": "read"}

# Each fault, and the calls that can have it. "for good": all later calls of its kind fail too
FAULTS: dict[str, set[str]] = {
    "EIO": {*READS, *CHANGES},
    "ESTALE": {*READS, *CHANGES},
    "ENOSPC": {*SPACE},
    "EDQUOT": {"open to write", "mkdir", "write"},
    "EACCES": {*NAMES, "open to read", "listdir", "scandir"},
    "EBUSY": {"unlink", "remove", "rmdir", "rename"},
    "ENOSPC for good": {*SPACE},  # the first write is a short one
    "EROFS for good": {*CHANGES},
    "ESTALE for good": {*READS, *CHANGES},
    "lost": {"replace", "rename"},  # it is reported as done
    "death": {*CHANGES},
}


class DeathError(BaseException):
    """The end of the process: no handler may change the disk after it."""


@dataclass(frozen=True)
class Call:
    """A call: its name, the file, and the functions of the package that led to it, as `module:function`."""

    name: str
    target: str
    functions: frozenset[str]


class Disk:
    """Counts the calls on files below a folder. The call number `fails_at` has the fault."""

    def __init__(self, folder: Path, fails_at: int = -1, fault: str = "") -> None:
        self.folder, self.fails_at, self.fault = str(folder), fails_at, fault
        self.calls: list[Call] = []
        self.descriptors: dict[int, str] = {}
        self.is_dead = False

    def call(self, name: str, target: str, effect: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Makes one call, or fails. half: Does half of it. Returns None if the effect is lost."""
        if self.is_dead:
            raise DeathError
        number = len(self.calls)
        self.calls.append(Call(name, target, find_functions() if self.fails_at < 0 else frozenset()))
        kind, _, how_long = self.fault.partition(" ")
        is_first = number == self.fails_at
        if not (is_first or (how_long and 0 <= self.fails_at < number and name in FAULTS[self.fault])):
            return effect()
        if kind == "death":
            self.is_dead = True
            raise DeathError
        if kind == "lost":
            return None
        if kind == "ENOSPC" and how_long and half is not None and is_first:
            return half()
        code = getattr(errno, kind)
        raise OSError(code, os.strerror(code), target)

    def find_target(self, target: Any, options: dict[str, Any]) -> str | None:
        """Returns the path of a call's target if it lies below the folder, else None."""
        if isinstance(target, int):
            return self.descriptors.get(target)
        if (parent := options.get("dir_fd")) is not None:
            return f"{self.descriptors[parent]}/{target}" if parent in self.descriptors else None
        path = os.path.abspath(os.fsdecode(target)) if isinstance(target, (str, bytes, os.PathLike)) else ""
        return path if path == self.folder or path.startswith(f"{self.folder}/") else None

    def wrap(self, function: str) -> Callable[..., Any]:
        """Returns a function of os that counts its calls and fails."""
        real, name = getattr(os, function), CALL_OF.get(function, function)

        def wrapped(target: Any = ".", *arguments: Any, **options: Any) -> Any:
            path = self.find_target(target, options)
            if path is None:
                return real(target, *arguments, **options)
            half = None
            if name == "write":
                half = lambda: real(target, arguments[0][: len(arguments[0]) // 2])  # noqa: E731
            return self.call(name, path, lambda: real(target, *arguments, **options), half)

        return wrapped

    def open_descriptor(self, target: Any, flags: int, *arguments: Any, **options: Any) -> int:
        """os.open()."""
        path = self.find_target(target, options)
        if path is None:
            return OPEN_DESCRIPTOR(target, flags, *arguments, **options)
        name = "open to write" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else "open to read"
        descriptor: int = self.call(name, path, lambda: OPEN_DESCRIPTOR(target, flags, *arguments, **options))
        self.descriptors[descriptor] = path
        return descriptor

    def close_descriptor(self, descriptor: int) -> None:
        """os.close(), which does not fail."""
        self.descriptors.pop(descriptor, None)
        CLOSE_DESCRIPTOR(descriptor)

    def open(self, target: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
        """open(), over a raw file that counts its calls and fails."""
        path = self.find_target(target, {})
        if path is None or options.get("opener") is not None:
            return OPEN(target, mode, buffering, *arguments, **options)
        name = "open to write" if set(mode) & set("wax+") else "open to read"
        raw_mode = mode.replace("t", "").replace("b", "")
        make = lambda: File(target, raw_mode, self, path, closefd=options.get("closefd", True))  # noqa: E731
        raw = make() if isinstance(target, int) else self.call(name, path, make)
        self.descriptors[raw.fileno()] = path
        if buffering == 0:
            return raw
        kind: Any = io.BufferedReader if name == "open to read" else io.BufferedWriter
        binary = (io.BufferedRandom if "+" in mode else kind)(raw)
        if "b" in mode:
            return binary
        names = dict(zip(("encoding", "errors", "newline"), arguments, strict=False)) | options
        names = {key: value for key, value in names.items() if key in ("encoding", "errors", "newline")}
        text = io.TextIOWrapper(binary, **names)
        text.mode = mode  # type: ignore[misc]
        return text

    @contextmanager
    def at_work(self) -> Iterator["Disk"]:
        """Sends the calls through this disk until the block ends."""
        flock, new_stream, arrow_file = fcntl.flock, pyarrow.ipc.new_stream, pyarrow.OSFile

        def lock(descriptor: Any, operation: int) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = self.descriptors.get(number)
            if path is None:
                flock(number, operation)
            else:
                self.call("flock", path, lambda: flock(number, operation))

        with pytest.MonkeyPatch.context() as patch:
            for name in FUNCTIONS:
                if hasattr(os, name):
                    patch.setattr(os, name, self.wrap(name))
            patch.setattr(os, "open", self.open_descriptor)
            patch.setattr(os, "close", self.close_descriptor)
            patch.setattr(io, "open", self.open)
            patch.setattr(builtins, "open", self.open)
            patch.setattr(fcntl, "flock", lock)
            # pyarrow opens these by itself
            for module, name, real in ((pyarrow.ipc, "new_stream", new_stream), (pyarrow, "OSFile", arrow_file)):
                kind = "open to write" if name == "new_stream" else "open to read"
                patch.setattr(module, name, self.wrap_opening(real, kind))
            yield self

    def wrap_opening(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """Returns a function of pyarrow that opens a file, which counts its calls and fails."""

        def wrapped(target: Any, *arguments: Any, **options: Any) -> Any:
            path = self.find_target(target, {})
            if path is None:
                return real(target, *arguments, **options)
            return self.call(kind, path, lambda: real(target, *arguments, **options))

        return wrapped


OPEN, OPEN_DESCRIPTOR, CLOSE_DESCRIPTOR = io.open, os.open, os.close
PACKAGE = f"{os.sep}hf_finetune{os.sep}"


class File(io.FileIO):
    """A raw file that counts its calls and fails."""

    def __init__(self, target: Any, mode: str, disk: Disk, path: str, *, closefd: bool) -> None:
        super().__init__(target, mode, closefd=closefd)
        self.disk, self.path = disk, path

    def write(self, content: Any) -> Any:
        write = super().write
        view = memoryview(content).cast("B")
        return self.disk.call("write", self.path, lambda: write(view), lambda: write(view[: len(view) // 2]))

    def read(self, size: int | None = -1) -> Any:
        read = super().read
        return self.disk.call("read", self.path, lambda: read(size))

    def readall(self) -> Any:
        readall = super().readall
        return self.disk.call("read", self.path, lambda: readall())

    def readinto(self, buffer: Any) -> Any:
        readinto = super().readinto
        return self.disk.call("read", self.path, lambda: readinto(buffer))

    def truncate(self, size: int | None = None) -> Any:
        truncate = super().truncate
        return self.disk.call("truncate", self.path, lambda: truncate(size))

    def close(self) -> None:
        if not self.closed:
            self.disk.descriptors.pop(self.fileno(), None)
        super().close()


def find_functions() -> frozenset[str]:
    """Returns the functions of the package that are at work, as `module:function`."""
    found, frame = set(), sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if PACKAGE in name:
            module = name.rpartition(PACKAGE)[2].removesuffix(".py").replace(os.sep, ".")
            found.add(f"{module}:{frame.f_code.co_qualname.replace('.<locals>', '')}")
        frame = frame.f_back  # type: ignore[assignment]
    return frozenset(found)


@contextmanager
def limit_files(num_bytes: int) -> Iterator[None]:
    """Lets no file grow above this size within the block, whoever writes it: EFBIG. Python ignores its signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # files, under pytest
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
