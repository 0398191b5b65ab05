"""Calls a function in a forked process with limits on time and memory: patterns and templates may never end, or fill the memory.

Python cannot end a call into its C code, such as the search for a regular expression, and cannot limit what one call takes.
"""

import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

# Elsewhere a process with threads cannot be forked safely, and functions are called without limits
HAS_LIMITS = sys.platform == "linux"

# A process without calls for this time ends, and the next call starts another one: while it lives, memory that the other process
# changes is there twice
SECONDS_IDLE = 1.0


class LimitError(Exception):
    """A call did not end within its limits. The message says which: "took more than 30 seconds"."""


class LimitedFunction:
    """A function whose calls run in one process of their own, which is forked at the first call. Arguments and results are
    pickled.

    Args:
        function: The function. It sees what it refers to as it was at the fork.
        seconds: The most time that a call may take.
        megabytes: The most memory that the calls may take, besides what this process has.
    """

    def __init__(self, function: Callable[..., Any], *, seconds: float = 30, megabytes: int = 1000) -> None:
        self.function, self.seconds, self.megabytes = function, seconds, megabytes
        self.connection: Connection | None = None
        self.owner = 0
        self.finalizer: Callable[[], object] = lambda: None
        self.calling = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Returns the function's result. LimitError if it passes a limit; RuntimeError if it raises an error."""
        if not HAS_LIMITS:
            return self.function(*arguments)
        with self.calling:
            return self.call(arguments)

    def call(self, arguments: tuple[Any, ...]) -> Any:
        """As __call__(), by one thread at a time."""
        # The process may just have ended because it had nothing to do
        answer = self.ask(arguments) or self.ask(arguments)
        if answer is None:
            raise LimitError("ended without an answer")
        kind, value = answer
        if kind == "memory":
            self.close()
            raise LimitError(f"takes more than {self.megabytes:,} MB of memory")
        if kind == "error":
            raise RuntimeError(value)
        return value

    def ask(self, arguments: tuple[Any, ...]) -> tuple[str, Any] | None:
        """Returns the answer of the process, which is started if there is none; None if it ended without one. LimitError if it
        takes too long."""
        if self.connection is None or self.owner != os.getpid():  # a fork of this process needs a process of its own
            self.start()
        assert self.connection is not None
        try:
            self.connection.send(arguments)
            if not self.connection.poll(self.seconds):
                raise LimitError(f"took more than {self.seconds:g} seconds")
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.close()
            return None
        except BaseException:
            self.close()
            raise
        return str(kind), value

    def start(self) -> None:
        """Forks the process."""
        ours, theirs = Pipe()
        process = os.fork()
        if process == 0:
            serve(theirs, self.function, self.megabytes)
        theirs.close()
        self.connection, self.owner = ours, os.getpid()
        self.finalizer = weakref.finalize(self, end_process, ours, process, self.owner)

    def close(self) -> None:
        """Ends the process. The next call starts another one."""
        self.finalizer()
        self.connection = None


def end_process(connection: Connection, process: int, owner: int) -> None:
    """Ends a process that serve() runs in. Only its parent, the process `owner`, does; a fork of that closes the connection."""
    connection.close()
    if os.getpid() != owner:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, 0)


def serve(connection: Connection, function: Callable[..., Any], megabytes: int) -> None:
    """Answers calls until there is none for SECONDS_IDLE, or the other side closes the connection, then ends this process."""
    try:
        # Ctrl-C reaches all processes of a terminal; the other side decides
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        close_others(connection.fileno())
        limit_memory(megabytes)
        while connection.poll(SECONDS_IDLE):
            connection.send(answer(function, connection.recv()))
        os._exit(0)
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)


def answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Returns "value" and the result of a call; "memory" or "error" and the reason if it has none."""
    try:
        return "value", function(*arguments)
    except MemoryError:
        return "memory", ""
    except Exception as error:  # noqa: BLE001  it is raised on the other side
        return "error", f"{type(error).__name__}: {error}"


def close_others(kept: int) -> None:
    """Closes all files but standard ones and `kept`: sockets and pipes of this process would else stay open while it lives."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(number)


def limit_memory(megabytes: int) -> None:
    """Limits what this process may take besides what it has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 1_000_000
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if most == resource.RLIM_INFINITY else min(size, most), most))
