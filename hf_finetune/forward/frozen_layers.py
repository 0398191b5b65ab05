"""Runs frozen linear layers with weights that are cast to the 16-bit precision of the run once, not in every forward pass.

Autocast casts the fp32 weight of a linear layer in each forward pass, and keeps the copy of a frozen one for the backward pass.
The copies made here have the same bits, and are made once. The parameters stay in fp32: names, state_dict, digests and export do
not change, and the entire model (plan.FULL_FORWARD) computes as it is.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_finetune.forward.cached import PROBE_TOKENS, is_close, replace_forwards
from hf_finetune.model import heads
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.model.structure import eval_mode, make_probe_batch

LINEAR = (
    nn.Linear,
    Conv1D,
)  # all that they compute is a product, which autocast casts; a derived class may compute more

SAME_BITS = 0.0  # largest difference of an output on the probe

Forwards = Mapping[nn.Module, Callable[..., Any]]


def find_frozen_layers(model: nn.Module, plan: FreezePlan, exempt: Iterable[nn.Module]) -> list[nn.Module]:
    """Returns the linear layers with a frozen weight above the boundary. Below it nothing is kept for a backward pass. A layer
    whose weight is tied to embeddings counts where it is.

    exempt: Modules that are left out, with all modules inside them.
    """
    prefix, left_out = set(plan.prefix), {inner for module in exempt for inner in module.modules()}
    return [
        module
        for name, module in model.named_modules()
        if type(module) in LINEAR
        and module not in left_out
        and not module.weight.requires_grad
        and f"{name}.weight" not in prefix
    ]


def make_twin(module: nn.Module, values: Mapping[str, torch.Tensor]) -> Any:
    """Returns a module that computes the same with other values of some frozen parameters, and shares all else."""
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, **{name: nn.Parameter(value, False) for name, value in values.items()}}
    return twin


def make_forward(module: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    """Returns the forward of a layer with copies of its frozen parameters in this dtype, and with those that train."""
    parameters = module.named_parameters(recurse=False)
    twin = make_twin(module, {name: each.detach().to(dtype) for name, each in parameters if not each.requires_grad})
    return twin.forward


def make_forwards(model: nn.Module, plan: FreezePlan, precision: str, exempt: Iterable[nn.Module] = ()) -> Forwards:
    """Returns the forwards of frozen linear layers with weights in the precision of the run. None for fp32, or if the outputs on
    a probe differ.

    The weights must be those that the run trains with. exempt: As in find_frozen_layers().
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None:
        return {}
    forwards = {module: make_forward(module, dtype) for module in find_frozen_layers(model, plan, exempt)}
    batch = make_probe_batch(model, PROBE_TOKENS)
    device = batch["input_ids"].device.type
    with eval_mode(model), torch.no_grad(), torch.autocast(device, dtype):
        expected = heads.run_model(model, batch)
        try:
            with replace_forwards(forwards):
                outputs = heads.run_model(model, batch)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return {}
    return forwards if is_close(outputs.float(), expected.float(), SAME_BITS) else {}
