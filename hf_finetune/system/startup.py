"""The start and the end of a process that imports thousands of modules, which live until it ends."""

import atexit
import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

PROCESS_STATUS = Path("/proc/self/stat")
LOADED = time.perf_counter()
MOST_SECONDS = 30.0  # that a command takes until its settings are read
START_TICKS = 19  # the process's start, counted from the field after its name


@contextlib.contextmanager
def quick_imports(*, is_command: bool = False) -> Iterator[None]:
    """Imports without the garbage collector, which would look through the modules again and again: nothing of them is garbage.

    is_command: The process ends after it. Then the collector never looks at them, nor at anything at the process's end, where
    the operating system frees the memory in a fraction of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_command:
            gc.freeze()
            atexit.register(gc.freeze)
        if was_enabled:
            gc.enable()


def find_command_start() -> float | None:
    """Returns when the process was started for this command, as time.perf_counter() would have told it; None if the process has
    done something else before: a notebook, or a job script that replaced itself by Python."""
    start = find_process_start()
    is_command = LOADED - start < MOST_SECONDS and time.perf_counter() - LOADED < MOST_SECONDS
    return start if is_command else None


def find_process_start() -> float:
    """Returns when this process was started, as time.perf_counter() would have told it."""
    if PROCESS_STATUS.exists():
        ticks = int(PROCESS_STATUS.read_text().rpartition(")")[2].split()[START_TICKS])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    else:
        import psutil

        age = time.time() - psutil.Process().create_time()
    return time.perf_counter() - age
