"""The metric that is expected at each depth of freezing: of the frozen features alone, and if the blocks above are trained.

All of it is of a sample of training examples, each predicted by a fit without it, which has a closed form (training/ridge.py).

N examples of the sample, C outputs, D depths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import nn

from hf_finetune.choosing.advise_features import DepthFeatures, choose_directions, compute_features, compute_head_inputs
from hf_finetune.data.features import Array, Features
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.tasks.objectives import LinearTargets
from hf_finetune.training.ridge import Targets, choose_fit, choose_outputs, make_kernel_regressions, make_regressions

# The sample: as many examples as have this many tokens, within the bounds
NUM_TOKENS = 24_576
LEAST_EXAMPLES, MOST_EXAMPLES = 256, 1024

NUM_ERRORS = 2  # standard errors by which a depth may lose more than expected

ROUNDING = 1e-10  # share of the squares of features that is left after subtracting a mean they are all equal to

PENALTIES = 10.0 ** np.arange(-3, 2, 0.5)


@dataclass(frozen=True, kw_only=True)
class ExpectedMetric:
    """What is expected if the lowest `depth` blocks are frozen.

    Args:
        frozen: The metric of a linear layer on the hidden states at this depth.
        trained: The metric if the blocks above are trained; of the sample, so lower than that of a run on all data.
        most_lost: The most that `trained` loses against any smaller depth, NUM_ERRORS standard errors included; nan if the metric
            does not follow the loss.
    """

    depth: int
    frozen: float
    trained: float
    most_lost: float


def choose_metric(run: TrainingRun) -> str:
    """Returns the metric that depths are compared by: that of the run, or that of the task in place of the loss or of a metric of
    one's own."""
    has_own = run.metric == "loss" or run.metric in run.parts.metrics
    return run.task.scoring.default_metric if has_own else run.metric


def is_greater_better(run: TrainingRun) -> bool:
    """Returns True if a larger value of the metric that depths are compared by is better. So it is of all default metrics."""
    return run.greater_is_better if choose_metric(run) == run.metric else True


def choose_sample(features: Features, seed: int) -> Array:
    """Returns the indices of a random sample of features, in ascending order. A row that has several features gives one of them:
    the others would tell its label."""
    rows = np.arange(len(features)) if features.example_indices is None else np.asarray(features.example_indices)
    candidates = np.unique(rows, return_index=True)[1]
    drawn = np.random.default_rng([seed, len(candidates)]).permutation(candidates)[:MOST_EXAMPLES]
    fitting = int((features.num_tokens[drawn].cumsum() <= NUM_TOKENS).sum())
    return np.sort(drawn[: max(fitting, LEAST_EXAMPLES)])


def center(features: Array) -> Array:
    """Returns features [N, ...] without their mean as [N, F], with products of 1 on average for an example with itself; zeros if
    they are the same for all examples."""
    rows = features.reshape(len(features), -1)
    rounding = ROUNDING * float(np.square(rows).sum())
    rows = rows - rows.mean(0)
    squares = float(np.square(rows).sum())
    return np.zeros_like(rows) if squares <= rounding else rows / math.sqrt(squares / len(rows))


def make_kernel(features: Array) -> Array:
    """Returns the products of centered features [N, N]."""
    rows = center(features)
    return np.asarray(rows @ rows.T, np.float64)


def make_block_kernel(gradients: Array) -> Array:
    """Returns the kernel [N, N] of the weights of a block from the sketches of its linear layers [N, L, K].

    Each layer counts the same, as with AdamW, whose step has about the same size in each, however large its gradients.
    """
    layers = range(gradients.shape[1])
    return np.asarray(sum(make_kernel(gradients[:, number]) for number in layers) / len(layers))


