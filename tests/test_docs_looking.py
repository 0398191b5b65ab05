"""Every command of docs/looking.md runs on runs as the page names them, and its picture is small."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.configs import make_small_config
from test_cli import call

from hf_finetune.train import finetune

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "looking.md").read_text(encoding="utf-8")
RUNS = {"reviews": {}, "reviews-2": {"seed": 1}, "reviews-deeper": {"freeze.layers": 1}}


def commands() -> list[str]:
    """The commands of the page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for kind, text in found if not kind for line in text.splitlines()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Iterator[Path]:
    """A folder with the page's runs."""
    folder = tmp_path_factory.mktemp("looking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        for name, settings in RUNS.items():
            finetune(make_small_config(folder, backbones("bert"), name=name, output_dir="outputs", **settings))
        yield folder


@pytest.mark.parametrize("command", commands())
def test_the_pages_commands_run(desk: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    words = shlex.split(command)[1:]
    assert call(*words) == 0
    output = capsys.readouterr().out
    if words[0] == "report":
        assert (desk / output.strip()).read_text(encoding="utf-8").startswith("<!doctype html>")
    else:
        assert "json" in words or "A  reviews, reviews-2 (2 seeds, means)\nB  reviews-deeper\n" in output


def test_the_page_has_all_kinds_of_commands() -> None:
    assert [shlex.split(command)[1] for command in commands()] == ["report", "report", "compare", "compare"]
    assert (DOCS / "report.png").stat().st_size < 150_000
