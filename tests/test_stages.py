"""Gradual unfreezing, and resuming with another freeze plan: parameters that trained before keep their optimizer state, others
start without one, and the cached prefix ends at the new boundary."""

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
)
from support.script_server import ScriptServer

from hf_finetune import train
from hf_finetune.cache import listing
from hf_finetune.config.sections import FreezeConfig, RunConfig, TrainConfig
from hf_finetune.run.training_run import TrainingRun, evaluate_split
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune
from hf_finetune.training import optim

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
STAGES: list[dict[str, Any]] = [{"epoch": 2, "layers": 1}, {"epoch": 3, "layers": 0}]


@pytest.fixture
def settings(backbones: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    """Three epochs of 8 updates: two blocks of three frozen, then one, then none (the embeddings always)."""
    return {
        "model.backbone": str(backbones("bert", layers=3)),
        "model.dropout": 0.1,
        "train.dropout_masks": "stateless",
        "train.epochs": 3,
        "freeze.embeddings": True,
        "freeze.layers": 2,
        "freeze.unfreeze": STAGES,
        "cache.dir": str(tmp_path / "cache"),
        "evaluation.every": 4,
    }


def count_updates(run_dir: Path) -> dict[str, int]:
    """Returns the number of updates of each parameter."""
    optimizer_state = load_last_checkpoint(run_dir)["optimizer_state_dict"]
    return {
        name: int(optimizer_state["state"][number]["step"])
        for group in optimizer_state["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }


def test_each_stage_trains_more_parameters_and_keeps_their_optimizer_state(
    make_config: MakeConfig, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**settings)
    finetune(config)
    steps = count_updates(config.run_dir)
    assert {count for name, count in steps.items() if "layer.2." in name or "classifier" in name} == {24}
    assert {count for name, count in steps.items() if "layer.1." in name} == {16}
    assert {count for name, count in steps.items() if "layer.0." in name} == {8}
    assert not [name for name in steps if "embeddings" in name]
    assert capsys.readouterr().out.count("unfreezing from epoch") == 2


@pytest.mark.parametrize("stops", [(4,), (8,), (9,), (16,), (3, 8, 16, 21)])
@pytest.mark.parametrize("extra", [{}, {"cache.activations": "on", "checkpoint.content": "trainable"}])
def test_a_staged_run_that_was_cut_off_ends_with_the_same_bits(
    make_config: MakeConfig,
    make_finished: MakeConfig,
    settings: dict[str, Any],
    stops: tuple[int, ...],
    extra: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings |= {**extra, "checkpoint.every": 4}
    del settings["cache.dir"]
    uninterrupted = make_finished(**settings)
    config = make_config(**settings, **{"cache.dir": uninterrupted.cache.dir})
    for stop in stops:
        run_until(config, stop, monkeypatch)
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(uninterrupted.run_dir))
    ours, theirs = load_last_checkpoint(config.run_dir), load_last_checkpoint(uninterrupted.run_dir)
    assert ours.pop("run")["progress"] == theirs.pop("run")["progress"]
    assert_same_tensors(ours, theirs)
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(uninterrupted.run_dir)


def test_the_cached_prefix_moves_with_the_boundary(
    make_config: MakeConfig, settings: dict[str, Any], tmp_path: Path
) -> None:
    plain = make_config(**settings, **{"cache.activations": "off"}, name="plain")
    finetune(plain)
    cached = make_config(**settings, **{"cache.activations": "on", "cache.precision": "fp32"}, name="cached")
    finetune(cached)
    for ours, theirs in zip(read_untimed_metrics(cached.run_dir), read_untimed_metrics(plain.run_dir), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    blocks = sorted(
        entry.manifest["description"]["blocks"] for entry in listing.list_entries(tmp_path / "cache" / "activations")
    )
    assert blocks == [0, 1, 2]


def test_stages_on_two_processes(
    make_config: MakeConfig, settings: dict[str, Any], tmp_path: Path, script_server: ScriptServer
) -> None:
    alone = make_config(**settings, name="alone")
    finetune(alone)
    together = make_config(**settings, name="together")
    done = run_recipe(script_server, 2, together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    for ours, theirs in zip(read_untimed_metrics(together.run_dir), read_untimed_metrics(alone.run_dir), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_stages_in_16_bit_leave_out_the_same_work(
    make_config: MakeConfig, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a forward need not compute shows in fp32, also after Accelerate has put the model under autocast."""
    num_cuts, attach = [], train.attach_cache

    def record(run: TrainingRun, *others: Any) -> Any:
        num_cuts.append(len(run.train_state.forward_plan.first_token))
        return attach(run, *others)

    monkeypatch.setattr("hf_finetune.train.attach_cache", record)
    finetune(make_config(**settings, **{"train.precision": "bf16"}))
    assert num_cuts[0] > 0
    assert num_cuts == [num_cuts[0]] * 3


def test_the_best_checkpoint_of_an_early_stage_is_restored_completely(
    make_config: MakeConfig, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation is the best. The exported model must have its weights, those included that trained only later."""
    count = []

    def evaluate_with_rising_loss(*arguments: Any, **options: Any) -> dict[str, float]:
        count.append(1)
        return {**evaluate_split(*arguments, **options), "loss": float(len(count))}

    monkeypatch.setattr("hf_finetune.train.evaluate_split", evaluate_with_rising_loss)
    exported = []
    for content in ("full", "trainable"):
        count.clear()
        config = make_config(**settings, **{"checkpoint.content": content, "evaluation.metric": "loss"}, name=content)
        finetune(config)
        exported.append(load_exported_weights(config.run_dir))
        best = next((config.run_dir / "checkpoints").glob("ckpt_*_update000004_*.pt"))
        saved = torch.load(best, weights_only=True)["model_state_dict"]
        assert saved.keys() & exported[-1].keys()
        assert all(torch.equal(exported[-1][name], tensor) for name, tensor in saved.items() if name in exported[-1])
    assert_same_tensors(exported[0], exported[1])


def test_a_stage_that_would_freeze_blocks_again_is_refused(make_config: MakeConfig, settings: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"freeze\.unfreeze .*must not freeze blocks that trained before: until then, 0 blocks"
    ):
        finetune(make_config(**settings | {"freeze.layers": 0}))


def test_the_freeze_plan_of_an_epoch() -> None:
    config = FreezeConfig(layers=4, unfreeze=({"epoch": 2, "layers": "1/2"}, {"epoch": 4, "layers": 0}))
    assert [config.at(epoch).layers for epoch in range(1, 6)] == [4, "1/2", "1/2", 0, 0]


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("content", ["full", "trainable"])
def test_resuming_with_another_freeze_plan(
    make_config: MakeConfig,
    settings: dict[str, Any],
    layers: int,
    content: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {**settings, "freeze.unfreeze": [], "freeze.layers": 1, "checkpoint.content": content}
    run_until(make_config(**settings), 8, monkeypatch)
    capsys.readouterr()
    config = make_config(**settings | {"freeze.layers": layers})
    finetune(config)
    output = capsys.readouterr().out
    assert "the freeze plan has changed" in output
    steps = count_updates(config.run_dir)
    assert {count for name, count in steps.items() if "layer.2." in name or "classifier" in name} == {24}
    assert {count for name, count in steps.items() if "layer.1." in name} == ({24} if layers == 0 else set())
    assert {count for name, count in steps.items() if "layer.0." in name} == ({16} if layers == 0 else set())


def test_optimizer_state_is_restored_by_name() -> None:
    def make_optimizer(names: str) -> torch.optim.Optimizer:
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in "abc"})
        parameters = [(name, value) for name, value in model.named_parameters() if name[0] in names]
        groups = [{"name": "all", "params": parameters, "peak_learning_rate": 1.0}]
        optimizer = optim.build_optimizer(groups, TrainConfig(), torch.device("cpu"))
        for _, value in parameters:
            value.grad = torch.ones_like(value)
        return optimizer

    first = make_optimizer("ab")
    first.step()
    second = make_optimizer("bc")
    assert optim.restore_optimizer_state(second, first.state_dict()) == (["c.bias", "c.weight"], ["a.bias", "a.weight"])
    restored = second.state_dict()
    assert len(restored["state"]) == 2
    assert torch.equal(restored["state"][0]["exp_avg"], first.state_dict()["state"][2]["exp_avg"])
    second.step()
