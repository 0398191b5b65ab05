"""What `hf-finetune evaluate` prints of labelled files, and the commands of docs/evaluation.md."""

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny

from hf_finetune import Predictor, cli, finetune
from hf_finetune.export.evaluation import Evaluation, describe_evaluation, join_rare, shorten
from hf_finetune.export.evaluation_tables import format_evaluation
from hf_finetune.run.scored import read_scored

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
SMALL = {
    "train.epochs": 8,
    "train.batch_size": 8,
    "train.learning_rate": 5e-3,
    "tracking.trackers": [],
    "train.precision": "fp32",
    "data.max_length": 32,
    "cache.activations": "off",
    "freeze.layers": 0,
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run, outputs/reviews, and labelled rows with another column, test.csv."""
    folder = tmp_path_factory.mktemp("evaluation")
    tiny.make_backbone(folder / "backbone", "bert")
    with (folder / "test.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shop", "text", "label"])
        for number, row in enumerate(tiny.make_rows(40, seed=9)):
            writer.writerow([("north", "south", "south")[number % 3], row["text"], row["label"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))
        patch.setattr("sys.argv", ["hf-finetune"])
        finetune(
            "classify", train=tiny.make_rows(64), settings={"name": "reviews", "model.backbone": "backbone", **SMALL}
        )
        yield folder


def call(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Returns what hf-finetune evaluate prints on standard output."""
    code = cli.main(["evaluate", *words])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def commands() -> list[str]:
    """The commands of the page."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for text in blocks for line in text.splitlines()]


@pytest.mark.parametrize("command", commands())
def test_the_pages_commands_run(desk: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    program, name, *words = shlex.split(command)
    assert (program, name) == ("hf-finetune", "evaluate")
    printed = call(capsys, *words)
    if "json" in words:
        assert json.loads(printed)["details"]["worst"]
        assert len(read_scored(desk / "scored.jsonl")) == 40
    else:
        assert printed.startswith("loss  ")


def test_the_pages_python_runs(desk: Path) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(text.replace("scored/test.jsonl", "scored/validation.jsonl"), names)
    results = json.loads((desk / "outputs" / "reviews" / "results.json").read_text(encoding="utf-8"))
    assert names["scored"].compute("accuracy")[0] == results["validation"]["accuracy"]


def test_a_metric_that_is_not_defined_is_null_in_json(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in tiny.make_rows(40) if row["label"] == "animals"]
    path = tiny.write_jsonl(desk / "one label.jsonl", rows)
    printed = call(capsys, "outputs/reviews", "--data", str(path), "--metric", "roc_auc", "--format", "json")
    assert json.loads(printed, parse_constant=pytest.fail)["roc_auc"] is None


def test_texts_of_the_data_do_not_change_the_terminal(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "text": f"\x1b[31m {row['text']}", "shop": "a\x1b[2J\nb"} for row in tiny.make_rows(8)]
    path = tiny.write_jsonl(desk / "odd.jsonl", rows)
    printed = call(capsys, "outputs/reviews", "--data", str(path), "--slice", "shop")
    assert "\x1b" not in printed
    assert "  a\\x1b[2J\\nb  " in printed
    assert "    \\x1b[31m " in printed


def test_the_tables_show_what_the_json_has(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["outputs/reviews", "--data", "test.csv", "--slice", "shop", "file", "--examples", "2"]
    values = json.loads(call(capsys, *words, "--format", "json"))
    details = values.pop("details")
    text = call(capsys, *words)
    low, high = details["intervals"]["accuracy"]
    assert f"accuracy             {values['accuracy']:.4f}   {low:.4f} to {high:.4f}\n" in text
    assert "intervals: 95%, 1,000 resamples of 40 examples\n" in text
    with (desk / "test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for entry in details["labels"]:
        assert entry["support"] == sum(row["label"] == entry["label"] for row in rows)
        assert re.search(
            rf"^ +{entry['label']} +{entry['support']} +{entry['precision']:.4f} ", text, flags=re.MULTILINE
        )
    for entry in details["confusions"]:
        assert re.search(rf"^ +{entry['label']} +{entry['prediction']} +{entry['count']}$", text, flags=re.MULTILINE)
    assert f"calibration: expected error {details['calibration']['error']:.4f}\n" in text

    by_shop = {entry["slice"]: entry for entry in details["slices"]["shop"]}
    assert list(by_shop) == ["south", "north"]  # the most frequent value first
    predictions = Predictor.from_pretrained("outputs/reviews").predict([row["text"] for row in rows])
    for shop, entry in by_shop.items():
        pairs = [
            (prediction["label"], row["label"])
            for prediction, row in zip(predictions, rows, strict=True)
            if row["shop"] == shop
        ]
        assert entry["examples"] == len(pairs)
        assert entry["accuracy"] == np.mean([ours == right for ours, right in pairs])
    assert [entry["examples"] for entry in details["slices"]["file"]] == [40]

    worst = details["worst"]
    assert len(worst) == len(details["least_certain"]) == 2
    assert worst[0]["loss"] > worst[1]["loss"]
    for example in worst:
        line = int(example["where"].removeprefix("test.csv:"))
        assert rows[line - 2]["text"] == example["text"]["text"]
        assert rows[line - 2]["label"] == example["label"]
        assert f"  {example['where']}  loss {example['loss']:.4f}, right: {example['label']}, predicted: " in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slice", "city"], "no column 'city' (columns: shop, text, label); see --slice"),
        (["--examples", "-1"], "examples (-1): must be 0 or more"),
    ],
)
def test_what_cannot_be_done_is_an_error(
    desk: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["evaluate", "outputs/reviews", "--data", "test.csv", *words]) == 2
    assert message in capsys.readouterr().err


def test_rare_values_are_one_slice_and_long_texts_are_cut() -> None:
    slices = {f"value {number}": np.array([number]) for number in range(25)}
    joined = join_rare(slices)
    assert list(joined)[-2:] == ["value 19", "5 others"]
    assert joined["5 others"].tolist() == [20, 21, 22, 23, 24]
    assert join_rare(dict(list(slices.items())[:21])) == dict(list(slices.items())[:21])
    assert shorten(["two\n words", "more"]) == "two words more"
    assert len(shorten("a" * 300)) == 100


def test_a_task_without_single_examples_has_its_metrics_alone(desk: Path) -> None:
    table = Predictor.from_pretrained("outputs/reviews").read("test.csv", needs_labels=True)
    evaluation = Evaluation(values={"score": 0.5}, table=table)
    assert describe_evaluation(evaluation, ["length"]) == {}
    assert format_evaluation(evaluation.values, {}) == "score                0.5000"
    with pytest.raises(Exception, match="--scored: this task says nothing of single examples"):
        evaluation.get_scored("--scored")
