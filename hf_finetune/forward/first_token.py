"""Computes the last block for the first token only, if the head reads no other token (BERT and its relatives).

The outputs are exact: what is left out would be computed and thrown away. After the attention of the last block, one token is
computed instead of T. If the attention has no positions of its own, it has one query, and the projections of keys and values
move to the query's side of the products by associativity: q (W h) = (q W) h. This removes all 12 H x H multiplications per
token of the block; what remains per token costs N / H as much.

B examples, T tokens, H hidden, N heads, D = H / N.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_finetune.forward.cached import PROBE_TOKENS, is_close, is_hidden_states, replace_forwards, trace_calls
from hf_finetune.model import heads
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.model.structure import eval_mode, find_first_tensor, find_stack, make_probe_batch

Forward = Callable[..., Any]

Gradients = Sequence[torch.Tensor | None]  # of the parameters of a model that train

Cuts = Mapping[nn.Module, Forward]  # modules of the last block, and the forward that each has instead of its own

# Largest difference of logits on the probe, in fp32, relative to the largest logit: the same sums in another order
OTHER_SUMS = 1e-5

# The same for gradients, relative to the largest one of the parameter: they are sums of more terms. With 30 blocks, a vocabulary
# of 49,152 and two threads they differed by 1.7e-5; those of a module that was cut wrongly differ by 1e-2 and more
OTHER_GRADIENT_SUMS = 1e-4

# What a forward raises that does not go with a cut
PROBE_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)

# Attributes of self-attention without positions of its own: query, key, value, and the output projection if it is inside.
# Names as of transformers 5.23 (BERT and its relatives, DistilBERT). tests/forward/test_first_token.py fails if a later
# version renames them.
PLAIN_ATTENTION = (("query", "key", "value", None), ("q_lin", "k_lin", "v_lin", "out_lin"))


# --- what a module computes instead ---------------------------------------------------------------------------------


def make_first_token_forward(module: nn.Module) -> Forward:
    """Returns the module's forward with every argument [B, T, ...] cut to its first token."""
    full_forward = module.forward

    def cut(value: Any) -> Any:
        return value[:, :1] if is_hidden_states(value) else value

    def forward_first_token(*arguments: Any, **keywords: Any) -> Any:
        return full_forward(*map(cut, arguments), **{name: cut(value) for name, value in keywords.items()})

    return forward_first_token


def make_fp32_forward(module: nn.Module) -> Forward:
    """Returns a linear layer's forward in fp32, also under autocast.

    For one token, casting the weights and their gradients to 16 bit and back costs more than the products.
    """
    full_forward = module.forward

    def forward_in_fp32(hidden_states: torch.Tensor) -> Any:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return full_forward(hidden_states.float())

    return forward_in_fp32


