"""The model side of the frozen prefix: run a model up to the boundary, and run what is above from stored states.

Nothing is taken out of the model: for the time of a forward, some modules' `forward` is another function. Names,
state_dict, optimizer and the distributed wrapper see the model they know. Which modules, is found by running a probe and
looking at shapes: no family's names are needed, and what cannot be proven equal is refused with the reason.

B examples, T tokens, H hidden.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_finetune.model import heads
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.model.structure import find_stack, make_probe_batch

PROBE_TOKENS = 5  # a length that no other dimension of the probe has

SAME_SUMS = 1e-6  # largest difference of a logit on the probe, in fp32, relative to the largest logit


class CannotCacheError(Exception):
    """Why a model's prefix cannot be replayed."""


class _BoundaryReachedError(Exception):
    """Ends a forward at the boundary, with its states."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


@contextlib.contextmanager
def replace_forwards(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within the block each module's forward is the given function."""
    before = {module: vars(module).get("forward") for module in replaced}
    for module, function in replaced.items():
        module.forward = function
    try:
        yield
    finally:
        for module, earlier in before.items():
            if earlier is None:
                del module.forward
            else:
                module.forward = earlier


@dataclass(frozen=True, kw_only=True)
class Placeholder:
    """What is returned instead of a module's output: zeros [B, T, width], beside them None for each extra output."""

    width: int
    num_extras: int | None  # None: a bare tensor

    def make_output(self, tensor: torch.Tensor) -> Any:
        """The tensor in the form of the module's output."""
        return tensor if self.num_extras is None else (tensor, *[None] * self.num_extras)


