"""The weights that are evaluated: a moving average, or those of a schedule-free optimizer."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import (
    assert_same_tensors,
    load_exported_weights,
    load_last_checkpoint,
    read_metrics,
    read_untimed_metrics,
    run_recipe,
    run_until,
)
from support.script_server import ScriptServer
from torch import nn

from hf_finetune import verify
from hf_finetune.config.sections import RunConfig
from hf_finetune.run import checkpoint, saving
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.train import finetune
from hf_finetune.training.averaging import MovingAverage
from hf_finetune.training.progress import FRESH
from hf_finetune.training.train_state import TrainState

MakeConfig = Callable[..., RunConfig]
MakeRun = Callable[..., TrainingRun]
EMA = {"train.ema_decay": 0.7}
FREE = {"train.optimizer": "schedule_free_adamw", "train.schedule": "constant"}


# --- the average ----------------------------------------------------------------------------------------------------


def test_the_average_is_the_weighted_mean_of_all_weights_after_an_update() -> None:
    model, weights = nn.Linear(3, 1, bias=False), [torch.randn(1, 3) for _ in range(6)]
    average = MovingAverage(model, 0.9)
    for update, weight in enumerate(weights, 1):
        model.weight.data.copy_(weight)
        average.add(model, update)
        shares = torch.tensor([0.9 ** (update - number) for number in range(1, update + 1)], dtype=torch.float64)
        mean = sum(share * value.double() for share, value in zip(shares / shares.sum(), weights, strict=False))
        assert torch.allclose(average.weights["weight"].double(), mean, atol=1e-6)  # type: ignore[arg-type]
        assert torch.equal(model.weight, weight)
        if update == 1:
            assert torch.equal(average.weights["weight"], weight)


def test_frozen_weights_are_not_averaged() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert MovingAverage(model, 0.9).weights.keys() == {"weight"}


# --- the weights in the model ---------------------------------------------------------------------------------------


def train_a_little(state: TrainState, *, num_updates: int = 3) -> None:
    """Updates with random gradients."""
    torch.manual_seed(0)
    for update in range(1, num_updates + 1):
        for group in state.optimizer.param_groups:
            group["lr"] = 0.1
        for parameter in state.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizer.step()
        if state.average is not None:
            state.average.add(state.model, update)


def copy_weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.model.named_parameters()}


@pytest.mark.parametrize("settings", [EMA, FREE])
def test_the_evaluated_weights_are_there_for_the_time_of_the_block(make_run: MakeRun, settings: dict[str, Any]) -> None:
    state = make_run(**settings).train_state
    train_a_little(state)
    before = copy_weights(state)
    with contextlib.suppress(KeyboardInterrupt), state.evaluated_weights() as training_weights:
        assert_same_tensors(training_weights, before)
        inside = copy_weights(state)
        raise KeyboardInterrupt
    assert_same_tensors(copy_weights(state), before)
    assert not any(torch.equal(inside[name], before[name]) for name in before)
    if state.average is not None:
        assert_same_tensors(inside, state.average.weights)


def test_evaluating_changes_nothing_in_the_training_of_a_schedule_free_optimizer(make_run: MakeRun) -> None:
    """train() of the library takes the averages out again up to rounding; the run's weights are the same bits."""
    plain, evaluated = make_run(**FREE).train_state, make_run(**FREE).train_state
    for state in (plain, evaluated):
        train_a_little(state)
    for _ in range(3):
        with evaluated.evaluated_weights():
            pass
    optimizer = evaluated.optimizer.optimizer
    train_a_little(plain)
    train_a_little(evaluated)
    assert_same_tensors(copy_weights(evaluated), copy_weights(plain))
    assert_same_tensors(optimizer.state_dict(), plain.optimizer.optimizer.state_dict())
    optimizer.eval()
    averages = copy_weights(evaluated)
    with plain.evaluated_weights():
        assert_same_tensors(copy_weights(plain), averages)


def test_without_an_average_the_weights_are_not_copied(make_run: MakeRun) -> None:
    state = make_run().train_state
    with state.evaluated_weights() as training_weights:
        assert training_weights is None


