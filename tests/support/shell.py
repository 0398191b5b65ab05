"""Runs commands as a shell does, in forks of a warm process, after code that spoils their surroundings."""

import json
from pathlib import Path
from typing import Any

from support import tiny
from support.script_server import Scripts, ScriptServer
from support.terminal import Terminal

LABELS = {"animals": "größe→", "food": "日本"}

# Runs the code, then the command, and ends as Python does: writes what is in the buffers
COMMAND = """
import errno, os, sys
from hf_finetune.cli import main

code, *words = sys.argv[1:]
encoding = "utf-8"
exec(code)
sys.stdout = open(1, "w", encoding=encoding, closefd=False)
sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)
exit_code = main(words)
sys.stdout.flush()
sys.exit(exit_code)
"""


class Shell:
    """Runs commands in a folder that has training data with labels that are not ASCII."""

    def __init__(self, server: ScriptServer, folder: Path, backbone: Path) -> None:
        self.server, self.folder, self.script, self.backbone = server, folder, folder / "command.py", backbone
        self.script.write_text(COMMAND, encoding="utf-8")
        rows = [{**row, "label": LABELS[row["label"]]} for row in tiny.make_rows(60) if row["label"] in LABELS]
        tiny.write_jsonl(folder / "train.jsonl", rows)

    def run(self, code: str, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command that runs after this code."""
        environment = {"HF_FINETUNE_CACHE": str(self.folder / "cache")}
        exit_code = self.server.run(self.script, [code, *words], self.folder, environment)
        output, errors = ((self.folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        assert "Traceback" not in output + errors, errors
        assert "Exception ignored" not in errors, errors
        return exit_code, output, errors

    def train(self, code: str, name: str, *words: str) -> tuple[int, str, str]:
        """Trains a small run."""
        return self.run(code, *self.make_words(name, *words))

    def train_on(self, terminal: Terminal, name: str, *words: str, **environment: str) -> Scripts:
        """Starts a small run on a terminal."""
        size = {"COLUMNS": "", "LINES": ""}  # xdist sets them, and they count more than the terminal's own
        environment = {"HF_FINETUNE_CACHE": str(self.folder / "cache"), "TERM": "xterm", **size, **environment}
        words = (terminal.attach, *self.make_words(name, *words))
        return self.server.start(self.script, list(words), self.folder, environment)

    def make_words(self, name: str, *words: str) -> list[str]:
        """The words of a command that trains a small run."""
        command = f"train classify --name {name} --output_dir out --freeze.layers 1 --data.train train.jsonl"
        settings = "--data.max_length 16 --train.epochs 1 --train.precision fp32 --tracking.trackers []"
        return [*command.split(), "--model.backbone", str(self.backbone), *settings.split(), *words]

    def read_results(self, name: str) -> dict[str, Any]:
        """The numbers of a finished run."""
        content = json.loads((self.folder / "out" / name / "results.json").read_text(encoding="utf-8"))
        return {key: content[key] for key in ("best", "validation", "test", "reload_difference")}
