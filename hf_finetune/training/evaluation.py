"""Loss and outputs of a split. Evaluation changes nothing in training (law 4 of docs/design.md).

B features of a batch, S sequences, D numbers of one embedding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_finetune.data.batches import plan_evaluation
from hf_finetune.data.features import Batch, Features, collate
from hf_finetune.forward.first_token import FULL_FORWARD, ForwardPlan
from hf_finetune.model import heads

if TYPE_CHECKING:
    from hf_finetune.system.processes import Runtime
    from hf_finetune.tasks.base import Task

IN_BATCH_SIZE = 64  # of a batch of an evaluation whose rows are coupled; fixed, so that losses can be compared


@dataclass(frozen=True, kw_only=True)
class EvaluationOutput:
    """Loss (mean over all targets; nan where there are none) and what the task kept of each row, in the order of the rows."""

    loss: float
    outputs: list["np.ndarray[Any, Any]"]


def run_evaluation(
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
    shortcuts: ForwardPlan = FULL_FORWARD,
) -> EvaluationOutput:
    """Evaluates every row (or `rows`) exactly once, on any number of processes. Law 4: changes nothing.

    All processes call it and get the result; without `distributed` one process does all of it alone. StoppedError where a
    signal asked the run to stop. With `generates` the model writes text, and there is no loss.

    Batches are the same on any number of processes, and their sums are added in the same order: so are the numbers.
    """
    chosen = np.arange(len(features)) if rows is None else rows
    batches = [chosen[batch] for batch in plan_evaluation(features.lengths[chosen], batch_size)]
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
                results.append((number, *evaluate_batch(model, task, batch, shortcuts, generates=generates)))
    finally:
        for module, training in modes.items():
            module.training = training
    if distributed and any(runtime.agree(stops)):
        raise runtime.stopped_error()
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
        return EvaluationOutput(loss=mean_in_batch_loss(task, kept, features, chosen), outputs=kept)
    count = math.fsum(result[2] for result in gathered)
    return EvaluationOutput(
        loss=math.fsum(result[1] for result in gathered) / count if count else math.nan, outputs=kept
    )


def evaluate_batch(
    model: torch.nn.Module, task: "Task", batch: Batch, shortcuts: ForwardPlan, *, generates: bool
) -> tuple[float, float, list["np.ndarray[Any, Any]"]]:
    """Sum of the loss, number of targets, and what is kept of each row."""
    if generates:
        return 0.0, 0.0, task.generate(model, batch)
    with shortcuts(batch.activations):
        outputs = heads.run_model(model, batch.inputs)
    has_loss = batch.labels is not None and not task.couples_rows
    loss, count = task.loss(outputs, batch) if has_loss else (0.0, 0.0)
    return float(loss), count, task.keep(outputs, batch)


def mean_in_batch_loss(
    task: "Task", kept: Sequence["np.ndarray[Any, Any]"], features: Features, rows: "np.ndarray[Any, Any]"
) -> float:
    """The mean loss of batches of COUPLED_ROWS rows in their order, from the representations [sequences, D] of each row; nan
    where nothing is known to be right."""
    if features.labels is None:
        return math.nan
    sums = []
    for start in range(0, len(rows), IN_BATCH_SIZE):
        part, of = kept[start : start + IN_BATCH_SIZE], rows[start : start + IN_BATCH_SIZE]
        vectors = torch.from_numpy(np.concatenate(part))
        loss, count = task.coupled_loss(vectors, np.array([len(array) for array in part]), features, of)
        sums.append((float(loss), count))
    return math.fsum(loss for loss, _ in sums) / (math.fsum(count for _, count in sums) or math.nan)
