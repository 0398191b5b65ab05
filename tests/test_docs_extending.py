"""Every command and every program of docs/extending.md runs, in a folder with the page's modules and small data.

tests/recipes/case_extending.py trains with the same modules on two processes, and after a kill.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import extending_page
import pytest
from support import tiny
from support.script_server import ScriptServer

from hf_finetune import api, cli

PAGE = extending_page.PAGE
MODULES = extending_page.read_modules()
BACKBONE = "nreimers/MiniLM-L6-H384-uncased"
SMALL = {
    "train.max_updates": 2,
    "tracking.trackers": [],
    "train.precision": "fp32",
    "model.backbone": BACKBONE,
    "freeze.layers": 1,
    "data.max_length": 32,
    "cache.activations": "off",
}


def commands() -> list[str]:
    """The commands of the page."""
    found = re.findall(r"^```\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for text in found for line in text.splitlines() if line.startswith("hf-finetune ")]


def programs() -> list[str]:
    """The Python blocks of the page that are not modules."""
    found = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [text for text in found if not text.startswith("# ")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's modules and data, in which commands and programs run."""
    folder = tmp_path_factory.mktemp("extending")
    tiny.make_backbone(folder / BACKBONE, "bert")
    rows = tiny.make_rows(60)
    (folder / "reviews.csv").write_text(
        "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows), encoding="utf-8"
    )
    tiny.write_jsonl(folder / "votes.jsonl", [{"text": row["text"], "votes": [1, 2, 0]} for row in rows])
    pairs = [{"anchor": row["text"], "positive": f"{row['label']} {row['text']}"} for row in rows]
    tiny.write_jsonl(folder / "pairs.jsonl", pairs)
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["hf-finetune"])
        patch.setattr(sys, "path", list(sys.path))
        for name in MODULES:  # those of tests/recipes, which are no files
            patch.delitem(sys.modules, name, raising=False)
        yield folder


def make_words(command: str) -> list[str]:
    """The words of a command; a training gets small settings."""
    words = shlex.split(command)
    if words[1] == "train":
        settings = {key: value for key, value in SMALL.items() if f"--{key}" not in words}
        words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return words


def test_the_commands_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands():
        words = make_words(command)
        code = cli.main(words[1:])
        printed = capsys.readouterr()
        assert code == 0, f"{command}\n{printed.err}"
        if words[1] == "train":
            assert (desk / "outputs" / words[words.index("--name") + 1] / "results.json").exists()
    assert "probabilities" in printed.out or "agreement" in printed.out


def test_the_programs_run(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = api.finetune
    runs = []

    def finetune(task: Any, train: Any = None, **options: Any) -> Any:
        settings = SMALL | {"output_dir": f"from-python-{len(runs)}"} | dict(options.pop("settings", {}))
        runs.append(original(task, train=train, settings=settings, **options))
        return runs[-1]

    monkeypatch.setattr(api, "finetune", finetune)
    monkeypatch.setattr(sys, "path", [str(desk), *sys.path])
    for program in programs():
        exec(compile(program, "program", "exec"), {})
    assert len(runs) == len(programs()) > 5
    assert runs[1].results["metric"] == "kappa"
    assert len((desk / "norms.txt").read_text(encoding="utf-8").splitlines()) >= 2


def test_the_loss_for_a_causal_model_is_that_of_the_task(desk: Path) -> None:
    """A model trained on labels that are not moved by one would learn to repeat its input."""
    settings = SMALL | {"model.backbone": str(tiny.make_backbone(desk / "gpt2", "gpt2")), "train.max_updates": 4}
    (desk / "notes.txt").write_text("\n".join(row["text"] for row in tiny.make_rows(40)), encoding="utf-8")
    sys.modules.pop("my_losses", None)
    extending_page.add_modules()
    runs = [
        api.finetune("model_language", train="notes.txt", settings=settings, loss=loss)
        for loss in (None, sys.modules["my_losses"].next_token)
    ]
    first, second = (run.results["history"] for run in runs)
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in second], rel=1e-5)
    assert runs[0].run_dir != runs[1].run_dir


def test_a_task_has_under_60_lines() -> None:
    assert sum(bool(line.strip()) for line in MODULES["my_tasks"].splitlines()) < 60


@pytest.mark.processes
def test_a_new_process_predicts_with_ones_own_task_only_if_it_is_named(desk: Path, script_server: ScriptServer) -> None:
    """In a process in which nothing has imported the task."""
    if not (desk / "outputs" / "votes-2").is_dir():  # unless this process has run all commands
        (command,) = (command for command in commands() if command.endswith("--name votes-2"))
        assert cli.main(make_words(command)[1:]) == 0
    words = ["hf_finetune", "predict", "outputs/votes-2", "--text", "a red cat"]
    refused = script_server.start("-m", words, desk, {})
    assert refused.wait() == 2
    assert "--task my_tasks:Votes" in refused.read("stderr")
    done = script_server.start("-m", [*words, "--task", "my_tasks:Votes"], desk, {})
    assert done.wait() == 0
    assert done.read().startswith('{"probabilities": [')
