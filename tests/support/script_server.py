"""Runs Python scripts in forks of one process that has imported torch, transformers and the like, which takes seconds.

    python tests/support/script_server.py

Reads one JSON object a line. With `script`, `words` (its arguments), `folder` (its working directory), `environment`, `ranks`,
`finalizes` and `forks` it starts a script, and answers with a line of the numbers of its processes. The script runs as `__main__`
and writes its output into `folder`/stdout and `folder`/stderr. With several ranks it runs in as many processes at once, with the
environment that torchrun gives them. With `processes`, `seconds` and `kills` it waits for these processes, and answers with a
line of their exit codes, in the order in which they ended.
"""

import ctypes
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

# What takes long to import, and most scripts import sooner or later
HEAVY = (
    "torch",
    "torch.utils.tensorboard",
    "transformers.trainer",
    "transformers.trainer_seq2seq",
    "transformers.models.bert.modeling_bert",
    "datasets",
    "peft",
    "sklearn.metrics",
    "hf_finetune.train",
    "hf_finetune.export.predict",
)


class ScriptServer:
    """A client of the server, which it starts. environment: that of the server."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: dict[str, Any]) -> list[int]:
        """Sends a request. Returns the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: list[int] = json.loads(self.process.stdout.readline())
        return answer

    def start(
        self,
        script: Path | str,
        words: list[str],
        folder: Path,
        environment: dict[str, str],
        ranks: int = 1,
        finalizes: bool = False,
        forks: bool = False,
    ) -> "Scripts":
        """Starts a script, or with "-m" the module that `words` begin with, and returns at once.

        ranks: The number of processes that work on it together. finalizes: Whether they end as Python does, with all that the
        libraries do at the end of a process. It takes a second. forks: Whether Python processes that the script starts are forks
        of it (ForkedPopen).
        """
        for name in ("stdout", "stderr"):
            Path(folder, name).write_bytes(b"")
        request = {"script": str(script), "words": words, "folder": str(folder), "environment": environment}
        return Scripts(self, folder, self.ask({**request, "ranks": ranks, "finalizes": finalizes, "forks": forks}))

    def run(
        self,
        script: Path | str,
        words: list[str],
        folder: Path,
        environment: dict[str, str],
        ranks: int = 1,
        seconds: float = 600,
        forks: bool = False,
    ) -> int:
        """Runs a script to its end. Returns its exit code: -N if signal N killed it, that of the first rank that failed.

        ranks, forks: As for start(). seconds: After which all are killed.
        """
        return self.start(script, words, folder, environment, ranks, forks=forks).wait(seconds)

    def close(self) -> None:
        """Ends the server. It is killed, because an ordinary end takes seconds after these imports."""
        self.process.kill()
        self.process.communicate()


class Scripts:
    """A script that was started: one process, or several that work on it together.

    processes: Their process ids, by rank.
    """

    def __init__(self, server: ScriptServer, folder: Path, processes: list[int]) -> None:
        self.server, self.folder, self.processes = server, folder, processes
        self.codes: list[int] | None = None

    def wait(self, seconds: float = 600, kills: bool = True) -> int:
        """Waits for the end of all processes, and kills them when the time is over. Returns the exit code of the first one that
        failed, or 0.

        kills: Whether the others are killed if one fails.
        """
        self.codes = self.server.ask({"processes": self.processes, "seconds": seconds, "kills": kills})
        return next((code for code in self.codes if code), 0)

    def read(self, name: str = "stdout") -> str:
        """What the script has written so far."""
        return (self.folder / name).read_text(encoding="utf-8")

    def lines(self, seconds: float = 60) -> Iterator[str]:
        """Yields the lines of standard output as they are written. The test fails if no process is left or the time is over."""
        done, end = 0, time.monotonic() + seconds
        while time.monotonic() < end and any(map(is_running, self.processes)):
            written = self.read().split("\n")[:-1]
            yield from written[done:]
            done = len(written)
            time.sleep(0.01)
        raise AssertionError(f"no such line:\n{self.read()}\n{self.read('stderr')}")

    def wait_for_line(self, beginning: str, seconds: float = 60) -> str:
        """Waits until standard output has a line with this beginning, which it returns."""
        return next(line for line in self.lines(seconds) if line.startswith(beginning))


