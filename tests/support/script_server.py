"""Runs Python scripts in forks of one process that has imported torch, transformers and the like, which takes seconds.

    python tests/support/script_server.py

Reads one JSON object a line: `script`, `words` (its arguments), `folder` (its working directory), `environment`, `ranks` and
`seconds`. Each script runs as `__main__` and writes its output into `folder`/stdout and `folder`/stderr. With several ranks it
runs in as many processes at once, with the environment that torchrun gives them. The answer is a line with its exit code.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HEAVY = ("torch", "transformers.trainer", "transformers.trainer_seq2seq", "datasets", "peft", "hf_finetune.train")


class ScriptServer:
    """A client of the server, which it starts. environment: that of the server."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self,
        script: Path,
        words: list[str],
        folder: Path,
        environment: dict[str, str],
        ranks: int = 1,
        seconds: float = 600,
    ) -> int:
        """Runs a script to its end. Returns its exit code: -N if signal N killed it, that of the first rank that failed.

        ranks: The number of processes that work on it together. seconds: After which they are killed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"script": str(script), "words": words, "folder": str(folder), "environment": environment}
        self.process.stdin.write(json.dumps({**request, "ranks": ranks, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the server. It is killed, because an ordinary end takes seconds after these imports."""
        self.process.kill()
        self.process.communicate()


def run_as_main(request: dict[str, Any]) -> int:
    """Runs a script in this process. Returns its exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # in place of the requests
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{request['folder']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.argv = [request["script"], *request["words"]]
    sys.path[0] = str(Path(request["script"]).parent)
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, int) and end.code is not None:
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:  # noqa: BLE001 - a script may raise anything
        traceback.print_exc()
        return 1
    return 0


def start(request: dict[str, Any]) -> int:
    """Runs a script in a fork of this process. Returns its number."""
    process = os.fork()
    if process == 0:
        code = run_as_main(request)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
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


def run_together(request: dict[str, Any]) -> int:
    """Runs a script in as many processes as it has ranks. If one fails or the time is over, the others are killed."""
    for name in ("stdout", "stderr"):
        Path(request["folder"], name).write_bytes(b"")
    environments = make_environments(request["ranks"])
    running = {start({**request, "environment": {**request["environment"], **each}}) for each in environments}
    end, found = time.monotonic() + request["seconds"], 0
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        running.discard(process)
        if process and not found:
            found = os.waitstatus_to_exitcode(status)
        if found or time.monotonic() > end:
            found = found or -signal.SIGALRM
            for other in running:
                os.kill(other, signal.SIGKILL)
        if not process:
            time.sleep(0.01)
    return found


def main() -> None:
    """Answers requests until standard input ends."""
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        print(run_together(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
