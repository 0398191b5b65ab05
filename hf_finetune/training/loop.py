"""The loop: train_steps() yields after every update, evaluate() changes nothing. No task, data set or tracker in here.

B features of a batch, S sequences, D numbers that represent one.
"""

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.batches import MicroBatchLimit, plan_epoch, share_batch
from hf_finetune.data.features import Features
from hf_finetune.model.freezing import set_train_mode
from hf_finetune.system.errors import InputError
from hf_finetune.training.gradient_cache import EmbeddingGradients, compute_embedding_gradients
from hf_finetune.training.optim import set_learning_rates
from hf_finetune.training.schedule import make_schedule
from hf_finetune.training.train_state import TrainState, UpdateBatch, embed_sequences, run_training_forward

if TYPE_CHECKING:
    from hf_finetune.system.processes import Runtime
    from hf_finetune.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimizer update did. `loss` is the mean over all targets of the batch, over all processes."""

    number: int
    epoch: int
    loss: float
    gradient_norm: float
    learning_rates: dict[str, float]
    num_examples: int
    num_tokens: int
    seconds: float
    skipped: bool  # by fp16's loss scaler


def make_micro_batch_limit(config: RunConfig, num_processes: int) -> MicroBatchLimit:
    """What a forward on one process takes; never so much that a process is left without work in a full batch."""
    share = -(-config.train.batch_size // num_processes)
    return MicroBatchLimit(
        num_examples=min(config.train.micro_batch_size or share, share), num_tokens=config.train.micro_batch_tokens
    )


def train_steps(
    trainee: TrainState,
    features: Features,
    task: "Task",
    config: RunConfig,
    runtime: "Runtime",
    *,
    start_update: int = 0,
) -> Generator[Update]:
    """Trains from `start_update` to the end, yielding after every update.

    Law 1: gradients are summed over all micro-batches and processes and divided once by the number of targets. Law 5: a
    loss or gradient norm that is not finite raises InputError before the weights change.
    """
    schedule = make_schedule(len(features), config)
    accelerator, lengths, num_tokens = runtime.accelerator, features.lengths, features.num_tokens
    counts = features.count_sequences(np.arange(len(features)))
    limit = make_micro_batch_limit(config, runtime.num_processes)
    planned_epoch, batches = -1, []
    for update in range(start_update, schedule.total_updates):
        started = time.perf_counter()
        epoch, index = divmod(update, schedule.updates_per_epoch)
        if epoch != planned_epoch:
            planned_epoch, batches = epoch, plan_epoch(lengths, config.train.batch_size, config.seed, epoch)
        rows = batches[index]
        # What a model draws from torch's generator: a pure function of (seed, update, process), so that resume needs no
        # random state. Stateless dropout masks draw nothing.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, update, runtime.process]).generate_state(1)[0]))
        set_train_mode(trainee.model, trainee.eval_modules)
        trainee.optimizer.zero_grad()
        micro_batches = share_batch(rows, lengths, limit, runtime.process, runtime.num_processes, counts)
        window = UpdateBatch(number=update, epoch=epoch + 1, feature_indices=rows, micro_batches=micro_batches)
        loss = accumulate_gradients(trainee, features, task, runtime, window)
        rates = set_learning_rates(trainee.optimizer, update, schedule.total_updates, config.train)
        parameters = [parameter for group in trainee.optimizer.param_groups for parameter in group["params"]]
        accelerator.unscale_gradients()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm_value = float(norm)
        scaler = accelerator.scaler
        # A scale below 1 scales nothing up: what is not finite then is so by itself
        overflowed = (
            scaler is not None and math.isfinite(loss) and not math.isfinite(norm_value) and scaler.get_scale() >= 1
        )
        if not math.isfinite(loss) or not (math.isfinite(norm_value) or overflowed):
            raise make_not_finite_error(update + 1, loss, norm_value, rows)
        if config.train.max_grad_norm and not overflowed:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.train.max_grad_norm, norm)
        trainee.optimizer.step()
        yield Update(
            number=update + 1,
            epoch=epoch + 1,
            loss=loss,
            gradient_norm=norm_value,
            learning_rates=rates,
            num_examples=len(rows),
            num_tokens=int(num_tokens[rows].sum()),
            seconds=time.perf_counter() - started,
            skipped=overflowed,
        )


def accumulate_gradients(
    trainee: TrainState, features: Features, task: "Task", runtime: "Runtime", window: UpdateBatch
) -> float:
    """Leaves in .grad the gradient of the mean loss over all targets of the window, and returns that loss.

    Backward is through sum / features; the targets' number is known only after the forwards, and a last factor
    features / targets mends it. Distributed data parallel averages over processes, hence the factor num_processes.
    """
    accelerator, rows = runtime.accelerator, window.feature_indices
    precise = torch.float32 if runtime.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    sums = torch.zeros(2, dtype=precise, device=runtime.device)  # of losses, of targets
    pull: EmbeddingGradients | None = None
    if task.couples_rows:
        pull = compute_embedding_gradients(trainee, features, task, runtime, window)
        sums += torch.tensor([pull.loss, pull.count], dtype=precise, device=runtime.device) / runtime.num_processes
    for position, micro_rows in enumerate(window.micro_batches):
        is_last = position == len(window.micro_batches) - 1
        # A process without rows of its own still takes part in the gradients' exchange, with weight 0
        taken = micro_rows if len(micro_rows) else rows[:1]
        with contextlib.nullcontext() if is_last else accelerator.no_sync(trainee.prepared):
            if pull is None:
                outputs, batch = run_training_forward(
                    trainee, features, task, runtime, taken, window, through=trainee.prepared
                )
                loss, count = task.loss(outputs, batch)
            else:
                vectors, places = pull.single or embed_sequences(trainee, features, task, runtime, taken, window)
                loss, count = (vectors * pull.gradient[places]).sum(), 0.0
            weight = runtime.num_processes / len(rows) if len(micro_rows) else 0.0
            accelerator.backward(loss * weight)
        if len(micro_rows) and pull is None:
            sums += torch.stack([loss.detach().to(precise), torch.tensor(count, dtype=precise, device=runtime.device)])
    if runtime.num_processes > 1:
        torch.distributed.all_reduce(sums)
    total, count = sums.tolist()
    factor = len(rows) / count if count else 0.0  # a window without a target teaches nothing
    if factor != 1.0:
        for group in trainee.optimizer.param_groups:
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, factor)
    return float(total / count) if count else 0.0


class NotFiniteError(InputError):
    """Training met a loss or gradient norm that is not finite. `rows` are those of the batch."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = rows


def make_not_finite_error(update: int, loss: float, norm: float, rows: "np.ndarray[Any, Any]") -> NotFiniteError:
    """Law 5's error."""
    what = f"loss ({loss})" if not math.isfinite(loss) else f"gradient norm ({norm})"
    return NotFiniteError(f"update {update}: the {what} is not finite; the weights were not changed", rows.tolist())
