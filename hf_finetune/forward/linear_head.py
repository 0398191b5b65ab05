"""The last linear layer of a model: the one whose outputs the model returns as its logits.

A layer that returns its input in place of its output shows which one it is, and what its input is: the model then returns that
input as it would return the logits (of the first token, of the last one, of each). So no model family is known by name.

B examples, T tokens, H hidden, C outputs.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from hf_finetune.forward.cached import PROBE_TOKENS, SAME_SUMS, get_own_forward, is_close, replace_forwards
from hf_finetune.model import heads
from hf_finetune.model.structure import eval_mode, make_probe_batch


@contextlib.contextmanager
def returning_inputs(layer: nn.Linear) -> Iterator[None]:
    """Makes the model return the inputs of its last linear layer, [B, H] or [B, T, H], in place of its logits until the block
    ends."""
    with replace_forwards({layer: lambda hidden_states: hidden_states}):
        yield


def find_linear_head(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Returns the name and the module of the linear layer whose outputs are the logits; None if something is done to them.

    The model computes in fp32 here, whatever Accelerate has made of its forward.
    """
    batch = make_probe_batch(model, PROBE_TOKENS)
    with torch.no_grad(), eval_mode(model), replace_forwards({model: get_own_forward(model)}):
        logits = heads.run_model(model, batch)
        for name, layer in reversed(list(model.named_modules())):
            if not isinstance(layer, nn.Linear) or layer.out_features != logits.shape[-1]:
                continue
            with returning_inputs(layer):
                inputs = heads.run_model(model, batch)
            if inputs.shape[-1] == layer.in_features and is_same(layer(inputs), logits):
                return name, layer
    return None


def is_same(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """True if the logits are the expected ones."""
    return logits.shape == expected.shape and is_close(logits, expected, SAME_SUMS)
