"""Runs with every optimizer and schedule: stopped and resumed they end with the same bits, gradual unfreezing included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import (
    assert_same_tensors,
    load_exported_weights,
    load_last_checkpoint,
    read_untimed_metrics,
    run_recipe,
    run_until,
    start_verify_resume,
)
from support.script_server import ScriptServer

from hf_finetune import verify
from hf_finetune.config.optimizers import OPTIMIZERS
from hf_finetune.config.schedules import SCHEDULES
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.parts import NO_PARTS, Parts
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
# Those that are not the default; with 8 bits, the small matrices of the tests have a state of 8 bits, too
RATES = {"sgd": 0.2, "lion": 5e-4, "lion_8bit": 5e-4, "adagrad": 1e-2, "schedule_free_sgd": 1.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "rmsprop": {"momentum": 0.5, "centered": True},
    "adafactor": {"beta1": 0.9},
    **{name: {"min_8bit_size": 64} for name in OPTIMIZERS if name.endswith("8bit")},
}


def make_settings(optimizer: str) -> dict[str, Any]:
    """The settings of a run with an optimizer: 4 updates with one block of two, and 8 more with both."""
    return {
        "train.optimizer": optimizer,
        "train.optimizer_options": OPTIONS.get(optimizer, {}),
        "train.learning_rate": RATES.get(optimizer, 2e-3),
        "train.schedule": "constant" if "schedule_free" in optimizer else "linear",
        "train.batch_size": 15,
        "train.epochs": 3,
        "model.dropout": 0.1,
        "train.dropout_masks": "stateless",
        "freeze.layers": 1,
        "freeze.unfreeze": [{"epoch": 2, "layers": 0}],
        "checkpoint.every": 2,
    }


def assert_resumed_equals_uninterrupted(
    make_config: MakeConfig,
    settings: dict[str, Any],
    stops: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    parts: Parts = NO_PARTS,
) -> RunConfig:
    """Trains once without a stop and once cut off after these updates, and compares everything bit for bit."""
    uninterrupted, config = make_config(**settings, name="uninterrupted"), make_config(**settings)
    finetune(uninterrupted, parts)
    for stop in stops:
        run_until(config, stop, monkeypatch, parts)
    finetune(config, parts)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(uninterrupted.run_dir))
    ours, theirs = load_last_checkpoint(config.run_dir), load_last_checkpoint(uninterrupted.run_dir)
    for content in (ours, theirs):
        content["run"].pop("config")  # its name differs
    assert_same_tensors(ours, theirs)
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(uninterrupted.run_dir)
    return config


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_was_cut_off_ends_with_the_same_bits(
    make_config: MakeConfig, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = assert_resumed_equals_uninterrupted(make_config, make_settings(optimizer), (2, 4, 6), monkeypatch)
    content = load_last_checkpoint(config.run_dir)
    assert (content["run"]["training_weights"] is not None) == OPTIMIZERS[optimizer].is_schedule_free
    if optimizer.endswith("8bit"):
        tensors = verify.collect_tensors(content["optimizer_state_dict"]).values()
        assert torch.uint8 in {tensor.dtype for tensor in tensors}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_with_this_schedule_that_was_cut_off_ends_with_the_same_bits(
    make_config: MakeConfig, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"train.schedule": schedule, "checkpoint.every": 3, "train.ema_decay": 0.8}
    assert_resumed_equals_uninterrupted(make_config, settings, (3, 9), monkeypatch)


@pytest.mark.processes
@pytest.mark.parametrize("optimizer", ["muon", "schedule_free_adamw"])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    make_config: MakeConfig, optimizer: str, tmp_path: Path, script_server: ScriptServer
) -> None:
    config, words = make_config(**make_settings(optimizer)), ["--updates", "8", "--kills", "2"]
    started = start_verify_resume(script_server, config, tmp_path, words)
    assert started.wait(100) == 0, started.read("stderr")
    shown = started.read()
    assert "2 kills, " in shown
    assert " 0 differ" in shown


@pytest.mark.processes
@pytest.mark.parametrize("optimizer", ["lion", "muon", "schedule_free_adamw"])
def test_the_numbers_on_two_processes(
    make_config: MakeConfig, optimizer: str, tmp_path: Path, script_server: ScriptServer
) -> None:
    settings = {**make_settings(optimizer), "model.dropout": 0.0}
    alone, together = make_config(**settings, name="alone"), make_config(**settings, name="together")
    finetune(alone)
    done = run_recipe(script_server, 2, together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    for ours, theirs in zip(read_untimed_metrics(together.run_dir), read_untimed_metrics(alone.run_dir), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"train.optimizer": "schedule_free_adamw"},
        {"train.ema_decay": 0.8, "train.optimizer": "nadam"},
        {"export.average": "last:2", "train.optimizer": "adafactor"},
    ],
)
def test_a_finished_run_that_is_given_more_epochs_equals_one_that_had_them(
    make_config: MakeConfig, settings: dict[str, Any]
) -> None:
    settings = {"train.schedule": "constant", "train.warmup_fraction": 0.0, "model.dropout": 0.1, **settings}
    finetune(make_config(**settings, **{"train.epochs": 1}, name="two-times"))
    twice, once = (make_config(**settings, **{"train.epochs": 3}, name=name) for name in ("two-times", "once"))
    for config in (twice, once):
        finetune(config)
    assert_same_tensors(load_exported_weights(twice.run_dir), load_exported_weights(once.run_dir))
    ours, theirs = load_last_checkpoint(twice.run_dir), load_last_checkpoint(once.run_dir)
    for key in ("model_state_dict", "optimizer_state_dict"):
        assert_same_tensors(ours[key], theirs[key])
    assert_same_tensors(ours["run"]["training_weights"], theirs["run"]["training_weights"])


def test_an_optimizer_of_ones_own_from_python(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(groups: list[dict[str, Any]], *, momentum: float = 0.0) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=momentum)

    settings = make_settings("sgd") | {
        "train.optimizer": "my_program:build",
        "train.optimizer_options": {"momentum": 0.9},
    }
    config = assert_resumed_equals_uninterrupted(make_config, settings, (2, 6), monkeypatch, Parts(optimizer=build))
    groups = load_last_checkpoint(config.run_dir)["optimizer_state_dict"]["param_groups"]
    assert {group["momentum"] for group in groups} == {0.9}


def test_a_state_that_a_checkpoint_cannot_hold_is_refused_at_the_first_update(make_config: MakeConfig) -> None:
    class WithObject(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            self.state[self.param_groups[0]["params"][0]]["started"] = Path("here")

    with pytest.raises(
        InputError, match=r"train\.optimizer \(m:f\): its state has a PosixPath at /state/0/started, and a checkpoint"
    ):
        finetune(make_config(**{"train.optimizer": "m:f"}), Parts(optimizer=WithObject))


def test_a_resume_with_fewer_frozen_blocks_keeps_the_count_of_those_that_trained(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule-free optimizer counts updates for a group. Parameters that start later have a group and a count of their own."""
    settings = make_settings("schedule_free_adamw") | {"freeze.unfreeze": []}
    run_until(make_config(**settings), 4, monkeypatch)
    config = make_config(**settings | {"freeze.layers": 0})
    finetune(config)
    counts: dict[int, set[str]] = {}
    for group in load_last_checkpoint(config.run_dir)["optimizer_state_dict"]["param_groups"]:
        counts.setdefault(group["k"], set()).update(group["param_names"])
    assert counts.keys() == {8, 12}
    assert all(".layer.0." in name for name in counts[8])
    assert not any(".layer.0." in name for name in counts[12])
