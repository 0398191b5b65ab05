"""What a task gives to a user's own functions, and the checks of what they return. docs/extending.md has examples."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_finetune.data.table import describe_value
from hf_finetune.system.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MetricInputs:
    """What a metric of one's own is computed from: all examples of a split, in order.

    docs/extending.md lists the types of each task.

    Args:
        predictions: What the model predicts for each of the N examples.
        references: What is right for each of them, in the same form.
        scores: The model's scores of each, such as probabilities [N, C]; None if the task has none.
        label_names: Names of the C classes or tags, if the task has any.
    """

    predictions: Any
    references: Any
    scores: Any = None
    label_names: tuple[str, ...] = ()


Metric = Callable[[MetricInputs], float]


@contextlib.contextmanager
def name_own_function(name: str) -> Iterator[None]:
    """Adds `in NAME` to the traceback of an exception in the block, which calls a function of the user's own."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {name}")
        raise


def compute_own_metrics(metrics: Mapping[str, Metric], inputs: MetricInputs) -> dict[str, float]:
    """Returns the values of metrics of one's own. InputError if one of them is not a number."""
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        with name_own_function(
            f"evaluation.metrics ({name}), a function of your own; docs/extending.md says what it gets"
        ):
            value = metric(inputs)
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            raise InputError(
                f"evaluation.metrics ({name}): returned {describe_value(value, 'a number')}; it must return one number"
            ) from None
    return values


def call_loss(function: Callable[..., Any], *arguments: Any) -> "tuple[torch.Tensor, float]":
    """Returns the result of a loss function of one's own. InputError if it is not a tensor of one number and a number."""
    import torch

    with name_own_function("train.loss, a function of your own; docs/extending.md says what it gets"):
        value = function(*arguments)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        total, count = value
        if isinstance(total, torch.Tensor) and total.numel() == 1:
            return total.reshape(()), float(count)
    raise InputError(
        "train.loss: the function must return two values, the loss summed over the targets (a tensor of one number) and the "
        "number of targets; a mean cannot be combined exactly over micro-batches and processes"
    )
