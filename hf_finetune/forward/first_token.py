"""The last block for the first token alone, where nothing else of it feeds the head: BERT's and its kin's.

Exact, not an approximation: what is left out was computed and thrown away. Behind the attention, everything is computed for
one token instead of T. In attention of the plain kind there is one query, so that the keys' and values' projections can go
to the query's side of the products (associativity): q (W h) = (q W) h costs heads/H as much. Of the block's twelve units of
H x H a token, none are left.

B examples, T tokens, H hidden, N heads, D = H / N.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_finetune.forward.cached import (
    PROBE_TOKENS,
    CachedForward,
    find_first_tensor,
    is_close,
    is_hidden_states,
    replace_forwards,
    trace_calls,
)
from hf_finetune.model import heads
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.model.structure import find_stack, make_probe_batch

Forward = Callable[..., Any]

Cuts = Mapping[nn.Module, Callable[[nn.Module], Forward]]  # what each module's forward is made into

# Largest difference on the probe, in fp32, relative to the largest logit, or to the largest gradient of its parameter:
# sums in another order.
OTHER_SUMS = 1e-5

# Attributes of self-attention without positions of its own: query, key, value, and the output's projection if it is inside.
PLAIN_ATTENTION = (("query", "key", "value", None), ("q_lin", "k_lin", "v_lin", "out_lin"))


def first_tokens(module: nn.Module) -> Forward:
    """The module's forward, with every [B, T, ...] argument cut to its first token."""
    function = module.forward

    def head(value: Any) -> Any:
        return value[:, :1] if is_hidden_states(value) else value

    return lambda *arguments, **keywords: function(
        *map(head, arguments), **{name: head(value) for name, value in keywords.items()}
    )


def run_in_fp32(module: nn.Module) -> Forward:
    """A linear layer's forward in fp32 under autocast, too: for one token, casting the weights and their gradients to 16 bit
    and back costs more than the products."""
    function = module.forward

    def forward(states: torch.Tensor) -> Any:
        with torch.autocast(states.device.type, enabled=False):
            return function(states.float())

    return forward


def first_query(module: nn.Module) -> Forward:
    """Self-attention's forward for the first token's query alone: [B, 1, H], and None for the weights."""
    names = next(each for each in PLAIN_ATTENTION if hasattr(module, each[0]))
    query, key, value = (getattr(module, str(name)) for name in names[:3])
    output = getattr(module, names[3]) if names[3] else None
    width: Any = module.attention_head_size
    dropout: Any = module.dropout
    scaling: Any = module.scaling

    def forward(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        with torch.autocast(hidden_states.device.type, enabled=False):  # so little work that fp32 costs nothing
            states = hidden_states.float()
            batch, hidden = states.shape[0], states.shape[-1]
            asked = query(states[:, :1]).view(batch, -1, width).transpose(0, 1) * scaling  # [N, B, D]
            heads = asked.shape[0]
            pulled = torch.bmm(asked, key.weight.view(heads, width, hidden)).transpose(0, 1)  # [B, N, H]
            scores = torch.bmm(pulled, states.transpose(1, 2))  # [B, N, T]
            scores = scores + (asked * key.bias.view(heads, 1, width)).sum(-1).transpose(0, 1)[..., None]
            if attention_mask is not None:
                row = attention_mask[:, :, 0].expand(-1, 1, -1)
                is_bool = row.dtype == torch.bool
                scores = scores.masked_fill(~row, torch.finfo(scores.dtype).min) if is_bool else scores + row
            weights = F.softmax(scores, -1)[:, :, None]  # [B, N, 1, T]: the first row of what all queries have
            weights = F.dropout(weights, dropout.p, module.training)[:, :, 0]
            mixed = torch.bmm(weights, states).transpose(0, 1)  # [N, B, H]
            context = torch.bmm(mixed, value.weight.view(heads, width, hidden).transpose(1, 2))  # [N, B, D]
            context = context + weights.sum(-1).transpose(0, 1)[..., None] * value.bias.view(heads, 1, width)
            context = context.transpose(0, 1).reshape(batch, 1, heads * width)
        return (context if output is None else output(context)), None

    return forward


def one_token_layers(model: nn.Module, cuts: Cuts, batch: Mapping[str, torch.Tensor]) -> set[nn.Module]:
    """The linear layers that are given [B, 1, H] while others are cut."""
    found: set[nn.Module] = set()

    def look(module: nn.Module, arguments: Any) -> None:
        if is_hidden_states(arguments[0]) and arguments[0].shape[1] == 1:
            found.add(module)

    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in cuts]
    handles = [module.register_forward_pre_hook(look) for module in linear]
    try:
        with torch.no_grad(), apply_cuts(cuts):
            heads.run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def apply_cuts(cuts: Cuts) -> contextlib.AbstractContextManager[None]:
    """Within the block the modules' forwards are cut."""
    return replace_forwards({module: make(module) for module, make in cuts.items()})