def expect_metrics(run: TrainingRun, layer: nn.Linear, targets: LinearTargets) -> list[ExpectedMetric]:
    """Returns the expected metric at each depth, from 0 to the number of blocks."""
    features = run.features["train"]
    indices = choose_sample(features, run.config.seed)
    labels = np.asarray(features.get_labels(indices))
    wanted = Targets(
        problem=targets.problem, values=labels, weights=np.ones(len(labels)), num_outputs=layer.out_features
    )
    some = slice(None, None, max(1, len(indices) // LEAST_EXAMPLES))  # enough for the directions of the gradients
    inputs = compute_head_inputs(run, layer, features, indices[some])
    directions = choose_directions(inputs, wanted.make_columns()[some], run.config.seed)
    return compare_depths(run, indices, compute_features(run, layer, features, indices, directions), wanted)


def compare_depths(run: TrainingRun, indices: Array, sample: DepthFeatures, targets: Targets) -> list[ExpectedMetric]:
    """Returns the expected metrics, from the features of the sample. A depth takes the kernel of the next one, and adds the
    gradients by the weights of its block and the hidden states below it."""
    frozen, outputs = [], []
    kernel = make_kernel(sample.head_inputs)
    for depth in reversed(range(sample.hidden_states.shape[1])):
        states = sample.hidden_states[:, depth]
        kernel = kernel + make_kernel(states)
        if depth < len(sample.gradients):
            kernel = kernel + make_block_kernel(sample.gradients[depth])
        frozen.append(compute_metric(run, indices, predict_each(states, targets)))
        outputs.append(choose_fit(make_kernel_regressions(kernel), targets, penalties=PENALTIES).outputs)
    losses = np.stack([targets.compute_losses(each) for each in outputs[::-1]])
    metrics = [compute_metric(run, indices, each) for each in outputs[::-1]]
    trained, most_lost = compare_losses(losses, metrics, greater_is_better=is_greater_better(run))
    rows = zip(frozen[::-1], trained, most_lost, strict=True)
    return [
        ExpectedMetric(depth=depth, frozen=metric, trained=value, most_lost=lost)
        for depth, (metric, value, lost) in enumerate(rows)
    ]


def predict_each(states: Array, targets: Targets) -> Array:
    """Returns the outputs of a linear layer on hidden states [N, H] for each example, fitted without it [N, C].

    If the states are the same for all examples, they are those of the targets alone. The targets without the example would be
    further from its own: each example would get another label.
    """
    rows = center(states).astype(np.float64)
    if not rows.any():
        constant, _, _ = choose_outputs(targets, targets.make_columns().mean(0))
        return np.tile(constant, (len(rows), 1))
    regressions = make_regressions(rows, targets.weights, has_bias=True)
    return choose_fit(regressions, targets, penalties=PENALTIES).outputs


def compare_losses(
    losses: Array, metrics: Sequence[float], *, greater_is_better: bool
) -> tuple[list[float], list[float]]:
    """Returns what is expected of the metric at each depth, and the most that it loses against a smaller depth, by the losses of
    the examples [D, N].

    Depths differ in a few of a thousand predictions, but in the loss of each example. So the loss orders the depths, and a
    straight line of the metrics over the mean losses says what it is worth. If the metric is not better with a smaller loss,
    nobody knows: the most that a depth loses is nan.
    """
    means = losses.mean(1)
    deviations, values = means - means.mean(), np.asarray(metrics)
    spread = float(deviations @ deviations)
    slope = float(deviations @ (values - values.mean())) / spread if spread > 0 else 0.0
    slope = min(slope, 0.0) if greater_is_better else max(slope, 0.0)
    most_lost = []
    for depth, own in enumerate(losses):
        differences = own - losses[:depth]
        worst = differences.mean(1) + NUM_ERRORS * differences.std(1) / math.sqrt(len(own))
        most = float(worst.max(initial=0.0))
        most_lost.append(abs(slope) * most if slope or not most else math.nan)
    return (values.mean() + slope * deviations).tolist(), most_lost


def compute_metric(run: TrainingRun, indices: Array, outputs: Array) -> float:
    """Returns the metric of outputs [N, C] for the training features at the indices."""
    metric, logits = choose_metric(run), cast(Any, outputs.astype(np.float32))
    scores = run.task.scoring.compute_metrics(metric, logits, run.features["train"], run.splits.train, indices)
    return float(scores[metric])
