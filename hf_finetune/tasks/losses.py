"""Cross entropies, as sums over targets. All are computed in fp32. count_targets() has the number of the targets.

cross_entropy() has weights and a focal exponent, for a few classes. sum_token_entropy() is for the vocabulary: it takes some
of the tokens at a time, so that there is no second tensor of all logits in fp32. Imported inside functions: it needs torch.

C classes, N tokens, T tokens of one sequence, V entries of the vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from hf_finetune.data.features import IGNORED

LOGITS_AT_ONCE = 2**24  # 64 MB in fp32


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] = (),
    focal_gamma: float = 0.0,
    example_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the cross entropy of logits [..., C], summed over all labels [...] that are not IGNORED.

    Args:
        logits: [..., C].
        labels: [...], class numbers or IGNORED.
        label_smoothing: Share of each target that is spread evenly over all classes, as in torch's cross_entropy.
        class_weights: C weights, a factor of the terms of each class, as in torch's cross_entropy.
        focal_gamma: Each term is multiplied by (1 - p) ** gamma, where p is the probability of its label (Lin et al. 2017,
            arXiv:1708.02002, eq. 4).
        example_weights: A factor for each label, [...].
    """
    targets = labels.reshape(-1)
    scores = logits.reshape(-1, logits.shape[-1]).float()
    weights = torch.tensor(class_weights, device=scores.device) if class_weights else None
    options: dict[str, Any] = {"weight": weights, "ignore_index": IGNORED, "label_smoothing": label_smoothing}
    if not focal_gamma and example_weights is None:
        return F.cross_entropy(scores, targets, reduction="sum", **options)
    terms = F.cross_entropy(scores, targets, reduction="none", **options)  # 0 where the label is IGNORED
    if focal_gamma:
        probabilities = F.log_softmax(scores, -1).gather(-1, targets.clamp(min=0)[:, None])[:, 0].exp()
        probabilities = probabilities.masked_fill(targets == IGNORED, 0.0)  # the power has no gradient where one is 1
        terms = terms * (1 - probabilities) ** focal_gamma
    if example_weights is not None:
        terms = terms * example_weights.reshape(-1)
    return terms.sum()


def count_targets(
    labels: torch.Tensor, class_weights: tuple[float, ...] = (), example_weights: torch.Tensor | None = None
) -> float:
    """Returns the number of labels [...] that are not IGNORED.

    With class_weights [C] it is the sum of the labels' weights, as in torch's cross_entropy; with example_weights [...] each
    label counts by its factor.
    """
    is_target = labels != IGNORED
    if not class_weights and example_weights is None:
        return float(is_target.sum())
    counts = is_target.double()
    if class_weights:
        counts = counts * torch.tensor(class_weights, device=labels.device)[labels.clamp(min=0)]
    if example_weights is not None:
        counts = counts * example_weights
    return float(counts.sum())


def sum_token_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Returns the cross entropy of logits [..., V], summed over all labels [...] that are not IGNORED."""
    total: torch.Tensor = TokenEntropy.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), label_smoothing)
    return total


def score_tokens(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int, int]:
    """Scores one sequence: logits [T, V] against labels [T].

    Returns the summed cross entropy over all labels that are not IGNORED, the number of them that have the largest logit, and
    their number.
    """
    positions = (labels != IGNORED).nonzero()[:, 0]
    total, num_correct = 0.0, 0
    for chunk in split_positions(positions, logits.shape[-1]):
        scores, targets = logits[chunk].float(), labels[chunk]
        total += float(F.cross_entropy(scores, targets, reduction="sum"))
        num_correct += int((scores.argmax(-1) == targets).sum())
    return total, num_correct, len(positions)


class TokenEntropy(torch.autograd.Function):
    """The summed cross entropy of logits [N, V] and labels [N] that are not IGNORED, smoothed as in torch's cross_entropy.

    Of the forward pass only the logits and one number a token are saved for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        positions = (labels != IGNORED).nonzero()[:, 0]
        normalizers = []
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for chunk in split_positions(positions, logits.shape[-1]):
            scores = logits[chunk].float()
            normalizers.append(scores.logsumexp(-1))
            target_scores = scores.gather(-1, labels[chunk][:, None])[:, 0]
            total += (normalizers[-1] - (1 - label_smoothing) * target_scores).sum()
            if label_smoothing:
                total -= label_smoothing * scores.mean(-1).sum()
        ctx.save_for_backward(logits, labels, positions, torch.cat(normalizers) if normalizers else total[None])
        ctx.label_smoothing = label_smoothing
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, labels, positions, normalizers = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        start = 0
        for chunk in split_positions(positions, logits.shape[-1]):
            values = (logits[chunk].float() - normalizers[start : start + len(chunk), None]).exp_()
            if ctx.label_smoothing:
                values -= ctx.label_smoothing / logits.shape[-1]
            at_targets = torch.full((len(chunk), 1), ctx.label_smoothing - 1, dtype=values.dtype, device=values.device)
            values.scatter_add_(-1, labels[chunk][:, None], at_targets)
            gradient[chunk] = (values * gradients[0]).to(gradient.dtype)
            start += len(chunk)
        return gradient, None, None


def split_positions(positions: torch.Tensor, vocabulary_size: int) -> Iterator[torch.Tensor]:
    """Splits positions [N] into chunks whose logits are at most LOGITS_AT_ONCE numbers."""
    yield from positions.split(max(1, LOGITS_AT_ONCE // vocabulary_size))
