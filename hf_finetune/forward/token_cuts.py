"""Computes the head, and the last block after its attention, only for the tokens that are read.

These are the tokens with a target or the first ones, if a loss reads no others, or the last token of each sequence, if the head
of the model itself reads no other.

The hidden states of N tokens are gathered as early as possible above the attention of the last block, and everything after
that has [1, N, H] in place of [B, T, H]. A module whose output must keep its shape (it is added to a residual that the block
keeps) gets its N tokens and returns zeros for all others. A probe shows which modules these are; no model family is named.

If the logits are the plain output of a linear layer, no logits are needed: the loss is computed from that layer's input and
weight, some tokens at a time (TokenReading.project).

B examples, T output tokens, N tokens that are read, H hidden, V entries of the vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from hf_finetune.data.reading import TokenReading, read_last_tokens
from hf_finetune.forward.cached import PROBE_TOKENS, CachedForward, is_close, replace_forwards, trace_calls
from hf_finetune.forward.first_token import (
    OTHER_SUMS,
    PROBE_ERRORS,
    Gradients,
    are_same_gradients,
    compute_gradients,
    find_read_tokens,
)
from hf_finetune.model import heads
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.model.structure import eval_mode, find_stack, make_probe_batch

# Largest share of tokens that are read for which the last block is cut: gathering and scattering cost a little
LARGEST_SHARE = 0.8


# --- what a module computes instead ---------------------------------------------------------------------------------


def make_gathered_forward(module: nn.Module, reading: TokenReading) -> Callable[..., Any]:
    """Returns the module's forward with every argument [B, T, ...] cut to the tokens that are read, [1, N, ...]."""
    full_forward = module.forward

    def gather(value: Any) -> Any:
        return reading.select(value) if isinstance(value, torch.Tensor) else value

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
        return project(reading.select(hidden_states), module.weight, module.bias, reading.targets)

    return forward_projected


@dataclass(frozen=True, kw_only=True)
class TokenCuts:
    """The modules that compute only the tokens that are read.

    Args:
        gathered: Modules that get these tokens only, and return [1, N, ...].
        scattered: Modules that get these tokens only, and return [B, T, ...].
        in_block: Those of both that are in the last block. The others are above it.
        projection: The linear layer whose output is the logits, if nothing is done to it.
        choose: Returns the tokens that the model itself reads, from input_ids [B, T]: one of each sequence. Its outputs do not
            change then. None if it is the loss that reads outputs of tokens.
    """

    gathered: tuple[nn.Module, ...] = ()
    scattered: tuple[nn.Module, ...] = ()
    in_block: frozenset[nn.Module] = frozenset()
    projection: nn.Linear | None = None
    choose: Callable[[torch.Tensor], TokenReading] | None = None

    def describe(self, tokens: str) -> str:
        """Returns a line for the start of a run. tokens: Those that the loss reads."""
        if self.choose is not None:
            return "after attention, only the last token that is not padding is computed: the head reads no other"
        has_head = bool({*self.gathered, *self.scattered} - self.in_block)
        parts = ["the head"] * has_head + ["the last block after attention"] * bool(self.in_block)
        logits = "; the loss takes some of their logits at a time" if self.projection is not None else ""
        return f"{', and '.join(parts)}{',' * (len(parts) > 1)} for {tokens} only{logits}"

    def above_blocks(self) -> "TokenCuts | None":
        """Returns the cuts without those in the last block. None if the model chooses the tokens itself: what it returns is the
        same then without cuts."""
        if self.choose is not None:
            return None

        def leave_out(modules: tuple[nn.Module, ...]) -> tuple[nn.Module, ...]:
            return tuple(module for module in modules if module not in self.in_block)

        return replace(
            self, gathered=leave_out(self.gathered), scattered=leave_out(self.scattered), in_block=frozenset()
        )

    def active(self, reading: TokenReading) -> contextlib.AbstractContextManager[None]:
        """Makes the model compute only these tokens until the block ends. Its outputs are then [1, N, C], or [B, T, C]
        if no module is cut; or, if the model itself chooses the tokens, what they are without cuts."""
        forwards = {module: make_gathered_forward(module, reading) for module in self.gathered}
        forwards |= {module: make_scattered_forward(module, reading) for module in self.scattered}
        if len(reading) > LARGEST_SHARE * reading.shape[0] * reading.shape[1]:
            forwards = {module: forward for module, forward in forwards.items() if module not in self.in_block}
        if self.projection is not None and reading.project is not None:
            forwards[self.projection] = make_projected_forward(self.projection, reading)
        return replace_forwards(forwards)


