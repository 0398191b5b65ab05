"""Runs a model up to the boundary of its frozen prefix, and from there with cached activations.

The model stays as it is: names, state_dict, optimizer and the distributed wrapper do not change. During one forward pass some
modules return placeholders, and the module at the boundary gets the cached activations as its input. Which modules these are
is found with a probe: one forward pass of a small batch, and the shapes in it. So no model family needs to be known by name.
A model whose outputs on the probe are not equal afterwards is refused with the reason.

B examples, T tokens, H hidden.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_finetune.model import heads
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.model.structure import eval_mode, find_first_tensor, find_stack, make_probe_batch
from hf_finetune.system.errors import first_line

PROBE_TOKENS = 5  # a length that no other dimension of the probe has

# Largest difference of a logit on the probe, in fp32, relative to the largest logit: the same sums in the same order.
SAME_SUMS = 1e-6

NEEDS_MORE = "its upper blocks need more of the lower ones than hidden states"


class CannotCacheError(Exception):
    """The activations of a model's frozen prefix cannot replace it. The message is the reason."""


class _BoundaryReachedError(Exception):
    """Ends a forward pass at the boundary, and carries its activations."""

    def __init__(self, activations: torch.Tensor) -> None:
        super().__init__()
        self.activations = activations


@contextlib.contextmanager
def replace_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replaces the `forward` of each module by the given function until the block ends.

    A hook cannot keep a module from computing, so the attribute is set on the instance. Two traps follow: all threads see the
    replacement, so only one thread may run the model; and torch.compile must compile inside the block or not at all, because
    a compiled graph keeps the forward that it was traced with.
    """
    own_forwards = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own_forward in own_forwards.items():
            if own_forward is None:
                del module.forward
            else:
                module.forward = own_forward


def get_own_forward(model: nn.Module) -> Callable[..., Any]:
    """Returns the forward of a model's class, without what Accelerate puts around it: autocast, and outputs in fp32."""
    return partial(type(model).forward, model)


@dataclass(frozen=True, kw_only=True)
class Placeholder:
    """The form of a module's output: a tensor [B, T, width], and after it a number of extra outputs.

    Args:
        width: Last dimension of the tensor.
        num_extras: Extra outputs, which are replaced by None. None if the output is the bare tensor.
    """

    width: int
    num_extras: int | None

    def make_output(self, tensor: torch.Tensor) -> Any:
        """Returns the tensor in the form of the module's output."""
        return tensor if self.num_extras is None else (tensor, *[None] * self.num_extras)

    def make_forward(self, tensor: torch.Tensor) -> Callable[..., Any]:
        """Returns a forward that ignores its arguments and returns the tensor in the form of the module's output."""

        def forward(*_: Any, **__: Any) -> Any:
            return self.make_output(tensor)

        return forward


