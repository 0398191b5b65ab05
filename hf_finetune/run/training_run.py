"""Everything a run has settled before update 0, and how it is measured and judged."""

import dataclasses
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import Features
from hf_finetune.data.splits import Splits
from hf_finetune.forward.first_token import FULL_FORWARD
from hf_finetune.model.backbone import Backbone, decode_texts
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.run import checkpoint
from hf_finetune.system.files import replace_atomically
from hf_finetune.system.processes import Runtime
from hf_finetune.tasks.base import Task
from hf_finetune.training.evaluation import EvaluationOutput, run_evaluation
from hf_finetune.training.loop import Update
from hf_finetune.training.progress import Progress
from hf_finetune.training.schedule import Schedule
from hf_finetune.training.train_state import TrainState


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What is to be trained, on what, where. `metric` is the one that decides what is best; `no_replay` says why the frozen
    prefix cannot be cached, where it cannot. `plan` and what follows from it are of one stage, where freeze.unfreeze makes
    several; `free_at_last` are the parameters that train in the last."""

    config: RunConfig
    runtime: Runtime
    splits: Splits
    task: Task
    metric: str
    backbone: Backbone
    max_length: int
    features: dict[str, Features]
    plan: FreezePlan
    train_state: TrainState
    schedule: Schedule
    trainable_in_last_stage: frozenset[str]
    cannot_cache: str = ""

    @property
    def is_cached(self) -> bool:
        """Whether training goes from stored states of the frozen prefix."""
        return self.features["train"].activations is not None

    @property
    def checkpoint_dir(self) -> Path:
        """Where the checkpoints are."""
        return self.config.run_dir / "checkpoints"

    def find_stage_end(self, update: int) -> int:
        """The update after which the stage that `update` (updates done) stands in is over."""
        starts = [(int(stage["epoch"]) - 1) * self.schedule.updates_per_epoch for stage in self.config.freeze.unfreeze]
        return min([start for start in starts if start > update] + [self.schedule.total_updates])

    def is_over(self, progress: Progress) -> bool:
        """Whether nothing is left to train."""
        return progress.stopped or progress.num_settled >= self.schedule.total_updates

    def locate(self, row: int) -> str:
        """`file:line` of the example that a training feature was made of."""
        return self.splits.train.where(self.features["train"].get_example(row))


NUM_PREFLIGHT_TEXTS = 2  # texts that a rehearsal has the model write


# --- measuring ------------------------------------------------------------------------------------------------------


def evaluate_split(
    job: TrainingRun, split: str, rows: "np.ndarray[Any, Any] | None" = None, *, whole: bool = False
) -> dict[str, float]:
    """Loss and metrics of a split, or of some of its rows; by the `whole` model where the numbers are to be exactly those of
    what is exported, not of a replay of stored states."""
    features, task, table = job.features[split], job.task, job.splits.tables()[split]
    chosen = np.arange(len(features)) if rows is None else rows

    def of(some: "np.ndarray[Any, Any]", *, generates: bool = False) -> EvaluationOutput:
        return run_evaluation(
            job.train_state.model,
            dataclasses.replace(features, activations=None) if whole else features,
            task,
            job.runtime,
            batch_size=job.config.evaluation.batch_size,
            pad_token_id=job.train_state.pad_token_id,
            rows=some,
            generates=generates,
            shortcuts=FULL_FORWARD if whole else job.train_state.forward_plan,
        )

    outcome = of(chosen)
    values = {"loss": outcome.loss, **task.metrics(job.metric, outcome.outputs, features, table, chosen)}
    written = task.generated_rows(features)
    if written is None:
        return values
    if rows is not None:  # a rehearsal
        written = np.intersect1d(written, rows)[:NUM_PREFLIGHT_TEXTS]
    with job.runtime.accelerator.autocast():  # generate() calls the encoder by itself, past the model's own
        texts = decode_texts(job.backbone.tokenizer, of(written, generates=True).outputs)
    return values | task.generated_metrics(texts, features, table, written)


def preflight_check(job: TrainingRun) -> None:
    """Fails in seconds rather than after an epoch: evaluates two batches with all metrics, and writes as many bytes as
    a checkpoint has, and removes them."""
    evaluate_split(
        job, "validation", np.arange(min(len(job.features["validation"]), 2 * job.config.evaluation.batch_size))
    )
    path = job.config.run_dir / ".rehearsal"

    def write() -> None:
        moments = torch.empty(2 * job.plan.num_trainable)  # AdamW's two, in fp32
        content = {"model": job.train_state.model.state_dict(), "moments": moments}
        replace_atomically(path, lambda file: torch.save(content, file), checkpoint.count_tensor_bytes(content))
        path.unlink()

    job.runtime.on_main(write)


# --- time -----------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds by phase: `with clock("load"):` adds to one."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds = dict.fromkeys(("load", "encode", "cache", "train", "evaluate", "save", "export"), 0.0)
        self.num_tokens = 0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began

    def count_updates(self, steps: Iterator[Update]) -> Generator[Update]:
        """The updates, their own seconds and tokens counted as training."""
        for update in steps:
            self.seconds["train"] += update.seconds
            self.num_tokens += update.num_tokens
            yield update

    def report(self) -> dict[str, float]:
        """Rounded seconds, with the total."""
        rounded = {phase: round(value, 2) for phase, value in self.seconds.items()}
        return rounded | {"total": round(time.perf_counter() - self.started, 2)}
