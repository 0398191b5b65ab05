"""The loop: train_steps() yields after every update, evaluate() changes nothing. No task, data set or tracker in here.

B examples, C outputs of the head.
"""

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_finetune.config import RunConfig
from hf_finetune.data import Features, MicroBatchLimit, collate, evaluation_batches, plan_epoch, share_batch
from hf_finetune.dropout import Masks
from hf_finetune.errors import InputError
from hf_finetune.first_token import NO_SHORTCUTS, Shortcuts
from hf_finetune.freezing import train_mode
from hf_finetune.optim import set_learning_rates

if TYPE_CHECKING:
    from hf_finetune.runtime import Runtime
    from hf_finetune.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """What is trained: the bare model, the prepared one, its optimizer, what stays in eval mode, where dropout's masks come
    from, and what a forward need not compute."""

    model: Any
    prepared: Any
    optimizer: Any
    constant: Sequence[torch.nn.Module]
    pad_token_id: int
    masks: Masks
    shortcuts: Shortcuts = NO_SHORTCUTS


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a run is. The position in it is a pure function of the number of updates done."""

    updates_per_epoch: int
    total_updates: int

    def epoch(self, update: int) -> int:
        """The epoch, counted from 1, that the update counted from 1 belongs to."""
        return max(1, -(-update // self.updates_per_epoch))

    def is_due(self, every: int | str, update: int) -> bool:
        """Whether what is done `every` epoch or so many updates is due after `update`; after the last it is."""
        period = self.updates_per_epoch if every == "epoch" else int(every)
        return update % period == 0 or update == self.total_updates


def schedule_of(num_examples: int, config: RunConfig) -> Schedule:
    """The schedule of a config on so many training examples."""
    updates_per_epoch = math.ceil(num_examples / config.train.batch_size)
    total = updates_per_epoch * config.train.epochs
    return Schedule(updates_per_epoch=updates_per_epoch, total_updates=min(total, config.train.max_updates or total))


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


def micro_batch_limit(config: RunConfig, num_processes: int) -> MicroBatchLimit:
    """What a forward on one process takes; never so much that a process is left without work in a full batch."""
    share = -(-config.train.batch_size // num_processes)
    return MicroBatchLimit(
        rows=min(config.train.micro_batch_size or share, share), tokens=config.train.micro_batch_tokens
    )


def train_steps(
    trainee: Trainee, features: Features, task: "Task", config: RunConfig, runtime: "Runtime", *, start_update: int = 0
) -> Generator[Update]:
    """Trains from `start_update` to the end, yielding after every update.

    Law 1: gradients are summed over all micro-batches and processes and divided once by the number of targets. Law 5: a
    loss or gradient norm that is not finite raises InputError before the weights change.
    """
    schedule = schedule_of(len(features), config)
    accelerator, lengths = runtime.accelerator, features.lengths
    limit = micro_batch_limit(config, runtime.num_processes)
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
        train_mode(trainee.model, trainee.constant)
        trainee.optimizer.zero_grad()
        micro_batches = share_batch(rows, lengths, limit, runtime.process, runtime.num_processes)
        loss = accumulate(trainee, features, task, runtime, micro_batches, rows, update)
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
            raise not_finite(update + 1, loss, norm_value, rows)
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
            num_tokens=int(lengths[rows].sum()),
            seconds=time.perf_counter() - started,
            skipped=overflowed,
        )


def accumulate(
    trainee: Trainee,
    features: Features,
    task: "Task",
    runtime: "Runtime",
    micro_batches: Sequence["np.ndarray[Any, Any]"],
    rows: "np.ndarray[Any, Any]",
    update: int = 0,
) -> float:
    """Leaves in .grad the gradient of the mean loss over all targets of the window, and returns that loss.

    Backward is through sum / examples; the targets' number is known only after the forwards, and a last factor
    examples / targets mends it. Distributed data parallel averages over processes, hence the factor num_processes.
    """
    accelerator = runtime.accelerator
    precise = torch.float32 if runtime.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    sums = torch.zeros(2, dtype=precise, device=runtime.device)  # of losses, of targets
    for position, micro_rows in enumerate(micro_batches):
        is_last = position == len(micro_batches) - 1
        # A process without rows of its own still takes part in the gradients' exchange, with weight 0
        taken = micro_rows if len(micro_rows) else rows[:1]
        batch = to_device(collate(features, taken, trainee.pad_token_id), runtime.device)
        labels, states = batch.pop("labels"), batch.pop("states", None)
        with contextlib.nullcontext() if is_last else accelerator.no_sync(trainee.prepared):
            with trainee.shortcuts(states), trainee.masks(update, taken, runtime.device):
                logits = trainee.prepared(**batch).logits
            loss, count = task.loss(logits, labels)
            weight = runtime.num_processes / len(rows) if len(micro_rows) else 0.0
            accelerator.backward(loss * weight)
        if len(micro_rows):
            sums += torch.stack([loss.detach().to(precise), torch.tensor(count, dtype=precise, device=runtime.device)])
    if runtime.num_processes > 1:
        torch.distributed.all_reduce(sums)
    total, count = sums.tolist()
    factor = len(rows) / count
    if factor != 1.0:
        for group in trainee.optimizer.param_groups:
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, factor)
    return float(total / count)


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on the device; copied beside the computation where that is a GPU."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


class NotFiniteError(InputError):
    """Training met a loss or gradient norm that is not finite. `rows` are those of the batch."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = rows


