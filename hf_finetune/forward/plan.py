"""What a forward need not compute: the cached prefix, and all but the first token of the last block."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_finetune.forward.cached import CachedForward, CannotCacheError, find_cached_forward
from hf_finetune.forward.first_token import Cuts, apply_cuts, find_first_token_cuts
from hf_finetune.model.freezing import FreezePlan


@dataclass(frozen=True, kw_only=True)
class ForwardPlan:
    """What a forward need not compute. `first_token`: the cuts of the last block."""

    cached: CachedForward | None = None
    first_token: Cuts = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, states: torch.Tensor | None) -> Iterator[None]:
        """Within the block the model takes the shortcuts; from `states` [B, T, H] where they are given."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(apply_cuts(self.first_token))
            if states is not None and self.cached is not None:
                stack.enter_context(self.cached.from_activations(states.to(self.cached.dtype)))
            yield


FULL_FORWARD = ForwardPlan()


def find_forward_plan(model: Any, plan: FreezePlan) -> tuple[ForwardPlan, str]:
    """What a forward of this model need not compute, each part proven on a probe; and why the activations of its prefix cannot
    be cached, or ""."""
    cuts = find_first_token_cuts(model, plan)
    try:
        return ForwardPlan(cached=find_cached_forward(model, plan), first_token=cuts), ""
    except CannotCacheError as error:
        return ForwardPlan(first_token=cuts), str(error)
