"""The model and its optimizer in training, and one forward pass in training.

B features of a batch, S sequences.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hf_finetune.data.features import IGNORED, Array, Batch, Features, Padding, attach_activations, collate
from hf_finetune.data.shared_rows import RowSharing, share_rows
from hf_finetune.forward.cached import get_own_forward, replace_forwards
from hf_finetune.forward.dropout import DropoutMasks
from hf_finetune.forward.plan import FULL_FORWARD, ForwardPlan
from hf_finetune.model.mapped_weights import Range, give_back
from hf_finetune.tasks.base import Objective, Task
from hf_finetune.tasks.objectives import LOSSES, reads_some_tokens
from hf_finetune.training.averaging import (
    MovingAverage,
    Weights,
    averages_itself,
    compute_own_averages,
    copy_into,
    copy_trained_weights,
)


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The model and its optimizer in training.

    Args:
        model: The bare model.
        prepared: The model as Accelerate prepared it (its distributed wrapper).
        optimizer: The prepared optimizer.
        eval_modules: Modules that stay in eval mode.
        padding: How the sequences of a batch are filled up.
        dropout_masks: Where dropout masks come from.
        forward_plan: What a forward need not compute.
        average: The moving average of the weights, with train.ema_decay.
        autocast: Context of the run's precision.
        idle_pages: Memory of frozen weights that training does not read, and that a file has.
        row_sharing: How examples share rows; None if each has a row of its own.
    """

    model: Any
    prepared: Any
    optimizer: Any
    eval_modules: Sequence[torch.nn.Module]
    padding: Padding
    dropout_masks: DropoutMasks
    forward_plan: ForwardPlan = FULL_FORWARD
    average: MovingAverage | None = None
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    idle_pages: Sequence[Range] = ()
    row_sharing: RowSharing | None = None

    @contextlib.contextmanager
    def outputs_in_own_precision(self) -> Iterator[None]:
        """Makes the model return its outputs in the precision that it computes in, until the block ends.

        Accelerate has it convert them to fp32. For logits over a vocabulary, that copy and its gradient are twice their size.
        """

        own_forward = get_own_forward(self.model)

        def forward(*arguments: Any, **keywords: Any) -> Any:
            with self.autocast():
                return own_forward(*arguments, **keywords)

        with replace_forwards({self.model: forward}):
            yield

    @property
    def has_other_evaluated_weights(self) -> bool:
        """True if the weights that are evaluated are averages of those that train."""
        return self.average is not None or averages_itself(self.optimizer.optimizer)

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[Weights | None]:
        """Puts the weights that are evaluated into the model. When the block ends, those that train are back, bit for bit.

        Gives the weights that train, or None if they are the evaluated ones.
        """
        if not self.has_other_evaluated_weights:
            yield None
            return
        training_weights = copy_trained_weights(self.model)
        try:
            if self.average is not None:
                copy_into(self.model, self.average.weights)
            else:
                copy_into(self.model, compute_own_averages(self.optimizer.optimizer, self.model))
            yield training_weights
        finally:
            copy_into(self.model, training_weights)

    def give_memory_back(self) -> None:
        """Gives the memory of frozen weights back to the operating system, which someone may have read."""
        give_back(self.idle_pages)

    def restore_training_weights(self, saved: Mapping[str, torch.Tensor] | None) -> None:
        """Continues from a checkpoint whose evaluated weights are in the model. saved: the weights that train, or None if they
        are the same."""
        if self.average is not None:
            self.average.weights = copy_trained_weights(self.model)
        copy_into(self.model, saved or {})


@dataclass(frozen=True, kw_only=True)
class UpdateBatch:
    """The batch of one update.

    Args:
        number: Of the update, counted from 0.
        pass_number: For inputs that are drawn again whenever the data are read (training.source.SourceBatch).
        feature_indices: [B] of all features, over all processes.
        micro_batches: The indices of each micro-batch of this process; as many micro-batches on each process, some perhaps
            empty.
    """

    number: int
    pass_number: int
    feature_indices: Array
    micro_batches: Sequence[Array]


def make_training_batch(
    state: TrainState, features: Features, task: Task, indices: Array, update_batch: UpdateBatch
) -> Batch:
    """The batch of these features as the model takes it, on the CPU and without cached activations."""
    batch = collate(features, indices, state.padding)
    batch = task.encoding.prepare(batch, features, state.model, update_batch.pass_number)
    if state.row_sharing is not None:
        batch = share_rows(batch, state.row_sharing.find_row_length(features.get_lengths(update_batch.feature_indices)))
    return add_reading(batch, task.objective, state.forward_plan)


def add_reading(batch: Batch, objective: Objective, plan: ForwardPlan, *, reads_all: bool = False) -> Batch:
    """The batch with the tokens that are computed, if the plan can cut to them: those that the head reads, or those that the
    objective reads. reads_all: Someone else reads the outputs of all tokens."""
    if plan.token_cuts is None:
        return batch
    if plan.token_cuts.choose is not None:
        return replace(batch, reading=plan.token_cuts.choose(batch.inputs["input_ids"]))
    if reads_all or not reads_some_tokens(objective, *LOSSES):
        return batch
    return replace(batch, reading=objective.find_reading(batch))


def run_training_forward(
    state: TrainState,
    features: Features,
    device: torch.device,
    batch: Batch,
    update_batch: UpdateBatch,
    through: Callable[..., Any] | None = None,
) -> tuple[torch.Tensor, Batch]:
    """The model's outputs for a batch of these features in training, and the batch on the device. `through` is called in the
    model's place (its distributed wrapper)."""
    batch = attach_activations(batch, features).to(device)
    reading = batch.reading and batch.reading.fill_up(state.padding.token_step, IGNORED)
    masks = state.dropout_masks.active(update_batch.number, batch.sequence_indices, device, batch.rows, reading)
    # The losses of tokens compute in fp32 themselves, some logits at a time
    has_token_loss = reading is not None and reading.targets is not None
    precision = state.outputs_in_own_precision() if has_token_loss else contextlib.nullcontext()
    with precision, masks:
        outputs = state.forward_plan.run_model(state.model, batch.inputs, batch.activations, reading, through)
    return outputs, batch
