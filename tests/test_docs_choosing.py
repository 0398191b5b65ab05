"""Every command of docs/choosing.md runs, one after the other."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny
from support.desk import at_desk

from hf_finetune import cli

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
SEARCH = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)[0]
COMMANDS = re.findall(r"^hf-finetune .*$", PAGE, flags=re.MULTILINE)
SMALL = {
    "train.batch_size": "20",
    "train.epochs": "1",
    "tracking.trackers": "[]",
    "train.precision": "fp32",
    "data.max_length": "32",
    "freeze.layers": "1",
    "model.backbone": "backbone",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's files, in which the commands run."""
    folder = tmp_path_factory.mktemp("choosing")
    rows = [f"{row['text']},{row['label']}\n" for row in tiny.make_rows(120)]
    (folder / "reviews.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    (folder / "search.yaml").write_text(SEARCH.replace("trials: 8", "trials: 2"), encoding="utf-8")
    with at_desk(folder):
        yield folder


@pytest.mark.slow
def test_the_pages_commands_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        words = shlex.split(command.replace("--folds 5", "--folds 2").replace("--seeds 3", "--seeds 2"))
        small = [word for key, value in SMALL.items() for word in (f"--{key}", value)]
        code = cli.main([*words[1:], *(small if "--data.train" in words else [])])
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
    assert len(COMMANDS) == 9
