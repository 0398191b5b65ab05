"""Cross entropy as several tasks use it: summed, with what it is to be divided by."""

from typing import TYPE_CHECKING

from hf_finetune.data import IGNORED

if TYPE_CHECKING:
    import torch


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
