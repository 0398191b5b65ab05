"""A run that is ready for update 0, the evaluation of its splits, and the preflight check."""

import dataclasses
import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_finetune.config.optimizers import OPTIMIZERS
from hf_finetune.config.sections import RunConfig, TrainConfig
from hf_finetune.data.features import Array, Features
from hf_finetune.data.report import DataReport
from hf_finetune.data.splits import Splits
from hf_finetune.model.backbone import Backbone
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.run import checkpoint
from hf_finetune.run.augmentation import AugmentedFeatures
from hf_finetune.run.kept import MOST_KEPT, KeptEvaluations, can_describe, describe_kept
from hf_finetune.run.parts import NO_PARTS, Parts
from hf_finetune.run.streaming import StreamedBatches
from hf_finetune.system.console import print_message
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import check_room
from hf_finetune.system.processes import Runtime
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import SummedObjective, Task
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.scoring import KeepingRunner
from hf_finetune.training.evaluation import ModelRunner
from hf_finetune.training.loop import Update
from hf_finetune.training.progress import Progress, choose_averaged_updates
from hf_finetune.training.schedule import Schedule, StreamedSchedule
from hf_finetune.training.source import BatchSource, StoredBatches
from hf_finetune.training.train_state import TrainState

PHASES = ("start", "load", "encode", "cache", "check", "train", "evaluate", "save", "export")

NUM_LOSS_EXAMPLES = 8  # validation features on which a loss of one's own is checked
LOSS_TOLERANCE = (
    0.05  # relative; between a sum and the sum of its parts in 16 bit lie about 0.01, between a sum and a mean factors
)
NUM_PREFLIGHT_TEXTS = 2  # texts that the preflight check generates


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The freeze plan and the training state that follow from a freeze config. A run with freeze.unfreeze has several stages.

    Args:
        plan: Which parameters train.
        train_state: The model, its optimizer, and how a forward runs.
        cannot_cache: Why the activations of the frozen prefix cannot be cached, or "" if they can.
        not_shared: Why examples do not share rows although train.shared_rows is auto, or "".
    """

    plan: FreezePlan
    train_state: TrainState
    cannot_cache: str = ""
    not_shared: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run that is ready to train: settings, data, task, model and processes.

    Args:
        metric: The metric that decides which checkpoint is best.
        max_length: Longest input in tokens.
        features: By split.
        data_report: What may be wrong with the data.
        stage: The current stage.
        trainable_in_last_stage: Names of the parameters that train in the last stage.
        more_metrics: Names of the metrics of evaluation.metrics that are not one's own.
        parts: The user's own parts.
        augmented: The training features of an epoch, if train.augment changes the rows.
        stream: The training batches with data.streaming; the training rows and features are then a sample.
        kept: What the evaluations keep of the outputs.
    """

    config: RunConfig
    runtime: Runtime
    splits: Splits
    task: Task
    metric: str
    backbone: Backbone
    max_length: int
    features: dict[str, Features]
    data_report: DataReport
    schedule: Schedule | StreamedSchedule
    stage: Stage
    trainable_in_last_stage: frozenset[str]
    more_metrics: tuple[str, ...] = ()
    parts: Parts = NO_PARTS
    augmented: AugmentedFeatures | None = None
    stream: StreamedBatches | None = None
    kept: KeptEvaluations = dataclasses.field(default_factory=KeptEvaluations)

    @property
    def greater_is_better(self) -> bool:
        """True if a larger value of the metric is better."""
        known = self.config.evaluation.greater_is_better
        return metrics.greater_is_better(self.metric) if known is None else known

    @property
    def why_inputs_change(self) -> str:
        """The reason why the training inputs differ from epoch to epoch, or "" if they do not."""
        if self.parts.augment is not None:
            return "train.augment changes the training rows in each epoch"
        if self.stream is not None:
            return "data.streaming keeps nothing of what it has read"
        return self.task.encoding.why_inputs_change

    @property
    def plan(self) -> FreezePlan:
        """The freeze plan of the current stage."""
        return self.stage.plan

    @property
    def train_state(self) -> TrainState:
        """The model and its optimizer in the current stage."""
        return self.stage.train_state

    @property
    def is_cached(self) -> bool:
        """True if training runs from cached activations of the frozen prefix."""
        return self.features["train"].activations is not None

    @property
    def checkpoint_dir(self) -> Path:
        """The folder of the checkpoints."""
        return self.config.run_dir / "checkpoints"

    def find_stage_end(self, update: int) -> int:
        """The update after which the current stage ends, if `update` updates are done."""
        starts = [(int(stage["epoch"]) - 1) * self.schedule.updates_per_epoch for stage in self.config.freeze.unfreeze]
        return min([start for start in starts if start > update] + [self.schedule.total_updates])

    def list_averaged_updates(self, progress: Progress) -> tuple[int, ...]:
        """The updates whose checkpoints export.average would average if the run ended now."""
        return choose_averaged_updates(
            progress.history, self.config.export, metric=self.metric, greater_is_better=self.greater_is_better
        )

    def is_logged(self, update: int) -> bool:
        """True if the numbers of an update are logged."""
        return update == 1 or self.schedule.is_due(self.config.tracking.log_every, update)

    def is_over(self, progress: Progress) -> bool:
        """True if nothing is left to train."""
        return progress.stopped or progress.num_settled >= self.schedule.total_updates

    def describe_kept(self, split: str) -> ExampleScores | None:
        """What is known of each example of a split's latest evaluation; None if its outputs were not kept."""
        kept, names = self.kept.latest.get(split), (self.metric, *self.more_metrics)
        return describe_kept(self.task.scoring, kept, self.features[split], self.splits.tables()[split], names)

    def is_paused(self, progress: Progress) -> bool:
        """True if the run has just been evaluated, is not over, and Parts.pause leaves it there for now."""
        is_evaluated = bool(progress.history) and progress.history[-1]["update"] == progress.update
        return (
            self.parts.pause is not None
            and is_evaluated
            and not self.is_over(progress)
            and self.parts.pause(self, progress)
        )

    def locate(self, index: int) -> str:
        """`file:line` of the example that a training feature was made from."""
        if self.stream is not None:
            return self.stream.locate(index)
        return self.splits.train.where(self.features["train"].get_example(index))

    def make_source(self) -> BatchSource:
        """The batches of the updates."""
        return self.stream or StoredBatches(self.features["train"], self.config, self.augmented)


