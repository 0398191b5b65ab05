"""hf-finetune train --auto: what it chooses, what it leaves as it is, and that a run repeats and resumes without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import tagged, tiny
from support.configs import make_small_config
from support.runs import assert_same_tensors, load_exported_weights, read_untimed_metrics

from hf_finetune import cli
from hf_finetune.choosing import auto
from hf_finetune.choosing.auto import CHOSEN, PACE, choose_epochs, choose_settings
from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import RunConfig, flatten, to_dict
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError

MakeConfig = Callable[..., RunConfig]
MakeRun = Callable[..., TrainingRun]


def list_chosen(config: RunConfig) -> dict[str, Any]:
    """The values of the settings that --auto may choose."""
    values = dict(flatten(to_dict(config)))
    return {key: values[key] for key in CHOSEN}


def make_words(config: RunConfig) -> list[str]:
    """The data, the backbone and the folder of a config as words of a command."""
    words = ["--output_dir", config.output_dir, "--model.backbone", config.model.backbone, "--tracking.trackers", "[]"]
    for split in ("train", "validation", "test"):
        words += [f"--data.{split}", *getattr(config.data, split)]
    return [*words, "--data.max_length", "32", "--train.batch_size", "16", "--train.precision", "fp32"]


def test_a_run_repeats_from_its_config_without_auto(
    tmp_path: Path, backbones: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = make_words(make_small_config(tmp_path, backbones("bert", layers=3)))
    assert cli.main(["train", "classify", "--auto", "--name", "chosen", *words, "--train.patience", "2"]) == 0
    output = capsys.readouterr().out
    assert (
        "auto        freeze.embeddings True, freeze.layers 1/6, train.head_start ridge, train.head_learning_rate "
        in output
    )
    assert "train.epochs 20, train.schedule constant" in output
    assert "train.patience" not in next(line for line in output.splitlines() if line.startswith("auto "))
    folder = tmp_path / "outputs"
    chosen = dict(flatten(yaml.safe_load((folder / "chosen" / "config.yaml").read_text(encoding="utf-8"))))
    wanted = {
        "freeze.layers": "1/6",
        "train.head_start": "ridge",
        "train.patience": 2,
        "train.head_learning_rate": 2e-4,
    }
    assert chosen.items() >= (dict(PACE) | wanted).items()
    again = ["--config", str(folder / "chosen" / "config.yaml"), "--name", "repeated"]
    assert cli.main(["train", *again]) == 0
    assert read_untimed_metrics(folder / "repeated") == read_untimed_metrics(folder / "chosen")
    assert_same_tensors(load_exported_weights(folder / "repeated"), load_exported_weights(folder / "chosen"))


def test_a_run_that_is_resumed_takes_what_its_folder_says(
    tmp_path: Path, backbones: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command after more advice has become possible: choosing again would change freeze.layers."""
    config = make_small_config(tmp_path, backbones("bert", layers=3))
    words = ["train", "classify", "--auto", *make_words(config), "--name", "first", "--train.patience", "99"]
    words += ["--train.epochs", "1"]
    assert cli.main(words) == 0
    monkeypatch.setattr(auto, "choose", lambda *_: pytest.fail("chosen again"))
    assert cli.main([*words[:-1], "2"]) == 0
    output = capsys.readouterr().out
    assert f"as the run in {tmp_path / 'outputs' / 'first'}" in output
    assert "epoch 2  validation" in output
    with pytest.raises(pytest.fail.Exception):
        cli.main([*words, "--checkpoint.resume", "never"])


def test_settings_that_are_given_win(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some settings are chosen together or not at all: a moving average does not go with every optimizer."""
    config = make_config(
        **{
            "train.optimizer": "sgd",
            "evaluation.every": 7,
            "freeze.layers": 1,
        }
    )
    given = ("train.optimizer", "evaluation.every", "freeze.layers")
    chosen = choose_settings(config, given)
    assert list_chosen(chosen) == list_chosen(config) | {
        "train.head_start": "ridge",
        "train.head_learning_rate": config.train.learning_rate,
        "train.epochs": 20,
        "train.patience": PACE["train.patience"],
    }
    monkeypatch.setattr(auto, "set_up", lambda *_: pytest.fail("loaded for nothing"))
    assert choose_settings(config, CHOSEN) == config


@pytest.mark.parametrize(("batch_size", "epochs"), [(1, 10), (8, 20), (60, 20)])
def test_few_examples_are_trained_on_more_often(make_run: MakeRun, batch_size: int, epochs: int) -> None:
    """60 examples: until 600 updates, and at most 20 times."""
    assert choose_epochs(make_run(**{"train.batch_size": batch_size})) == epochs


def test_advice_chooses_the_depth_if_the_data_are_not_few(
    tmp_path: Path, backbones: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_small_config(tmp_path, backbones("bert", layers=3))
    monkeypatch.setattr(auto, "EXAMPLES_FOR_ADVICE", 60)
    chosen = choose_settings(config, ())
    assert chosen.freeze.embeddings
    assert chosen.freeze.layers in range(4)
    assert "freeze.layers by advice, which took" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "settings", "head_start", "reason"),
    [
        ("tag", {}, "ridge", "task.kind (tag): advise knows"),
        ("classify", {"train.loss": "torch.nn.functional:cross_entropy"}, "none", "train.loss ("),
    ],
)
def test_without_advice_the_depth_is_as_it_was(
    kind: str,
    settings: dict[str, Any],
    head_start: str,
    reason: str,
    tmp_path: Path,
    backbones: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tagged.make_rows(24, seed=0) if kind == "tag" else tiny.make_rows(24, seed=0)
    file = tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    own: dict[str, Any] = {
        "model.backbone": str(backbones("bert")),
        "data.max_length": 32,
        "data.train": [str(file)],
        "output_dir": str(tmp_path),
    }
    config = load_config({**read_defaults(kind), **own, **settings})
    chosen = choose_settings(config, settings)
    assert chosen.freeze == config.freeze
    assert chosen.train.head_start == head_start
    assert f"freeze.layers as it is set, because there is no advice: {reason}" in capsys.readouterr().out


def test_what_auto_is_not_for(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(**{"data.streaming": True, "train.max_updates": 2})
    with pytest.raises(InputError, match=r"^data\.streaming \(true\): --auto needs the number of examples"):
        choose_settings(config, ())
    for flag in ("--dry-run", "--print_config"):
        assert cli.main(["train", "classify", "--auto", flag, "--data.train", "x.csv"]) == 2
        assert f"error: {flag} (--auto): leave one out" in capsys.readouterr().err
