"""Runs the frozen linear layers of blocks with adapters from weights in 8 or 4 bit, as QLoRA does (arXiv:2305.14314).

A weight is dequantized whenever a product needs it, in the forward and in the backward pass; only its quantized form is kept. The
product is that of the dequantized weight, in the precision of the run. The parameters stay as they are, as in frozen_layers.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_finetune.forward.cached import PROBE_TOKENS, get_own_forward, is_close, replace_forwards
from hf_finetune.forward.first_token import OTHER_SUMS, are_same_gradients, compute_gradients
from hf_finetune.forward.frozen_layers import Forwards, make_twin
from hf_finetune.model import heads
from hf_finetune.model.structure import eval_mode, make_probe_batch
from hf_finetune.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """A weight in 8 bit (blockwise) or 4 bit (nf4). values: [bytes]. state: What bitsandbytes needs to dequantize them."""

    kind: str
    values: torch.Tensor
    state: Any

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns the weight that the quantized one stands for."""
        from bitsandbytes import functional

        if self.kind == "4bit":
            return functional.dequantize_4bit(self.values, self.state).to(dtype)
        return functional.dequantize_blockwise(self.values, self.state).to(dtype)


def quantize(weight: torch.Tensor, kind: str) -> QuantizedWeight:
    """Returns a weight in `8bit` or `4bit`."""
    from bitsandbytes import functional

    if kind == "4bit":
        values, state = functional.quantize_4bit(weight.detach(), quant_type="nf4", compress_statistics=True)
    else:
        values, state = functional.quantize_blockwise(weight.detach(), blocksize=256)
    return QuantizedWeight(kind=kind, values=values, state=state)


class QuantizedProduct(torch.autograd.Function):
    """The product of inputs [..., I] with a quantized weight, [O, I] or, if it is transposed, [I, O]."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: QuantizedWeight, is_transposed: bool) -> torch.Tensor:
        ctx.weight, ctx.is_transposed = weight, is_transposed
        values = weight.dequantize(inputs.dtype)
        return inputs @ (values if is_transposed else values.T)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        values = ctx.weight.dequantize(gradients[0].dtype)
        return gradients[0] @ (values.T if ctx.is_transposed else values), None, None


def make_quantized_forward(module: nn.Module, weight: QuantizedWeight) -> Callable[..., Any]:
    """Returns the forward of a linear layer with a quantized weight."""
    is_transposed = isinstance(module, Conv1D)

    def forward_quantized(hidden_states: torch.Tensor) -> torch.Tensor:
        kind = hidden_states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype
        output = QuantizedProduct.apply(hidden_states.to(dtype), weight, is_transposed)
        return output if module.bias is None else output + module.bias.to(dtype)

    return forward_quantized


def make_quantized_forwards(model: nn.Module, layers: Iterable[Any], kind: str) -> Forwards:
    """Returns the forwards of these layers with quantized weights. InputError if the model's outputs or gradients on a probe are
    not those of the dequantized weights."""
    weights = {module: quantize(module.weight, kind) for module in layers}
    forwards = {module: make_quantized_forward(module, weight) for module, weight in weights.items()}
    twins = {module: make_twin(module, {"weight": weight.dequantize()}).forward for module, weight in weights.items()}

    def run(replaced: Forwards) -> torch.Tensor:
        with replace_forwards({model: get_own_forward(model), **replaced}):
            return heads.run_model(model, make_probe_batch(model, PROBE_TOKENS))

    with eval_mode(model):
        with torch.no_grad():
            is_same = is_close(run(forwards), run(twins), OTHER_SUMS)
        if not is_same or not are_same_gradients(
            compute_gradients(model, lambda: run(forwards).square().sum()),
            compute_gradients(model, lambda: run(twins).square().sum()),
        ):
            raise InputError(
                f"adapter.quantization ({kind}): this backbone computes something else than with its dequantized weights; set it "
                "to none"
            )
    return forwards