def find_first_token_cuts(model: nn.Module, plan: FreezePlan) -> Cuts:
    """What of the last block may be computed for the first token alone, because only that feeds the head.

    Each cut is taken only where logits and gradients on the probe stay the same in fp32. None where the last block does not
    train, or another token is read. The model must be in fp32 and not yet prepared.
    """
    if getattr(model.config, "is_encoder_decoder", False) or plan.structure.shared:
        return {}
    _, stack = find_stack(model)
    if plan.num_prefix_blocks == len(stack) or not reads_first_token_only(model, stack[-1]):
        return {}
    inside = {module for module in stack[-1].modules() if any(True for _ in module.parameters())} - {stack[-1]}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        batches = [make_probe_batch(model, length) for length in (PROBE_TOKENS, PROBE_TOKENS + 4)]
        batches[1]["attention_mask"][0, PROBE_TOKENS:] = 0  # padding
        with torch.no_grad():
            expected = [heads.run_model(model, batch) for batch in batches]
        cuts: dict[nn.Module, Callable[[nn.Module], Forward]] = {}
        for module in inside:
            if is_plain_attention(module) and cut_changes_nothing(model, {module: first_query}, batches, expected):
                cuts[module] = first_query
        tried = set(cuts)
        while waiting := [each for each in run_full(model, cuts, batches[0]) if each in inside - tried]:
            tried.add(waiting[0])
            if cut_changes_nothing(model, {**cuts, waiting[0]: first_tokens}, batches, expected):
                cuts[waiting[0]] = first_tokens
        for module in one_token_layers(model, cuts, batches[0]) & inside:
            cuts[module] = run_in_fp32
    finally:
        for module, training in modes.items():
            module.training = training
    return cuts


def run_full(model: nn.Module, cuts: Cuts, batch: Mapping[str, torch.Tensor]) -> list[nn.Module]:
    """The modules that are given the states of all tokens while others are cut, in the order of their calls."""
    with torch.no_grad(), apply_cuts(cuts):
        return [call.module for call in trace_calls(model, batch) if call.takes_states]


def is_plain_attention(module: nn.Module) -> bool:
    """Whether a module looks like self-attention without positions; the proof tells."""
    needed = ("attention_head_size", "dropout", "scaling")
    return all(hasattr(module, name) for name in needed) and any(
        all(name is None or isinstance(getattr(module, name, None), nn.Linear) for name in names)
        and all(getattr(module, str(name)).bias is not None for name in names[:3])
        for names in PLAIN_ATTENTION
    )


def cut_changes_nothing(
    model: nn.Module,
    cuts: Cuts,
    batches: list[dict[str, torch.Tensor]],
    expected: list[torch.Tensor],
) -> bool:
    """Whether logits and gradients are the same with these cuts."""
    try:
        with torch.no_grad(), apply_cuts(cuts):
            found = [heads.run_model(model, batch) for batch in batches]
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False
    same = all(is_close(one, other, OTHER_SUMS) for one, other in zip(found, expected, strict=True))
    return same and gives_same_gradients(model, cuts, batches)


def reads_first_token_only(model: nn.Module, block: nn.Module) -> bool:
    """Whether the logits depend on the block's output at the first token and nowhere else."""
    outputs: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(find_first_tensor(output))
        outputs[-1].retain_grad()

    handle = block.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = heads.run_model(model, make_probe_batch(model, PROBE_TOKENS))
            (gradient,) = torch.autograd.grad(logits.square().sum(), outputs[-1])
    except RuntimeError:  # the block's output needs no gradient, or does not reach the logits
        return False
    finally:
        handle.remove()
    return bool(gradient[:, 0].any()) and not bool(gradient[:, 1:].any())


def gives_same_gradients(model: nn.Module, cuts: Cuts, batches: list[dict[str, torch.Tensor]]) -> bool:
    """Whether all gradients are the same with and without the cuts."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients() -> list[torch.Tensor | None]:
        with torch.enable_grad():
            loss = torch.stack([heads.run_model(model, batch).square().sum() for batch in batches]).sum()
            return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    expected = gradients()
    with apply_cuts(cuts):
        found = gradients()
    # The gradient of a key's bias is zero but for rounding: hence the floor
    floor = 1e-2 * OTHER_SUMS * max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
    for one, other in zip(found, expected, strict=True):
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None and not is_close(one, other, OTHER_SUMS, floor):
            return False
    return True
