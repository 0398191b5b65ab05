"""The file of a sweep."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_finetune.choosing.search import Search, draw, read_search
from hf_finetune.config.sections import RunConfig
from hf_finetune.system.errors import InputError

MakeConfig = Callable[..., RunConfig]


def read(tmp_path: Path, base: RunConfig, text: str) -> Search:
    """Reads the text of a search."""
    path = tmp_path / "search.yaml"
    path.write_text(text, encoding="utf-8")
    return read_search(str(path), base)


def test_settings_may_stand_in_sections_and_have_dots(make_config: MakeConfig, tmp_path: Path) -> None:
    search = read(
        tmp_path,
        make_config(),
        "trials: 5\ntrain:\n  learning_rate: {log_uniform: [1e-5, 1e-3]}\nfreeze.layers: {int_uniform: [0, 2]}\n"
        "train.schedule: {choice: [linear, cosine]}\ntrain.warmup_fraction: {uniform: [0, 0.2]}\n",
    )
    assert (search.trials, search.halving) == (5, True)
    assert {key: (values.kind, values.items) for key, values in search.space.items()} == {
        "train.learning_rate": ("log_uniform", (1e-5, 1e-3)),
        "freeze.layers": ("int_uniform", (0, 2)),
        "train.schedule": ("choice", ("linear", "cosine")),
        "train.warmup_fraction": ("uniform", (0.0, 0.2)),
    }


def test_values_are_drawn_as_the_file_says(make_config: MakeConfig, tmp_path: Path) -> None:
    search = read(
        tmp_path,
        make_config(),
        "train.learning_rate: {log_uniform: [1e-5, 1e-3]}\nfreeze.layers: {int_uniform: [0, 2]}\n"
        "train.schedule: {choice: [linear, cosine]}\ntrain.warmup_fraction: {uniform: [0, 0.2]}\nhalving: false\n",
    )
    drawn = [draw(search, [7, number]) for number in range(400)]
    rates = np.log10([settings["train.learning_rate"] for settings in drawn])
    assert -5 <= rates.min() < -4.9
    assert -3.1 < rates.max() <= -3
    assert abs(np.median(rates) + 4) < 0.15
    assert {settings["freeze.layers"] for settings in drawn} == {0, 1, 2}
    assert {settings["train.schedule"] for settings in drawn} == {"linear", "cosine"}
    assert abs(np.mean([settings["train.warmup_fraction"] for settings in drawn]) - 0.1) < 0.01
    assert drawn[3] == draw(search, [7, 3])
    assert not search.halving


ERRORS = [
    ("", "names no setting to search"),
    ("trials: 0\nseed: {choice: [1]}", "trials (0): must be a whole number of at least 1"),
    ("trials: many\nseed: {choice: [1]}", "trials (many): must be a whole number"),
    ("halving: 3\nseed: {choice: [1]}", "halving (3): must be true or false"),
    ("train.learning_rate: 2e-4", "must be {log_uniform: [low, high]}"),
    ("train.learning_rate: {log_unifrom: [1e-5, 1e-3]}", "did you mean log_uniform?"),
    ("train.learning_rate: {log_uniform: [1e-3, 1e-5]}", "low must be below high"),
    ("train.learning_rate: {log_uniform: [0, 1e-5]}", "low must be above 0"),
    ("train.learning_rate: {uniform: [1e-3]}", "must be two numbers"),
    ("train.learning_rate: {uniform: [.nan, 1]}", "must be two numbers"),
    ("train.learning_rate: {uniform: 1e-3}", "must be a list"),
    ("freeze.layers: {int_uniform: [0, 1.5]}", "must be two whole numbers"),
    ("train.schedule: {choice: []}", "must be a list"),
    ("train.learning_rat: {uniform: [0.1, 1]}", "there is no such setting; did you mean train.learning_rate?"),
    ("train.schedule: {choice: [linear, linaer]}", "train.schedule (linaer): must be one of"),
    ("train.epochs: {uniform: [1, 3]}", "train.epochs (1.0): must be a whole number"),
    ("train.warmup_fraction: {uniform: [0.5, 1.5]}", "train.warmup_fraction (1.5)"),
    ("data.train: {choice: [a.csv, b.csv]}", "data.train: must be the same in all trials"),
    ("evaluation.metric: {choice: [loss, accuracy]}", "must be the same in all trials"),
    ("train.learning_rate: {uniform: [0.1, 1], log_uniform: [0.1, 1]}", "gives a setting twice"),
    ("- 3", "--search"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_wrong_searches(make_config: MakeConfig, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, make_config(), text)
    assert message in str(error.value)
    assert "search.yaml" in str(error.value) or "train." in str(error.value)


def test_seeds_need_validation_rows_of_their_own(make_config: MakeConfig, tmp_path: Path) -> None:
    text = "seed: {choice: [0, 1]}"
    assert read(tmp_path, make_config(), text).space["seed"].items == (0, 1)
    with pytest.raises(InputError, match=r"seed: also draws the validation rows.*give data\.validation"):
        read(tmp_path, make_config(**{"data.validation": []}), text)


def test_a_missing_file(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"--search \(none\.yaml\): No such file"):
        read_search("none.yaml", make_config())
