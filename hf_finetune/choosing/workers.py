"""Trials at the same time: each in a process of its own, on a GPU of its own if there are several.

A worker process takes one trial after the other from its standard input, and writes what came of each to its standard output. It
ends with the program that started it: when its input is closed, it saves the trial that it trains and stops.
"""

import concurrent.futures
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, TypeVar

import torch

from hf_finetune.choosing.trials import Outcome, run_trial
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.encoding_workers import count_cores
from hf_finetune.system.errors import AGAIN, InputError, StoppedError
from hf_finetune.system.signals import StopSignals

K = TypeVar("K", int, str)  # what a trial is known by

VISIBLE = "CUDA_VISIBLE_DEVICES"  # the GPUs that a process may use; ROCm reads it, too


def choose_parallel(given: int | None) -> int:
    """Returns how many trials run at the same time: as many as there are GPUs, one without GPUs, if nothing is given.

    Raises InputError if there are fewer GPUs, or if this process is one of several that work together.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "many runs in one command: each has one process; start it without torchrun or accelerate launch, and give --parallel "
            "for several runs at the same time"
        )
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if given is None:
        return max(1, num_gpus)
    if given < 1:
        raise InputError(f"--parallel ({given}): must be at least 1")
    if num_gpus and given > num_gpus:
        raise InputError(f"--parallel ({given}): there are {num_gpus} GPUs, and each trial has one of its own")
    return given


def describe_parallel(count: int) -> str:
    """Returns the words of a line that say how many runs there are at the same time; "" for one."""
    return f", {count} at the same time," if count > 1 else ""


def make_environment(number: int, count: int) -> dict[str, str]:
    """Returns the environment of a worker: its GPU, and its share of the CPU's cores."""
    environment = dict(os.environ)
    if torch.cuda.is_available():
        gpus = [gpu for gpu in os.environ.get(VISIBLE, "").split(",") if gpu] or list(map(str, range(count)))
        environment[VISIBLE] = gpus[number]
    return {"OMP_NUM_THREADS": str(max(1, count_cores() // count)), **environment}


class WorkerGoneError(InputError):
    """A worker process ended by itself, such as for want of memory."""


class Worker:
    """A process that runs trials, as the program that started it sees it."""

    def __init__(self, number: int, count: int) -> None:
        # It imports from where this process does. -m would look into the current folder first, whose files may hide modules
        start = f"import sys; sys.path[:] = {sys.path!r}; from hf_finetune.choosing.workers import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=make_environment(number, count),
        )

    def run(self, config: RunConfig, share: float) -> Outcome:
        """Runs a trial as run_trial() does. Raises what that raises, and WorkerGoneError if the process is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump((config, share), self.process.stdin)
            self.process.stdin.flush()
            answer = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            status = self.process.wait()
            reason = ", such as for want of memory" if status == -getattr(signal, "SIGKILL", 9) else ""
            raise WorkerGoneError(
                f"{config.run_dir}: the process that trained it ended with status {status}{reason}; {AGAIN} with a smaller "
                "--parallel to continue"
            ) from None
        if isinstance(answer, Outcome):
            return answer
        raise answer


@dataclass(kw_only=True)
class TrialRunner(Generic[K]):
    """Runs trials: one at a time in this process, or as many at the same time as there are workers.

    Attributes:
        workers: The processes; none if trials run in this one.
        threads: One for each of them, which waits for its trials.
        running: The trials that run, by the key that they were started with.
        idle: Workers without a trial.
    """

    workers: Sequence[Worker] = ()
    threads: concurrent.futures.ThreadPoolExecutor | None = None
    running: dict[K, "concurrent.futures.Future[Outcome]"] = field(default_factory=dict)
    idle: "queue.SimpleQueue[Worker]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        for worker in self.workers:
            self.idle.put(worker)

    @property
    def has_room(self) -> bool:
        """True if another trial can be started now."""
        return len(self.running) < max(1, len(self.workers))

    def start(self, key: K, config: RunConfig, *, share: float = 1.0) -> None:
        """Starts a trial, or continues it: up to this share of its updates. In this process, it runs to that now."""
        if self.threads is not None:
            self.running[key] = self.threads.submit(self.run_on_idle, config, share)
            return
        self.running[key] = concurrent.futures.Future()
        try:
            self.running[key].set_result(run_trial(config, share=share))
        except InputError as error:
            self.running[key].set_exception(error)

    def run_on_idle(self, config: RunConfig, share: float) -> Outcome:
        """Runs a trial on a worker that has none. As many threads as workers call this, so that there is one."""
        worker = self.idle.get()
        try:
            return worker.run(config, share)
        finally:
            self.idle.put(worker)

    def wait(self) -> tuple[K, Outcome | InputError]:
        """Waits for a trial. Returns the key that it was started with, and what it has reached, or the InputError that ended it.

        Raises StoppedError if a signal has stopped it, and WorkerGoneError.
        """
        done, _ = concurrent.futures.wait(self.running.values(), return_when=concurrent.futures.FIRST_COMPLETED)
        key = next(key for key, future in self.running.items() if future in done)
        future = self.running.pop(key)
        error = future.exception()
        if error is None:
            return key, future.result()
        if isinstance(error, InputError) and not isinstance(error, WorkerGoneError):
            return key, error
        raise error


@contextlib.contextmanager
def open_runner(count: int) -> Iterator[TrialRunner[Any]]:
    """Within the block, trials can run. Several at a time run in worker processes, which end with the block.

    A signal then raises StoppedError in this process; the trials are saved before the block is left.
    """
    if count == 1:
        yield TrialRunner()
        return
    with StopSignals().install(), contextlib.ExitStack() as stack:
        threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(count))
        workers = [Worker(number, count) for number in range(count)]
        for worker in workers:
            stack.callback(worker.process.wait)
        for worker in workers:  # all begin to end before one is waited for
            stack.callback(close_quietly, worker.process.stdin)
        try:
            yield TrialRunner(workers=workers, threads=threads)
        except StoppedError as error:
            name = str(error).partition(":")[0]
            raise StoppedError(f"{name}: all trials are saved; {AGAIN} to continue") from None


def close_quietly(file: Any) -> None:
    """Closes a pipe whose reader may be gone."""
    with contextlib.suppress(OSError):
        file.close()


# --- in the worker process ------------------------------------------------------------------------------------------


def read_tasks(source: BinaryIO, tasks: "queue.Queue[tuple[RunConfig, float] | None]") -> None:
    """Puts all tasks of the program into a queue; None when it is gone or has closed the pipe. A trial is saved then."""
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            tasks.put(pickle.load(source))
    tasks.put(None)
    if tasks.unfinished_tasks > 1:
        signal.raise_signal(signal.SIGTERM)


def make_sendable(error: BaseException) -> BaseException:
    """Returns an error that another process can raise: the same with this process's traceback, or one with its text."""
    if isinstance(error, (InputError, StoppedError)):
        return error
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(text)
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  pickle raises what the error's class does
        return RuntimeError(text)
    return error


def work(source: BinaryIO, target: BinaryIO) -> None:
    """Runs the trials that are asked for, until there are no more."""
    tasks: queue.Queue[tuple[RunConfig, float] | None] = queue.Queue()
    threading.Thread(target=read_tasks, args=(source, tasks), daemon=True).start()
    while (task := tasks.get()) is not None:
        answer: Outcome | BaseException
        try:
            answer = run_trial(task[0], share=task[1])
        except (Exception, StoppedError) as error:  # noqa: BLE001  the program raises it
            answer = make_sendable(error)
        tasks.task_done()
        pickle.dump(answer, target)
        target.flush()


def main() -> None:
    """Works for the program that started this process. What is printed goes to standard error: the output has the answers."""
    for number in ("SIGINT", "SIGQUIT"):  # from a terminal they reach both; the program closes the pipe
        if hasattr(signal, number):
            signal.signal(getattr(signal, number), signal.SIG_IGN)
    # Files of their own: a process that a trial forks closes sys.stdin, for which it would wait as long as a thread reads it
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):  # of a program that is gone
        work(source, target)
