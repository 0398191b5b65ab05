"""A finished run that is called again: its results are returned only for the settings that it was made with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import yaml
from support import tiny

from hf_finetune import __version__
from hf_finetune.config.sections import RunConfig, flatten, to_dict
from hf_finetune.run.parts import Parts
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
SHORT = {"train.epochs": 1, "train.max_updates": 2, "cache.activations": "off"}


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("data.text_columns", "other", "data.text_columns (was ['text'], now ['other'])"),
        ("data.label_column", "flip", "data.label_column (was label, now flip)"),
        ("data.max_length", 8, "data.max_length (was None, now 8)"),
        ("data.max_train_examples", 20, "data.max_train_examples (was None, now 20)"),
        ("data.test_fraction", 0.3, "data.test_fraction (was 0.1, now 0.3)"),
        ("freeze.layers", 1, "freeze.layers (was 0, now 1)"),
        ("freeze.embeddings", True, "freeze.embeddings (was False, now True)"),
    ],
)
def test_other_data_settings_and_freeze_plans_are_refused(
    key: str, value: Any, shown: str, make_config: MakeConfig
) -> None:
    config = make_config(**SHORT)
    finetune(config)
    before = (config.run_dir / "config.yaml").read_bytes()
    with pytest.raises(InputError) as caught:
        finetune(make_config(**SHORT, **{key: value}))
    assert f"holds a finished run that was made with another config: {shown}; to train from its weights" in str(
        caught.value
    )
    assert f"set name to run-2 and start_from to {config.run_dir}" in str(caught.value)
    assert (config.run_dir / "config.yaml").read_bytes() == before


def test_settings_without_effect_and_moved_files_return_the_results(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**SHORT)
    results = finetune(config).results
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(config.data.train[0]).read_bytes())
    capsys.readouterr()
    again = finetune(
        make_config(**SHORT, **{"data.train": [str(moved)], "evaluation.batch_size": 7, "cache.precision": "fp32"})
    )
    assert again.results == results
    assert "What it was made from has changed" not in capsys.readouterr().out


def test_a_run_of_version_0_3_that_is_called_again_returns_its_results(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.yaml lacks the settings that are newer; the version is said, because files may be read in another way."""
    config = make_config(**SHORT)
    results = finetune(config).results
    recorded = yaml.safe_load((Path(support.__file__).parent / "config_0_3.yaml").read_text(encoding="utf-8"))
    path, known = config.run_dir / "config.yaml", {key for key, _ in flatten(recorded)}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, values in content.items():
        if isinstance(values, dict):
            content[section] = {key: value for key, value in values.items() if f"{section}.{key}" in known}
    assert content["data"].keys() < to_dict(config)["data"].keys()
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    environment = json.loads((config.run_dir / "environment.json").read_text(encoding="utf-8"))
    environment["versions"]["hf-finetune"] = "0.3.0"
    (config.run_dir / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    capsys.readouterr()
    assert finetune(make_config(**SHORT)).results == results
    printed = capsys.readouterr().out
    assert f"It was made with hf-finetune 0.3.0; {__version__} may read the same files and labels" in printed
    for versions in (None, [1], {"hf-finetune": None}):
        (config.run_dir / "environment.json").write_text(json.dumps({"versions": versions}), encoding="utf-8")
        assert finetune(make_config(**SHORT)).results == results
    with pytest.raises(InputError, match=r"another config: task\.ignore_labels \(was \[\], now \['-1'\]\); to train"):
        finetune(make_config(**SHORT, **{"task.ignore_labels": ["-1"]}))


def test_a_loss_that_is_a_mean_with_a_number_is_refused_before_training(make_config: MakeConfig) -> None:
    import torch

    def mean(outputs: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(outputs.float(), batch.labels), len(batch.labels)

    config = make_config(**SHORT, **{"train.loss": "my:mean"})
    with pytest.raises(
        InputError, match=r"train.loss \(my:mean\): is 0\.\d+ for 8 examples in one batch, and 0\.\d+ for the same"
    ):
        finetune(config, Parts(loss=mean))
    assert not (config.run_dir / "checkpoints").exists()


@pytest.mark.parametrize(
    ("setting", "part", "note"),
    [
        ({"train.loss": "my:f"}, "loss", "in train.loss, a function of your own"),
        ({"evaluation.metrics": "f=my:f"}, "metrics", "in evaluation.metrics (f), a function of your own"),
        ({"train.augment": "my:f"}, "augment", "in train.augment (my:f) for "),
    ],
)
def test_an_exception_in_a_function_of_ones_own_says_where(
    setting: dict[str, Any], part: str, note: str, make_config: MakeConfig
) -> None:
    def fail(*arguments: Any) -> Any:
        raise KeyError("text")

    given: Any = {"f": fail} if part == "metrics" else fail
    with pytest.raises(KeyError) as caught:
        finetune(make_config(**SHORT, **setting), Parts(**{part: given}))
    assert caught.value.__notes__[0].startswith(note)


def test_drawn_validation_rows_of_a_model_that_was_trained_before_are_warned_of(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finetune(make_config(**SHORT))
    (first.run_dir / "seen_rows.npz").unlink()  # as of a run of an earlier version
    warning = "may be rows that an earlier run of this model was trained on"
    rows = str(tiny.write_jsonl(tmp_path / "all.jsonl", tiny.make_rows(60)))
    drawn: dict[str, Any] = {"data.train": [rows], "data.validation": [], "data.test": []}
    for name, settings, expected in (
        ("given", {"start_from": str(first.run_dir)}, None),
        ("fresh", drawn, None),
        ("both", drawn | {"start_from": str(first.run_dir)}, "validation and test"),
    ):
        capsys.readouterr()
        finetune(make_config(**SHORT, name=name, **settings))
        printed = capsys.readouterr().out
        assert (warning in printed) == (expected is not None), name
        if expected:
            assert f"warning: rows of {expected} may be rows" in printed


def test_the_learning_rates_are_announced(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(make_config(**SHORT, **{"train.head_learning_rate": 1e-3}))
    assert "rate        0.002; 0.001 of the head; warm-up in the first 10% of the updates" in capsys.readouterr().out
