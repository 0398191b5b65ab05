"""The worst and the least certain examples."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hf_finetune.analysis.mistakes import make_mistakes, pick_text
from hf_finetune.analysis.run_files import read_runs

CopyRun = Callable[..., Path]


def test_mistakes_are_wrong_ordered_and_have_their_line(finished: dict[str, Path]) -> None:
    (run,) = read_runs([finished["base"]])
    found = make_mistakes(run, "test")
    assert found["note"] == ""
    losses = [float(example["loss"]) for example in found["worst"]]
    assert losses == sorted(losses, reverse=True)
    for example in found["worst"]:
        file, _, line = example["where"].rpartition(":")
        row = json.loads(Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1])
        assert example["label"] == row["label"] != example["prediction"]
        assert example["text"] == row["text"]
    confidences = [float(example["confidence"]) for example in found["doubtful"]]
    assert max(confidences) < float(found["worst"][0]["confidence"])


def test_a_text_is_that_of_its_columns() -> None:
    settings = {"data.text_columns": ["words", "b"]}
    assert pick_text('{"words": ["New", "York"], "b": "x", "c": "y"}', settings) == "New York | x"
    assert pick_text('{"c": "y"}', settings) == '{"c": "y"}'
    assert pick_text("a,b,1\n", settings) == "a,b,1\n"


def test_texts_of_a_missing_file_are_left_out(copy_run: CopyRun) -> None:
    folder = copy_run("base", "moved")
    path = folder / "scored" / "test.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("test.jsonl", "gone.jsonl"), encoding="utf-8")
    (run,) = read_runs([folder])
    assert {example["text"] for example in make_mistakes(run, "test")["worst"]} == {""}


def test_a_run_without_scored_examples_says_so(copy_run: CopyRun) -> None:
    folder = copy_run("base", "older", ("scored",))
    (run,) = read_runs([folder])
    assert make_mistakes(run, "test")["note"].startswith("There is no scored/test.jsonl")
    (folder / "scored").mkdir()
    (folder / "scored" / "test.jsonl").write_text("{}")
    assert "is not a file of scored examples" in make_mistakes(run, "test")["note"]
    assert make_mistakes(replace(run, folder=folder / "no"), "test")["worst"] == []
