"""What the columns mean, one file a task. TASKS is the whole list."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hf_finetune.config import RunConfig
from hf_finetune.sources import Table
from hf_finetune.tasks.classification import Classification

if TYPE_CHECKING:
    import numpy as np
    import torch


class Task(Protocol):
    """What varies between tasks. B examples, C outputs of the head."""

    @property
    def name(self) -> str:
        """Its key in TASKS."""

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads its models."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of the C outputs."""

    @property
    def problem(self) -> str:
        """The kind of problem."""

    @property
    def reason(self) -> str:
        """Why it is this problem."""

    @property
    def default_metric(self) -> str:
        """What evaluation.metric auto means."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics reported besides the chosen one."""

    def encode_labels(self, table: Table) -> "np.ndarray[Any, Any]":
        """Targets of the rows, [B] or [B, C]; InputError with file and line where one cannot be used."""

    def loss(self, logits: "torch.Tensor", labels: "torch.Tensor") -> "tuple[torch.Tensor, int]":
        """Sum of the loss over all targets, and their number. Law 1: nobody else counts targets."""

    def decode(self, logits: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Predictions in the form of the targets."""

    def scores(self, logits: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Probabilities [B, C], or the numbers themselves for regression."""

    def describe(self, scores: Sequence[float]) -> Mapping[str, Any]:
        """One row of `hf-finetune predict`, from the scores of one example."""


def build(name: str, config: RunConfig, train: Table) -> Task:
    """The task `name` with what the training table says about labels."""
    return TASKS[name].from_table(config, train)


TASKS = {"classification": Classification}
