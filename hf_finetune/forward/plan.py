"""The work that a forward pass of a model can leave out: found once for each stage of training, applied to every forward pass."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from hf_finetune.forward.cached import CachedForward, CannotCacheError, find_cached_forward, replace_forwards
from hf_finetune.forward.first_token import Cuts, apply_cuts, find_first_token_cuts
from hf_finetune.forward.frozen_layers import Forwards
from hf_finetune.model.freezing import FreezePlan


@dataclass(frozen=True, kw_only=True)
class ForwardPlan:
    """The work that a forward pass can leave out.

    Args:
        cached: How the model runs from cached activations, if it can.
        first_token: Cuts of the last block, of which the head reads the first token only.
        frozen_layers: Forwards of frozen linear layers with weights in 16 bit.
    """

    cached: CachedForward | None = None
    first_token: Cuts = field(default_factory=dict)
    frozen_layers: Forwards = field(default_factory=dict)

    @contextlib.contextmanager
    def active(self, activations: torch.Tensor | None) -> Iterator[None]:
        """Applies the plan to every forward pass until the block ends. The model starts from the activations [B, T, H] at the
        boundary if they are given, else from its inputs."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(replace_forwards(self.frozen_layers))
            stack.enter_context(apply_cuts(self.first_token))
            if activations is not None and self.cached is not None:
                stack.enter_context(self.cached.from_activations(activations.to(self.cached.dtype)))
            yield


FULL_FORWARD = ForwardPlan()


def find_forward_plan(model: nn.Module, plan: FreezePlan) -> tuple[ForwardPlan, str]:
    """Returns what a forward pass of this model need not compute, each part checked on a probe, and why its activations
    cannot be cached ("" if they can).

    The model must be in fp32 and not yet prepared by Accelerate.
    """
    cuts = find_first_token_cuts(model, plan)
    try:
        return ForwardPlan(cached=find_cached_forward(model, plan), first_token=cuts), ""
    except CannotCacheError as error:
        return ForwardPlan(first_token=cuts), str(error)