# --- what may be cut ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProbeCase:
    """A batch, some of its output tokens, and the complete model's logits: those at them [1, N, C], or, if the model chooses them
    itself, those that it returns.

    activations: Those at the boundary of the frozen prefix [B, T, H]; None if a forward begins at the inputs.
    """

    batch: dict[str, torch.Tensor]
    reading: TokenReading
    logits: torch.Tensor
    activations: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The cases on which cuts are tried. With `cached`, forwards begin at the boundary of the frozen prefix: what lies below it
    has no gradient and does not depend on the cuts, and dozens of tries would compute it again."""

    model: nn.Module
    cases: list[ProbeCase]
    cached: CachedForward | None = None

    def from_boundary(self) -> "Probe":
        """Returns the probe with the activations of all cases."""
        if self.cached is None:
            return self
        with torch.no_grad():
            activations = [self.cached.compute_activations(case.batch) for case in self.cases]
        cases = [replace(case, activations=each) for case, each in zip(self.cases, activations, strict=True)]
        return replace(self, cases=cases)

    @contextlib.contextmanager
    def active(self, case: ProbeCase, cuts: TokenCuts | None = None) -> Iterator[None]:
        """Makes a forward begin where it does for this case, with these cuts, until the block ends."""
        with contextlib.ExitStack() as stack:
            if cuts is not None:
                stack.enter_context(cuts.active(case.reading))
            if self.cached is not None and case.activations is not None:
                stack.enter_context(self.cached.from_activations(case.activations))
            yield

    def run(self, case: ProbeCase, cuts: TokenCuts | None = None) -> torch.Tensor:
        """Returns the model's logits with these cuts."""
        with self.active(case, cuts):
            return heads.run_model(self.model, case.batch)

    @cached_property
    def gradients(self) -> Gradients:
        """The complete model's gradients of the losses that changes_nothing() compares; computed once."""
        return compute_gradients(self.model, lambda: torch.stack([self.compute_loss(case) for case in self.cases]))

    def compute_loss(self, case: ProbeCase) -> torch.Tensor:
        """Returns a loss of the tokens that are read."""
        return case.reading.select(self.run(case)).square().sum()


def make_probe(model: nn.Module, cached: CachedForward | None) -> Probe | None:
    """Returns two batches of different lengths, the second with padding. N and T do not divide each other. None if the
    outputs are not those of tokens."""
    cases = []
    for length, positions in ((PROBE_TOKENS, [1, 3, 5, 9]), (PROBE_TOKENS + 4, [0, 2, 4, 10, 11, 13, 17])):
        batch = make_probe_batch(model, length)
        batch["attention_mask"][0, PROBE_TOKENS:] = 0
        chosen = torch.tensor(positions, device=batch["input_ids"].device)
        reading = TokenReading(positions=chosen, shape=(2, length), targets=torch.zeros_like(chosen)[None])
        with torch.no_grad():
            logits = heads.run_model(model, batch)
        if logits.ndim != 3 or logits.shape[:2] != reading.shape:
            return None
        cases.append(ProbeCase(batch=batch, reading=reading, logits=reading.select(logits)))
    return Probe(model=model, cases=cases, cached=cached).from_boundary()


def make_last_token_probe(
    model: nn.Module,
    block: nn.Module,
    choose: Callable[[torch.Tensor], TokenReading],
    pad_token_id: int,
    cached: CachedForward | None,
) -> Probe | None:
    """Returns batches without padding, with padding on the right and on the left, and with texts that end with the id that pads
    or have no other. None if the outputs do not depend on the block's output at exactly the tokens that are chosen."""
    batches = []
    for length, pads in ((PROBE_TOKENS, None), (PROBE_TOKENS + 4, slice(PROBE_TOKENS, None)), (PROBE_TOKENS, slice(2))):
        batch = make_probe_batch(model, length)
        if pads is not None:
            batch["input_ids"][:, pads] = pad_token_id
            batch["attention_mask"][0, pads] = 0  # of the second sequence, they are tokens
        batches.append(batch)
    only_pads = make_probe_batch(model, PROBE_TOKENS)
    only_pads["input_ids"][1] = pad_token_id
    cases = []
    for batch in [*batches, only_pads]:
        reading = choose(batch["input_ids"])
        is_chosen = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        is_chosen.view(-1)[reading.positions] = True
        is_read = find_read_tokens(model, block, batch)
        if is_read is None or not torch.equal(is_read, is_chosen):
            return None
        with torch.no_grad():
            cases.append(ProbeCase(batch=batch, reading=reading, logits=heads.run_model(model, batch)))
    return Probe(model=model, cases=cases, cached=cached).from_boundary()


def find_token_cuts(model: nn.Module, plan: FreezePlan, cached: CachedForward | None = None) -> TokenCuts | None:
    """Returns the modules that need compute only the tokens that the loss reads, each checked on a probe; None if there are none.

    A cut is taken only if logits and gradients at these tokens stay the same in fp32. The model must be in fp32 and not yet
    prepared by Accelerate. cached: How it runs from cached activations, if it can.
    """
    is_encoder_decoder = heads.is_sequence_to_sequence(model)
    decoder = model.get_decoder() if is_encoder_decoder else None  # type: ignore[operator]
    _, stack = find_stack(model, decoder)
    with eval_mode(model):
        probe = make_probe(model, cached)
        if probe is None:
            return None
        cuts = add_cuts(stack[-1], TokenCuts(), probe, in_block=False)
        # The block of an encoder-decoder gets the encoder's states, too
        if trains_last_block(plan, stack) and not is_encoder_decoder:
            cuts = add_cuts(stack[-1], cuts, probe, in_block=True)
        if not cuts.gathered:
            return None
        return replace(cuts, projection=find_projection(cuts, probe))


