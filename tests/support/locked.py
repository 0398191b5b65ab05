"""A process that holds a lock: on this machine, on another one, or on a file system without locks."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_finetune.system import locks

FAST = {"BEAT_SECONDS": 0.1, "STALE_SECONDS": 1.0, "SETTLE_SECONDS": 0.3, "POLL_SECONDS": 0.02}

SCRIPT = f"""
import errno, sys
from pathlib import Path
from hf_finetune.system import locks
from hf_finetune.system.errors import InputError

path, place = Path(sys.argv[1]), sys.argv[2]
vars(locks).update({FAST!r})
if place == "elsewhere":  # its lock is one of another machine, which this one cannot see
    locks.find_machine, locks.lock_descriptor = lambda: "another machine", lambda descriptor: True
elif place != "here":
    locks.lock_descriptor = lambda descriptor: None
with locks.hold_lock(path, print) as lock:
    print("locked", flush=True)
    for line in sys.stdin:
        try:
            lock.check()
            print("held", flush=True)
        except InputError as error:
            print(error, flush=True)
"""


class Holder:
    """A process that holds the lock on a file."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.id = process, process.pid

    def ask(self) -> str:
        """What the process knows of its lock: "held", or an error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Has the process release the lock and end."""
        self.process.communicate()

    def kill(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stops the process, as a suspended machine does."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets a stopped process run again."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def held_lock(path: Path, place: str) -> Iterator[Holder]:
    """Another process holds the lock until the block ends. place: here, elsewhere (another machine), or no locks."""
    assert vars(locks).keys() >= FAST.keys()
    command = [sys.executable, "-c", SCRIPT, str(path), place]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield Holder(process)
        finally:
            process.kill()
