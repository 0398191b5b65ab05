"""The report on the data of a run: in the terminal, in data.json, and as an error with data.strict."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune.config.sections import RunConfig
from hf_finetune.recipe import report_errors
from hf_finetune.run import data_report
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]


def write_leaking(folder: Path) -> dict[str, Any]:
    """Settings of files whose test split has two texts of training, and one with a character that the tokenizer lacks."""
    rows = tiny.make_rows(60, seed=0)
    test = [*tiny.make_rows(30, seed=2), rows[3], rows[5]]
    test[0] = {**test[0], "text": f"{test[0]['text']} \u2603"}
    tiny.write_jsonl(folder / "a.jsonl", rows)
    tiny.write_jsonl(folder / "t.jsonl", test)
    return {"data.train": [str(folder / "a.jsonl")], "data.test": [str(folder / "t.jsonl")], "train.epochs": 1}


def print_run(capsys: pytest.CaptureFixture[str], config: RunConfig) -> str:
    """Trains, and returns what was printed."""
    finetune(config)
    return capsys.readouterr().out


def test_a_run_prints_the_warnings_and_writes_all_of_them(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**write_leaking(tmp_path))
    printed = print_run(capsys, config)
    content = json.loads((config.run_dir / "data.json").read_text(encoding="utf-8"))
    assert content["rows"] == {"train": 60, "validation": 24, "test": 32}
    assert [entry["name"] for entry in content["recognised"]][:1] == ["input"]
    found = {(finding["kind"], finding["split"]): finding for finding in content["findings"]}
    assert found["shared_rows", "test"]["count"] >= 2
    assert found["unknown_characters", "test"]["count"] == 1
    warnings = [finding["sentence"] for finding in content["findings"] if finding["warning"]]
    assert f"{len(warnings)} warnings; the report is in {config.run_dir / 'data.json'}" in printed
    assert all(f"warning: {sentence}" in printed for sentence in warnings)


def test_a_resumed_run_counts_the_warnings_only(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write_leaking(tmp_path)
    assert "warning: test:" in print_run(capsys, make_config(**settings))
    printed = print_run(capsys, make_config(**{**settings, "train.epochs": 2}))
    assert "; the report is in" in printed
    assert "warning: test:" not in printed


def test_strict_refuses_before_the_model_is_loaded(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_finetune.model.backbone.load_backbone", None)  # would raise TypeError
    config = make_config(**write_leaking(tmp_path), **{"data.strict": True})
    with pytest.raises(InputError, match=r"data.strict: the data have (.|\n)* have the text of a row of train"):
        finetune(config)
    assert not config.run_dir.exists()


def test_strict_prints_a_line_for_each_finding(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write_leaking(tmp_path)
    repeated = [{"text": "twice the same text", "label": label} for label in ("animals", "food")]
    path = Path(settings["data.train"][0])
    tiny.write_jsonl(path, [*map(json.loads, path.read_text().splitlines()), *repeated])
    config = make_config(**settings, **{"data.strict": True})
    assert report_errors(lambda: finetune(config) and None) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == f"error: data.strict: the data have {len(lines)} warnings:"
    assert len(lines) > 1
    assert [line.partition(" ")[0] for line in map(str.lstrip, lines)] == [f"({n})" for n in range(1, len(lines) + 1)]


def test_strict_refuses_what_the_tokenizer_loses_before_training(make_config: MakeConfig, tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['text']} \u2603 {number}"} for number, row in enumerate(tiny.make_rows(60, seed=0))]
    tiny.write_jsonl(tmp_path / "a.jsonl", rows)
    settings = {"data.train": [str(tmp_path / "a.jsonl")], "data.validation": [], "data.test": []}
    config = make_config(**settings, **{"data.strict": True})
    with pytest.raises(InputError, match=r"data.strict: (.|\n)*characters or words that the tokenizer does not know"):
        finetune(config)
    assert not config.run_dir.exists()


def test_a_warning_of_training_is_not_repeated_for_other_splits(make_run: Callable[..., Any]) -> None:
    run = make_run(**{"data.max_length": 4})
    report = run.data_report
    cut = [finding for finding in report.findings if finding.kind == "cut_texts"]
    assert [(finding.split, finding.is_warning) for finding in cut] == [
        ("train", True),
        ("validation", False),
        ("test", False),
    ]


def test_the_columns_of_every_task_can_be_compared(make_run: Callable[..., Any]) -> None:
    """The label of a row is not part of what the model sees."""
    run = make_run("multi_label", True)
    report = data_report.report_on_rows(run.splits.tables(), run.task)
    assert set(report.texts["train"]) == {"text", "other"}
