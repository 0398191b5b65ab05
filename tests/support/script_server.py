"""Runs Python scripts in forks of one process that has imported torch, transformers and the like, which takes seconds.

    python tests/support/script_server.py

Reads one JSON object a line: `script`, `words` (its arguments), `folder` (its working directory) and `environment`. Each script
runs as `__main__` and writes its output into `folder`/stdout and `folder`/stderr. The answer is a line with its exit code.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
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

    def run(self, script: Path, words: list[str], folder: Path, environment: dict[str, str]) -> int:
        """Runs a script to its end. Returns its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"script": str(script), "words": words, "folder": str(folder), "environment": environment}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the server. It is killed, because an ordinary end takes seconds after these imports."""
        self.process.kill()
        self.process.communicate()


def run_as_main(request: dict[str, Any]) -> int:
    """Runs a script in this process. Returns its exit code."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{request['folder']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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


def main() -> None:
    """Answers requests until standard input ends."""
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            code = run_as_main(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
