"""Standard output and standard error, which may fail: nobody reads the pipe, the disk is full, the terminal is gone.

A run continues without its lines. A command whose result is what it prints ends with an error. Characters that a terminal lacks
are printed as escapes such as \\xf6.
"""

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from hf_finetune.system.errors import InputError
from hf_finetune.system.screen import find_screen

STDOUT, STDERR = "standard output", "standard error"


class OutputError(OSError):
    """Standard output cannot be written. Any other OSError is one of a file."""


class RawOutput(io.RawIOBase):
    """The bytes of standard output or standard error, which are lost once a write has failed.

    Args:
        descriptor: Where the bytes go. It is not closed.
        name: STDOUT or STDERR.
        raises: Raise OutputError at the first write that fails. Otherwise, that of standard output is a warning.
    """

    def __init__(self, descriptor: int, name: str, *, raises: bool) -> None:
        self.descriptor, self.name, self.raises, self.has_failed = descriptor, name, raises, False

    def write(self, content: Any) -> int:
        """Writes bytes. Returns how many are done with."""
        if not self.has_failed:
            try:
                return os.write(self.descriptor, content)
            except BlockingIOError:
                raise
            except OSError as error:
                self.has_failed = True
                if self.raises:
                    raise OutputError(error.errno, error.strerror) from None
                if self.name == STDOUT:
                    warning = f"warning: {STDOUT} cannot be written ({error.strerror}); continuing without it"
                    if (screen := find_screen()) is not None:  # which writes this, and holds locks
                        screen.notices.append(warning)
                    else:
                        print(warning, file=sys.stderr)
        return len(content)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)


@contextlib.contextmanager
def guard_output(*, is_run: bool = False) -> Iterator[None]:
    """Within the block, standard error never raises an error. Standard output raises OutputError or, in a run, none.

    Streams that a program has replaced, such as those of a notebook, stay as they are.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = guard_stream(sys.stdout, STDOUT, raises=not is_run)
    sys.stderr = guard_stream(sys.stderr, STDERR, raises=False)
    guarded = sys.stdout, sys.stderr
    try:
        yield
    finally:
        for stream in guarded:
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):  # ValueError: closed
                    stream.flush()
        sys.stdout, sys.stderr = before


def guard_stream(stream: Any, name: str, *, raises: bool) -> Any:
    """Returns a stream that writes to the same place through RawOutput; the stream itself if it is not one of Python's own."""
    if type(stream) is not io.TextIOWrapper or stream.closed:
        return stream
    raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # without one with `python -u`
    if type(raw) not in (io.FileIO, RawOutput):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    output: Any = RawOutput(raw.fileno(), name, raises=raises)
    return io.TextIOWrapper(
        output if stream.write_through else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors="backslashreplace",
        newline=None if os.name == "nt" else "\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def open_standard_output() -> TextIO:
    """Returns standard output, which is UTF-8 from now on, whatever the locale: for what programs read. InputError if it is
    closed."""
    if sys.stdout is None:
        raise InputError(f"{STDOUT} is closed, and the result goes there; `hf-finetune predict` takes a file as --out")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


def print_at_once(line: str) -> None:
    """Prints a line on standard error from a signal handler: past the buffer, which the interrupted code may be filling. A screen
    shows it under its bars, and prints it at its end."""
    screen = find_screen()
    if screen is not None and threading.current_thread() is threading.main_thread():
        screen.notices.append(line)
        return
    try:
        if not isinstance(sys.stderr, io.TextIOWrapper):  # replaced by a program, such as a notebook
            raise ValueError("not the error stream of Python")
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or replaced by a program
        print(line, file=sys.stderr, flush=True)
        return
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{line}\n".encode(errors="backslashreplace"))
