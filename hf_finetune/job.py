"""Everything a run has settled before update 0, and what is done with it: measure, save, restore."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_finetune import checkpoint, metrics
from hf_finetune.backbone import Backbone
from hf_finetune.checkpoint import Progress
from hf_finetune.config import RunConfig, as_dict, changed_keys
from hf_finetune.data import Features, Splits
from hf_finetune.errors import InputError
from hf_finetune.first_token import NO_SHORTCUTS
from hf_finetune.freezing import FreezePlan
from hf_finetune.loop import Schedule, Trainee, Update, evaluate, micro_batch_limit
from hf_finetune.runtime import Runtime
from hf_finetune.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be trained, on what, where. `metric` is the one that decides what is best; `no_replay` says why the frozen
    prefix cannot be cached, where it cannot."""

    config: RunConfig
    runtime: Runtime
    splits: Splits
    task: Task
    metric: str
    backbone: Backbone
    max_length: int
    features: dict[str, Features]
    plan: FreezePlan
    trainee: Trainee
    schedule: Schedule
    no_replay: str = ""

    @property
    def is_cached(self) -> bool:
        """Whether training goes from stored states of the frozen prefix."""
        return self.features["train"].states is not None

    @property
    def checkpoint_dir(self) -> Path:
        """Where the checkpoints are."""
        return self.config.run_dir / "checkpoints"

    def where(self, row: int) -> str:
        """`file:line` of a training example."""
        return self.splits.train.where(row)


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(
    job: Job, split: str, rows: "np.ndarray[Any, Any] | None" = None, *, whole: bool = False
) -> dict[str, float]:
    """Loss and metrics of a split, or of some of its rows; by the `whole` model where the numbers are to be exactly those of
    what is exported, not of a replay of stored states."""
    features = job.features[split]
    outcome = evaluate(
        job.trainee.model,
        dataclasses.replace(features, states=None) if whole else features,
        job.task,
        job.runtime,
        batch_size=job.config.evaluation.batch_size,
        pad_token_id=job.trainee.pad_token_id,
        rows=rows,
        shortcuts=NO_SHORTCUTS if whole else job.trainee.shortcuts,
    )
    labels = features.labels if rows is None else features.labels[rows]
    names = (job.metric, *job.task.metric_names)
    return {"loss": outcome.loss, **metrics.compute_all(names, job.task, outcome.logits, labels)}


def judge(job: Job, progress: Progress, value: float) -> Progress:
    """The progress after an evaluation: the best so far, and whether patience has run out. nan is never better."""
    sign = 1.0 if metrics.greater_is_better(job.metric) else -1.0
    best, before, train = progress.best_value, progress.patience_value, job.config.train
    if best is None or best != best or sign * value > sign * best:
        epoch = job.schedule.epoch(progress.update)
        progress = dataclasses.replace(progress, best_value=value, best_update=progress.update, best_epoch=epoch)
    if before is None or before != before or sign * (value - before) > train.min_delta:
        return dataclasses.replace(progress, patience_value=value, evaluations_without_gain=0)
    without = progress.evaluations_without_gain + 1
    stopped = train.patience is not None and without >= train.patience
    return dataclasses.replace(progress, evaluations_without_gain=without, stopped=stopped)


def rehearse(job: Job) -> None:
    """Fails in seconds rather than after an epoch: evaluates two batches with all metrics, and writes as many bytes as
    a checkpoint has, and removes them."""
    measure(job, "validation", np.arange(min(len(job.features["validation"]), 2 * job.config.evaluation.batch_size)))
    path = job.config.run_dir / ".rehearsal"

    def write() -> None:
        moments = torch.empty(2 * job.plan.num_trainable)  # AdamW's two, in fp32
        content = {"model": job.trainee.model.state_dict(), "moments": moments}
        checkpoint.replace_with(path, lambda file: torch.save(content, file), checkpoint.tensor_bytes(content))
        path.unlink()

    job.runtime.on_main(write)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def save(job: Job, progress: Progress, update: Update, values: dict[str, float]) -> str:
    """Writes a checkpoint, then removes those that need not be kept; returns its file name. On all processes.

    `values` are the validation metrics measured at this update, if any; without them `loss` is the training loss.
    """
    scaler = job.runtime.accelerator.scaler

    def write() -> str:
        content = {
            "epoch": update.epoch,
            "update": update.number,
            "model_state_dict": job.trainee.model.state_dict(),
            "optimizer_state_dict": job.trainee.optimizer.optimizer.state_dict(),
            "scheduler_state_dict": {
                "update": update.number,
                "total_updates": job.schedule.total_updates,
                "learning_rates": update.learning_rates,
            },
            "loss": values.get("loss", update.loss),
            "metrics": values,
            "run": {
                "progress": dataclasses.asdict(progress),
                "config": as_dict(job.config),
                "data": fingerprints(job),
                "sums": order_of_sums(job),
                "scaler": scaler.state_dict() if scaler is not None else None,
            },
        }
        saved = checkpoint.save(job.checkpoint_dir, content, metric=job.metric, value=values.get(job.metric))
        checkpoint.retire(
            job.checkpoint_dir,
            saved,
            keep_best=job.config.checkpoint.keep_best,
            keep_last=job.config.checkpoint.keep_last,
            greater_is_better=metrics.greater_is_better(job.metric),
            best_update=progress.best_update,
        )
        return saved.file

    return job.runtime.on_main(write)


