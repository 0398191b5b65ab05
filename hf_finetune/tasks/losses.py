"""Cross entropy over a vocabulary, a part of the tokens at a time: no second tensor of all logits in fp32.

N tokens, V entries of the vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch

from hf_finetune.data.features import IGNORED

LOGITS_AT_ONCE = 2**24  # in fp32 64 MB


def parts(positions: torch.Tensor, vocabulary: int) -> Iterator[torch.Tensor]:
    """The positions, so many at once as LOGITS_AT_ONCE allows."""
    yield from positions.split(max(1, LOGITS_AT_ONCE // vocabulary))


class TokenEntropy(torch.autograd.Function):
    """The summed cross entropy of logits [N, V] with labels [N] that are not IGNORED; in fp32, whatever the logits are in.

    Smoothed as torch's cross_entropy does it. Of the forward only the logits and one number a token are kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        positions = (labels != IGNORED).nonzero()[:, 0]
        normalizers = []
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for some in parts(positions, logits.shape[-1]):
            scores = logits[some].float()
            normalizers.append(scores.logsumexp(-1))
            right = scores.gather(-1, labels[some][:, None])[:, 0]
            total += (normalizers[-1] - (1 - label_smoothing) * right).sum()
            if label_smoothing:
                total -= label_smoothing * scores.mean(-1).sum()
        ctx.save_for_backward(logits, labels, positions, torch.cat(normalizers) if normalizers else total[None])
        ctx.label_smoothing = label_smoothing
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, labels, positions, normalizers = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        done = 0
        for some in parts(positions, logits.shape[-1]):
            values = (logits[some].float() - normalizers[done : done + len(some), None]).exp_()
            if ctx.label_smoothing:
                values -= ctx.label_smoothing / logits.shape[-1]
            right = torch.full((len(some), 1), ctx.label_smoothing - 1, dtype=values.dtype, device=values.device)
            values.scatter_add_(-1, labels[some][:, None], right)
            gradient[some] = (values * gradients[0]).to(gradient.dtype)
            done += len(some)
        return gradient, None, None


def token_entropy(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, float]:
    """Sum of the cross entropy of logits [..., V] over all labels [...] that are not IGNORED, and their number."""
    flat = labels.reshape(-1)
    total = TokenEntropy.apply(logits.reshape(-1, logits.shape[-1]), flat, label_smoothing)
    return total, float((flat != IGNORED).sum())


def token_sums(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int, int]:
    """Of one sequence's logits [T, V]: the summed cross entropy over all labels [T] that are not IGNORED, how many of them
    have the largest logit, and their number."""
    positions = (labels != IGNORED).nonzero()[:, 0]
    total, right = 0.0, 0
    for some in parts(positions, logits.shape[-1]):
        scores, targets = logits[some].float(), labels[some]
        total += float(torch.nn.functional.cross_entropy(scores, targets, reduction="sum"))
        right += int((scores.argmax(-1) == targets).sum())
    return total, right, len(positions)


def cross_entropy(
    logits: "torch.Tensor",
    labels: "torch.Tensor",
    *,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] = (),
    focal_gamma: float = 0.0,
) -> "tuple[torch.Tensor, float]":
    """Sum over all labels [...] that are not IGNORED of the cross entropy with logits [..., C], in fp32, and their number.

    With class_weights the sum of the labels' weights stands in for the number, as in torch's cross_entropy. focal_gamma: each
    term is multiplied by (1 - p) ** gamma, p being the probability of its label (Lin et al. 2017, arXiv:1708.02002, eq. 4).
    """
    import torch
    from torch.nn import functional as F

    taken = labels.reshape(-1) != IGNORED
    targets = labels.reshape(-1)[taken]
    scores = logits.reshape(-1, logits.shape[-1])[taken].float()
    weights = torch.tensor(class_weights, device=scores.device) if class_weights else None
    if not focal_gamma:
        total = F.cross_entropy(scores, targets, weight=weights, reduction="sum", label_smoothing=label_smoothing)
    else:
        terms = F.cross_entropy(scores, targets, weight=weights, reduction="none", label_smoothing=label_smoothing)
        sure = F.log_softmax(scores, -1).gather(-1, targets[:, None])[:, 0].exp()
        total = (terms * (1 - sure) ** focal_gamma).sum()
    return total, float(len(targets)) if weights is None else float(weights[targets].sum())
