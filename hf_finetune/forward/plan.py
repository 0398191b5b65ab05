"""The work that a forward pass of a model can leave out: found once for each stage of training, applied to every forward pass."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_finetune.data.reading import TokenReading
from hf_finetune.forward.cached import CachedForward, CannotCacheError, find_cached_forward, replace_forwards
from hf_finetune.forward.first_token import Cuts, apply_cuts, find_first_token_cuts
from hf_finetune.forward.frozen_layers import Forwards
from hf_finetune.forward.token_cuts import TokenCuts, find_last_token_cuts, find_token_cuts
from hf_finetune.model import heads
from hf_finetune.model.freezing import FreezePlan


@dataclass(frozen=True, kw_only=True)
class ForwardPlan:
    """The work that a forward pass can leave out.

    Args:
        cached: How the model runs from cached activations, if it can.
        first_token: Cuts of the last block, of which the head reads the first token only.
        frozen_layers: Forwards of frozen linear layers with weights in 16 bit.
        token_cuts: Cuts of the head and the last block for a loss that reads only some tokens, such as those with a target, or
            for a head that reads only the last one.
    """

    cached: CachedForward | None = None
    first_token: Cuts = field(default_factory=dict)
    frozen_layers: Forwards = field(default_factory=dict)
    token_cuts: TokenCuts | None = None

    def complete(self) -> "ForwardPlan":
        """Returns the plan that computes all blocks completely, and only the head for the tokens that are read."""
        return ForwardPlan(token_cuts=None if self.token_cuts is None else self.token_cuts.above_blocks())

    @contextlib.contextmanager
    def active(self, activations: torch.Tensor | None, reading: TokenReading | None = None) -> Iterator[None]:
        """Applies the plan to every forward pass until the block ends.

        Args:
            activations: Those at the boundary [B, T, H]. If they are given, the model starts from them, else from its inputs.
            reading: The N tokens that are read, if the plan has cuts for them. Outputs are then those of these tokens or of all,
                whichever costs less; run_model() returns those of these tokens.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(replace_forwards(self.frozen_layers))
            stack.enter_context(apply_cuts(self.first_token))
            if reading is not None and self.token_cuts is not None:
                stack.enter_context(self.token_cuts.active(reading))
            if activations is not None and self.cached is not None:
                stack.enter_context(self.cached.from_activations(activations.to(self.cached.dtype)))
            yield

    def run_model(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        activations: torch.Tensor | None = None,
        reading: TokenReading | None = None,
        through: Callable[..., Any] | None = None,
    ) -> torch.Tensor:
        """Runs the model as heads.run_model() does, with this plan. The arguments are those of heads.run_model() and active().

        Returns the model's outputs; with a reading those of the N tokens that are read, [1, N, ...], or what reading.project
        returned; but those of the model itself if it chooses these tokens.
        """
        with self.active(activations, reading):
            outputs = heads.run_model(model, inputs, through)
        if reading is None or not isinstance(outputs, torch.Tensor) or self.chooses_tokens:
            return outputs
        return reading.drop_added(reading.select(outputs))

    @property
    def chooses_tokens(self) -> bool:
        """True if the model itself chooses the tokens that are read."""
        return self.token_cuts is not None and self.token_cuts.choose is not None


FULL_FORWARD = ForwardPlan()


def find_forward_plan(
    model: nn.Module, plan: FreezePlan, *, reads_some_tokens: bool = False
) -> tuple[ForwardPlan, str]:
    """Returns what a forward pass of this model need not compute, each part checked on a probe, and why its activations
    cannot be cached ("" if they can).

    The model must be in fp32 and not yet prepared by Accelerate. reads_some_tokens: The task reads only some output tokens.
    """
    cached, why_not = None, ""
    try:
        cached = find_cached_forward(model, plan)
    except CannotCacheError as error:
        why_not = str(error)
    first_token = find_first_token_cuts(model, plan)
    token_cuts = find_token_cuts(model, plan, cached) if reads_some_tokens else None
    if not reads_some_tokens and not first_token:
        token_cuts = find_last_token_cuts(model, plan, cached)
    return ForwardPlan(first_token=first_token, token_cuts=token_cuts, cached=cached), why_not
