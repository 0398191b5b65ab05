"""Starts commands of hf-finetune in real processes that can be killed: forks of a warm process, or processes that import all.

A fork is a process like any other: it has memory, files and locks of its own, and SIGKILL ends it at once, wherever it is. It
only shares the seconds of `import torch`. The processes of a command with several ranks are one process group, as under a
launcher.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.script_server import HEAVY, make_environments

# What a run imports besides
WARM = (
    *HEAVY,
    *("hf_finetune.cli", "hf_finetune.cli_push", "hf_finetune.tasks.classify", "hf_finetune.export.prediction_rows"),
    *("sklearn.metrics", "scipy.stats", "hf_finetune.tasks.metrics"),
    *("transformers.models.bert.modeling_bert", "safetensors.torch", "torch.utils.tensorboard.summary", "pyarrow.json"),
)


class Started:
    """The processes of a command that was started. codes: the exit codes of those that have ended, by process id."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = list(pids)  # by rank
        self.codes: dict[int, int] = {}

    @property
    def is_running(self) -> bool:
        """True if one of the processes has not ended."""
        return len(self.codes) < len(self.pids)

    def wait(self, seconds: float) -> None:
        """Waits until a process ends, at most this number of seconds."""
        raise NotImplementedError

    def kill(self, rank: int | None = None) -> None:
        """Kills a process with SIGKILL, or the process group."""
        try:
            if rank is None:
                os.killpg(self.pids[0], signal.SIGKILL)
            else:
                os.kill(self.pids[rank], signal.SIGKILL)
        except ProcessLookupError:  # it has ended
            pass

    def wait_for_end(self, seconds: float) -> bool:
        """Waits until all have ended, at most this number of seconds. Returns whether they have."""
        end = time.monotonic() + seconds
        while self.is_running and time.monotonic() < end:
            self.wait(0.05)
        return not self.is_running

    def was_killed(self) -> bool:
        """True if SIGKILL ended one of the processes."""
        return -signal.SIGKILL in self.codes.values()


# --- forks of a warm process ----------------------------------------------------------------------------------------


class Nursery:
    """A process that has imported what a run needs, and forks. It is a fork of this one, which should have no threads yet."""

    def __init__(self) -> None:
        for name in WARM:
            importlib.import_module(name)
        sys.stdout.flush()
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.requests)
            os.close(self.answers)
            serve_forks(requests, answers)
            os._exit(0)
        os.close(requests)
        os.close(answers)
        self.received = b""

    def start(self, words: Sequence[str], output: Path, environment: Mapping[str, str], ranks: int = 1) -> "Forks":
        """Starts `hf-finetune WORDS` in as many forks as it has ranks. output: The file that gets what they print."""
        environments = [{**environment, **each} for each in make_environments(ranks)]
        request = {"words": list(words), "output": str(output), "environments": environments}
        os.write(self.requests, json.dumps(request).encode() + b"\n")
        while not (answers := self.receive(60.0)):
            pass
        forks = Forks(self, answers[0])
        forks.codes.update(answers[1:])
        return forks

    def receive(self, seconds: float) -> list[Any]:
        """Waits for answers, at most this number of seconds, and returns them."""
        if select.select([self.answers], [], [], seconds)[0]:
            self.received += os.read(self.answers, 65536)
        *lines, self.received = self.received.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Ends the process."""
        os.close(self.requests)
        os.waitpid(self.pid, 0)
        os.close(self.answers)


class Forks(Started):
    """Processes that a nursery has forked."""

    def __init__(self, nursery: Nursery, pids: Sequence[int]) -> None:
        super().__init__(pids)
        self.nursery = nursery

    def wait(self, seconds: float) -> None:
        """Waits until a process ends, at most this number of seconds."""
        for pid, code in self.nursery.receive(seconds):
            self.codes[pid] = code


def serve_forks(requests: int, answers: int) -> None:
    """Answers each line of requests with the process ids of its forks, and then with a line for each that has ended."""
    with os.fdopen(requests) as lines:
        for line in lines:
            request = json.loads(line)
            pids: list[int] = []
            for environment in request["environments"]:
                pid = os.fork()
                if pid == 0:
                    os.close(requests)
                    os.close(answers)
                    os.setpgid(0, pids[0] if pids else 0)
                    os._exit(run_command(request["words"], request["output"], environment))
                os.setpgid(pid, pids[0] if pids else pid)  # as the fork does: whoever is first
                pids.append(pid)
            os.write(answers, json.dumps(pids).encode() + b"\n")
            for _ in pids:
                pid, status = os.waitpid(-1, 0)
                os.write(answers, json.dumps([pid, os.waitstatus_to_exitcode(status)]).encode() + b"\n")


def run_command(words: Sequence[str], output: str, environment: Mapping[str, str]) -> int:
    """Runs `hf-finetune WORDS` in this process, and returns its exit code."""
    from huggingface_hub import constants

    from hf_finetune.cli import main

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    # huggingface_hub has read these when it was imported
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = environment["HF_ENDPOINT"], False
    try:
        code = main(list(words))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - a defect of the package: its traceback is printed
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


# --- processes that import everything themselves --------------------------------------------------------------------


class FreshProcesses(Started):
    """Processes that run a command, without a launcher; with several ranks in the environment that torchrun gives them."""

    def __init__(self, command: Sequence[str], output: Path, environment: Mapping[str, str], ranks: int = 1) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        with output.open("ab") as file:
            for each in make_environments(ranks):
                self.processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=file,
                        env={**environment, **each},
                        process_group=self.processes[0].pid if self.processes else 0,
                    )
                )
        super().__init__([process.pid for process in self.processes])

    def wait(self, seconds: float) -> None:
        """Waits for this number of seconds."""
        time.sleep(seconds)
        for process in self.processes:
            if process.poll() is not None:
                self.codes[process.pid] = process.returncode
