"""One forward of the model in training.

B features of a batch, S sequences, D numbers of one embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_finetune.data.features import Batch, Features, collate
from hf_finetune.forward.dropout import DropoutMasks
from hf_finetune.forward.first_token import FULL_FORWARD, ForwardPlan
from hf_finetune.model import heads

if TYPE_CHECKING:
    from hf_finetune.system.processes import Runtime
    from hf_finetune.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What is trained: the bare model, the prepared one, its optimizer, what stays in eval mode, where dropout's masks come
    from, and what a forward need not compute."""

    model: Any
    prepared: Any
    optimizer: Any
    eval_modules: Sequence[torch.nn.Module]
    pad_token_id: int
    dropout_masks: DropoutMasks
    forward_plan: ForwardPlan = FULL_FORWARD


@dataclass(frozen=True, kw_only=True)
class UpdateBatch:
    """What one update takes: its number, counted from 0, and epoch, counted from 1, its rows, and this process's micro-batches
    of them."""

    number: int
    epoch: int
    feature_indices: "np.ndarray[Any, Any]"
    micro_batches: Sequence["np.ndarray[Any, Any]"]


def run_training_forward(
    trainee: TrainState,
    features: Features,
    task: "Task",
    runtime: "Runtime",
    rows: "np.ndarray[Any, Any]",
    window: UpdateBatch,
    through: Callable[..., Any] | None = None,
) -> tuple[torch.Tensor, Batch]:
    """What the head says of these rows in training, and their batch on the device."""
    batch = collate(features, rows, trainee.pad_token_id).to(runtime.device)
    batch = task.prepare(batch, features, trainee.model, window.epoch)
    with (
        trainee.forward_plan(batch.activations),
        trainee.dropout_masks(window.number, batch.sequence_indices, runtime.device),
    ):
        return heads.run_model(trainee.model, batch.inputs, through), batch


def embed_sequences(
    trainee: TrainState,
    features: Features,
    task: "Task",
    runtime: "Runtime",
    rows: "np.ndarray[Any, Any]",
    window: UpdateBatch,
) -> tuple[torch.Tensor, list[int]]:
    """What represents the sequences of these rows, [S, D], and their places among all of the window's."""
    place = {
        int(sequence): number for number, sequence in enumerate(features.get_sequence_indices(window.feature_indices))
    }
    through = trainee.prepared if torch.is_grad_enabled() else None  # the distributed wrapper expects a backward
    outputs, batch = run_training_forward(trainee, features, task, runtime, rows, window, through=through)
    return task.represent(outputs, batch).float(), [place[int(sequence)] for sequence in batch.sequence_indices]