def fingerprints(job: Job) -> dict[str, str]:
    """What the encoded data are recognised by."""
    return {split: features.fingerprint() for split, features in job.features.items()}


def order_of_sums(job: Job) -> str:
    """What the order of floating-point sums depends on, and so whether a resumed run can be equal bit for bit."""
    run = job.runtime
    limit = micro_batch_limit(job.config, run.num_processes)
    return (
        f"{run.num_processes} x {torch.get_num_threads()} threads of {run.device.type}, {run.precision}, "
        f"micro-batches of {limit.rows}{f' and {limit.tokens} tokens' if limit.tokens else ''}"
    )


def restore(job: Job) -> tuple[Progress, list[str]]:
    """Loads the checkpoint that the run goes on from, if there is one, on every process; and says what it did."""
    asked = job.config.checkpoint.resume
    notes: list[str] = []
    path: Path | None = Path(asked)
    if asked == "never":
        return Progress(), notes
    if asked == "auto":
        path, skipped = job.runtime.on_main(lambda: checkpoint.newest_whole(job.checkpoint_dir))
        notes = [f"passed over: {line}" for line in skipped]
    elif not Path(asked).is_file():
        raise InputError(f"checkpoint.resume ({asked}): no such file; takes auto, never, or the path of a checkpoint")
    if path is None:
        return Progress(), notes
    content = checkpoint.load(path)
    check_checkpoint(job, path, content)
    try:
        job.trainee.model.load_state_dict(content["model_state_dict"])
        job.trainee.optimizer.optimizer.load_state_dict(content["optimizer_state_dict"])
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"model.backbone ({job.config.model.backbone}): is another model now than the one {path.name} is of: {error}"
        ) from None
    if job.runtime.accelerator.scaler is not None and content["run"]["scaler"]:
        job.runtime.accelerator.scaler.load_state_dict(content["run"]["scaler"])
    if content["run"]["sums"] != order_of_sums(job):
        notes.append(f"was on {content['run']['sums']}, now on {order_of_sums(job)}: sums and dropout may differ")
    progress = job.runtime.on_main(lambda: adopt_best(job, path, content, Progress(**content["run"]["progress"])))
    if progress.best_update != content["run"]["progress"]["best_update"]:
        notes.append("the best checkpoint so far is missing or damaged, and counts no more")
    return progress, [*notes, f"resuming after update {progress.update} from {path.name}"]


def adopt_best(job: Job, path: Path, content: dict[str, Any], progress: Progress) -> Progress:
    """The progress with its best checkpoint sure to be in this run's folder: copied from beside `path` where need be;
    where there is none, the restored one takes its place, if it was evaluated."""
    if progress.best_update is None or checkpoint.find_whole(job.checkpoint_dir, progress.best_update):
        return progress
    if best := checkpoint.find_whole(path.parent, progress.best_update):
        job.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        for source in (best, checkpoint.manifest_path(best)):
            checkpoint.write_atomically(job.checkpoint_dir / source.name, source.read_bytes())
        return progress
    value = content["metrics"].get(job.metric)
    evaluated = value is not None and checkpoint.find_whole(job.checkpoint_dir, progress.update) is not None
    epoch = job.schedule.epoch(progress.update)
    return dataclasses.replace(
        progress,
        best_value=value if evaluated else None,
        best_update=progress.update if evaluated else None,
        best_epoch=epoch if evaluated else None,
    )


def check_checkpoint(job: Job, path: Path, content: dict[str, Any]) -> None:
    """Raises InputError where a checkpoint is not of this config and these data."""
    state = content.get("run")
    if not isinstance(state, dict) or not {"progress", "config", "data"} <= state.keys():
        raise InputError(f"{path}: is a checkpoint, but not one of hf-finetune's (no key 'run')")
    changed = [row for row in changed_keys(state["config"], as_dict(job.config)) if row[0] != "name"]
    if changed:
        listed = ", ".join(f"{key} (was {old}, now {new})" for key, old, new in changed)
        raise InputError(f"checkpoint.resume ({path}): was made with another config: {listed}")
    found = fingerprints(job)
    if changed_data := sorted(split for split in found if state["data"].get(split) != found[split]):
        raise InputError(
            f"checkpoint.resume ({path}): the data are not those it was made with ({', '.join(changed_data)} differ); "
            "put them back, or choose another name"
        )


def load_best(job: Job, progress: Progress) -> str:
    """Loads the weights of the best checkpoint into the model, on every process; returns its file name."""

    def find() -> str:
        path = checkpoint.find_whole(job.checkpoint_dir, progress.best_update or 0)
        if path is None:
            raise InputError(
                f"{job.checkpoint_dir}: the best checkpoint (update {progress.best_update}) is missing or damaged; "
                "--checkpoint.resume never starts anew"
            )
        return path.name

    name = job.runtime.on_main(find)
    job.trainee.model.load_state_dict(checkpoint.load(job.checkpoint_dir / name)["model_state_dict"])
    return name


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

    def each(self, steps: Iterator[Update]) -> Iterator[Update]:
        """The updates, their own seconds and tokens counted as training."""
        for update in steps:
            self.seconds["train"] += update.seconds
            self.num_tokens += update.num_tokens
            yield update

    def report(self) -> dict[str, float]:
        """Rounded seconds, with the total."""
        rounded = {phase: round(value, 2) for phase, value in self.seconds.items()}
        return rounded | {"total": round(time.perf_counter() - self.started, 2)}