@pytest.mark.parametrize("settings", [EMA, FREE])
def test_a_checkpoint_has_the_evaluated_weights_and_resumes_from_those_that_train(
    make_run: MakeRun, settings: dict[str, Any]
) -> None:
    run, other = make_run(**settings), make_run(**settings)
    train_a_little(run.train_state)
    before = copy_weights(run.train_state)
    with run.train_state.evaluated_weights() as training_weights:
        content = checkpoint.copy_to_cpu(saving.collect_content(run, FRESH, training_weights))
        evaluated = copy_weights(run.train_state)
        content = {**content, "model_state_dict": {k: v.clone() for k, v in content["model_state_dict"].items()}}
    assert all(torch.equal(content["model_state_dict"][name], tensor) for name, tensor in evaluated.items())
    assert_same_tensors(content["run"]["training_weights"], before)
    other.train_state.model.load_state_dict(content["model_state_dict"])
    other.train_state.restore_training_weights(content["run"]["training_weights"])
    assert_same_tensors(copy_weights(other.train_state), before)
    if other.train_state.average is not None:
        assert_same_tensors(other.train_state.average.weights, evaluated)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_evaluates_and_exports_the_average_and_trains_on_with_its_own_weights(make_config: MakeConfig) -> None:
    plain, averaged = make_config(name="plain"), make_config(**EMA, name="averaged")
    for config in (plain, averaged):
        finetune(config)
    ours, theirs = load_last_checkpoint(averaged.run_dir), load_last_checkpoint(plain.run_dir)
    own = ours["run"]["training_weights"]
    assert own
    assert all(torch.equal(theirs["model_state_dict"][name], tensor) for name, tensor in own.items())
    assert_same_tensors(ours["optimizer_state_dict"], theirs["optimizer_state_dict"])
    assert theirs["run"]["training_weights"] is None
    losses = [
        [row["train/loss"] for row in read_metrics(config.run_dir) if "train/loss" in row]
        for config in (plain, averaged)
    ]
    assert losses[0] == losses[1]
    validation = [
        [row["validation/loss"] for row in read_metrics(config.run_dir) if "validation/loss" in row]
        for config in (plain, averaged)
    ]
    assert validation[0] != validation[1]
    best = checkpoint.read_references(averaged.run_dir / "checkpoints")["best"]
    saved = checkpoint.load_checkpoint(averaged.run_dir / "checkpoints" / str(best))["model_state_dict"]
    card = (averaged.run_dir / "model" / "README.md").read_text(encoding="utf-8")
    assert "on validation. It has the moving average of the trained weights (decay 0.7)." in card
    exported = load_exported_weights(averaged.run_dir)
    assert all(torch.equal(exported[name], tensor) for name, tensor in saved.items() if name in exported)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(4,), (8, 12), (3, 9, 16)])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"checkpoint.content": "trainable", "freeze.embeddings": True, "cache.activations": "on"},
        {"freeze.embeddings": True, "freeze.layers": 1, "freeze.unfreeze": [{"epoch": 2, "layers": 0}]},
        {"adapter.kind": "lora", "adapter.merge": True, "train.optimizer": "muon"},
    ],
)
def test_a_run_with_an_average_that_was_cut_off_ends_with_the_same_bits(
    make_config: MakeConfig,
    make_finished: MakeConfig,
    stops: tuple[int, ...],
    extra: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"model.dropout": 0.1, "train.epochs": 3, "checkpoint.every": 2} | EMA | extra
    uninterrupted = make_finished(**settings)
    config = make_config(**settings, **{"cache.dir": uninterrupted.cache.dir})
    for stop in stops:
        run_until(config, stop, monkeypatch)
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(uninterrupted.run_dir))
    ours, theirs = load_last_checkpoint(config.run_dir), load_last_checkpoint(uninterrupted.run_dir)
    for content in (ours, theirs):
        content["run"].pop("config")  # its name differs
    assert_same_tensors(ours, theirs)
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(uninterrupted.run_dir)
    comparison = verify.compare(config.run_dir, uninterrupted.run_dir)
    assert comparison.num_different == 0


@pytest.mark.slow
def test_an_average_from_cached_activations_is_that_without(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = EMA | {"freeze.embeddings": True, "freeze.layers": 1, "cache.dir": str(tmp_path / "cache")}
    for cache in ("on", "off"):
        finetune(make_config(**settings, **{"cache.activations": cache, "cache.precision": "fp32"}, name=cache))
    cached, plain = (read_untimed_metrics(tmp_path / "outputs" / cache) for cache in ("on", "off"))
    for ours, theirs in zip(cached, plain, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
@pytest.mark.processes
def test_an_average_on_two_processes(make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer) -> None:
    alone, together = make_config(**EMA, name="alone"), make_config(**EMA, name="together")
    finetune(alone)
    done = run_recipe(script_server, 2, together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    for ours, theirs in zip(read_untimed_metrics(together.run_dir), read_untimed_metrics(alone.run_dir), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
