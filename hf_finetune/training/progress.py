"""How far a run has come: updates, the best checkpoint, early stopping."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_finetune.config.sections import ExportConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run apart from its tensors. Together with the config it decides what happens next."""

    update: int = 0
    best_value: float | None = None
    best_update: int | None = None
    best_epoch: int | None = None
    best_computed_from: str | None = None  # what the evaluation of the best update computed from (cache/check.py)
    patience_value: float | None = None  # the last value that counted as better, by train.min_delta
    evaluations_without_gain: int = 0
    stopped: bool = False  # early stopping has ended the training
    cached: bool | None = None  # True if training runs from cached activations; None before the first update of a stage
    pending: bool = False  # a signal stopped the run before the evaluation and save that are due after `update`
    train_loss: float | None = None  # of the last update
    skipped_updates: int = 0  # by fp16's loss scaler
    history: tuple[dict[str, Any], ...] = ()  # a row for every evaluation: update, epoch, and the metrics

    @property
    def num_settled(self) -> int:
        """Updates whose evaluation and save are done."""
        return self.update - 1 if self.pending else self.update


FRESH = Progress()


def load_progress(saved: Mapping[str, Any]) -> Progress:
    """The progress that a checkpoint holds as plain values."""
    known = {field: saved[field] for field in Progress.__dataclass_fields__ if field in saved}
    return Progress(**known | {"history": tuple(saved.get("history", ()))})


def update_best_and_patience(
    progress: Progress,
    values: dict[str, float],
    *,
    metric: str,
    epoch: int,
    config: TrainConfig,
    greater_is_better: bool,
) -> Progress:
    """The progress after an evaluation with these metrics: adds them to the history, updates the best value and the count of
    evaluations without improvement, and stops if train.patience is exceeded. nan is never better."""
    value, row = values[metric], {"update": progress.update, "epoch": epoch, **values}
    progress = dataclasses.replace(progress, history=(*progress.history, row))
    sign = 1.0 if greater_is_better else -1.0
    best, before = progress.best_value, progress.patience_value
    if best is None or best != best or sign * value > sign * best:
        progress = dataclasses.replace(progress, best_value=value, best_update=progress.update, best_epoch=epoch)
    if before is None or before != before or sign * (value - before) > config.min_delta:
        return dataclasses.replace(progress, patience_value=value, evaluations_without_gain=0)
    count = progress.evaluations_without_gain + 1
    stopped = config.patience is not None and count >= config.patience
    return dataclasses.replace(progress, evaluations_without_gain=count, stopped=stopped)


def apply_patience(progress: Progress, *, metric: str, config: TrainConfig, greater_is_better: bool) -> Progress:
    """Returns the progress as train.patience and train.min_delta of this config count it, over all evaluations so far. The best
    checkpoint does not depend on them."""
    counted = FRESH
    for row in progress.history:
        counted = update_best_and_patience(
            counted,
            {metric: row[metric]},
            metric=metric,
            epoch=row["epoch"],
            config=config,
            greater_is_better=greater_is_better,
        )
    return dataclasses.replace(
        progress,
        patience_value=counted.patience_value,
        evaluations_without_gain=counted.evaluations_without_gain,
        stopped=counted.stopped,
    )


def choose_averaged_updates(
    history: Sequence[Mapping[str, Any]], export: ExportConfig, *, metric: str, greater_is_better: bool
) -> tuple[int, ...]:
    """Returns the updates whose checkpoints export.average averages, in order: those of the last evaluations, or of the best.

    history: a row for each evaluation: update and metrics. Of equal values the earlier comes first; nan is never chosen as best.
    """
    if export.order == "best":
        sign = -1.0 if greater_is_better else 1.0
        valued = [row for row in history if row[metric] == row[metric]]
        chosen = sorted(valued, key=lambda row: (sign * row[metric], row["update"]))[: export.count]
    else:
        chosen = list(history)[max(0, len(history) - export.count) :]
    return tuple(sorted(row["update"] for row in chosen))
