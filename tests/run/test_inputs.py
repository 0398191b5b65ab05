"""What a run was made from, and what is printed if a finished run is called again with other data."""

import functools
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.sources import digest_files
from hf_finetune.run.folder import find_free_name
from hf_finetune.run.inputs import (
    compare_inputs,
    describe_inputs,
    describe_parts,
    digest_function,
    find_changed_inputs,
    read_inputs,
)
from hf_finetune.run.parts import Parts
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]


def describe(rows: int | None, digest: str) -> dict[str, Any]:
    """The inputs of a run with training data only."""
    return {"data": {"train": {"rows": rows, "digest": digest}}, "parts": {}}


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (describe(480, "a"), describe(480, "a"), []),
        (describe(480, "a"), describe(1200, "b"), ["data.train: had 480 rows, has 1,200 now"]),
        (describe(480, "a"), describe(480, "b"), ["data.train: has other content now, and 480 rows as before"]),
        (describe(480, "a"), describe(None, "b"), ["data.train: has other content now"]),
        (describe(480, "a"), {}, ["data.train: was given, is not given now"]),
        ({}, describe(480, "a"), ["data.train: was not given, is given now (480 rows)"]),
        ({}, describe(None, "a"), ["data.train: was not given, is given now"]),
        ({"parts": {"train.loss": "a"}}, {"parts": {"train.loss": "b"}}, ["train.loss: has other code now"]),
        ({"parts": {"train.loss": "a"}}, {"parts": {}}, ["train.loss: was given, is not given now"]),
        ({}, {"parts": {"train.loss": "a"}}, ["train.loss: was not given, is given now"]),
    ],
)
def test_what_differs_between_two_runs(old: dict[str, Any], new: dict[str, Any], lines: list[str]) -> None:
    assert compare_inputs(old, new) == lines


def test_rows_and_functions_of_a_program_have_digests(make_config: MakeConfig) -> None:
    config = make_config(**{"data.train": ["memory://train"]})
    rows = tiny.make_rows(9)

    def describe_parts(rows: Any, loss: Any) -> dict[str, Any]:
        return describe_inputs(
            config, Parts(rows={"train": rows}, loss=loss, metrics={"kappa": find_free_name}), {"train": 9}
        )

    first = describe_parts(rows, tiny.make_rows)
    assert first["data"].keys() == {"train", "validation", "test"}
    assert first["parts"].keys() == {"train.loss", "evaluation.metrics kappa"}
    columns = {name: [row[name] for row in rows] for name in ("text", "label", "text")}
    assert compare_inputs(first, describe_parts(columns, tiny.make_rows)) == []
    rows[3] = {**rows[3], "label": "other"}
    assert compare_inputs(first, describe_parts(rows, tiny.make_text)) == [
        "data.train: has other content now, and 9 rows as before",
        "train.loss: has other code now",
    ]
    with pytest.raises(InputError, match=r"data.train \(memory://train\): no such file"):
        describe_inputs(config)


def test_a_function_without_source_has_the_digest_of_its_import_path() -> None:
    assert digest_function(len) == digest_function(len) != digest_function(max)
    assert digest_function(functools.partial(max, 3)) != digest_function(functools.partial(max, 4))


