"""Predictions by several processes, each with the model. Parts are dealt to them in turn, and come back in order."""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from hf_finetune.data.parts import Part
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_files import Line, format_part
from hf_finetune.export.prediction_rows import PredictionOptions
from hf_finetune.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Processes that predict parts.

    Args:
        num_processes: Their number.
        predictor: The model as this process has it. Its weights are given up when the processes have their own.
        location, arguments: What each process loads: the arguments of Predictor.from_pretrained().
        options: What is predicted.
    """

    num_processes: int
    predictor: Predictor
    location: str
    arguments: Mapping[str, Any]
    options: PredictionOptions

    def predict(self, parts: Iterator[Part]) -> Iterator[tuple[Part, Iterable[Line]]]:
        """Yields parts and their lines, in order. InputError if a row cannot be used, or if a process is gone."""
        with self.start() as connections:
            waiting: deque[tuple[Part, Connection]] = deque()
            for number, part in enumerate(parts):
                connection = connections[number % self.num_processes]
                if len(waiting) == self.num_processes:
                    yield receive(*waiting.popleft())
                send(connection, part)
                waiting.append((part, connection))
            while waiting:
                yield receive(*waiting.popleft())

    @contextlib.contextmanager
    def start(self) -> Iterator[list[Connection]]:
        """Starts the processes, and ends them with the block."""
        context = multiprocessing.get_context("spawn")  # a process that has computed with torch cannot be forked
        threads = max(1, torch.get_num_threads() // self.num_processes)
        device = self.predictor.model.device
        self.predictor.model.to("meta")
        processes, connections = [], []
        try:
            for number in range(self.num_processes):
                connection, other = context.Pipe()
                chosen = spread_device(device, number) if self.arguments.get("device") is None else device
                arguments = {**self.arguments, "device": str(chosen)}
                process = context.Process(
                    target=work, args=(other, self.location, arguments, self.options, threads), daemon=True
                )
                process.start()
                other.close()
                processes.append(process)
                connections.append(connection)
            yield connections
        finally:
            for connection in connections:
                connection.close()
            for process in processes:
                process.terminate()
                process.join()


def spread_device(device: torch.device, number: int) -> torch.device:
    """Returns the device of a process: the next of several accelerators."""
    if device.type == "cpu":
        return device
    return torch.device(device.type, number % torch.accelerator.device_count())


def send(connection: Connection, part: Part) -> None:
    """Gives a part to a process."""
    try:
        connection.send(part)
    except OSError:
        raise lost_process_error() from None


def receive(part: Part, connection: Connection) -> tuple[Part, list[Line]]:
    """Returns a part and its lines. InputError if a row cannot be used, or if the process is gone."""
    try:
        answer = connection.recv()
    except (EOFError, OSError):
        raise lost_process_error() from None
    if isinstance(answer, InputError):
        raise answer
    return part, answer


def lost_process_error() -> InputError:
    """Returns the error for a process that has ended by itself."""
    return InputError("--processes: a process has ended, probably because the memory is full; give fewer processes")


def work(
    connection: Connection, location: str, arguments: Mapping[str, Any], options: PredictionOptions, threads: int
) -> None:
    """Predicts parts until none come any more. The process that sends them handles interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    predictor = options.prepare(Predictor.from_pretrained(location, **arguments))
    with contextlib.suppress(EOFError, OSError):  # the other end is closed
        while True:
            part = connection.recv()
            try:
                answer: list[Line] | InputError = list(format_part(predictor, part, options))
            except InputError as error:
                answer = error
            connection.send(answer)
