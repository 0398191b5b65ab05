"""What the export recorded in a model's config: its task, settings and metric, and the user's own functions of its training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_finetune.config.loading import config_from_dict
from hf_finetune.config.sections import RunConfig, require
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.model import heads
from hf_finetune.run.parts import load_function, name_metrics, own_metrics
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Task
from hf_finetune.tasks.own_functions import Metric

READING = ("encoding", "delimiter", "quoting", "header", "max_expansion")  # settings of data that reading files needs


@dataclass(frozen=True, kw_only=True)
class RecordedTask:
    """The task of a trained model, ready to predict and evaluate.

    Attributes:
        config: The settings that the export recorded: columns, encodings, task settings.
        metric: The metric that decided which checkpoint is best.
        own_metrics: Metrics of one's own by name, as far as the user named them.
        lacks_loss: True if it was trained with a loss of one's own that the user did not name.
        notes: Lines about the functions that the user did not name.
    """

    task: Task
    config: RunConfig
    metric: str
    own_metrics: Mapping[str, Metric] = field(default_factory=dict)
    lacks_loss: bool = False
    notes: tuple[str, ...] = ()


def load_recorded_task(
    location: str,
    hf_config: Any,
    columns: Mapping[str, Any],
    own_task: str | None = None,
    *,
    loss: str | Callable[..., Any] | None = None,
    metrics: Mapping[str, Any] | Sequence[Any] = (),
) -> RecordedTask:
    """Returns the task as the export recorded it in the model's config.

    Of a model that was trained elsewhere, as far as its config contains it.

    Args:
        location: The model, for errors.
        hf_config: Its config.
        columns: Settings of the columns, of reading files, and ignore_labels, if they differ from those of training.
        own_task, loss, metrics: The task, loss and metrics of one's own that the user named, by import path or as functions.
            Nothing that only the model names is imported.
    """
    record = getattr(hf_config, "hf_finetune", None)
    if not record:
        return make_task({"task": {"kind": find_task(location, hf_config)}}, hf_config, columns)
    try:
        kind = record["task"]["kind"]
        if kind in TASKS or ":" not in kind or kind == own_task:
            make_task(record, hf_config, {})
        own = {"loss": None, "metrics": {}, **record.get("own", {})}
        references = {str(name): str(reference) for name, reference in own["metrics"].items()}
    except (InputError, TypeError, KeyError, ValueError, AttributeError) as error:
        reason = error if isinstance(error, InputError) else repr(error)
        raise InputError(
            f"{location}: the training settings in its config (hf_finetune) were written by another version: {reason}"
        ) from None
    if kind not in TASKS and kind != own_task:
        raise InputError(
            f"{location}: its task is the class {kind}, which is imported only if you name it: --task {kind}, or "
            f"Predictor.from_pretrained(..., task={kind!r})"
        )
    recorded = add_own_metrics(make_task(record, hf_config, columns), references, metrics)
    return add_own_loss(recorded, own["loss"], loss)


def make_task(record: Mapping[str, Any], hf_config: Any, columns: Mapping[str, Any]) -> RecordedTask:
    """Returns the task of what an export recorded, with other columns if they are given."""
    config = read_recorded_config(record, columns)
    task_class = load_task(config.task.kind)
    task: Task = task_class.from_state(config, record.get("task_state") or task_class.read_state(hf_config))
    if calibration := record.get("calibration"):
        task = replace(task, scoring=task.scoring.restore_calibration(calibration))
    metric = record.get("metric") or task.scoring.default_metric
    require(isinstance(metric, str), "metric", metric, "must be a string")
    return RecordedTask(task=task, config=config, metric=metric)


def add_own_metrics(
    recorded: RecordedTask, references: Mapping[str, str], given: Mapping[str, Any] | Sequence[Any]
) -> RecordedTask:
    """Returns the task with the metrics of one's own that the user gave; of others, notes.

    Args:
        recorded: The task without them.
        references: The import paths of the metrics of its training, by name.
        given: Those that the user named: functions, or import paths as in evaluation.metrics.
    """
    given = (given,) if isinstance(given, str) else given
    if isinstance(given, (list, tuple)) and all(isinstance(entry, str) for entry in given):
        if wrong := [entry for entry in given if ":" not in entry]:
            raise InputError(f"metrics ({wrong[0]}): must be an import path as my_module:name")
        given = own_metrics(tuple(given))
    metrics = {
        name: load_function("metrics", metric) if isinstance(metric, str) else metric
        for name, metric in name_metrics(given).items()
    }
    notes, metric = [], recorded.metric
    if missing := {name: path for name, path in references.items() if name not in metrics}:
        words = "--metrics " + " ".join(f"{name}={path}" for name, path in missing.items())
        notes.append(
            f"{', '.join(missing)}: left out, because metrics of your own are imported only if you name them: "
            f"{describe_naming('metrics', words)}"
        )
    if metric in missing:
        metric = recorded.task.scoring.default_metric
        notes.append(f"{recorded.metric} decided which checkpoint is best; {metric} takes its place here")
    return replace(recorded, metric=metric, own_metrics=metrics, notes=(*recorded.notes, *notes))


def add_own_loss(recorded: RecordedTask, reference: str | None, given: str | Callable[..., Any] | None) -> RecordedTask:
    """Returns the task with the loss of one's own that the user gave; if he gave none and it was trained with one, a note.

    reference: The import path of the loss of its training, None if that was the task's. given: A function or its import path.
    """
    if given is not None:
        function = load_function("loss", given) if isinstance(given, str) else given
        return replace(recorded, task=recorded.task.with_loss(function, recorded.config))
    if reference is None:
        return recorded
    note = (
        "loss: left out, because a loss of your own is imported only if you name it: "
        f"{describe_naming('loss', f'--loss {reference}')}"
    )
    return replace(recorded, lacks_loss=True, notes=(*recorded.notes, note))


def describe_naming(name: str, words: str) -> str:
    """Returns how to name parts of one's own. Those of a program or a notebook (__main__) cannot be imported by the command."""
    in_python = f"Predictor.from_pretrained(..., {name}=...)"
    return in_python if "__main__:" in words else f"{words}, or {in_python}"


def find_task(location: str, hf_config: Any) -> str:
    """Returns the kind of the first task whose models have this model's head. InputError if there is none."""
    if head := heads.find_head(hf_config):
        for kind in TASKS:
            if head.auto_class in load_task(kind).auto_classes:
                return kind
    architecture = heads.get_architecture(hf_config) or "none"
    raise InputError(f"{location}: its head ({architecture}) belongs to no task of hf-finetune")


def read_recorded_config(record: Mapping[str, Any], columns: Mapping[str, Any]) -> RunConfig:
    """Returns the settings that the export recorded, with others of columns and of reading if they are given."""
    requested = {key: value for key, value in columns.items() if value or key in READING}
    data = {
        key: requested.get(key, record.get(key))
        for key in ("text_columns", "label_column", *READING)
        if key in requested or key in record
    }
    task = dict(record["task"])
    task |= {key: requested[key] for key in ("choice_columns", "ignore_labels") if key in requested}
    return config_from_dict(
        {
            "model": {"backbone": "-"},
            "data": {"train": ["-"], **data},
            "task": task,
            "train": {"label_smoothing": record.get("label_smoothing", 0.0)},
        }
    )
