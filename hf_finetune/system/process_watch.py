"""Watches the processes of a run. One that is stopped, or whose network is dead, is named, and the others do not wait for ever.

Each process counts beats in the key-value store that they all share (torch's TCPStore), in a thread of its own, whatever its main
thread does: a process that encodes or writes for an hour beats on. One whose beats do not change is silent. So is the store if it
does not answer: the machine that keeps it is stopped, or cannot be reached.
"""

import contextlib
import importlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from hf_finetune.system.output import print_at_once
from hf_finetune.system.signals import EXIT_TRY_AGAIN

PACKAGE = str(Path(__file__).parents[1])
WARNING_SECONDS = 45.0  # of silence before a warning. It must be more than a process holds Python's lock at a time
BEATS_A_WARNING = 9  # in that time
STORE = "the store of all processes"

session_numbers = count()  # the same on all processes, because all start and end their runs together


class ProcessWatch:
    """Tells the user which process the others wait for, and ends this process if that has taken too long.

    Args:
        process: The rank of this process.
        num_processes: The number of processes.
        patience_seconds: Silence of a process after which this one ends.
    """

    def __init__(self, process: int, num_processes: int, patience_seconds: float) -> None:
        self.process, self.num_processes, self.patience = process, num_processes, patience_seconds
        self.warns_after = min(WARNING_SECONDS, patience_seconds / 2)
        self.others = [rank for rank in range(num_processes) if rank != process]
        self.beats = dict.fromkeys(self.others, 0)
        watched: list[int | str] = [*self.others, STORE]
        self.seen_at = dict.fromkeys(watched, time.monotonic())  # of their last change
        self.names: dict[int, str] = {}  # host and process id
        self.has_left: set[int] = set()
        self.warned: set[int | str] = set()
        self.session = next(session_numbers)
        self.main_thread = threading.get_ident()
        self.ended = threading.Event()
        self.has_answered = False  # the store
        self.has_finished = False  # what this process does, without an error

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Watches until the block ends."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self.exchange_beats, self.look)]
        for thread in threads:
            thread.start()
        try:
            yield
            self.has_finished = True
        finally:
            self.ended.set()
            for thread in threads:
                thread.join(self.warns_after)  # a store that does not answer holds up nothing

    # --- the beats --------------------------------------------------------------------------------------------------

    def exchange_beats(self) -> None:
        """Counts beats in the store, and reads those of the others, until the watch ends. Connects again if that breaks."""
        while not self.ended.is_set():
            with contextlib.suppress(RuntimeError):  # torch's, of a store that is gone: look() sees that
                self.exchange_over(self.connect())
                return
            if not self.has_answered:
                self.say("warning: the processes do not watch each other: their store cannot be reached")
                return
            self.ended.wait(self.warns_after / BEATS_A_WARNING)

    def connect(self) -> Any:
        """Returns the store of this run's beats. The connection is its own: another thread of this process may be waiting in
        torch's."""
        distributed: Any = importlib.import_module("torch.distributed")  # type checkers do not see its stores
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        options: dict[str, Any] = {"is_master": False, "timeout": timedelta(seconds=self.patience)}
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # as torch.distributed.rendezvous does
            options["use_libuv"] = os.environ.get("USE_LIBUV", "0" if sys.platform == "win32" else "1") == "1"
        connection = distributed.TCPStore(address, port, **options)
        return distributed.PrefixStore(f"hf_finetune/beats/{self.session}/", connection)

    def exchange_over(self, store: Any) -> None:
        """Counts and reads beats in a store until the watch ends. RuntimeError if it is gone."""
        store.set(f"name/{self.process}", f"{socket.gethostname()} process {os.getpid()}")
        while not self.ended.wait(self.warns_after / BEATS_A_WARNING):
            store.add(f"beat/{self.process}", 1)
            for rank in self.others:
                self.take(rank, store.add(f"beat/{rank}", 0), has_left=store.check([f"left/{rank}"]))
                if rank not in self.names and store.check([f"name/{rank}"]):
                    self.names[rank] = store.get(f"name/{rank}").decode()
            self.seen_at[STORE], self.has_answered = time.monotonic(), True
        if self.has_finished:
            store.set(f"left/{self.process}", "")

    def take(self, rank: int, beat: int, *, has_left: bool) -> None:
        """Records the beats of a process."""
        if has_left:
            self.has_left.add(rank)
        if beat != self.beats[rank]:
            self.beats[rank] = beat
            self.seen_at[rank] = time.monotonic()

    # --- what follows from them -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Warns of processes that are silent, and ends this one if one is silent for too long."""
        pause, looked_at = self.warns_after / BEATS_A_WARNING, time.monotonic()
        while not self.ended.wait(pause):
            now = time.monotonic()
            if (
                now - looked_at > pause + self.warns_after
            ):  # this process was stopped itself, as all are if a job is suspended
                self.seen_at = dict.fromkeys(self.seen_at, now)
            looked_at = now
            silent = self.find_silent()
            for one in self.warned - silent.keys():
                self.say(f"{self.describe(one)} answers again")
            for one in silent.keys() - self.warned:
                self.say(
                    f"warning: waiting for {self.describe(one)}, which has given no sign of life for {silent[one]:.0f} s. This "
                    f"process is at {describe_place(sys._current_frames().get(self.main_thread))}. The run ends after "
                    f"{self.patience / 60:g} minutes of silence (run.patience_minutes)"
                )
            self.warned = {*silent}
            for one, seconds in silent.items():
                if seconds > self.patience:
                    self.say(
                        f"error: {self.describe(one)} has given no sign of life for {self.patience / 60:g} minutes "
                        "(run.patience_minutes): the run ends; the same command continues it from its last checkpoint"
                    )
                    # The main thread may wait in a collective, which no exception ends. What is on the disk is complete, as after
                    # a SIGKILL
                    os._exit(EXIT_TRY_AGAIN)

    def find_silent(self) -> dict[int | str, float]:
        """Returns who is silent, and for how many seconds. If the store is, nothing is known of the processes."""
        now = time.monotonic()
        silent = {one: now - seen for one, seen in self.seen_at.items() if one not in self.has_left}
        silent = {one: seconds for one, seconds in silent.items() if seconds > self.warns_after}
        if STORE not in silent:
            return silent
        return {STORE: silent[STORE]} if self.has_answered else {}

    def describe(self, one: int | str) -> str:
        """Returns the name of a process, or of the store."""
        if isinstance(one, str):
            return f"{one} (on {os.environ['MASTER_ADDR']})"
        return f"process {one} of {self.num_processes} ({self.names.get(one, 'unknown host')})"

    def say(self, line: str) -> None:
        """Prints a line, if no process that is not silent has a lower rank: one of them speaks for all."""
        silent = self.find_silent()
        lower = [
            rank for rank in self.others if rank < self.process and rank not in silent and rank not in self.has_left
        ]
        if STORE in silent or not lower:
            print_at_once(line)


def describe_place(frame: FrameType | None) -> str:
    """Returns where a thread is: the function that this package called, and the place of the call."""
    called = ""  # the outermost function below this package's
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if path.startswith(PACKAGE):
            place = f"{Path(path).relative_to(PACKAGE)}, line {frame.f_lineno}"
            return f"{called}() in {name}() ({place})" if called else f"{name}() ({place})"
        called = called if name == "wrapper" else name  # torch wraps its collectives, for its logs
        frame = frame.f_back
    return "an unknown place"


def watch_processes(
    process: int, num_processes: int, patience_minutes: float
) -> contextlib.AbstractContextManager[None]:
    """Watches the processes within a block, if there are several."""
    if num_processes == 1:
        return contextlib.nullcontext()
    return ProcessWatch(process, num_processes, 60 * patience_minutes).at_work()
