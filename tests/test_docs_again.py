"""Every command of docs/again.md runs, one after the other, and the table of what may change agrees with the code."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny
from support.desk import at_desk

from hf_finetune import cli
from hf_finetune.config.changes import may_change
from hf_finetune.config.loading import get_setting_types
from hf_finetune.config.tasks import TASKS, load_task

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "again.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
SMALL = {
    "train.batch_size": "20",
    "tracking.trackers": "[]",
    "train.precision": "fp32",
    "data.max_length": "32",
    "cache.activations": "off",
    "freeze.layers": "0",
}


def commands() -> list[str]:
    """The commands of the page."""
    found = re.findall(r"^```\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for text in found for line in text.splitlines()]


def write_tagged(path: Path, last: str) -> None:
    """Writes sentences whose animals are an entity of two words, with this tag for the second one."""
    sentences = [
        f"{first} O\n{second} O\ncat B-animal\ndog {last}\n\n"
        for first in tiny.FILLER[:6]
        for second in tiny.FILLER[6:12]
    ]
    path.write_text("".join(sentences), encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's data, in which the commands run."""
    folder = tmp_path_factory.mktemp("again")
    for name, count, new in (
        ("reviews", 60, {}),
        ("more_reviews", 75, {}),
        ("finer_labels", 60, {"tools": "tools by hand"}),
    ):
        rows = [f"{row['text']},{new.get(row['label'], row['label'])}\n" for row in tiny.make_rows(count)]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    texts = [row["text"] for row in tiny.make_rows(80)]
    (folder / "notes.txt").write_text("\n".join(texts * 4) + "\n", encoding="utf-8")
    tiny.write_jsonl(folder / "pairs.jsonl", [{"anchor": text, "positive": f"{text} now"} for text in texts])
    write_tagged(folder / "iob.conll", "I-animal")
    write_tagged(folder / "bioes.conll", "E-animal")
    with at_desk(folder):
        yield folder


@pytest.mark.slow
def test_the_pages_commands_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for command in commands():
        checkpoint = next((desk / "outputs/reviews/checkpoints").glob("*.pt")) if "CHECKPOINT" in command else ""
        words = shlex.split(command.replace("CHECKPOINT", str(checkpoint)))
        small = [word for key, value in SMALL.items() for word in (f"--{key}", value)]
        backbone = [] if "--start_from" in words else ["--model.backbone", "backbone"]
        code = cli.main([*words[1:], *small, *backbone])
        shown = capsys.readouterr()
        assert code == 0, f"{command}\n{shown.err}"
        printed[words[words.index("--name") + 1]] = shown.out
    assert "schedule over 15 updates instead of 9; update 10 has " in printed["reviews"]
    assert "reused: the backbone's labels are the same 3" in printed["reviews-2"]
    assert (
        "2 of 3 labels reused by name, 1 new (tools by hand); 1 of the backbone's labels dropped (tools)"
        in printed["finer"]
    )
    assert re.search(r"^head .*labels reused by name, .* new \(", printed["bioes"], flags=re.MULTILINE)
    for name, earlier in (("topics", "domain (model_language)"), ("by-vectors", "vectors (embed)")):
        assert f"fine-tuned before: {earlier}" in printed[name]
        assert not re.search("^head  ", printed[name], flags=re.MULTILINE)
        assert json.loads((desk / "outputs" / name / "results.json").read_text())["status"] == "finished"


def read_rules() -> dict[str, str]:
    """The settings of the table of settings.md, with the text of their row."""
    table = SETTINGS.partition("## When a run is called again")[2]
    rows = [line.strip("| ").rpartition(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {key: text for keys, _, text in rows for key in re.findall(r"`([^`]+)`", keys)}


def test_the_table_of_what_may_change_agrees_with_the_code() -> None:
    rules = read_rules()
    keys = {key for kind in TASKS for key in get_setting_types(load_task(kind).Settings)}
    assert rules.keys() == keys
    for key in keys:
        assert may_change(key) != rules[key].startswith(("must not change", "another name")), key
    assert [key for key, text in rules.items() if "trains on" in text] == [
        "train.epochs", "train.max_updates", "train.patience", "train.min_delta",
    ]  # fmt: skip
