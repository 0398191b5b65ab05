"""The training loop: train_steps() yields after every optimizer update. It knows no data set and no tracker."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.batches import MicroBatchLimit, share_batch
from hf_finetune.data.features import Array
from hf_finetune.data.shared_rows import RowSharing
from hf_finetune.model.freezing import set_train_mode
from hf_finetune.system.errors import InputError
from hf_finetune.system.processes import Runtime
from hf_finetune.tasks.base import Task
from hf_finetune.training.dead_tensors import GradientWatch
from hf_finetune.training.gradient_cache import UpdatePasses
from hf_finetune.training.optim import check_state, set_learning_rates
from hf_finetune.training.part_norms import PartNorms, PartWatch
from hf_finetune.training.source import BatchSource
from hf_finetune.training.train_state import TrainState, UpdateBatch


@dataclass(frozen=True, kw_only=True)
class Update:
    """The result of one optimizer update.

    Attributes:
        loss: The mean over all targets of the batch, over all processes; nan if it has none.
        num_targets: Or the sum of their weights; 0: the batch had none, and nothing changed.
        padding_share: The share of padding in the tokens of this process's forwards.
        skipped: By fp16's loss scaler.
        norms: By part of the model, if they were measured.
    """

    number: int
    epoch: int
    loss: float
    gradient_norm: float
    learning_rates: dict[str, float]
    num_examples: int
    num_tokens: int
    num_targets: float
    padding_share: float
    seconds: float
    skipped: bool
    norms: PartNorms | None = None


def make_micro_batch_limit(
    config: RunConfig, num_processes: int, row_sharing: RowSharing | None = None
) -> MicroBatchLimit:
    """The most that one forward on one process takes; never so much that a process has no work in a full batch."""
    share = -(-config.train.batch_size // num_processes)
    return MicroBatchLimit(
        num_examples=min(config.train.micro_batch_size or share, share),
        num_tokens=config.train.micro_batch_tokens,
        row_sharing=row_sharing,
    )


def train_steps(
    state: TrainState,
    source: BatchSource,
    task: Task,
    config: RunConfig,
    runtime: Runtime,
    *,
    total_updates: int,
    start_update: int = 0,
    part_watch: PartWatch | None = None,
    is_watched: Callable[[int], bool] = lambda update: True,
) -> Generator[Update]:
    """Trains from `start_update` to `total_updates`, yielding after every update. `source` has the batches.

    part_watch: Measures the norms by part, in the updates that are watched; updates count from 1 there.

    Law 1: losses and gradients are sums over all micro-batches and processes, divided by the number of targets. Law 5: a loss
    or gradient norm that is not finite raises InputError before the weights change; a tensor that has had no gradient raises it
    after the first updates; a batch without a target changes nothing.
    """
    is_checked, num_updates = False, total_updates - start_update
    watch = GradientWatch(state.optimizer, num_updates, compares_scores=task.objective.compares_scores)
    limit = make_micro_batch_limit(config, runtime.num_processes, state.row_sharing)
    for update in range(start_update, total_updates):
        started = time.perf_counter()
        batch = source.get_batch(update)
        measured, indices = batch.measured, batch.indices
        # What a model draws from torch's generator: a pure function of (seed, update, process), so that resume needs no
        # random state. Stateless dropout masks draw nothing.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, update, runtime.process]).generate_state(1)[0]))
        set_train_mode(state.model, state.eval_modules)
        state.optimizer.zero_grad()
        micro_batches = share_batch(
            indices, measured.lengths, limit, runtime.process, runtime.num_processes, measured.sequence_counts
        )
        update_batch = UpdateBatch(
            number=update, pass_number=batch.pass_number, feature_indices=indices, micro_batches=micro_batches
        )
        passes = UpdatePasses(state, measured.features, task, runtime, update_batch)
        padding_share = passes.measure_padding()
        mean_loss, num_targets = accumulate_gradients(passes)
        del passes  # frees the outputs of a batch that was computed as one
        rates = set_learning_rates(state.optimizer, update, total_updates, config.train)
        loss, norm, skipped, norms = math.nan, 0.0, False, None
        if num_targets:
            watch.look()
            seen = part_watch if part_watch is not None and is_watched(update + 1) else None
            loss, norm, skipped = step_optimizer(
                state, runtime, mean_loss, update_batch, config.train.max_grad_norm, seen
            )
            watch.count(update + 1, loss, norm, is_skipped=skipped)
            norms = seen.read() if seen else None
        if num_targets and state.average is not None:
            state.average.add(state.model, update + 1)
        if num_targets and not is_checked:  # not only when it is saved, which may be much later
            check_state(state.optimizer.optimizer, config.train.optimizer)
            is_checked = True
        yield Update(
            number=update + 1,
            epoch=batch.epoch,
            loss=loss,
            gradient_norm=norm,
            learning_rates=rates,
            num_examples=len(indices),
            num_tokens=int(measured.num_tokens[indices].sum()),
            num_targets=num_targets,
            padding_share=padding_share,
            seconds=time.perf_counter() - started,
            skipped=skipped,
            norms=norms,
        )


def step_optimizer(
    state: TrainState,
    runtime: Runtime,
    mean_loss: torch.Tensor,
    update_batch: UpdateBatch,
    max_grad_norm: float,
    part_watch: PartWatch | None,
) -> tuple[float, float, bool]:
    """Clips the gradients and steps the optimizer. Returns the loss, the gradient norm before clipping, and whether fp16's loss
    scaler skips the step. part_watch looks at the gradients before they are clipped. NotFiniteError if the loss or the norm is
    not finite; the weights are unchanged then."""
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    runtime.accelerator.unscale_gradients()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # Here the CPU waits for the device, once an update; with several processes also where they agree
    loss, norm_value = torch.stack([mean_loss, norm.to(mean_loss)]).tolist()
    scaler = runtime.accelerator.scaler
    # A scale below 1 scales nothing up: what is not finite then is so by itself
    overflowed = (
        scaler is not None and math.isfinite(loss) and not math.isfinite(norm_value) and scaler.get_scale() >= 1
    )
    if not math.isfinite(loss) or not (math.isfinite(norm_value) or overflowed):
        raise make_not_finite_error(update_batch.number + 1, loss, norm_value, update_batch.feature_indices)
    if part_watch is not None:
        part_watch.look()
    if max_grad_norm and not overflowed:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    state.optimizer.step()
    return loss, norm_value, overflowed


def accumulate_gradients(passes: UpdatePasses) -> tuple[torch.Tensor, float]:
    """Leaves in .grad the gradient of the mean loss over all targets of the batch. Returns that loss, and the number of targets
    over all processes. Runs nothing if the batch has none.

    The loss goes into backward divided by the number of targets. If only the loss knows that number (a loss of one's own), it is
    divided by the number of features, and a last factor corrects the gradients. Distributed data parallel averages over
    processes, hence the factor num_processes.
    """
    state, runtime = passes.state, passes.runtime
    accelerator, indices, micro_batches = runtime.accelerator, passes.indices, passes.update_batch.micro_batches
    update_loss = passes.task.objective.start_update(passes)
    total = torch.zeros((), dtype=runtime.precise, device=runtime.device)
    num_targets = update_loss.num_targets
    if num_targets == 0:
        return total, 0.0
    divisor, num_counted = num_targets or len(indices), 0.0
    for position, micro_indices in enumerate(micro_batches):
        is_last = position == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(state.prepared):
            loss, count = update_loss.micro_batch(*passes.run(position))
            accelerator.backward(loss * (runtime.num_processes / divisor if len(micro_indices) else 0.0))
        if len(micro_indices):
            total += loss.detach()
            num_counted += count
    total = runtime.sum_tensor(total) if update_loss.total is None else update_loss.total.to(total)
    if num_targets is None:
        num_targets = runtime.sum(num_counted)
        if num_targets:
            scale_gradients(state.optimizer, divisor / num_targets)
    return total / num_targets if num_targets else total, num_targets


def scale_gradients(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiplies all gradients by a factor."""
    for group in optimizer.param_groups:
        gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)


class NotFiniteError(InputError):
    """A loss or gradient norm in training is not finite. `indices` are the features of the batch."""

    def __init__(self, message: str, indices: Sequence[int]) -> None:
        super().__init__(message)
        self.indices = indices


def make_not_finite_error(update: int, loss: float, norm: float, indices: Array) -> NotFiniteError:
    """Law 5's error."""
    what = f"loss ({loss})" if not math.isfinite(loss) else f"gradient norm ({norm})"
    return NotFiniteError(f"update {update}: the {what} is not finite; the weights were not changed", indices.tolist())
