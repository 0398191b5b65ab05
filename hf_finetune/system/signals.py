"""Signals that ask a run to stop. They are received at once, and acted on where no work is lost.

SIGTERM is sent by a cluster that takes the machine back, SIGUSR1 and SIGUSR2 by Slurm if configured, SIGINT by Ctrl-C, SIGQUIT by
Ctrl-\\, SIGHUP when a terminal or its connection is closed, SIGXCPU at a limit on processor time.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from hf_finetune.system.console import is_notebook
from hf_finetune.system.errors import StoppedError
from hf_finetune.system.output import print_at_once

EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes the run

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGXCPU")
STOP_SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))  # Windows lacks some

# Ctrl-C under torchrun reaches a process twice: from the terminal, and from torchrun
SAME_SIGNAL_SECONDS = 1.0

# A module that is interrupted while it is imported may be unusable afterwards (torch is), so the signal waits for its end.
# One whose error Python ignored comes again after this time, too
WAIT_SECONDS = 0.1


class StopSignals:
    """The stop signal that this process has received, if any.

    As long as a run has nothing to save (`ends_at_once`), a signal raises StoppedError wherever the program is. Within
    deferred() it is only recorded, and the run stops at its next update, batch or chunk. A second signal ends the process.
    """

    def __init__(self) -> None:
        self.received = ""  # name of the signal
        self.received_at = 0.0  # seconds, time.monotonic()
        self.raised = 0  # number of the signal that raised an error last
        self.ends_at_once = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block, a signal is recorded instead of raised: there is something to save first."""
        before, self.ends_at_once = self.ends_at_once, False
        try:
            yield
        finally:
            self.ends_at_once = before

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handles a signal."""
        if self.received:
            if signal.Signals(number).name == "SIGXCPU":  # which comes again each second
                return
            if time.monotonic() - self.received_at > SAME_SIGNAL_SECONDS:
                if is_notebook():  # whose kernel continues
                    self.raised = number
                    raise KeyboardInterrupt
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.ends_at_once and is_importing(frame):
            send_again(number)
            return
        self.received, self.received_at = signal.Signals(number).name, time.monotonic()
        if self.ends_at_once:
            self.raised = number
            raise StoppedError(self.received)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print_at_once(f"{self.received}: saving, then stopping; a second signal stops without saving")

    def receive_again(self, ignored: Any) -> bool:
        """Returns True, and has the signal come again, if Python ignored its error: it was raised in a __del__ or in a callback
        of the garbage collector, from where no error reaches the program."""
        if not self.raised or not isinstance(ignored.exc_value, KeyboardInterrupt):
            return False
        if isinstance(ignored.exc_value, StoppedError):  # of the first signal, which comes again as the first
            self.received = ""
        number, self.raised = self.raised, 0
        send_again(number)
        return True

    @contextlib.contextmanager
    def install(self) -> Iterator[None]:
        """Receives signals within the block. Those that are ignored stay so (SIGHUP after `nohup`).

        Does nothing outside the main thread, where Python allows no handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        handlers_before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        report_ignored = sys.unraisablehook
        sys.unraisablehook = lambda ignored: None if self.receive_again(ignored) else report_ignored(ignored)
        try:
            set_handlers(dict.fromkeys(handlers_before, self.receive))
            yield
        finally:
            sys.unraisablehook = report_ignored
            try:
                set_handlers(handlers_before)
            except KeyboardInterrupt:  # of a signal that arrived between two of them; nobody sends another one as fast
                set_handlers(handlers_before)
                raise


def set_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
    """Has these handlers receive the signals."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send_again(number: int) -> None:
    """Sends this process the signal once more, WAIT_SECONDS from now."""
    threading.Timer(WAIT_SECONDS, signal.raise_signal, (number,)).start()


def is_importing(frame: FrameType | None) -> bool:
    """True if a module is being imported in this frame or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
