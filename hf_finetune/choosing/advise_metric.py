"""The metric that is expected at each depth of freezing: of the frozen features alone, and if the blocks above are trained.

N training examples of the sample, M validation examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from hf_finetune.choosing.advise_features import DepthFeatures, choose_directions, compute_gradients, compute_states
from hf_finetune.data.features import Array
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.tasks.objectives import LinearTargets
from hf_finetune.training.ridge import LinearFit, Targets, choose_fit, make_kernel_regressions

NUM_TRAINING = 768  # examples of the sample
NUM_VALIDATION = 256


@dataclass(frozen=True, kw_only=True)
class ExpectedMetric:
    """What is expected if the lowest `depth` blocks are frozen.

    Args:
        frozen: The metric of a linear layer on the hidden states at this depth.
        trained: The metric if the blocks above are trained; of the sample, so lower than that of a run on all data.
    """

    depth: int
    frozen: float
    trained: float


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Products of the features of training examples with each other [N, N], and of validation with training examples [M, N]."""

    train: Array
    validation: Array

    def __add__(self, other: "Kernels") -> "Kernels":
        return Kernels(train=self.train + other.train, validation=self.validation + other.validation)


def choose_metric(run: TrainingRun) -> str:
    """Returns the metric that depths are compared by: that of the run, or that of the task in place of the loss or of a metric of
    one's own."""
    has_own = run.metric == "loss" or run.metric in run.parts.metrics
    return run.task.scoring.default_metric if has_own else run.metric


def choose_sample(size: int, count: int, seed: int) -> Array:
    """Returns the indices of a random sample of features, in ascending order."""
    if size <= count:
        return np.arange(size)
    return np.sort(np.random.default_rng([seed, size]).choice(size, count, replace=False))


def make_kernels(train: Array, validation: Array) -> Kernels:
    """Returns the products of features [N, ...] and [M, ...] without the mean of the training examples, scaled to 1 on average
    for a training example with itself."""
    rows = np.asarray(train, np.float64).reshape(len(train), -1)
    others = np.asarray(validation, np.float64).reshape(len(validation), -1)
    mean = rows.mean(0)
    rows, others = rows - mean, others - mean
    size = float(np.square(rows).sum()) / len(rows) or 1.0
    return Kernels(train=rows @ rows.T / size, validation=others @ rows.T / size)


def expect_metrics(run: TrainingRun, layer: nn.Linear, targets: LinearTargets) -> list[ExpectedMetric]:
    """Returns the expected metric at each depth, from 0 to the number of blocks."""
    sample = {
        split: choose_sample(len(run.features[split]), count, run.config.seed)
        for split, count in (("train", NUM_TRAINING), ("validation", NUM_VALIDATION))
    }
    states = {split: compute_states(run, layer, run.features[split], indices) for split, indices in sample.items()}
    labels: Any = run.features["train"].get_labels(sample["train"])
    wanted = Targets(
        problem=targets.problem, values=labels, weights=np.ones(len(labels)), num_outputs=layer.out_features
    )
    directions = choose_directions(states["train"].head_inputs, wanted.make_columns(), run.config.seed)
    for split, indices in sample.items():
        gradients = compute_gradients(run, layer, run.features[split], indices, directions)
        states[split] = replace(states[split], gradients=gradients)
    return compare_depths(run, sample, states["train"], states["validation"], wanted)


def compare_depths(
    run: TrainingRun, sample: dict[str, Array], train: DepthFeatures, validation: DepthFeatures, targets: Targets
) -> list[ExpectedMetric]:
    """Returns the expected metrics, from the features of the sample. A depth takes the kernel of the next one, and adds the
    gradients by the weights of its block and the hidden states below it."""

    def score(kernels: Kernels) -> float:
        fit = choose_fit(make_kernel_regressions(kernels.train), targets)
        return compute_metric(run, sample, (fit.outputs, predict(fit, kernels.validation)))

    assert train.gradients is not None
    assert validation.gradients is not None
    found = []
    trained = make_kernels(train.head_inputs, validation.head_inputs)
    for depth in reversed(range(train.hidden_states.shape[1])):
        frozen = make_kernels(train.hidden_states[:, depth], validation.hidden_states[:, depth])
        if depth < train.gradients.shape[1]:
            trained += make_kernels(train.gradients[:, depth], validation.gradients[:, depth])
        trained += frozen
        found.append(ExpectedMetric(depth=depth, frozen=score(frozen), trained=score(trained)))
    return found[::-1]


def predict(fit: LinearFit, products: Array) -> Array:
    """Returns the outputs of other examples [M, C] from their products with those of the fit [M, N]."""
    assert fit.bias is not None
    return products @ fit.weight.T + fit.bias


def compute_metric(run: TrainingRun, sample: dict[str, Array], outputs: Sequence[Array]) -> float:
    """Returns the metric on training examples, each predicted without itself, and on validation examples; their mean by
    the number of examples. outputs: Of both, [N, C] and [M, C]."""
    values, counts, metric = [], [], choose_metric(run)
    tables = run.splits.tables()
    for (split, indices), part in zip(sample.items(), outputs, strict=True):
        logits: Any = part.astype(np.float32)
        scores = run.task.scoring.compute_metrics(metric, logits, run.features[split], tables[split], indices)
        values.append(scores[metric])
        counts.append(len(indices))
    return float(np.average(values, weights=counts))