def find_last_token_cuts(model: nn.Module, plan: FreezePlan, cached: CachedForward | None = None) -> TokenCuts | None:
    """Returns the modules that need compute only the last token of each sequence that is not padding, if the head reads no other
    (classifiers on decoders), each checked as in find_token_cuts(). None if there are none in the last block, or if that does
    not train."""
    config: Any = model.config
    _, stack = find_stack(model)
    if getattr(config, "is_encoder_decoder", False) or not trains_last_block(plan, stack):
        return None
    with eval_mode(model):
        try:
            pad_token_id = getattr(config.get_text_config(), "pad_token_id", None)
            if pad_token_id is None:
                return None
            choose = partial(read_last_tokens, pad_token_id=pad_token_id)
            probe = make_last_token_probe(model, stack[-1], choose, pad_token_id, cached)
        except PROBE_ERRORS:
            return None
        if probe is None:
            return None
        cuts = add_cuts(stack[-1], TokenCuts(choose=choose), probe, in_block=False)
        cuts = add_cuts(stack[-1], cuts, probe, in_block=True)
        return cuts if cuts.in_block else None


def trains_last_block(plan: FreezePlan, stack: nn.ModuleList) -> bool:
    """True if the last block is above the frozen prefix, and runs once."""
    return plan.num_prefix_blocks < len(stack) and not plan.structure.shared


def list_full_modules(probe: Probe, cuts: TokenCuts, after: nn.Module | None) -> list[nn.Module]:
    """Returns the modules that still get the hidden states of all tokens, the one that returns last first: those that are called
    after the last call of `after` has ended, or all."""
    case = probe.cases[0]
    with torch.no_grad(), probe.active(case, cuts):
        calls = trace_calls(probe.model, case.batch)
    end = max((call.end for call in calls if call.module is after), default=0)
    calls = [call for call in calls if call.start > end and call.takes_hidden_states]
    return [call.module for call in sorted(calls, key=lambda call: -call.end)]


def add_cuts(block: nn.Module, cuts: TokenCuts, probe: Probe, *, in_block: bool) -> TokenCuts:
    """Adds the cuts in a block, or those above it.

    Modules that return last are tried first, so a module before its parts: what follows a module then takes the tokens that are
    read alone, or has returned its place in [B, T, ...] already.
    """
    inside, tried = set(block.modules()) - {block}, set[nn.Module]()
    after = None if in_block else block
    while untried := [
        module
        for module in list_full_modules(probe, cuts, after)
        if module not in tried and (module in inside or not in_block)
    ]:
        module = untried[0]
        tried.add(module)
        own = replace(cuts, in_block=cuts.in_block | {module}) if in_block else cuts
        candidates = [replace(own, gathered=(*cuts.gathered, module))]
        if any(parameter.ndim > 1 for parameter in module.parameters()):  # else it costs no more than the scattering
            candidates.append(replace(own, scattered=(*cuts.scattered, module)))
        cuts = next((each for each in candidates if changes_nothing(each, probe)), cuts)
    return cuts


def changes_nothing(cuts: TokenCuts, probe: Probe) -> bool:
    """True if logits and gradients of the tokens that are read are the same on the probe with these cuts."""

    def is_same(case: ProbeCase) -> bool:
        logits = probe.run(case, cuts)
        return logits.shape == case.logits.shape and is_close(logits, case.logits, OTHER_SUMS)

    try:
        with torch.no_grad():
            if not all(map(is_same, probe.cases)):
                return False
    except PROBE_ERRORS:
        return False
    gradients = compute_gradients(
        probe.model, lambda: torch.stack([probe.run(case, cuts).square().sum() for case in probe.cases])
    )
    return are_same_gradients(gradients, probe.gradients)


def find_projection(cuts: TokenCuts, probe: Probe) -> nn.Linear | None:
    """Returns the linear layer whose output the model returns as its logits; None if something is done to them.

    That is shown with an object instead of a tensor: if the layer returns it, the model must return it.
    """
    case = probe.cases[0]
    with torch.no_grad(), probe.active(case, cuts):
        linear = [call.module for call in trace_calls(probe.model, case.batch) if type(call.module) is nn.Linear]
    if not linear:
        return None
    mark = object()
    candidate = replace(cuts, projection=linear[-1])
    reading = replace(case.reading, project=lambda *_: mark)
    try:
        with torch.no_grad():
            output: Any = probe.run(replace(case, reading=reading), candidate)
    except PROBE_ERRORS:
        return None
    return linear[-1] if output is mark else None