def make_runner(
    run: TrainingRun, split: str, *, batch_size: int, uses_cache: bool = True, task: Task | None = None
) -> ModelRunner:
    """Returns a runner of the model over a split. Without `uses_cache` it runs the entire model. task: In place of the run's."""
    features, state = run.features[split], run.train_state
    return ModelRunner(
        model=state.model,
        tokenizer=run.backbone.tokenizer,
        task=task or run.task,
        features=features if uses_cache else dataclasses.replace(features, activations=None),
        processes=run.runtime,
        padding=state.padding,
        batch_size=batch_size,
        forward_plan=state.forward_plan if uses_cache else state.forward_plan.complete(),
        autocast=run.runtime.accelerator.autocast,
        task_name="evaluate",
    )


def evaluate_split(
    run: TrainingRun,
    split: str,
    indices: Array | None = None,
    *,
    uses_cache: bool = True,
    max_texts: int | None = None,
    keeps: bool = False,
) -> dict[str, float]:
    """Loss and metrics of a split, or of its features at `indices`. max_texts: generate at most that many texts.

    Without `uses_cache` the entire model runs, so that the numbers are exactly those of the exported model. If it `keeps` the
    outputs, run.kept has them as the latest of the split.
    """
    features, task = run.features[split], run.task
    run.kept.drop(split)  # before there are new ones
    keeps = keeps and keeps_outputs(run, split)
    if keeps:
        task = dataclasses.replace(task, scoring=task.scoring.keep_examples())
    runner = KeepingRunner(
        make_runner(run, split, batch_size=run.config.evaluation.batch_size, uses_cache=uses_cache, task=task)
    )
    values = task.scoring.evaluate(
        runner,
        features,
        run.splits.tables()[split],
        metric=run.metric,
        indices=np.arange(len(features)) if indices is None else indices,
        max_texts=max_texts,
        more_metrics=run.more_metrics,
        own_metrics=run.parts.metrics,
    )
    run.kept.keep(split, runner.kept if keeps and run.runtime.is_main else None)
    return values


