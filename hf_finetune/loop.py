"""The loop: train_steps() yields after every update, evaluate() changes nothing. No task, data set or tracker in here.

B features of a batch, S sequences, D numbers that represent one.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_finetune import heads
from hf_finetune.config import RunConfig
from hf_finetune.data import Batch, Features, MicroBatchLimit, collate, evaluation_batches, plan_epoch, share_batch
from hf_finetune.dropout import Masks
from hf_finetune.errors import InputError
from hf_finetune.first_token import NO_SHORTCUTS, Shortcuts
from hf_finetune.freezing import train_mode
from hf_finetune.optim import set_learning_rates

if TYPE_CHECKING:
    from hf_finetune.runtime import Runtime
    from hf_finetune.tasks import Task


COUPLED_ROWS = 64  # of a batch of an evaluation whose rows are coupled; fixed, so that losses can be compared


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
    accelerator, lengths, num_tokens = runtime.accelerator, features.lengths, features.num_tokens
    counts = features.counts(np.arange(len(features)))
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
        micro_batches = share_batch(rows, lengths, limit, runtime.process, runtime.num_processes, counts)
        window = Window(number=update, epoch=epoch + 1, rows=rows, micro_batches=micro_batches)
        loss = accumulate(trainee, features, task, runtime, window)
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
            num_tokens=int(num_tokens[rows].sum()),
            seconds=time.perf_counter() - started,
            skipped=overflowed,
        )


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one update takes: its number, counted from 0, and epoch, counted from 1, its rows, and this process's micro-batches
    of them."""

    number: int
    epoch: int
    rows: "np.ndarray[Any, Any]"
    micro_batches: Sequence["np.ndarray[Any, Any]"]


def accumulate(trainee: Trainee, features: Features, task: "Task", runtime: "Runtime", window: Window) -> float:
    """Leaves in .grad the gradient of the mean loss over all targets of the window, and returns that loss.

    Backward is through sum / features; the targets' number is known only after the forwards, and a last factor
    features / targets mends it. Distributed data parallel averages over processes, hence the factor num_processes.
    """
    accelerator, rows = runtime.accelerator, window.rows
    precise = torch.float32 if runtime.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    sums = torch.zeros(2, dtype=precise, device=runtime.device)  # of losses, of targets
    pull: Pull | None = None
    if task.couples_rows:
        pull = pull_of(trainee, features, task, runtime, window)
        sums += torch.tensor([pull.loss, pull.count], dtype=precise, device=runtime.device) / runtime.num_processes
    for position, micro_rows in enumerate(window.micro_batches):
        is_last = position == len(window.micro_batches) - 1
        # A process without rows of its own still takes part in the gradients' exchange, with weight 0
        taken = micro_rows if len(micro_rows) else rows[:1]
        with contextlib.nullcontext() if is_last else accelerator.no_sync(trainee.prepared):
            if pull is None:
                outputs, batch = forward(trainee, features, task, runtime, taken, window, through=trainee.prepared)
                loss, count = task.loss(outputs, batch)
            else:
                vectors, places = pull.alone or represent(trainee, features, task, runtime, taken, window)
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


def forward(
    trainee: Trainee,
    features: Features,
    task: "Task",
    runtime: "Runtime",
    rows: "np.ndarray[Any, Any]",
    window: Window,
    through: Callable[..., Any] | None = None,
) -> tuple[torch.Tensor, Batch]:
    """What the head says of these rows in training, and their batch on the device."""
    batch = collate(features, rows, trainee.pad_token_id).to(runtime.device)
    batch = task.prepare(batch, features, trainee.model, window.epoch)
    with trainee.shortcuts(batch.states), trainee.masks(window.number, batch.sequences, runtime.device):
        return heads.run(trainee.model, batch.inputs, through), batch


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Of a batch whose rows are coupled: the summed loss, its targets, and its gradient [S, D] by each sequence's
    representation. alone: of a process with one micro-batch its representations, with their graph, and their places."""

    loss: float
    count: float
    gradient: torch.Tensor
    alone: tuple[torch.Tensor, list[int]] | None


def pull_of(trainee: Trainee, features: Features, task: "Task", runtime: "Runtime", window: Window) -> Pull:
    """The pull of the whole batch on every representation, the same on all processes.

    Where there are several micro-batches, representations are computed twice, first without gradients for the loss of the
    whole batch, then by accumulate() for the backward (GradCache, Gao et al. 2021, arXiv:2101.06983): so memory is that of
    a micro-batch, and the numbers those of one batch on one process. Dropout's masks are the same both times: stateless
    ones by themselves, torch's from the same seed.
    """
    is_alone = len(window.micro_batches) == 1  # as on every process
    found: torch.Tensor | None = None
    alone: tuple[torch.Tensor, list[int]] | None = None
    torch.manual_seed(torch.initial_seed())  # of every device
    with torch.set_grad_enabled(is_alone):
        for micro_rows in window.micro_batches:
            taken = micro_rows if len(micro_rows) else window.rows[:1]
            vectors, places = represent(trainee, features, task, runtime, taken, window)
            if found is None:
                found = vectors.new_zeros(int(features.counts(window.rows).sum()), vectors.shape[-1])
            if len(micro_rows):
                found[places] = vectors.detach()
            if is_alone:
                alone = vectors, places
    torch.manual_seed(torch.initial_seed())
    assert found is not None  # a window has rows
    if runtime.num_processes > 1:
        torch.distributed.all_reduce(found)  # each process's part, and zeros
    leaf = found.requires_grad_()
    loss, count = task.coupled_loss(leaf, features.counts(window.rows), features, window.rows)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return Pull(loss=float(loss.detach()), count=count, gradient=gradient, alone=alone)


def represent(
    trainee: Trainee, features: Features, task: "Task", runtime: "Runtime", rows: "np.ndarray[Any, Any]", window: Window
) -> tuple[torch.Tensor, list[int]]:
    """What represents the sequences of these rows, [S, D], and their places among all of the window's."""
    place = {int(sequence): number for number, sequence in enumerate(features.sequences(window.rows))}
    through = trainee.prepared if torch.is_grad_enabled() else None  # the distributed wrapper expects a backward
    outputs, batch = forward(trainee, features, task, runtime, rows, window, through=through)
    return task.represent(outputs, batch).float(), [place[int(sequence)] for sequence in batch.sequences]


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
    """Loss (mean over all targets; nan where there are none) and what the task kept of each row, in the order of the rows."""

    loss: float
    kept: list["np.ndarray[Any, Any]"]


