"""Every command of docs/tour.md runs, one after the other, at a small size; its pictures are small, and what it shows is what the
commands print."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.desk import at_desk

from hf_finetune import cli

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "tour.md").read_text(encoding="utf-8")
SMALL = {
    "train.batch_size": "20",
    "train.epochs": "1",
    "train.precision": "fp32",
    "tracking.trackers": "[]",
    "data.max_length": "32",
    "freeze.layers": "1",
    "model.backbone": "backbone",
}
FEWER = {"--folds 5": "--folds 2", "--freeze.layers 5": "--freeze.layers 2", "_accuracy 0.9": "_accuracy 0.4"}
TAKES_DEPTH = ("train", "learning-curve")  # other commands try several


@pytest.fixture(scope="module")
def script() -> Any:
    """docs/make_tour.py as a module."""
    spec = importlib.util.spec_from_file_location("make_tour", DOCS / "make_tour.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, script: Any) -> Iterator[Path]:
    """A folder with the page's files, in which the commands run."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "films").mkdir()
    for seed, (split, count) in enumerate({"train": 80, "validation": 40, "test": 40}.items()):
        tiny.write_jsonl(folder / "films" / f"{split}.jsonl", tiny.make_rows(count, seed=seed))
    for name, text in script.list_files(PAGE).items():
        (folder / name).write_text(text.replace("trials: 8", "trials: 2").replace("[2, 5]", "[0, 1]"), encoding="utf-8")
    with at_desk(folder):
        yield folder


@pytest.mark.slow
def test_the_pages_commands_run(desk: Path, script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {command: texts for command, texts in group_shown(script).items() if texts}
    for command in script.list_commands(PAGE):
        small = command
        for text, other in FEWER.items():
            small = small.replace(text, other)
        words = shlex.split(small)[1:]
        if words[0] in (*TAKES_DEPTH, "advise", "sweep"):
            named = {word.removeprefix("--") for word in words} - {"train.epochs"}
            named |= set() if words[0] in TAKES_DEPTH else {"freeze.layers"}
            words += [word for key, value in SMALL.items() if key not in named for word in (f"--{key}", value)]
        code = cli.main(words)
        printed = capsys.readouterr()
        assert code == 0, f"{command}\n{printed.err}"
        for text in shown.pop(command, ()):
            assert text in printed.out, command
    assert shown == {}


def group_shown(script: Any) -> dict[str, list[str]]:
    """The texts with which the shown lines begin, by the command that prints them."""
    found: dict[str, list[str]] = {}
    for match in script.SHOWN.finditer(PAGE):
        found.setdefault(script.list_commands(PAGE[: match.start()])[-1], []).append(match[1])
    return found


def test_the_page_has_its_files_outputs_and_pictures(script: Any) -> None:
    assert list(script.list_files(PAGE)) == ["films.yaml", "search.yaml"]
    for match in script.SHOWN.finditer(PAGE):
        first, *others = match[0].splitlines()[2:-1]
        assert match[1] in first
        assert len(others) + 1 == int(match[2])
    pictures = re.findall(r"!\[[^\]]+\]\((tour/[^)]+)\)", PAGE)
    assert {f"tour/{path.name}" for path in (DOCS / "tour").iterdir()} == set(pictures)
    assert all((DOCS / name).stat().st_size < 150_000 for name in pictures)


def test_a_terminal_is_read_as_it_is_seen(script: Any) -> None:
    output = "saved\r\nbar 1\nloss 2\r\x1b[2K\x1b[1A\x1b[2Kevaluated\nbar \x1b[36m2\x1b[0m\nloss 1"
    assert script.read_screen(output) == ["saved", "evaluated", "bar \x1b[36m2\x1b[0m", "loss 1"]


def test_outputs_take_the_place_of_those_in_the_page(script: Any) -> None:
    page = "```\nhf-finetune one\n```\n\n<!-- shown: two, 2 lines -->\n```text\nold\n```\n"
    shown = script.show_outputs(page, {"hf-finetune one": "one\ntwo\nthree\nfour"})
    assert shown == page.replace("old", "two\nthree")