@dataclass(frozen=True, kw_only=True)
class CachedForward:
    """How to run a model up to and from its boundary: the input of the lowest block that is not constant, or the output
    of the last one where all are. `stand_ins` are the constant modules below, each topmost of its kind; `dtype` is that of
    the states in the computation."""

    model: nn.Module
    boundary: nn.Module
    is_output: bool
    placeholders: Mapping[nn.Module, Placeholder]
    dtype: torch.dtype = torch.float32

    def compute_activations(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Hidden states [B, T, H] at the boundary; nothing above is run."""
        original = self.boundary.forward

        def stop(*arguments: Any, **keywords: Any) -> None:
            if self.is_output:
                raise _BoundaryReachedError(find_first_tensor(original(*arguments, **keywords)))
            raise _BoundaryReachedError(arguments[0] if arguments else keywords["hidden_states"])

        try:
            with replace_forwards({self.boundary: stop}):
                heads.run_model(self.model, batch)
        except _BoundaryReachedError as reached:
            return reached.states
        raise CannotCacheError("the model does not run its blocks")

    @contextlib.contextmanager
    def from_activations(self, states: torch.Tensor) -> Iterator[None]:
        """Within the block the model takes these states at the boundary, and computes nothing below it."""
        original = self.boundary.forward
        zero = states.new_zeros(1)

        def stand_in_for(form: Placeholder) -> Callable[..., Any]:
            return lambda *_, **__: form.make_output(zero.expand(*states.shape[:2], form.width))

        def inject(*arguments: Any, **keywords: Any) -> Any:
            if arguments:
                return original(states, *arguments[1:], **keywords)
            return original(**{**keywords, "hidden_states": states})

        replaced = {module: stand_in_for(form) for module, form in self.placeholders.items()}
        if self.is_output:
            form = self.placeholders[self.boundary]
            replaced[self.boundary] = lambda *_, **__: form.make_output(states)
        else:
            replaced[self.boundary] = inject
        with replace_forwards(replaced):
            yield


def find_first_tensor(output: Any) -> Any:
    """The hidden states of a block's output."""
    return output[0] if isinstance(output, (tuple, list)) else output


def is_hidden_states(value: Any) -> bool:
    """Whether a value has the form of hidden states."""
    return isinstance(value, torch.Tensor) and value.ndim == 3


@dataclass(kw_only=True)
class Call:
    """One call of a module on the probe: when it began and ended, whether it was given states [B, T, H], and its output."""

    module: nn.Module
    began: int
    takes_states: bool
    ended: int = 0
    output: Any = None


def trace_calls(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> list[Call]:
    """Every call of every module in one forward, in the order in which they began."""
    calls: list[Call] = []
    waiting: list[Call] = []
    clock = 0

    shape = batch["input_ids"].shape

    def begin(module: nn.Module, arguments: Any, keywords: Any) -> None:
        nonlocal clock
        clock += 1
        takes_states = any(
            is_hidden_states(value) and value.shape[:2] == shape for value in (*arguments, *keywords.values())
        )
        calls.append(Call(module=module, began=clock, takes_states=takes_states))
        waiting.append(calls[-1])

    def end(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal clock
        clock += 1
        call = waiting.pop()
        call.ended, call.output = clock, output

    handles = [module.register_forward_pre_hook(begin, with_kwargs=True) for module in model.modules()]
    handles += [module.register_forward_hook(end) for module in model.modules()]
    try:
        heads.run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def find_cached_forward(model: nn.Module, plan: FreezePlan) -> CachedForward:
    """The replay of a model under a freeze plan, proven on a probe. Raises CannotReplayError with the reason.

    The model must be in fp32 and not yet prepared.
    """
    depth = plan.num_prefix_blocks
    if depth < 0:
        raise CannotCacheError("the embeddings train, so nothing is constant (see freeze.embeddings)")
    if plan.structure.shared:
        raise CannotCacheError("this backbone runs one shared block many times")
    _, stack = find_stack(model)
    is_output = depth == len(stack)
    boundary = stack[depth - 1] if is_output else stack[depth]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            calls = trace_calls(model, make_probe_batch(model, PROBE_TOKENS))
        at = next((call for call in calls if call.module is boundary), None)
        if at is None:
            raise CannotCacheError("the model does not run its blocks")
        replay = CachedForward(
            model=model,
            boundary=boundary,
            is_output=is_output,
            placeholders=find_placeholders(
                model, plan, calls, at.ended if is_output else at.began, is_output=is_output
            ),
        )
        check_equality(replay)
    finally:
        for module, training in modes.items():
            module.training = training
    return replay


def find_placeholders(
    model: nn.Module, plan: FreezePlan, calls: list[Call], end: int, *, is_output: bool
) -> dict[nn.Module, Placeholder]:
    """The topmost modules of frozen parameters only, run below the boundary only, that give [B, T, width]."""
    frozen = {id(parameter) for name, parameter in model.named_parameters() if name in plan.frozen}
    found: dict[nn.Module, Placeholder] = {}
    covered: set[nn.Module] = set()
    for module in model.modules():  # a parent comes before its children
        own = [call for call in calls if call.module is module]
        parameters = list(module.parameters())
        if module in covered or not own or not parameters or any(id(each) not in frozen for each in parameters):
            continue
        output = own[0].output
        states = find_first_tensor(output)
        if any(call.ended > end for call in own) or not isinstance(states, torch.Tensor):
            continue
        if states.ndim != 3 or states.shape[:2] != (2, PROBE_TOKENS):
            continue
        extras = output[1:] if isinstance(output, (tuple, list)) else None
        if extras and any(extra is not None for extra in extras) and not is_output:
            # DeBERTa's blocks return their attention's weights, which nobody reads: the proof tells
            extras = [None] * len(extras)
        found[module] = Placeholder(width=states.shape[-1], num_extras=None if extras is None else len(extras))
        covered.update(module.modules())
    return found


def check_equality(replay: CachedForward) -> None:
    """Raises CannotReplayError where the replay's logits on the probe are not the model's."""
    for length in (PROBE_TOKENS, PROBE_TOKENS + 4):
        batch = make_probe_batch(replay.model, length)
        with torch.no_grad():
            expected = heads.run_model(replay.model, batch)
            states = replay.compute_activations(batch)
            try:
                with replay.from_activations(states):
                    found = heads.run_model(replay.model, batch)
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CannotCacheError(
                    f"its upper blocks need more of the lower ones than hidden states ({reason})"
                ) from None
        if not is_close(found, expected, SAME_SUMS):
            raise CannotCacheError("its upper blocks need more of the lower ones than hidden states")


def is_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, floor: float = 0.0) -> bool:
    """Whether two tensors differ by no more than a share of the largest value, and `floor`."""
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max()) + floor