def make_first_query_forward(module: nn.Module) -> Forward:
    """Returns the forward of plain self-attention for the first token's query only: its output is [B, 1, H] and None."""
    names = next(names for names in PLAIN_ATTENTION if hasattr(module, names[0]))
    query, key, value = (getattr(module, str(name)) for name in names[:3])
    output_projection = getattr(module, names[3]) if names[3] else None
    width: Any = module.attention_head_size
    dropout: Any = module.dropout
    scaling: Any = module.scaling

    def forward_first_query(
        hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        with torch.autocast(hidden_states.device.type, enabled=False):  # so little work that fp32 costs nothing
            states = hidden_states.float()  # [B, T, H]
            batch, hidden = states.shape[0], states.shape[-1]
            queries = query(states[:, :1]).view(batch, -1, width).transpose(0, 1) * scaling  # [N, B, D]
            num_heads = queries.shape[0]
            # (q W_key) h + q b_key instead of q (W_key h + b_key)
            projected = torch.bmm(queries, key.weight.view(num_heads, width, hidden)).transpose(0, 1)  # [B, N, H]
            scores = torch.bmm(projected, states.transpose(1, 2))  # [B, N, T]
            scores = scores + (queries * key.bias.view(num_heads, 1, width)).sum(-1).transpose(0, 1)[..., None]
            scores = apply_attention_mask(scores, attention_mask)
            weights = F.softmax(scores, -1)[:, :, None]  # [B, N, 1, T], the first row of all queries' weights
            weights = F.dropout(weights, dropout.p, module.training)[:, :, 0]
            # W_value (sum of w h) + (sum of w) b_value instead of the sum of w (W_value h + b_value)
            mixed = torch.bmm(weights, states).transpose(0, 1)  # [N, B, H]
            context = torch.bmm(mixed, value.weight.view(num_heads, width, hidden).transpose(1, 2))  # [N, B, D]
            context = context + weights.sum(-1).transpose(0, 1)[..., None] * value.bias.view(num_heads, 1, width)
            context = context.transpose(0, 1).reshape(batch, 1, num_heads * width)
        return (context if output_projection is None else output_projection(context)), None

    return forward_first_query


def apply_attention_mask(scores: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Returns the first query's scores [B, N, T] under a mask [B or 1, 1, queries, T], which is boolean or added."""
    if attention_mask is None:
        return scores
    first_row = attention_mask[:, :, 0].expand(-1, 1, -1)
    if first_row.dtype == torch.bool:
        return scores.masked_fill(~first_row, torch.finfo(scores.dtype).min)
    return scores + first_row


def is_plain_attention(module: nn.Module) -> bool:
    """True if a module has the attributes of self-attention without positions. Whether it is one, the probe shows."""
    if not all(hasattr(module, name) for name in ("attention_head_size", "dropout", "scaling")):
        return False
    for names in PLAIN_ATTENTION:
        layers: list[Any] = [getattr(module, name, None) for name in names if name is not None]
        if all(isinstance(layer, nn.Linear) for layer in layers) and all(
            layer.bias is not None for layer in layers[:3]
        ):
            return True
    return False


# --- what may be left out -------------------------------------------------------------------------------------------


def apply_cuts(cuts: Cuts) -> contextlib.AbstractContextManager[None]:
    """Makes each module run its cut forward until the block ends."""
    return replace_forwards(cuts)


def find_first_token_cuts(model: nn.Module, plan: FreezePlan) -> Cuts:
    """Returns the cuts of the last block, each checked on a probe.

    A cut is taken only if logits and gradients stay the same in fp32. There are none if the last block does not train, or if
    the head reads another token. The model must be in fp32 and not yet prepared by Accelerate.
    """
    if getattr(model.config, "is_encoder_decoder", False) or plan.structure.shared:
        return {}
    _, stack = find_stack(model)
    if plan.num_prefix_blocks == len(stack) or not reads_first_token_only(model, stack[-1]):
        return {}
    inside = {module for module in stack[-1].modules() if any(True for _ in module.parameters())} - {stack[-1]}
    with eval_mode(model):
        probe = make_probe(model)
        cuts: dict[nn.Module, Forward] = {}
        for module in inside:
            if is_plain_attention(module):
                cut = {module: make_first_query_forward(module)}
                if changes_nothing(model, cut, probe):
                    cuts |= cut
        tried = set(cuts)
        while untried := [module for module in list_full_modules(model, cuts, probe) if module in inside - tried]:
            module = untried[0]
            tried.add(module)
            cut = {module: make_first_token_forward(module)}
            if changes_nothing(model, {**cuts, **cut}, probe):
                cuts |= cut
        for module in find_one_token_layers(model, cuts, probe) & inside:
            cuts[module] = make_fp32_forward(module)
    return cuts


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Batches, and the logits of the model without cuts."""

    model: nn.Module
    batches: list[dict[str, torch.Tensor]]
    logits: list[torch.Tensor]

    def compute_losses(self) -> torch.Tensor:
        """Returns a loss of each batch."""
        return torch.stack([heads.run_model(self.model, batch).square().sum() for batch in self.batches])

    @cached_property
    def gradients(self) -> Gradients:
        """The gradients of the losses without cuts. First read where no cut is active; computed once."""
        return compute_gradients(self.model, self.compute_losses)


def make_probe(model: nn.Module) -> Probe:
    """Returns two batches of different lengths, the second with padding, and the logits without cuts."""
    batches = [make_probe_batch(model, length) for length in (PROBE_TOKENS, PROBE_TOKENS + 4)]
    batches[1]["attention_mask"][0, PROBE_TOKENS:] = 0
    with torch.no_grad():
        return Probe(model=model, batches=batches, logits=[heads.run_model(model, batch) for batch in batches])


def list_full_modules(model: nn.Module, cuts: Cuts, probe: Probe) -> list[nn.Module]:
    """Returns the modules that still get the hidden states of all tokens under these cuts, in the order of their calls."""
    with torch.no_grad(), apply_cuts(cuts):
        return [call.module for call in trace_calls(model, probe.batches[0]) if call.takes_hidden_states]


def find_one_token_layers(model: nn.Module, cuts: Cuts, probe: Probe) -> set[nn.Module]:
    """Returns the linear layers without a cut of their own that get [B, 1, H] under these cuts."""
    layers: set[nn.Module] = set()

    def look(module: nn.Module, arguments: Any) -> None:
        if is_hidden_states(arguments[0]) and arguments[0].shape[1] == 1:
            layers.add(module)

    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in cuts]
    handles = [module.register_forward_pre_hook(look) for module in linear]
    try:
        with torch.no_grad(), apply_cuts(cuts):
            heads.run_model(model, probe.batches[0])
    finally:
        for handle in handles:
            handle.remove()
    return layers


def reads_first_token_only(model: nn.Module, block: nn.Module) -> bool:
    """True if the logits depend on the block's output at the first token and at no other."""
    is_read = find_read_tokens(model, block, make_probe_batch(model, PROBE_TOKENS))
    return is_read is not None and bool(is_read[:, 0].any()) and not bool(is_read[:, 1:].any())


def find_read_tokens(model: nn.Module, block: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Returns at which tokens [B, T] the model's outputs depend on the block's output. None if that needs no gradient, does not
    reach the outputs, or is not [B, T, H]."""
    outputs: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(find_first_tensor(output))
        outputs[-1].retain_grad()

    handle = block.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = heads.run_model(model, batch)
            loss = (logits + logits.square()).sum()  # the gradient is not 0 at a logit of 0
            (gradient,) = torch.autograd.grad(loss, outputs[-1])
    except RuntimeError:
        return None
    finally:
        handle.remove()
    return (gradient != 0).any(-1) if is_hidden_states(gradient) else None


def changes_nothing(model: nn.Module, cuts: Cuts, probe: Probe) -> bool:
    """True if logits and gradients on the probe are the same with these cuts."""
    try:
        with torch.no_grad(), apply_cuts(cuts):
            cut_logits = [heads.run_model(model, batch) for batch in probe.batches]
    except PROBE_ERRORS:
        return False
    if not all(is_close(*pair, OTHER_SUMS) for pair in zip(cut_logits, probe.logits, strict=True)):
        return False
    expected = probe.gradients
    with apply_cuts(cuts):
        return are_same_gradients(compute_gradients(model, probe.compute_losses), expected)


def compute_gradients(model: nn.Module, compute_losses: Callable[[], torch.Tensor]) -> Gradients:
    """Returns the gradient of each parameter of the model that trains; None for one that the losses do not depend on."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        return []
    with torch.enable_grad():
        return torch.autograd.grad(compute_losses().sum(), parameters, allow_unused=True)


def are_same_gradients(gradients: Gradients, expected: Gradients, tolerance: float = OTHER_GRADIENT_SUMS) -> bool:
    """True if all gradients are the same up to rounding. Some, such as that of a key's bias, are zero up to rounding."""
    if [gradient is None for gradient in gradients] != [gradient is None for gradient in expected]:
        return False
    pairs = [
        (one, other) for one, other in zip(gradients, expected, strict=True) if one is not None and other is not None
    ]
    floor = 1e-2 * tolerance * max((float(other.abs().max()) for _, other in pairs), default=0.0)
    return all(is_close(one, other, tolerance, floor) for one, other in pairs)