def evaluate(
    model: torch.nn.Module,
    features: Features,
    task: "Task",
    runtime: "Runtime",
    *,
    batch_size: int,
    pad_token_id: int,
    rows: "np.ndarray[Any, Any] | None" = None,
    distributed: bool = True,
    generates: bool = False,
    shortcuts: Shortcuts = NO_SHORTCUTS,
) -> Evaluation:
    """Evaluates every row (or `rows`) exactly once, on any number of processes. Law 4: changes nothing.

    All processes call it and get the result; without `distributed` one process does all of it alone. StoppedError where a
    signal asked the run to stop. With `generates` the model writes text, and there is no loss.

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
                batch = collate(features, batches[number], pad_token_id).to(runtime.device)
                batch = task.prepare(batch, features, model, 0)
                results.append((number, *outcome_of(model, task, batch, shortcuts, generates=generates)))
    finally:
        for module, training in modes.items():
            module.training = training
    if distributed and any(runtime.agree(stops)):
        raise runtime.stop()
    gathered = sorted(
        (result for part in (runtime.gather(results) if distributed else [results]) for result in part),
        key=lambda result: result[0],
    )
    place = {int(row): position for position, row in enumerate(chosen)}
    kept: list[Any] = [None] * len(chosen)
    for number, _, _, of_rows in gathered:
        for row, array in zip(batches[number], of_rows, strict=True):
            kept[place[int(row)]] = array
    if task.couples_rows:
        return Evaluation(loss=coupled_mean(task, kept, features, chosen), kept=kept)
    count = math.fsum(result[2] for result in gathered)
    return Evaluation(loss=math.fsum(result[1] for result in gathered) / count if count else math.nan, kept=kept)


def outcome_of(
    model: torch.nn.Module, task: "Task", batch: Batch, shortcuts: Shortcuts, *, generates: bool
) -> tuple[float, float, list["np.ndarray[Any, Any]"]]:
    """Sum of the loss, number of targets, and what is kept of each row."""
    if generates:
        return 0.0, 0.0, task.generate(model, batch)
    with shortcuts(batch.states):
        outputs = heads.run(model, batch.inputs)
    has_loss = batch.labels is not None and not task.couples_rows
    loss, count = task.loss(outputs, batch) if has_loss else (0.0, 0.0)
    return float(loss), count, task.keep(outputs, batch)


def coupled_mean(
    task: "Task", kept: Sequence["np.ndarray[Any, Any]"], features: Features, rows: "np.ndarray[Any, Any]"
) -> float:
    """The mean loss of batches of COUPLED_ROWS rows in their order, from the representations [sequences, D] of each row; nan
    where nothing is known to be right."""
    if features.labels is None:
        return math.nan
    sums = []
    for start in range(0, len(rows), COUPLED_ROWS):
        part, of = kept[start : start + COUPLED_ROWS], rows[start : start + COUPLED_ROWS]
        vectors = torch.from_numpy(np.concatenate(part))
        loss, count = task.coupled_loss(vectors, np.array([len(array) for array in part]), features, of)
        sums.append((float(loss), count))
    return math.fsum(loss for loss, _ in sums) / (math.fsum(count for _, count in sums) or math.nan)
