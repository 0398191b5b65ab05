"""The worst and the least certain examples."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hf_finetune.analysis.mistakes import make_mistakes
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
        assert example["right"] == row["label"] != example["predicted"]
        assert example["text"] == row["text"]
    assert found["text_note"] == ""
    assert [name for name, _ in found["columns"]] == ["right", "predicted", "probability", "loss"]
    confidences = [float(example["probability"]) for example in found["doubtful"]]
    assert max(confidences) < float(found["worst"][0]["probability"])


def test_a_run_without_scored_examples_says_so(copy_run: CopyRun) -> None:
    folder = copy_run("base", "older", ("scored",))
    (run,) = read_runs([folder])
    assert make_mistakes(run, "test")["note"].startswith("There is no scored/test.jsonl")
    (folder / "scored").mkdir()
    (folder / "scored" / "test.jsonl").write_text("{}")
    assert "is not a file of scored examples" in make_mistakes(run, "test")["note"]
    assert make_mistakes(replace(run, folder=folder / "no"), "test")["worst"] == []


def test_a_column_that_no_example_has_is_left_out(copy_run: CopyRun) -> None:
    folder = copy_run("base", "without")
    path = folder / "scored" / "test.jsonl"
    header, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        line["probabilities"] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)), encoding="utf-8")
    found = make_mistakes(read_runs([folder])[0], "test")
    assert [name for name, _ in found["columns"]] == ["right", "predicted", "loss"]
    assert found["doubtful"] == []
