"""Computes the head, and the last block after its attention, only for the tokens that have a target.

The hidden states of N tokens are gathered as early as possible above the attention of the last block, and everything after
that has [1, N, H] in place of [B, T, H]. A module whose output must keep its shape (it is added to a residual that the block
keeps) gets its N tokens and returns zeros for all others. A probe shows which modules these are; no model family is named.

If the logits are the plain output of a linear layer, no logits are needed: the loss is computed from that layer's input and
weight, some tokens at a time (TokenReading.project).

B examples, T output tokens, N tokens that are read, H hidden, V entries of the vocabulary.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hf_finetune.data.reading import TokenReading
from hf_finetune.forward.cached import PROBE_TOKENS, is_close, is_hidden_states, replace_forwards, trace_calls
from hf_finetune.forward.first_token import OTHER_SUMS, have_same_gradients
from hf_finetune.model import heads
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.model.structure import eval_mode, find_stack, make_probe_batch

# Largest share of tokens that are read for which the last block is cut: gathering and scattering cost a little
LARGEST_SHARE = 0.8

PROBE_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


# --- what a module computes instead ---------------------------------------------------------------------------------


def make_gathered_forward(module: nn.Module, reading: TokenReading) -> Callable[..., Any]:
    """Returns the module's forward with every argument [B, T, ...] cut to the tokens that are read, [1, N, ...]."""
    full_forward = module.forward

    def gather(value: Any) -> Any:
        # N = T of one example is all of its tokens, so nothing is gathered twice
        return reading.select(value) if is_hidden_states(value) and value.shape[:2] == reading.shape else value

    def forward_gathered(*arguments: Any, **keywords: Any) -> Any:
        return full_forward(*map(gather, arguments), **{name: gather(value) for name, value in keywords.items()})

    return forward_gathered


def make_scattered_forward(module: nn.Module, reading: TokenReading) -> Callable[..., Any]:
    """Returns the module's forward for the tokens that are read; its output [B, T, ...] is 0 for the others."""
    gathered_forward = make_gathered_forward(module, reading)

    def forward_scattered(*arguments: Any, **keywords: Any) -> Any:
        output = gathered_forward(*arguments, **keywords)  # [1, N, ...]
        num_sequences, num_tokens = reading.shape
        full = output.new_zeros(num_sequences * num_tokens, output.shape[-1])
        return full.index_copy(0, reading.positions, output[0]).view(num_sequences, num_tokens, -1)

    return forward_scattered


def make_projected_forward(module: nn.Linear, reading: TokenReading) -> Callable[..., Any]:
    """Returns a forward that gives the hidden states, the layer's weight and its bias to reading.project."""
    project = reading.project
    assert project is not None

    def forward_projected(hidden_states: torch.Tensor) -> Any:
        is_full = hidden_states.shape[:2] == reading.shape
        states = reading.select(hidden_states) if is_full else hidden_states
        return project(states, module.weight, module.bias, reading.targets)

    return forward_projected


@dataclass(frozen=True, kw_only=True)
class LabelledCuts:
    """The modules that compute only the tokens that are read.

    Args:
        gathered: Above the last block, and in it after the first of its modules that is gathered; they return [1, N, ...].
        scattered: Modules of the last block that return [B, T, ...].
        in_block: Those of `gathered` that are in the last block.
        projection: The linear layer whose output is the logits, if nothing is done to it.
    """

    gathered: tuple[nn.Module, ...] = ()
    in_block: tuple[nn.Module, ...] = ()
    scattered: tuple[nn.Module, ...] = ()
    projection: nn.Linear | None = None

    def describe(self) -> str:
        """Returns a line for the start of a run."""
        parts = "the head, and the last block after attention," if self.in_block or self.scattered else "the head"
        logits = "; the loss takes some of their logits at a time" if self.projection is not None else ""
        return f"{parts} for tokens with a target only{logits}"

    def above_blocks(self) -> "LabelledCuts":
        """Returns the cuts without those in the last block."""
        return replace(self, in_block=(), scattered=())

    def active(self, reading: TokenReading) -> contextlib.AbstractContextManager[None]:
        """Makes the model compute only these tokens until the block ends; its logits are [1, N, C]."""
        forwards = {module: make_gathered_forward(module, reading) for module in self.gathered}
        if len(reading) <= LARGEST_SHARE * reading.shape[0] * reading.shape[1]:
            forwards |= {module: make_gathered_forward(module, reading) for module in self.in_block}
            forwards |= {module: make_scattered_forward(module, reading) for module in self.scattered}
        if self.projection is not None and reading.project is not None:
            forwards[self.projection] = make_projected_forward(self.projection, reading)
        return replace_forwards(forwards)


# --- what may be cut ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProbeCase:
    """A batch, some of its output tokens, and the complete model's logits at them [1, N, C]."""

    batch: dict[str, torch.Tensor]
    reading: TokenReading
    logits: torch.Tensor