def is_running(process: int) -> bool:
    """Whether a process of this number has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def die_with_parent() -> None:
    """Has Linux kill this process when the one that started it ends: nothing is left of tests that are killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class ForkedPopen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen, but a Python process is a fork of this one, with what this one has imported.

    It has this one's standard streams, folder and environment unless others are given, as ever. Other commands, and what a fork
    starts itself, run as usual.
    """

    SIGNATURE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]

    def _execute_child(self, *values: Any) -> None:
        given = self.SIGNATURE.bind(self, *values).arguments
        words = given["args"]
        if isinstance(words, str) or words[0] != sys.executable:
            super()._execute_child(*values)  # type: ignore[misc]
            return
        ends = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self.become(list(map(str, words[1:])), given)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]

    def become(self, words: list[str], given: dict[str, Any]) -> None:
        """Runs Python's arguments in this process, the fork, and ends it."""
        die_with_parent()
        for stream in filter(None, (self.stdin, self.stdout, self.stderr)):  # ends of pipes that are the parent's
            os.close(stream.fileno())
        for number, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
            if given[name] != -1:
                os.dup2(given[name], number)
        if given["start_new_session"]:
            os.setsid()
        if given["cwd"] is not None:
            os.chdir(given["cwd"])
        if given["env"] is not None:
            os.environ.clear()
            os.environ.update(given["env"])
        subprocess.Popen = ForkedPopen.__base__  # type: ignore[misc, assignment]
        end_process(run_python(words))


def run_as_main(request: dict[str, Any]) -> int:
    """Runs a script in this process. Returns its exit code."""
    die_with_parent()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # in place of the requests
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{request['folder']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.path[1:1] = filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep))
    if request["forks"]:
        subprocess.Popen = ForkedPopen  # type: ignore[misc]
    return run_python([request["script"], *request["words"]])


def run_python(words: list[str]) -> int:
    """Runs a script, `-m` and a module, or `-c` and code, with its arguments. Returns its exit code."""
    try:
        if words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *words[2:]], os.getcwd()
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, int) and end.code is not None:
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:  # noqa: BLE001 - a script may raise anything
        traceback.print_exc()
        return 1
    return 0


def end_process(code: int) -> NoReturn:
    """Ends this process, without what libraries do at the end of a process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(request: dict[str, Any]) -> int:
    """Runs a script in a fork of this process. Returns its number."""
    process = os.fork()
    if process == 0:
        code = run_as_main(request)
        if request["finalizes"]:
            sys.exit(code)
        end_process(code)
    return process


def make_environments(ranks: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each of several processes; none for a single one."""
    if ranks == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def start_together(request: dict[str, Any]) -> list[int]:
    """Starts a script in as many processes as it has ranks. Returns their numbers."""
    environments = make_environments(request["ranks"])
    return [start({**request, "environment": {**request["environment"], **each}}) for each in environments]


def wait_for(processes: list[int], seconds: float, kills: bool) -> list[int]:
    """Waits until all have ended, and kills them when the time is over, or with `kills` when one has failed. Returns their exit
    codes, in the order in which they ended. -SIGALRM stands for the end of the time."""
    end, running, found = time.monotonic() + seconds, set(processes), list[int]()
    while running:
        ended = [(process, status) for process, status in (os.waitpid(each, os.WNOHANG) for each in running) if process]
        running -= {process for process, _ in ended}
        found += sorted((os.waitstatus_to_exitcode(status) for _, status in ended), key=lambda code: code == 0)
        is_late = time.monotonic() > end
        if running and is_late and -signal.SIGALRM not in found:
            found.append(-signal.SIGALRM)
        if is_late or (kills and any(found)):
            for process in running:
                os.kill(process, signal.SIGKILL)
        if not ended:
            time.sleep(0.01)
    return found


def main() -> None:
    """Answers requests until standard input ends."""
    die_with_parent()
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        answer = start_together(request) if "script" in request else wait_for(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
