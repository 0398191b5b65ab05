"""Every command of docs/advise.md runs, and the page has the numbers of the code."""

import re
import shlex
from pathlib import Path

import pytest
from support import tiny

from hf_finetune import cli
from hf_finetune.choosing.advise import TOLERANCE
from hf_finetune.choosing.advise_metric import LEAST_EXAMPLES, MOST_EXAMPLES, NUM_TOKENS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "advise.md").read_text(encoding="utf-8")


def test_the_pages_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{row['text']},{row['label']}\n" for row in tiny.make_rows(60)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    tiny.make_backbone(tmp_path / "backbone", "bert")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (commands,) = (text.splitlines() for kind, text in found if not kind)
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "hf-finetune"
        assert cli.main([*words[1:], "--model.backbone", "backbone", "--data.max_length", "32"]) == 0
        assert "<- recommended" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"reviews.csv", "backbone", "depths.svg"}


def test_the_page_has_the_numbers_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"{LEAST_EXAMPLES} to {MOST_EXAMPLES:,} training examples, as many as have {NUM_TOKENS:,} tokens" in text
    assert f"is the deepest freezing that loses at most {TOLERANCE:g}" in text