def make_probe(model: nn.Module) -> list[ProbeCase]:
    """Returns two batches of different lengths, the second with padding. N and T do not divide each other."""
    cases = []
    for length, positions in ((PROBE_TOKENS, [1, 3, 5, 9]), (PROBE_TOKENS + 4, [0, 2, 4, 10, 11, 13, 17])):
        batch = make_probe_batch(model, length)
        batch["attention_mask"][0, PROBE_TOKENS:] = 0
        chosen = torch.tensor(positions, device=batch["input_ids"].device)
        reading = TokenReading(positions=chosen, shape=(2, length), targets=torch.zeros_like(chosen)[None])
        with torch.no_grad():
            logits = heads.run_model(model, batch)
        if logits.ndim != 3 or logits.shape[:2] != reading.shape:
            return []
        cases.append(ProbeCase(batch=batch, reading=reading, logits=reading.select(logits)))
    return cases


def find_labelled_cuts(model: nn.Module, plan: FreezePlan) -> LabelledCuts | None:
    """Returns the modules that need compute only the tokens with a target, each checked on a probe; None if there are none.

    A cut is taken only if logits and gradients at these tokens stay the same in fp32. The model must be in fp32 and not yet
    prepared by Accelerate.
    """
    is_encoder_decoder = heads.is_sequence_to_sequence(model)
    decoder = model.get_decoder() if is_encoder_decoder else None  # type: ignore[operator]
    _, stack = find_stack(model, decoder)
    with eval_mode(model):
        probe = make_probe(model)
        if not probe:
            return None
        cuts = cut_above(model, stack[-1], probe)
        if cuts is None:
            return None
        trains = plan.num_prefix_blocks < len(stack) and not plan.structure.shared
        if trains and not is_encoder_decoder:  # a decoder's block gets the states of the encoder, too
            cuts = cut_last_block(model, stack[-1], cuts, probe)
        return replace(cuts, projection=find_projection(model, cuts, probe))


def list_full_modules(
    model: nn.Module, cuts: LabelledCuts, case: ProbeCase, after: nn.Module | None
) -> list[nn.Module]:
    """Returns the modules that still get the hidden states of all tokens, in the order of their calls: those that are called
    after the last call of `after` has ended, or all."""
    with torch.no_grad(), cuts.active(case.reading):
        calls = trace_calls(model, case.batch)
    end = max((call.end for call in calls if call.module is after), default=0)
    return [call.module for call in calls if call.start > end and call.takes_hidden_states]


def cut_above(model: nn.Module, block: nn.Module, probe: list[ProbeCase]) -> LabelledCuts | None:
    """Returns the cuts above a block; None if the logits of some tokens cannot be computed alone."""
    cuts, tried = LabelledCuts(), set[nn.Module]()
    while untried := [each for each in list_full_modules(model, cuts, probe[0], block) if each not in tried]:
        tried.add(untried[0])
        candidate = replace(cuts, gathered=(*cuts.gathered, untried[0]))
        if changes_nothing(model, candidate, probe):
            cuts = candidate
    return cuts if cuts.gathered else None


def cut_last_block(model: nn.Module, block: nn.Module, cuts: LabelledCuts, probe: list[ProbeCase]) -> LabelledCuts:
    """Adds the cuts in the last block."""
    inside, tried = set(block.modules()) - {block}, set[nn.Module]()
    while untried := [
        each for each in list_full_modules(model, cuts, probe[0], None) if each in inside and each not in tried
    ]:
        module = untried[0]
        tried.add(module)
        candidates = [replace(cuts, in_block=(*cuts.in_block, module))]
        if any(parameter.ndim > 1 for parameter in module.parameters()):  # else it costs no more than the scattering
            candidates.append(replace(cuts, scattered=(*cuts.scattered, module)))
        cuts = next((each for each in candidates if changes_nothing(model, each, probe)), cuts)
    return cuts


def changes_nothing(model: nn.Module, cuts: LabelledCuts, probe: list[ProbeCase]) -> bool:
    """True if logits and gradients of the tokens that are read are the same on the probe with these cuts."""

    def run(case: ProbeCase) -> torch.Tensor:
        with cuts.active(case.reading):
            return heads.run_model(model, case.batch)

    def is_same(case: ProbeCase) -> bool:
        logits = run(case)
        return logits.shape == case.logits.shape and is_close(logits, case.logits, OTHER_SUMS)

    try:
        with torch.no_grad():
            if not all(map(is_same, probe)):
                return False
    except PROBE_ERRORS:
        return False
    return have_same_gradients(
        model,
        lambda: torch.stack([case.reading.select(heads.run_model(model, case.batch)).square().sum() for case in probe]),
        lambda: torch.stack([run(case).square().sum() for case in probe]),
    )


def find_projection(model: nn.Module, cuts: LabelledCuts, probe: list[ProbeCase]) -> nn.Linear | None:
    """Returns the linear layer whose output the model returns as its logits; None if something is done to them.

    That is shown with an object instead of a tensor: if the layer returns it, the model must return it.
    """
    case = probe[0]
    with torch.no_grad(), cuts.active(case.reading):
        linear = [call.module for call in trace_calls(model, case.batch) if type(call.module) is nn.Linear]
    if not linear:
        return None
    mark = object()
    candidate = replace(cuts, projection=linear[-1])
    reading = replace(case.reading, project=lambda *_: mark)
    try:
        with torch.no_grad(), candidate.active(reading):
            output: Any = heads.run_model(model, case.batch)
    except PROBE_ERRORS:
        return None
    return linear[-1] if output is mark else None
