"""The scoring of a task: what is kept of the model's outputs, metrics and predictions.

N features of a split, B features of a batch, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.calibration import Calibrator
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.objectives import Outputs
from hf_finetune.tasks.own_functions import Metric, MetricInputs, compute_own_metrics

if TYPE_CHECKING:
    import torch


Reduce = Callable[["torch.Tensor", Batch], list[Array]]  # as Scoring.reduce()
ComputeMetrics = Callable[[Sequence[str], Outputs, Features, Table, Array], dict[str, float]]  # as compute_several()


@dataclass(frozen=True, kw_only=True)
class EvaluationOutput:
    """The mean loss over all targets (nan without any), and what Scoring.reduce() returned for each feature, in order."""

    loss: float
    outputs: Outputs


class Runner(Protocol):
    """Runs the model over features of one split. All processes share the work, and all get the results. Each feature is
    computed exactly once."""

    def compute_outputs(self, indices: Array, reduce: "Reduce | None" = None) -> EvaluationOutput:
        """Returns the mean loss of the features at `indices`, and their reduced outputs. reduce: In place of Scoring.reduce()."""

    def generate_texts(self, generate: Callable[[Any, Batch], list[Array]], indices: Array) -> list[str]:
        """Returns the texts of the token ids that `generate` returns for the features at `indices`."""


@dataclass(frozen=True, kw_only=True)
class KeptOutputs:
    """The outputs that an evaluation computed.

    Args:
        indices: The features that were evaluated [F].
        outputs: What was kept of the output of each.
        texts: The texts that were generated, if there are any.
        text_indices: The features that they were generated for.
    """

    indices: Array
    outputs: Outputs
    texts: Sequence[str] = ()
    text_indices: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class KeepingRunner:
    """A runner that keeps the outputs which it returned last."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.kept: KeptOutputs | None = None

    def compute_outputs(self, indices: Array, reduce: "Reduce | None" = None) -> EvaluationOutput:
        result = self.runner.compute_outputs(indices, reduce)
        self.kept = KeptOutputs(indices=indices, outputs=result.outputs)
        return result

    def generate_texts(self, generate: Callable[[Any, Batch], list[Array]], indices: Array) -> list[str]:
        texts = self.runner.generate_texts(generate, indices)
        if self.kept is not None:
            self.kept = replace(self.kept, texts=texts, text_indices=indices)
        return texts