def not_finite(update: int, loss: float, norm: float, rows: "np.ndarray[Any, Any]") -> NotFiniteError:
    """Law 5's error."""
    what = f"loss ({loss})" if not math.isfinite(loss) else f"gradient norm ({norm})"
    return NotFiniteError(f"update {update}: the {what} is not finite; the weights were not changed", rows.tolist())


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss (mean over all targets) and logits [N, C] of a split, in the order of the data set."""

    loss: float
    logits: "np.ndarray[Any, Any]"


def evaluate(
    model: Any,
    features: Features,
    task: "Task",
    runtime: "Runtime",
    *,
    batch_size: int,
    pad_token_id: int,
    rows: "np.ndarray[Any, Any] | None" = None,
    distributed: bool = True,
    shortcuts: Shortcuts = NO_SHORTCUTS,
) -> Evaluation:
    """Evaluates every row (or `rows`) exactly once, on any number of processes. Law 4: changes nothing.

    All processes call it and get the result; without `distributed` one process does all of it alone. StoppedError where a
    signal asked the run to stop.

    Batches are the same on any number of processes, and their sums are added in the same order: so are the numbers.
    """
    chosen = np.arange(len(features)) if rows is None else rows
    batches = [chosen[batch] for batch in evaluation_batches(features.lengths[chosen], batch_size)]
    process, num_processes = (runtime.process, runtime.num_processes) if distributed else (0, 1)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    results = []
    stops = False
    try:
        with torch.inference_mode():
            for number in range(process, len(batches), num_processes):
                if stops := distributed and runtime.is_asked_to_stop():
                    break
                batch = to_device(collate(features, batches[number], pad_token_id), runtime.device)
                labels, states = batch.pop("labels"), batch.pop("states", None)
                with shortcuts(states):
                    logits = model(**batch).logits
                loss, count = task.loss(logits, labels)
                results.append((number, float(loss), count, logits.float().cpu().numpy()))
    finally:
        for module, training in modes.items():
            module.training = training
    if distributed and any(runtime.agree(stops)):
        raise runtime.stop()
    gathered = sorted(
        (result for part in (runtime.gather(results) if distributed else [results]) for result in part),
        key=lambda result: result[0],
    )
    logits_by_row = np.empty((len(chosen), gathered[0][3].shape[-1]), dtype=np.float32)
    place = {int(row): position for position, row in enumerate(chosen)}
    for number, _, _, logits in gathered:
        logits_by_row[[place[int(row)] for row in batches[number]]] = logits
    loss_sum = math.fsum(result[1] for result in gathered)
    return Evaluation(loss=loss_sum / sum(result[2] for result in gathered), logits=logits_by_row)
