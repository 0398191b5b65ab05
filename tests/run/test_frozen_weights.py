"""Frozen weights while a run trains: held in 16 bit, and out of memory."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs import assert_same_tensors, compute_update, read_untimed_metrics
from torch import nn

from hf_finetune.config.sections import RunConfig
from hf_finetune.forward.cached import replace_forwards
from hf_finetune.model import mapped_weights
from hf_finetune.run import frozen_weights
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.files import digest_tensors
from hf_finetune.train import attach_cache, decide_on_cache, finetune
from hf_finetune.training.progress import FRESH

MakeRun = Callable[..., TrainingRun]
MakeConfig = Callable[..., RunConfig]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs the list of a process's maps")


def start(made: TrainingRun) -> TrainingRun:
    """The run as it starts to train."""
    return attach_cache(made, FRESH, decide_on_cache(made, FRESH, Clock()), Clock())[0]


def count_casts(made: TrainingRun) -> int:
    """The number of frozen matrices that an update casts to 16 bit."""
    frozen = {id(p) for p in made.train_state.model.parameters() if not p.requires_grad and p.ndim > 1}
    casts = 0

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            nonlocal casts
            is_cast = function is torch.ops.aten._to_copy.default and keywords.get("dtype") is torch.bfloat16
            casts += is_cast and id(arguments[0]) in frozen
            return function(*arguments, **(keywords or {}))

    with Count():
        compute_update(made)
    return casts


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
def test_frozen_layers_above_the_boundary_are_cast_once_and_give_the_same_bits(
    make_run: MakeRun, backbones: Callable[..., Path], family: str
) -> None:
    """Under LoRA all of them are frozen."""
    made = make_run(
        **{"model.backbone": str(backbones(family, layers=3)), "adapter.kind": "lora", "freeze.layers": 1,
           "train.precision": "bf16", "cache.activations": "off", "train.dropout_masks": "stateless"}
    )  # fmt: skip
    model = made.train_state.model
    frozen = sorted(made.plan.frozen)
    before = digest_tensors(model.state_dict(), frozen), count_casts(made)
    loss, gradients = compute_update(made)
    started = start(made)
    held = started.train_state.forward_plan.frozen_layers
    assert len(held) >= 8
    assert count_casts(started) <= before[1] - 2 * len(held)
    again, held_gradients = compute_update(started)
    assert again == loss
    assert_same_tensors(held_gradients, gradients)
    assert digest_tensors(model.state_dict(), frozen) == before[0]
    assert all(tensor.dtype is torch.float32 for tensor in model.state_dict().values())


def test_layers_of_a_cut_block_and_a_bias_that_trains_stay_as_they_are(make_run: MakeRun) -> None:
    made = make_run(**{"freeze.patterns": [r"dense\.weight", r"query\."], "train.precision": "bf16"})
    loss, gradients = compute_update(made)
    assert any(name.endswith("layer.0.output.dense.bias") for name in gradients)
    started = start(made)
    cut = {inner for module in started.train_state.forward_plan.first_token for inner in module.modules()}
    held = set(started.train_state.forward_plan.frozen_layers)
    assert held
    assert cut
    assert not held & cut
    again, held_gradients = compute_update(started)
    assert again == loss
    assert_same_tensors(held_gradients, gradients)


@LINUX
def test_the_prefix_leaves_memory_and_a_run_ends_with_the_same_bits(
    make_config: MakeConfig,
    backbones: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = backbones("bert", layers=4, hidden_size=128)
    settings: dict[str, Any] = {
        "model.backbone": str(backbone),
        "freeze.embeddings": True,
        "freeze.layers": 3,
        "freeze.unfreeze": [{"epoch": 2, "layers": 2}],
        "cache.activations": "on",
        "cache.dir": str(tmp_path / "cache"),
    }
    released: list[int] = []
    give_back = mapped_weights.give_back

    def count(ranges: list[mapped_weights.Range]) -> None:
        give_back(ranges)
        resident = sum(count_resident(*each) for each in ranges)
        assert resident == 0
        released.append(sum(end - start for start, end in ranges))

    monkeypatch.setattr("hf_finetune.training.train_state.give_back", count)
    config = make_config(name="released", **settings)
    finetune(config)
    # At the start of two stages and after each save; three of four blocks, then two
    assert released[0] > 3 * 16 * 128 * 128
    assert released[0] > released[-1] > 2 * 16 * 128 * 128
    assert len(released) >= 4
    monkeypatch.setattr(frozen_weights, "find_unchanged_ranges", lambda _: [])
    other = make_config(name="kept", **settings)
    finetune(other)
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(other.run_dir)
    ours, theirs = (each.run_dir / "model" / "model.safetensors" for each in (config, other))
    assert ours.read_bytes() == theirs.read_bytes()


def count_resident(start: int, end: int) -> int:
    """The number of pages of a range that are in the memory of this process."""
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(start // 4096 * 8)
        entries = np.frombuffer(file.read((end - start) // 4096 * 8), np.uint64)
    return int((entries >> np.uint64(63)).sum())


@LINUX
def test_weights_that_differ_from_the_file_keep_their_memory(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: torch.randn(64, 1024) for name in ("same", "changed")}, tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    assert mapped_weights.find_unchanged_ranges(torch.zeros(9999).split(3333)) == []
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    both = mapped_weights.find_unchanged_ranges(tensors.values())
    assert sum(end - start for start, end in both) > 400_000
    tensors["changed"][3, 3] = before["changed"][3, 3] = 7.0
    ranges = mapped_weights.find_unchanged_ranges(tensors.values())
    assert 200_000 < sum(end - start for start, end in ranges) < 300_000
    mapped_weights.give_back(ranges)
    assert_same_tensors(tensors, before)
    (tmp_path / "other").write_bytes((tmp_path / "model.safetensors").read_bytes())
    (tmp_path / "other").rename(tmp_path / "model.safetensors")
    assert mapped_weights.find_unchanged_ranges(tensors.values()) == []
    (tmp_path / "model.safetensors").unlink()
    assert mapped_weights.find_unchanged_ranges(tensors.values()) == []
    assert_same_tensors(tensors, before)


def test_nothing_is_given_back_where_maps_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "MAPS", Path("/no/such/file"))
    assert mapped_weights.find_unchanged_ranges([torch.zeros(5000)]) == []


def test_parameters_that_left_a_device_come_back_when_their_module_runs() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3))
    model[1].weight = model[0][0].weight  # tied
    below = model[0]
    idle = mapped_weights.find_idle_parameters(model, [below])
    assert [id(each) for each in idle] == [id(below[0].bias), id(below[1].weight), id(below[1].bias)]
    mapped_weights.move_to_cpu(idle, [below])
    with replace_forwards({below: lambda value: value}):
        model(torch.ones(1, 3))
    assert below._forward_pre_hooks
    assert below[1]._forward_pre_hooks
    model(torch.ones(1, 3))
    assert not any(module._forward_pre_hooks for module in model.modules())
