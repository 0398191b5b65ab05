"""Signals that ask a run to stop: noticed at once, heeded where nothing is lost.

A cluster that takes a machine back sends SIGTERM, Slurm also SIGUSR1 if told to, a person Ctrl-C (SIGINT).
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from hf_finetune.system.errors import StoppedError

EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

# Ctrl-C under torchrun reaches a process twice, from the terminal and from torchrun
SAME_SIGNAL_SECONDS = 1.0


class StopSignals:
    """What has been received. While there is nothing to save (`ends_at_once`) a signal raises StoppedError where it finds the
    program; else it is only noted, and the run stops at its next update, batch or chunk. A second one ends at once."""

    def __init__(self) -> None:
        self.received = ""
        self.since = 0.0
        self.ends_at_once = True

    def receive(self, number: int, _: Any = None) -> None:
        """The handler."""
        if self.received:
            if time.monotonic() - self.since > SAME_SIGNAL_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received, self.since = signal.Signals(number).name, time.monotonic()
        if self.ends_at_once:
            raise StoppedError(self.received)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{self.received}: saving, then stopping; once more ends at once", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def install(self) -> Iterator[None]:
        """Receives within the block; Python lets only a program's main thread do so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.receive) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