@dataclass(frozen=True, kw_only=True)
class CachedForward:
    """Runs a model up to its boundary, or from it.

    Args:
        model: The bare model.
        boundary: The lowest block whose input is constant and that trains; the last block if none trains.
        is_output: The activations are the output of `boundary`, not its input.
        placeholders: The frozen modules below the boundary that return hidden states, without those inside another one.
        dtype: Of the activations in the computation.
    """

    model: nn.Module
    boundary: nn.Module
    is_output: bool
    placeholders: Mapping[nn.Module, Placeholder]
    dtype: torch.dtype = torch.float32

    def compute_activations(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the activations at the boundary [B, T, H]. Modules above it do not run."""

        def stop_at_input(_: nn.Module, arguments: Any, keywords: Any) -> None:
            raise _BoundaryReachedError(arguments[0] if arguments else keywords["hidden_states"])

        def stop_at_output(_: nn.Module, __: Any, output: Any) -> None:
            raise _BoundaryReachedError(find_first_tensor(output))

        if self.is_output:
            handle = self.boundary.register_forward_hook(stop_at_output)
        else:
            handle = self.boundary.register_forward_pre_hook(stop_at_input, with_kwargs=True)
        try:
            heads.run_model(self.model, batch)
        except _BoundaryReachedError as reached:
            return reached.activations
        finally:
            handle.remove()
        raise CannotCacheError("the model does not run its blocks")

    @contextlib.contextmanager
    def from_activations(self, activations: torch.Tensor) -> Iterator[None]:
        """Makes the model take the activations [B, T, H] at the boundary, and compute nothing below it, until the block ends."""

        def inject(_: nn.Module, arguments: Any, keywords: Any) -> Any:
            if arguments:
                return (activations, *arguments[1:]), keywords
            return arguments, {**keywords, "hidden_states": activations}

        zero, shape = activations.new_zeros(1), activations.shape[:2]
        forwards = {
            module: placeholder.make_forward(zero.expand(*shape, placeholder.width))
            for module, placeholder in self.placeholders.items()
        }
        with contextlib.ExitStack() as stack:
            if self.is_output:
                forwards[self.boundary] = self.placeholders[self.boundary].make_forward(activations)
            else:
                handle = self.boundary.register_forward_pre_hook(inject, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(replace_forwards(forwards))
            yield


def is_hidden_states(value: Any) -> bool:
    """True if a value is a tensor of three dimensions, as hidden states are."""
    return isinstance(value, torch.Tensor) and value.ndim == 3


@dataclass(kw_only=True)
class Call:
    """One call of a module during the probe.

    Args:
        module: The module.
        start: Time at which the call started, in calls and returns since the probe started.
        takes_hidden_states: True if an argument has the form [B, T, H].
        end: Time at which it returned.
        output: What it returned.
    """

    module: nn.Module
    start: int
    takes_hidden_states: bool
    end: int = 0
    output: Any = None


def trace_calls(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> list[Call]:
    """Runs one forward pass and returns the calls of all modules, in the order in which they started."""
    calls: list[Call] = []
    running: list[Call] = []
    shape = batch["input_ids"].shape
    time = 0

    def start_call(module: nn.Module, arguments: Any, keywords: Any) -> None:
        nonlocal time
        time += 1
        values = (*arguments, *keywords.values())
        takes_hidden_states = any(is_hidden_states(value) and value.shape[:2] == shape for value in values)
        calls.append(Call(module=module, start=time, takes_hidden_states=takes_hidden_states))
        running.append(calls[-1])

    def end_call(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal time
        time += 1
        call = running.pop()
        call.end, call.output = time, output

    handles = [module.register_forward_pre_hook(start_call, with_kwargs=True) for module in model.modules()]
    handles += [module.register_forward_hook(end_call) for module in model.modules()]
    try:
        heads.run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def find_cached_forward(model: nn.Module, plan: FreezePlan) -> CachedForward:
    """Returns how a model runs from cached activations under a freeze plan, checked on a probe.

    The model must be in fp32 and not yet prepared by Accelerate. Raises CannotCacheError with the reason if there is no frozen
    prefix, or if the outputs would differ.
    """
    depth = plan.num_prefix_blocks
    if depth < 0:
        raise CannotCacheError("the embeddings train, so no activations are constant (see freeze.embeddings)")
    if plan.structure.shared:
        raise CannotCacheError("this backbone runs one shared block many times")
    _, stack = find_stack(model)
    is_output = depth == len(stack)
    boundary = stack[depth - 1] if is_output else stack[depth]
    with eval_mode(model):
        with torch.no_grad():
            calls = trace_calls(model, make_probe_batch(model, PROBE_TOKENS))
        boundary_call = next((call for call in calls if call.module is boundary), None)
        if boundary_call is None:
            raise CannotCacheError("the model does not run its blocks")
        end = boundary_call.end if is_output else boundary_call.start
        placeholders = find_placeholders(model, plan, calls, end)
        cached = CachedForward(model=model, boundary=boundary, is_output=is_output, placeholders=placeholders)
        check_equality(cached)
    return cached


def find_placeholders(model: nn.Module, plan: FreezePlan, calls: list[Call], end: int) -> dict[nn.Module, Placeholder]:
    """Returns the modules that need not run below the boundary, with the form of their outputs.

    These are the modules that have frozen parameters only, return hidden states [B, T, width], and run before `end` only. A
    module inside another one of them is left out.
    """
    frozen = {id(parameter) for name, parameter in model.named_parameters() if name in plan.frozen}
    placeholders: dict[nn.Module, Placeholder] = {}
    covered: set[nn.Module] = set()
    for module in model.modules():  # a parent comes before its children
        module_calls = [call for call in calls if call.module is module]
        parameters = list(module.parameters())
        if module in covered or not module_calls or not parameters:
            continue
        if any(id(parameter) not in frozen for parameter in parameters) or any(call.end > end for call in module_calls):
            continue
        output = module_calls[0].output
        hidden_states = find_first_tensor(output)
        if not is_hidden_states(hidden_states) or hidden_states.shape[:2] != (2, PROBE_TOKENS):
            continue
        # Extra outputs that are not None (DeBERTa's blocks return their attention weights) become None, too: check_equality
        # fails if a module reads them
        num_extras = len(output) - 1 if isinstance(output, (tuple, list)) else None
        placeholders[module] = Placeholder(width=hidden_states.shape[-1], num_extras=num_extras)
        covered.update(module.modules())
    return placeholders


def check_equality(cached: CachedForward) -> None:
    """Raises CannotCacheError if the logits on the probe differ when the model runs from its activations."""
    for length in (PROBE_TOKENS, PROBE_TOKENS + 4):
        batch = make_probe_batch(cached.model, length)
        with torch.no_grad():
            expected = heads.run_model(cached.model, batch)
            activations = cached.compute_activations(batch)
            try:
                with cached.from_activations(activations):
                    logits = heads.run_model(cached.model, batch)
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
                reason = first_line(error)
                raise CannotCacheError(f"{NEEDS_MORE} ({reason})") from None
        if not is_close(logits, expected, SAME_SUMS):
            raise CannotCacheError(NEEDS_MORE)


def is_close(values: torch.Tensor, expected: torch.Tensor, tolerance: float, floor: float = 0.0) -> bool:
    """True if no value differs by more than `tolerance` times the largest expected value, plus `floor`."""
    return float((values - expected).abs().max()) <= tolerance * float(expected.abs().max()) + floor
