"""What differs between settings."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hf_finetune.analysis.run_files import read_runs
from hf_finetune.analysis.settings import format_setting, list_differences, list_own_settings
from hf_finetune.config.recipes import read_defaults


def test_settings_that_differ_from_the_recipe(finished: dict[str, Path]) -> None:
    (run,) = read_runs([finished["base"]])
    own = list_own_settings(run)
    assert own["train.learning_rate"] == 1e-2
    assert own["data.train"] == run.settings["data.train"]
    assert own["freeze.embeddings"] is False
    assert read_defaults("classify")["freeze.embeddings"] is True
    assert not {"seed", "name", "output_dir", "train.weight_decay"} & own.keys()


def test_a_task_of_ones_own_is_not_imported(finished: dict[str, Path]) -> None:
    (run,) = read_runs([finished["base"]])
    run = replace(run, settings={**run.settings, "task.kind": "no_such_module:Task", "task.depth": 3})
    own = list_own_settings(run)
    assert own["task.kind"] == "no_such_module:Task"
    assert own["task.depth"] == 3
    assert "train.weight_decay" not in own


def test_differences_between_runs(finished: dict[str, Path]) -> None:
    runs = read_runs([*finished.values()])
    assert list_differences(runs) == {
        "seed": [0, 1, 0],
        "train.learning_rate": [1e-2, 1e-2, 1e-5],
        "train.head_learning_rate": [1e-2, 1e-2, 1e-5],
    }


def test_an_older_run_did_what_the_default_does(finished: dict[str, Path]) -> None:
    old, new = read_runs([finished["base"], finished["seed"]])
    settings = {key: value for key, value in old.settings.items() if key != "train.ema_decay"}
    assert list_differences([replace(old, settings=settings), new]) == {"seed": [0, 1]}
    new = replace(new, settings={**new.settings, "train.ema_decay": 0.9})
    assert list_differences([replace(old, settings=settings), new])["train.ema_decay"] == [None, 0.9]


def test_settings_as_text() -> None:
    formatted: Callable[..., str] = format_setting
    assert [formatted(value) for value in (None, True, 2e-4, [], ["a", 1], {}, {"epoch": 2}, "2/3", 7)] == [
        "null", "true", "0.0002", "[]", "a, 1", "{}", "epoch: 2", "2/3", "7"
    ]  # fmt: skip