def keeps_outputs(run: TrainingRun, split: str) -> bool:
    """True if the outputs of a split's evaluation can be kept, for the examples at the end."""
    return can_describe(run.task.scoring) and len(run.features[split]) <= MOST_KEPT


def preflight_check(run: TrainingRun) -> None:
    """Fails in seconds instead of after an epoch: evaluates two batches with all metrics, and reserves a checkpoint's space on
    the disk and gives it back."""
    num_examples = min(len(run.features["validation"]), 2 * run.config.evaluation.batch_size)
    evaluate_split(run, "validation", np.arange(num_examples), max_texts=NUM_PREFLIGHT_TEXTS, keeps=True)
    run.runtime.on_main(lambda: run.describe_kept("validation"))
    run.kept.drop("validation")
    if run.parts.loss is not None:
        check_own_loss(run)
    num_bytes = math.ceil(count_state_bytes(run.config.train) * run.plan.num_trainable)
    num_bytes += checkpoint.count_tensor_bytes(run.train_state.model.state_dict())
    run.runtime.on_main(lambda: check_room(run.config.run_dir, num_bytes))


def check_own_loss(run: TrainingRun) -> None:
    """Raises InputError if a loss of one's own is not a sum over examples: those of two halves of a batch must add up to its own.
    A mean with the number of examples does not. A loss that compares the examples of a batch is not checked."""
    indices = np.arange(min(len(run.features["validation"]), NUM_LOSS_EXAMPLES))
    if not isinstance(run.task.objective, SummedObjective) or len(indices) < 2:
        return
    entire, halves = (
        make_runner(run, "validation", batch_size=size).compute_outputs(indices).loss
        for size in (len(indices), len(indices) // 2)
    )
    if abs(entire - halves) > LOSS_TOLERANCE * max(abs(entire), abs(halves)):
        raise InputError(
            f"train.loss ({run.config.train.loss}): is {entire:.4f} for {len(indices)} examples in one batch, and {halves:.4f} "
            "for the same in smaller batches; return the sum over the targets, not their mean, with the number of targets"
        )


def count_state_bytes(config: TrainConfig) -> float:
    """Bytes that a checkpoint has for each trained parameter besides the model. An optimizer of one's own counts as AdamW."""
    kind = OPTIMIZERS.get(config.optimizer, OPTIMIZERS["adamw"])
    keeps_two = kind.is_schedule_free or config.ema_decay is not None  # the evaluated weights and those that train
    return kind.state_bytes + 4 * keeps_two


class Clock:
    """Seconds by phase. There is always one phase: `with clock("load"):` pauses the one around it, so that all add up to the
    total. The first is `start`.

    began: When the command was given, as time.perf_counter() tells it; now if not given.
    """

    def __init__(self, began: float | None = None) -> None:
        self.began = self.switched = time.perf_counter() if began is None else began
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.phase = PHASES[0]
        self.num_tokens = 0
        self.seconds_to_first_update: float | None = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before = self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, phase: str) -> str:
        """Ends the current phase, begins another one, and returns the one that ended."""
        now, before = time.perf_counter(), self.phase
        self.seconds[before] += now - self.switched
        self.switched, self.phase = now, phase
        if phase != before:
            seconds = round(now - self.began, 3)
            print_message(phase, level=logging.DEBUG, event="phase", phase=phase, seconds=seconds)
        return before

    def count_updates(self, steps: Iterator[Update]) -> Generator[Update]:
        """Passes the updates on, and counts their tokens."""
        for update in steps:
            self.num_tokens += update.num_tokens
            if self.seconds_to_first_update is None:
                self.seconds_to_first_update = time.perf_counter() - self.began
            yield update

    def measure(self, phase: str) -> float:
        """Returns the seconds of a phase until now, which may be the current one."""
        self.switch(self.phase)
        return self.seconds[phase]

    def report(self) -> dict[str, float]:
        """Rounded seconds by phase until now, with the total."""
        self.switch(self.phase)
        rounded = {phase: round(value, 2) for phase, value in self.seconds.items()}
        return rounded | {"total": round(self.switched - self.began, 2)}
