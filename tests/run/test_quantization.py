"""A frozen base in 8 or 4 bit under LoRA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import assert_same_tensors, load_last_checkpoint, run_until
from torch.nn import functional as F

from hf_finetune.config.sections import RunConfig
from hf_finetune.forward import quantized_layers
from hf_finetune.forward.quantized_layers import make_quantized_forward, quantize
from hf_finetune.run.frozen_weights import settle_frozen_weights
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeRun = Callable[..., TrainingRun]
MakeConfig = Callable[..., RunConfig]
LORA = {"adapter.kind": "lora", "freeze.embeddings": True, "freeze.layers": 1, "cache.activations": "off"}


@pytest.fixture(autouse=True)
def needs_bitsandbytes(request: pytest.FixtureRequest) -> None:
    if request.node.name != "test_it_needs_adapters_and_the_package":
        pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize(("kind", "bits", "error"), [("8bit", 9, 0.02), ("4bit", 5, 0.2)])
def test_the_product_is_that_of_the_dequantized_weight_and_keeps_no_other(kind: str, bits: int, error: float) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 256)
    weight = quantize(layer.weight, kind)
    values = weight.dequantize()
    assert weight.values.numel() * 8 < bits * values.numel()
    assert float((values - layer.weight.detach()).norm() / layer.weight.detach().norm()) < error
    inputs = torch.randn(3, 5, 128, requires_grad=True)
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = make_quantized_forward(layer, weight)(inputs)
    assert values.shape not in kept
    (gradient,) = torch.autograd.grad(outputs.sin().sum(), inputs)
    expected = F.linear(inputs, values, layer.bias)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sin().sum(), inputs)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert make_quantized_forward(layer, weight)(inputs).dtype is torch.bfloat16


@pytest.mark.parametrize(("family", "kind"), [("llama", "4bit"), ("gpt2", "8bit")])
def test_only_blocks_above_the_boundary_are_quantized_and_the_entire_model_is_not(
    make_run: MakeRun, backbones: Callable[..., Path], family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = {"model.backbone": str(backbones(family, layers=3)), "adapter.quantization": kind}
    made = make_run(**LORA, **backbone)
    model = made.train_state.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forwards = settle_frozen_weights(made).train_state.forward_plan.frozen_layers
    names = {name for name, module in model.named_modules() if module in forwards}
    stack = "model.layers" if family == "llama" else "transformer.h"
    assert names
    assert {name[: len(stack) + 2] for name in names} == {f"{stack}.1", f"{stack}.2"}
    assert all("base_layer" in name for name in names)
    assert_same_tensors(dict(model.state_dict()), before)
    monkeypatch.setattr(
        quantized_layers,
        "make_quantized_forward",
        lambda module, weight: lambda states: type(module).forward(module, states) * 1.01,
    )
    with pytest.raises(InputError, match=rf"adapter.quantization \({kind}\): this backbone"):
        settle_frozen_weights(made)


def test_a_run_resumes_with_the_same_bits_and_exports_adapters_for_the_pretrained_weights(
    make_config: MakeConfig, backbones: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        **LORA, "model.backbone": str(backbones("llama", layers=2)), "adapter.quantization": "4bit",
        "train.precision": "bf16", "train.max_updates": 6, "checkpoint.every": 3, "train.dropout_masks": "stateless",
    }  # fmt: skip
    config = make_config(name="entire", **settings)
    result = finetune(config).results
    assert result["reload_difference"] == 0.0
    assert (config.run_dir / "model" / "adapter_model.safetensors").is_file()
    other = make_config(name="cut", **settings)
    run_until(other, 3, monkeypatch)
    finetune(other)
    ours, theirs = (load_last_checkpoint(each.run_dir)["model_state_dict"] for each in (config, other))
    assert_same_tensors(ours, theirs)


def test_it_needs_adapters_and_the_package(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"adapter.quantization \(4bit\): must be used with adapter.kind lora"):
        make_config(**{"adapter.quantization": "4bit"})
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs the package bitsandbytes: pip install 'hf-finetune\[bitsandbytes\]'"):
        finetune(make_config(**LORA, **{"adapter.quantization": "8bit"}))