class Scoring(ABC):
    """Turns outputs of the model into metrics and predictions.

    The outputs of a split may be too large to keep. So reduce() is called after each forward pass, and the other methods take
    what it returned for all features.
    """

    @property
    def calibrator(self) -> Calibrator | None:
        """Fits and applies what task.calibrate names; None if it names nothing, or if the task has no such setting."""
        return None

    @property
    def reads_some_tokens(self) -> bool:
        """True if reduce() reads only the outputs of the tokens of the objective's find_reading(), so that only these are
        computed (see Objective). It counts for the reduce() of the class that says so, not for that of a derived class."""
        return False

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that are computed at each evaluation."""

    @property
    def default_metric(self) -> str:
        """The metric that decides which checkpoint is best, unless evaluation.metric names another."""
        return self.metric_names[0]

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Returns the full name of a metric. InputError, with the setting `key`, if this task cannot compute it."""
        names = ("loss", *self.metric_names)
        if name not in names:
            raise InputError(f"{key} ({name}): must be one of {', '.join(names)}")
        return name

    def is_foreign_code(self, name: str) -> bool:
        """True if a metric is Python code of the Hub or of a file. It runs only if the user names the metric and trusts it."""
        return False

    def load_metric(self, name: str, key: str = "evaluation.metric", *, trust_code: bool = False) -> str:
        """Returns the full name of a metric that the user names, as check_metric(). With `trust_code`, runs its code if it is
        foreign code; InputError without."""
        if self.is_foreign_code(name):
            metrics.load_metric(name, key, trust_code=trust_code)
        return self.check_metric(name, key)

    def has_metric(self, name: str) -> bool:
        """True if this package computes a metric for the task, without code of the Hub or of a file."""
        if self.is_foreign_code(name):
            return False
        try:
            self.check_metric(name)
        except InputError:
            return False
        return True

    @abstractmethod
    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns, for each of the B features, the part of its outputs that metrics and predictions need.

        outputs: What model.heads.run_model() returned, such as logits [B, C].
        """

    @abstractmethod
    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """Returns all of metric_names, and `metric` if it is another one.

        Args:
            metric: The metric that decides which checkpoint is best.
            outputs: What reduce() returned for each of the features at `indices`.
            features: The features of the split.
            table: The rows of the split.
            indices: Which of the features were evaluated.
        """

    @abstractmethod
    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields a prediction for each row of the table, in order. outputs: What reduce() returned for each feature."""

    def evaluate(
        self,
        runner: Runner,
        features: Features,
        table: Table,
        *,
        metric: str,
        indices: Array,
        max_texts: int | None = None,
        more_metrics: Sequence[str] = (),
        own_metrics: Mapping[str, Metric] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Returns loss and metrics of the features at `indices`.

        Args:
            runner, features, table: The model and the split.
            metric: The metric that decides which checkpoint is best.
            indices: Which of the features to evaluate.
            max_texts: The most texts to generate, if metrics need generated texts; None for as many as the settings ask for.
            more_metrics: Names of further metrics, as check_metric() returned them.
            own_metrics: Metrics of one's own by name.
        """
        known = self.default_metric if metric in own_metrics else metric
        names = (known, *more_metrics)
        reduce, compute = self.plan_metrics(names, own_metrics, len(indices))
        result = runner.compute_outputs(indices, reduce)
        values = {"loss": result.loss, **compute(names, result.outputs, features, table, indices)}
        if own_metrics:
            inputs = self.make_metric_inputs(result.outputs, features, table, indices)
            values |= compute_own_metrics(own_metrics, inputs)
        return values

    def plan_metrics(
        self, names: Sequence[str], own_metrics: Mapping[str, Metric], num_features: int
    ) -> tuple[Reduce, ComputeMetrics]:
        """Returns what is kept of the outputs of a batch, reduce() or less if that is enough, and the function that computes the
        metrics from it. InputError if it does not fit in memory.

        Args:
            names: The metric that decides which checkpoint is best, and further ones.
            own_metrics: Metrics of one's own by name, which need what reduce() keeps.
            num_features: The number of features to evaluate.
        """
        return self.reduce, self.compute_several

    def compute_several(
        self, names: Sequence[str], outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """Returns all of metric_names, and all of `names`. The other arguments are those of compute_metrics()."""
        values = self.compute_metrics(names[0], outputs, features, table, indices)
        for name in names[1:]:
            if name not in values and name != "loss":
                values[name] = self.compute_metrics(name, outputs, features, table, indices)[name]
        return values

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """Returns what metrics of one's own are computed from. The arguments are those of compute_metrics().

        InputError if the task has nothing to give to them.
        """
        raise InputError(
            f"evaluation.metrics: {type(self).__name__} has no predictions that a metric of your own could be computed from"
        )

    def keep_examples(self) -> Self:
        """Returns the scoring whose evaluations compute the same metrics and keep what describe_examples() takes."""
        return self

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores | None:
        """Returns what an evaluation knows of each example, with the metrics that follow from that; None if the task has nothing.

        Args:
            kept: What was kept in an evaluation by the scoring that keep_examples() returned.
            features, table: The features and the rows of the split.
            names: Metrics besides metric_names, as check_metric() returned them.
        """
        return None

    def predict(self, runner: Runner, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields a prediction for each row of the table, in order."""
        return self.make_predictions(runner.compute_outputs(np.arange(len(features))).outputs, features, table)

    def make_document(self, predictions: Iterator[Mapping[str, Any] | None]) -> Any:
        """Returns what `hf-finetune predict --out FILE.json` writes for all predictions, in the order of the rows; an iterator is
        written as a list. A row that could not be predicted is None, or has `input` alone, its kept columns."""
        return predictions

    def for_inference(self, tokenizer: Any) -> Self:
        """Returns the scoring of rows without targets, if it differs."""
        return self

    def calibrate(
        self, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> tuple[Self, dict[str, float]]:
        """Returns the scoring that decides as what task.calibrate names, fitted on these outputs, and the metrics of that; itself
        without metrics if it has nothing to fit. The arguments are those of compute_metrics()."""
        return self, {}

    def restore_calibration(self, record: Mapping[str, Any]) -> Self:
        """Returns the scoring that decides as an export recorded it (Calibrator.to_record()); itself if it has nothing to fit."""
        return self

    def with_options(self, *, top_k: int | None = None, threshold: float | None = None) -> Self:
        """Returns the scoring whose predictions have these options. InputError if they do not.

        Args:
            top_k: The number of most probable labels or tokens that a prediction lists.
            threshold: The probability from which on a label is predicted.
        """
        for name, value in (("top_k", top_k), ("threshold", threshold)):
            require(value is None, name, value, "has no effect on the predictions of this task; leave it out")
        return self


class GeneratingScoring(Scoring):
    """Scoring of a task whose predictions are generated texts: the outputs that make_predictions() takes are these texts."""

    @abstractmethod
    def generate(self, model: Any, batch: Batch) -> list[Array]:
        """Returns the token ids [length] that the model generates for each of the B features."""

    def predict(self, runner: Runner, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        return self.make_predictions(runner.generate_texts(self.generate, np.arange(len(features))), features, table)
