"""The user's own parts of a run: rows in memory, a loss, metrics, an optimizer, and functions that a run calls.

Python code hands them to finetune(); a config names them by import path. docs/extending.md describes the signature of each.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_finetune.config.references import is_reference, load_reference
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.formats import name_type
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.own_functions import Metric


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The user's own parts of a run.

    Attributes:
        rows: Rows that a program gave, by split: data.memory.KINDS.
        loss: loss(outputs, batch) returns the loss summed over targets, and their number; if the task's loss compares the
            examples of a batch, loss(embeddings, counts, features, indices).
        metrics: By name, metric(inputs) returns a number; `inputs` is a tasks.base.MetricInputs.
        optimizer: optimizer(groups, **options) returns a torch optimizer.
        augment: augment(row, seed, epoch) returns the row for an epoch.
        on_update: on_update(update, model) is called after each update.
        pause: pause(run, progress) returns True if the run, after an evaluation, is to be saved and left for now.
    """

    rows: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[..., Any] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    optimizer: Callable[..., Any] | None = None
    augment: Callable[..., Any] | None = None
    on_update: Callable[..., Any] | None = None
    pause: Callable[..., bool] | None = None


NO_PARTS = Parts()
FUNCTIONS = ("loss", "optimizer", "augment", "on_update")  # attributes of Parts, and settings of the section train


def load_parts(config: RunConfig, given: Parts) -> Parts:
    """Returns the parts that Python gave, and those that the config names, which are imported.

    Raises InputError if one cannot be imported, or cannot be called.
    """
    loaded: dict[str, Any] = {}
    for name in FUNCTIONS:
        reference = getattr(config.train, name)
        if getattr(given, name) is None and reference is not None and is_reference(reference):
            loaded[name] = load_function(f"train.{name}", reference)
    own = own_metrics(config.evaluation.metrics)
    metrics = {
        name: given.metrics.get(name) or load_function("evaluation.metrics", reference)
        for name, reference in own.items()
    }
    return replace(given, **loaded, metrics=metrics)


def load_function(key: str, reference: str) -> Callable[..., Any]:
    """Imports a function. InputError, with the setting `key`, if there is none, or if it cannot be called."""
    function = load_reference(key, reference)
    if not callable(function):
        raise InputError(f"{key} ({reference}): cannot be called")
    return function


def name_metrics(metrics: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Returns metrics by their names: functions in a list have their own names. InputError if they are no dict or list, or if two
    have one name."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    if not isinstance(metrics, (list, tuple)):
        raise InputError(f"metrics: is {name_type(metrics)}; give a list of functions, or a dict of functions by names")
    check_are_functions(metrics)
    named = {getattr(metric, "__name__", type(metric).__name__): metric for metric in metrics}
    if len(named) < len(metrics):
        raise InputError("metrics: two of the functions have one name; give a dict of functions by names")
    return named


def check_are_functions(metrics: Iterable[Any]) -> None:
    """Raises InputError if one of the metrics is not a function."""
    for metric in metrics:
        if not callable(metric):
            raise InputError(
                f"metrics ({metric}): must be functions; names and import paths of metrics belong in the setting "
                "evaluation.metrics"
            )


def own_metrics(entries: tuple[str, ...]) -> dict[str, str]:
    """Returns the import paths of one's own metrics by the names of the metrics: of NAME=my_module:function, or of
    my_module:function, whose name is that of the function. Leaves out the metrics of this package and of the Hub.

    InputError if two have one name.
    """
    references: dict[str, str] = {}
    for entry in entries:
        if ":" not in entry:
            continue
        name, equals, reference = entry.partition("=")
        reference = reference if equals else entry
        name = name if equals else reference.rpartition(":")[2].rpartition(".")[2]
        if name in references:
            raise InputError(
                f"evaluation.metrics ({entry}): there are two metrics {name}; name one as other={reference}"
            )
        references[name] = reference
    return references
