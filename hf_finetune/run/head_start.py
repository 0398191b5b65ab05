"""train.head_start: the last linear layer of a new head is fitted in closed form before the first update.

Linear probing before fine-tuning: a random head distorts the features in the first updates (Kumar et al. 2022, arXiv:2202.10054).
The inputs of the layer are what the run's model gives it in the first update, dropout included, from cached activations if there
are any. Dropout matters: directions in which the inputs hardly differ would get large weights, and its noise is large there. A
layer that was fitted to TREC in eval mode had a cross entropy of 0.8 in eval mode and of 15 with dropout, where guessing has 1.8;
one that was fitted with dropout has 1.2 and 1.3.

The weights are at most MOST_GROWTH times as large as the random ones. A fit needs large weights if the inputs are small, such as
the outputs of a pooler that was never trained: 20 to 70 times those of a random head for MiniLM. Each update of the layers below
then changes the logits as many times more as the learning rates are made for, and training is slower than from a random head.

The fit is a function of the data, the weights and the seed, so that a run that is begun again has the same one; one that resumes
has the weights of its checkpoint.

N targets, H hidden, C outputs.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from hf_finetune.config.sections import RunConfig, require
from hf_finetune.data.features import IGNORED, Array, Batch, Features
from hf_finetune.forward.linear_head import find_linear_head, returning_inputs
from hf_finetune.model.freezing import set_train_mode
from hf_finetune.run.training_run import TrainingRun, make_runner
from hf_finetune.tasks.objectives import LinearTargets, Objective
from hf_finetune.training.evaluation import BatchResult
from hf_finetune.training.ridge import LinearFit, Targets, fit_linear
from hf_finetune.training.train_state import add_reading

MOST_FEATURES = (
    2048  # training features that the layer is fitted to: more cost time, and change little for 1,000 inputs
)
MOST_TARGETS = 16_384  # of their tokens, for a layer that has an output for each token
MOST_OUTPUTS = (
    2_000_000  # of the targets together: of 977 labels or more, fewer targets; one core takes 9 s for that many
)
MOST_GROWTH = 5.0  # of the norm of the weights. Of 2.5, 5 and 10, sst2 learns slowest with 10, and trec with 2.5

KEY = "train.head_start"


def check_head_start(config: RunConfig, objective: Objective, model: nn.Module) -> None:
    """Raises InputError if the head is to be fitted, and that is not possible. The model must know what is frozen."""
    if config.train.head_start == "none":
        return
    value = config.train.head_start
    found = find_linear_head(model)
    require(objective.linear_targets is not None, KEY, value, describe_misfit(config))
    require(
        found is not None, KEY, value, "this model's head has no linear layer whose outputs are its logits; set none"
    )
    assert found is not None
    name, layer = found
    require(layer.weight.requires_grad, KEY, value, f"freeze.patterns freezes the layer {name}; set none")


def describe_misfit(config: RunConfig) -> str:
    """Returns why no linear layer can be fitted to the targets of a task."""
    if config.train.loss is not None:
        return f"is not for a loss of your own (train.loss {config.train.loss}); set none"
    return f"is for the tasks classify and tag; {config.task.kind} has no linear layer that predicts labels; set none"


def start_head(run: TrainingRun) -> None:
    """Fits the last linear layer of the head if train.head_start says so, and prints how well. On all processes.

    A head that is not new stays as it is: it was trained.
    """
    found = None if run.config.train.head_start == "none" else find_linear_head(run.train_state.model)
    targets = run.task.objective.linear_targets
    if found is None or targets is None:
        return
    name, layer = found
    if f"{name}.weight" not in run.backbone.new_parameters:
        run.runtime.say("head        keeps its weights, which were trained before (train.head_start)\n")
        return
    most = count_most_targets(layer)
    indices = choose_features(run.features["train"], targets, most=most, seed=run.config.seed)
    inputs = compute_inputs(run, layer, indices)
    fit: LinearFit = run.runtime.on_main(lambda: fit_layer(layer, inputs, run.features["train"], indices, targets))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fit.weight))
        if fit.bias is not None:
            layer.bias.copy_(torch.from_numpy(fit.bias))
    run.train_state.restore_training_weights(None)  # a moving average starts at the fitted weights
    run.runtime.say(
        f"head        fitted to {len(indices):,} training examples in closed form; {describe_loss(targets)} of an example that "
        f"is left out: {fit.loss:.4f}\n"
    )


def describe_loss(targets: LinearTargets) -> str:
    """Returns the name of the loss."""
    return "squared error" if targets.problem == "regression" else "cross entropy"


def count_most_targets(layer: nn.Linear) -> int:
    """Returns the number of targets that a layer is fitted to if there are that many."""
    return max(1, min(MOST_TARGETS, MOST_OUTPUTS // layer.out_features))


def choose_features(features: Features, targets: LinearTargets, *, most: int, seed: int) -> Array:
    """Returns the indices of the features that are used, in ascending order: drawn ones, with `most` targets or a few more."""
    size = len(features)
    drawn = np.random.default_rng([seed, size]).choice(size, min(size, MOST_FEATURES), replace=False)
    counts: Array = np.ones(len(drawn), dtype=np.int64)
    if targets.problem == "single_label":
        counts = (features.get_targets(drawn) != IGNORED).reshape(len(drawn), -1).sum(-1)
    return np.sort(drawn[: np.searchsorted(np.cumsum(counts), most) + 1])


def compute_inputs(run: TrainingRun, layer: nn.Linear, indices: Array) -> Array:
    """Returns the inputs of the layer for the targets of training features, as in the first update, [N, H]. On all processes."""
    state, objective = run.train_state, run.task.objective

    def run_batch(batch: Batch) -> BatchResult:
        batch = add_reading(batch, objective, state.forward_plan, reads_all=True)
        set_train_mode(state.model, state.eval_modules)
        masks = state.dropout_masks.active(0, batch.sequence_indices, run.runtime.device, reading=batch.reading)
        with returning_inputs(layer), masks:
            inputs = state.forward_plan.run_model(state.model, batch.inputs, batch.activations, batch.reading).float()
        if inputs.ndim == 2:
            return 0.0, 0.0, list(inputs.cpu().numpy())
        assert batch.labels is not None
        labelled = batch.labels != IGNORED
        return 0.0, 0.0, [rows[mask].cpu().numpy() for rows, mask in zip(inputs, labelled, strict=True)]

    runner = make_runner(run, "train", batch_size=run.config.evaluation.batch_size)
    _, entries = runner.run(run_batch, indices)
    rows: Any = entries
    return np.stack(rows) if rows[0].ndim == 1 else np.concatenate(list(rows))


def fit_layer(layer: nn.Linear, inputs: Array, features: Features, indices: Array, targets: LinearTargets) -> LinearFit:
    """Returns the fit of a layer to the targets of features. inputs: What compute_inputs() returned for the indices."""
    values: Any = features.get_labels(indices)
    weights = np.ones(len(indices)) if features.weights is None else np.asarray(features.weights[indices], np.float64)
    if targets.problem == "single_label":
        labelled = values != IGNORED  # [N], or [N, T] for tokens
        counts = labelled.reshape(len(indices), -1).sum(-1)
        values, weights = values[labelled], np.repeat(weights, counts)
        if targets.class_weights:
            weights = weights * np.asarray(targets.class_weights)[values]
    kept = slice(count_most_targets(layer))
    made = Targets(problem=targets.problem, values=values[kept], weights=weights[kept], num_outputs=layer.out_features)
    norm = float(layer.weight.detach().float().norm(dim=1).mean())
    return fit_linear(inputs[kept], made, has_bias=layer.bias is not None, most_norm=MOST_GROWTH * norm or None)