def test_a_folder_is_digested_with_the_names_of_its_files(tmp_path: Path) -> None:
    for name in ("one/a.txt", "two/a.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True)
        (tmp_path / "texts" / name).write_text(name)
    before = digest_files([tmp_path / "texts"])
    assert digest_files([tmp_path / "texts"]) == before
    (tmp_path / "texts/one/a.txt").rename(tmp_path / "texts/one/b.txt")
    renamed = digest_files([tmp_path / "texts"])
    (tmp_path / "texts/one/b.txt").write_text("other")
    assert len({before, renamed, digest_files([tmp_path / "texts"])}) == 3


def test_the_next_free_name(tmp_path: Path) -> None:
    assert find_free_name(tmp_path, "reviews") == "reviews-2"
    for name in ("reviews-2", "reviews-3", "2024"):
        (tmp_path / name).mkdir()
    assert find_free_name(tmp_path, "reviews") == "reviews-4"
    assert find_free_name(tmp_path, "reviews-2") == "reviews-4"
    assert find_free_name(tmp_path, "2024") == "2024-2"


@pytest.mark.slow
def test_a_finished_run_says_that_its_data_have_grown(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = make_config(**{"train.epochs": 1})
    finetune(config)
    recorded = json.loads((config.run_dir / "inputs.json").read_text())
    assert {split: entry["rows"] for split, entry in recorded["data"].items()} == {
        "train": 60,
        "validation": 24,
        "test": 24,
    }
    assert find_changed_inputs(config) == []
    tiny.write_jsonl(Path(config.data.train[0]), tiny.make_rows(75))
    capsys.readouterr()
    finetune(config)
    printed = capsys.readouterr().out
    assert "is finished, there is nothing to train" in printed
    assert "data.train: had 60 rows, has 75 now" in printed
    assert "data.test" not in printed
    assert f"begin a new run: set name to run-2 and start_from to {config.run_dir}" in printed
    with pytest.raises(
        InputError, match=r"was made from other data .*restore the data; or, to train on from its weights, begin"
    ):
        finetune(make_config(**{"train.epochs": 2}))
    Path(config.data.train[0]).unlink()
    assert find_changed_inputs(config) == [
        f"cannot be read: data.train ({config.data.train[0]}): no such file or folder"
    ]
    (config.run_dir / "inputs.json").write_text("{")
    assert read_inputs(config.run_dir) is None
    assert find_changed_inputs(config) == []


@pytest.mark.slow
def test_a_data_set_has_the_fingerprint_of_its_rows(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    tiny.write_jsonl(folder / "train.jsonl", tiny.make_rows(30))
    config = make_config(**{"data.dataset": str(folder), "data.train": [], "data.validation": [], "data.test": []})
    before = describe_inputs(config)
    assert before == describe_inputs(config)
    assert before["data"].keys() == {"train"}
    tiny.write_jsonl(folder / "train.jsonl", tiny.make_rows(33))
    assert compare_inputs(before, describe_inputs(config)) == ["data.train: has other content now"]


def test_a_file_of_the_task_and_the_class_of_ones_own_task_are_inputs(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run that is called again after a change of one of them would be the old one without a word."""
    own = "from hf_finetune.tasks.classify import Classification\nclass Mine(Classification):\n    shift = {}\n"
    config, described = make_config(), []
    monkeypatch.syspath_prepend(tmp_path)
    for shift in (1, 1, 2):
        (tmp_path / "own_task.py").write_text(own.format(shift), encoding="utf-8")
        sys.modules.pop("own_task", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        settings = {"task.kind": "own_task:Mine", "data.train": list(config.data.train), "model.backbone": "x"}
        described.append(describe_inputs(load_config(settings)))
    assert compare_inputs(*described[:2]) == []
    assert compare_inputs(*described[1:]) == ["task.kind: has other code now"]
    settings = {"task.kind": "rerank", "data.train": list(config.data.train), "model.backbone": "x"}
    negatives, described = tmp_path / "negatives.jsonl", []
    for text in ("a", "a", "b"):
        negatives.write_text(text, encoding="utf-8")
        described.append(describe_inputs(load_config({**settings, "task.negatives": str(negatives)})))
    assert compare_inputs(*described[:2]) == []
    assert compare_inputs(*described[1:]) == ["task.negatives: has other content now"]


def test_what_metrics_collect_does_not_make_another_run(make_config: MakeConfig) -> None:
    """Otherwise an interrupted run would not continue if its cell is run again."""
    seen: list[int] = []

    def collect(*values: Any) -> float:
        seen.append(1)
        return 0.5

    config = make_config(**{"evaluation.metrics": ["own=own:collect"], "train.on_update": "own:collect"})
    parts = [describe_parts(config, Parts(metrics={"own": collect}, on_update=collect)) for _ in range(2) if collect()]
    assert parts[0] == parts[1]
    losses = [describe_parts(config, Parts(loss=collect)) for _ in range(2) if collect()]
    assert losses[0] != losses[1]
