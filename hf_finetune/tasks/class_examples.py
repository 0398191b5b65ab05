"""What an evaluation keeps of the scores of classification, and what it knows of each example then.

N examples, B of a part, C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.data.features import Array, ClassSets
from hf_finetune.tasks import metrics
from hf_finetune.tasks.example_scores import MOST_LABELS, NUM_BEST, BestProbabilities, ExampleScores, Rule

if TYPE_CHECKING:
    import torch

LEAST_PROBABILITY = 1e-30  # losses are those of no smaller one


def make_summary_type(problem: str, num_labels: int) -> np.dtype[Any]:
    """Returns the type of an example's summary: its loss; the number of the predicted label, or a bit for each label if it may
    have several; the probabilities of all labels, or of many labels the largest ones with the numbers of their labels."""
    decision: tuple[Any, ...] = ("decision", "i4")
    if problem == "multi_label":
        decision = ("decision", "u1", (-(-num_labels // 8),))
    if num_labels <= MOST_LABELS:
        return np.dtype([("loss", "f8"), decision, ("values", "f4", (num_labels,))])
    return np.dtype([("loss", "f8"), decision, ("values", "f4", (NUM_BEST,)), ("numbers", "i4", (NUM_BEST,))])


def compute_exact_scores(problem: str, logits: "torch.Tensor") -> "torch.Tensor":
    """Returns the probabilities [B, C] of logits in double precision, on the device where that is possible."""
    exact = (logits.cpu() if logits.device.type == "mps" else logits).double()
    return exact.softmax(-1) if problem == "single_label" else exact.sigmoid()


def summarize(problem: str, scores: "Array | torch.Tensor", decisions: Array, losses: Array) -> Array:
    """Returns the summaries [B] of examples.

    scores: Probabilities [B, C]. decisions: Class numbers [B], or 0/1 [B, C]. losses: [B].
    """
    import torch

    scores = torch.as_tensor(scores)
    summary = np.zeros(len(scores), dtype=make_summary_type(problem, scores.shape[1]))
    summary["loss"] = losses
    summary["decision"] = np.packbits(decisions.astype(bool), axis=-1) if problem == "multi_label" else decisions
    if scores.shape[1] <= MOST_LABELS:
        summary["values"] = scores.cpu().numpy()
        return summary
    best = scores.topk(NUM_BEST)
    summary["numbers"] = best.indices.cpu().numpy()
    summary["values"] = best.values.cpu().numpy()
    return summary


def compute_losses(problem: str, scores: "Array | torch.Tensor", targets: "Array | torch.Tensor") -> Array:
    """Returns the loss of each example [B] from its probabilities [B, C]: the cross entropy, or the mean of the binary cross
    entropies of the labels."""
    import torch

    scores = torch.as_tensor(scores)
    targets = torch.as_tensor(targets).to(scores.device)
    if problem == "single_label":
        of_targets = scores.gather(1, targets.long()[:, None]).cpu().numpy()
    else:
        of_targets = torch.where(targets > 0, scores, 1 - scores).cpu().numpy()
    return np.asarray(-np.log(np.maximum(of_targets, LEAST_PROBABILITY)).mean(-1))


def describe_classes(
    problem: str, names: tuple[str, ...], rows: Array, targets: Array | ClassSets, summaries: Array
) -> ExampleScores:
    """Returns the scores of examples with one label, or with several.

    Args:
        rows: Rows of the table [N].
        targets: Class numbers [N], or sets of them.
        summaries: What summarize() returned [N].
    """
    rules: dict[str, Rule] = {
        name: ("labels", name)
        for name in metrics.OFFLINE
        if metrics.fits_problem(name, problem) and not metrics.needs_scores(name)
    }
    probabilities: Array | BestProbabilities = summaries["values"]
    if "numbers" in (summaries.dtype.names or ()):
        probabilities = BestProbabilities(numbers=summaries["numbers"], values=summaries["values"])
    else:
        rules |= {"roc_auc": ("roc_auc",), "ece": ("ece",), "brier_score": ("brier_score",)}
    if isinstance(targets, ClassSets):
        labels: Sequence[Any] = [pick(names, targets.get(row)) for row in range(len(targets))]
        predictions: Sequence[Any] = [
            pick(names, np.flatnonzero(np.unpackbits(bits, count=len(names)))) for bits in summaries["decision"]
        ]
    else:
        labels, predictions = pick(names, targets), pick(names, summaries["decision"])
    return ExampleScores(
        rows=rows,
        metrics={"loss": ("loss",), "log_loss": ("loss",), **rules},
        labels=labels,
        predictions=predictions,
        losses=summaries["loss"],
        probabilities=probabilities,
        label_names=names,
    )


def pick(names: Sequence[str], numbers: Array) -> list[str]:
    """Returns the names with these numbers."""
    return [names[number] for number in numbers.tolist()]


def describe_numbers(rows: Array, predicted: Array, expected: Array) -> ExampleScores:
    """Returns the scores of examples whose labels are numbers [N]."""
    numbers = np.stack([predicted, expected], 1).astype(np.float64)
    pair = ("predicted", "expected")
    rules: dict[str, Rule] = {name: (name, *pair) for name in sorted(metrics.FOR_REGRESSION)}
    return ExampleScores(
        rows=rows,
        metrics={"loss": ("loss",), **rules},
        columns=pair,
        numbers=numbers,
        labels=numbers[:, 1].tolist(),
        predictions=numbers[:, 0].tolist(),
        losses=(numbers[:, 0] - numbers[:, 1]) ** 2,
    )
