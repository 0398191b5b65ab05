"""The cross entropy of tokens over the vocabulary, from the hidden states before the vocabulary projection.

The logits of some tokens at a time are computed, and their gradients right after them, so that there is never a matrix of all
logits. The sums are those of losses.py, in fp32; under autocast the products run in its type. Imported inside functions: it
needs torch.

N tokens, H hidden, V entries of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from hf_finetune.data.features import IGNORED
from hf_finetune.tasks import losses
from hf_finetune.tasks.losses import TokenEntropy


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """What is computed of N tokens instead of their logits.

    Args:
        total: The cross entropy, summed over all targets that are not IGNORED.
        entropies: That of each token without label smoothing, 0 if its target is IGNORED [N]. None if a graph is kept.
        is_correct: The target has the largest logit [N]. None if a graph is kept.
    """

    total: torch.Tensor
    entropies: torch.Tensor | None = None
    is_correct: torch.Tensor | None = None


def score_projected(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    label_smoothing: float = 0.0,
) -> TokenScores:
    """Returns the scores of tokens whose logits are hidden_states @ weight.T + bias.

    Args:
        hidden_states: [1, N, H].
        weight: [V, H].
        bias: [V], if the projection has one.
        targets: Entries of the vocabulary or IGNORED, [1, N].
        label_smoothing: As in torch's cross_entropy.
    """
    states, targets = hidden_states[0], targets[0]
    if not torch.is_grad_enabled():
        return score_logits(iterate_logits(states, weight, bias), targets, label_smoothing)
    if find_dtype(states) == torch.float16:  # gradients of an unscaled loss are too small for it
        logits = F.linear(states, weight, bias)
        return TokenScores(total=TokenEntropy.apply(logits, targets, label_smoothing))
    return TokenScores(total=ProjectedEntropy.apply(states, weight, bias, targets, label_smoothing))


def find_dtype(states: torch.Tensor) -> torch.dtype:
    """Returns the type that products of hidden states are computed in."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def iterate_logits(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Yields the logits in fp32 of some tokens at a time, at most losses.LOGITS_AT_ONCE numbers."""
    dtype = find_dtype(states)
    states, weight, bias = states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(states.device.type, enabled=False):
        for chunk in states.split(max(1, losses.LOGITS_AT_ONCE // len(weight))):
            yield F.linear(chunk, weight, bias).float()


def iterate_parts(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields the logits [N, V] of some tokens at a time, in fp32."""
    return (part.float() for part in logits.split(max(1, losses.LOGITS_AT_ONCE // logits.shape[-1])))


def score_logits(logits: Iterator[torch.Tensor], targets: torch.Tensor, label_smoothing: float = 0.0) -> TokenScores:
    """Returns the scores of tokens from the logits [n, V] of some of them at a time, without a graph."""
    entropies, smooth, is_correct = [], [], []
    start = 0
    for scores in logits:
        labels = targets[start : start + len(scores)]
        start += len(scores)
        normalizers, entries = scores.logsumexp(-1), labels.clamp(min=0)
        entropies.append(normalizers - scores.gather(-1, entries[:, None])[:, 0])
        smooth.append(normalizers - scores.mean(-1) if label_smoothing else entropies[-1])
        is_correct.append(scores.argmax(-1) == labels)
    is_target = targets != IGNORED
    own = torch.cat(entropies) * is_target
    total = ((1 - label_smoothing) * own + label_smoothing * torch.cat(smooth) * is_target).sum()
    return TokenScores(total=total, entropies=own, is_correct=torch.cat(is_correct))


class ProjectedEntropy(torch.autograd.Function):
    """The summed cross entropy of hidden states [N, H] under a projection. The forward pass computes its gradients, too, as long
    as it has the logits; the backward pass multiplies them by the loss's own gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        label_smoothing: float,
    ) -> torch.Tensor:
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype = find_dtype(states)
        inputs, cast_weight = states.to(dtype), weight.to(dtype)
        of_states = torch.empty_like(states) if needs_states else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        of_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if needs_bias else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        start = 0
        for scores in iterate_logits(states, weight, bias):
            chunk = slice(start, start + len(scores))
            start += len(scores)
            total += compute_entropy_(scores, targets[chunk], label_smoothing)
            gradient = scores.to(dtype)
            with torch.autocast(states.device.type, enabled=False):
                if of_states is not None:
                    of_states[chunk] = gradient @ cast_weight
                if of_weight is not None and dtype == torch.float32:
                    of_weight.addmm_(gradient.T, inputs[chunk])
                elif of_weight is not None:
                    of_weight += gradient.T @ inputs[chunk]
                if of_bias is not None:
                    of_bias += scores.sum(0)
        ctx.gradients = of_states, of_weight, of_bias
        ctx.types = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("ProjectedEntropy: the gradients were freed by an earlier backward pass")
        of_states, of_weight, of_bias = (each if each is None else each.mul_(gradients[0]) for each in ctx.gradients)
        ctx.gradients = None
        weight_type, bias_type = ctx.types
        of_weight = None if of_weight is None else of_weight.to(weight_type)
        return of_states, of_weight, None if of_bias is None else of_bias.to(bias_type), None, None


def compute_entropy_(scores: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Returns the summed cross entropy of logits [n, V], and replaces them by its gradient."""
    is_target = targets != IGNORED
    entries = targets.clamp(min=0)[:, None]
    scores -= scores.amax(-1, keepdim=True)
    at_targets = scores.gather(-1, entries)[:, 0]
    means = scores.mean(-1) if label_smoothing else at_targets
    sums = scores.exp_().sum(-1)
    entropies = sums.log() - (1 - label_smoothing) * at_targets - label_smoothing * means
    scores *= (is_target / sums)[:, None]
    if label_smoothing:
        scores -= (is_target * (label_smoothing / scores.shape[-1]))[:, None]
    scores.scatter_add_(-1, entries, (is_target * (label_smoothing - 1))[:, None].to(scores.dtype))
    return (entropies * is_target).sum()
