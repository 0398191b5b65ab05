"""The task: what the columns of the data mean, and what the model learns from them. A new task is written by subclassing the
classes of this module (hf_finetune/tasks/classify.py is an example).

A task is composed of four parts. Each can be tested alone, and none depends on how a run trains:

Columns    the columns that the task reads
Encoding   turns rows of a table into tokens and targets
Objective  the loss
Scoring    turns outputs of the model into metrics and predictions

An example is a row of a table. It is encoded as one or more features (a long text as several windows), and a feature has one or
more sequences of tokens (the choices of a question). Batches are made of features.

N features of a split, B features of a batch, S sequences of a batch, T tokens, D numbers of an embedding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.features import Array, Batch, Features, Ragged
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.own_functions import Metric, MetricInputs, check_loss, compute_own_metrics

if TYPE_CHECKING:
    # --help imports the tasks for their Settings, and torch takes a second to import: tasks import it inside functions
    from pathlib import Path

    import torch

Outputs = Sequence[Any]  # for each feature what Scoring.reduce() returned, an array; or its generated text


class Columns(ABC):
    """The columns that a task reads."""

    @property
    @abstractmethod
    def spec(self) -> ColumnSpec:
        """The names of the columns, and which rows stay together when splits are drawn."""

    @property
    def num_example_texts(self) -> int:
        """The number of texts that an example command `hf-finetune predict --text` shows."""
        return len(self.spec.inputs)

    @abstractmethod
    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        """Returns the row for the texts of `hf-finetune predict --text`. InputError if there are too few or too many."""


class Encoding(ABC):
    """Turns rows of a table into tokens and targets."""

    @property
    def name(self) -> str:
        """A name that no other encoding has. It is part of the key under which tokenized texts are cached."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def why_inputs_change(self) -> str:
        """The reason why inputs differ from epoch to epoch (random masks, for example), or "" if they do not.

        The activations of such inputs cannot be cached.
        """
        return ""

    @abstractmethod
    def encoded_columns(self) -> tuple[str, ...]:
        """Returns the columns that tokenize() reads."""

    def encoding_settings(self) -> dict[str, Any]:
        """Returns the settings that tokenize() depends on, as plain values, without max_length."""
        return {}

    @abstractmethod
    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Returns the flat arrays that data.features.make_features() takes.

        Must be a pure function of the arguments, encoded_columns() and encoding_settings(): its result is cached on disk.
        """

    @abstractmethod
    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array | Ragged | None:
        """Returns the targets [N, ...] of the features, made from the table and the arrays of tokenize().

        InputError with file and line if a label cannot be used.
        """

    def prepare(self, batch: Batch, features: Features, model: Any, epoch: int) -> Batch:
        """Returns the batch as the model takes it. epoch: from 1 in training, 0 in evaluation."""
        return batch

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Returns the lines about the training data that are printed before training: pairs of a short name and a text."""
        cut = f"{features.num_truncated:,} training texts are longer and were cut"
        return [("input", f"at most {max_length} tokens; {cut}")]

    def for_inference(self, tokenizer: Any) -> Self:
        """Returns the encoding of rows without targets. It differs, for example, if a prompt is encoded without its answer."""
        return self


@dataclass(frozen=True, kw_only=True)
class UpdateLoss:
    """The loss of one update, as a function of its micro-batches.

    Args:
        micro_batch: From the outputs and the batch of a micro-batch, returns the loss that is propagated backward, summed over
            targets, and the number of targets.
        total: The loss of the entire batch, over all processes, summed over targets, and their number; None if they are the sums
            of what micro_batch returns.
    """

    micro_batch: "Callable[[torch.Tensor, Batch], tuple[torch.Tensor, float]]"
    total: tuple[float, float] | None = None


class UpdateForwards(Protocol):
    """Runs forward passes for an objective that needs them before an update.

    features: The features of the training split. indices: Those of the batch [B], over all micro-batches and processes.
    """

    features: Features
    indices: Array

    def embed_all(self, embed: "Callable[[torch.Tensor, Batch], torch.Tensor]") -> "torch.Tensor":
        """Returns the embeddings [S, D] of all sequences of the batch, over all processes, detached from the graph.

        embed: From outputs and batch of a micro-batch, returns the embeddings of its sequences.
        """

    def find_positions(self, batch: Batch) -> list[int]:
        """Returns the positions of a micro-batch's sequences among the S of embed_all()."""


class Objective(ABC):
    """The loss.

    Subclass SummedObjective if the loss is a sum over targets, InBatchObjective if it compares the features of a batch with each
    other.
    """

    @abstractmethod
    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        """Returns the loss of an update. Called before its micro-batches run."""

    @abstractmethod
    def evaluate(self, outputs: "torch.Tensor", batch: Batch) -> tuple[float, float]:
        """Returns the loss of one evaluation batch, summed over targets, and their number."""

    @abstractmethod
    def mean(self, sums: Sequence[tuple[float, float]], outputs: Outputs, features: Features, indices: Array) -> float:
        """Returns the mean loss of the features at `indices`, nan if they have no targets.

        Args:
            sums: What evaluate() returned for each of their batches.
            outputs: What Scoring.reduce() returned for each of them.
            features: The features of the split.
            indices: Which of these were evaluated.
        """

    @abstractmethod
    def timing_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns a loss of one micro-batch alone. It is used only to measure how long a backward pass takes."""

    def with_loss(self, function: Callable[..., Any]) -> "Objective":
        """Returns the objective with a loss function of one's own (train.loss) instead of its loss."""
        raise InputError(f"train.loss: {type(self).__name__} does not take another loss")


class SummedObjective(Objective):
    """A loss that is a sum over targets."""

    @abstractmethod
    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Returns the loss summed over all targets of a micro-batch, and their number (or the sum of their weights).

        The mean loss is the sum over all micro-batches, divided by the sum of these numbers: targets are counted nowhere else
        (law 1 in docs/design.md). outputs: What model.heads.run_model() returned, such as logits.
        """

    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        return UpdateLoss(micro_batch=self.loss)

    def evaluate(self, outputs: "torch.Tensor", batch: Batch) -> tuple[float, float]:
        if batch.labels is None:
            return 0.0, 0.0
        loss, count = self.loss(outputs, batch)
        return float(loss), count

    def mean(self, sums: Sequence[tuple[float, float]], outputs: Outputs, features: Features, indices: Array) -> float:
        count = math.fsum(number for _, number in sums)
        return math.fsum(loss for loss, _ in sums) / count if count else math.nan

    def timing_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        return self.loss(outputs, batch)[0]

    def with_loss(self, function: Callable[..., Any]) -> "SummedObjective":
        return OwnLoss(function=function)


@dataclass(frozen=True, kw_only=True)
class OwnLoss(SummedObjective):
    """A loss function of one's own, with the arguments and the result of SummedObjective.loss()."""

    function: Callable[..., Any]

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Returns what the function returns. InputError if that is not a sum and a number of targets."""
        return check_loss(self.function(outputs, batch))


class InBatchObjective(Objective):
    """A loss that compares the sequences of a batch with each other, for example by in-batch negatives.

    The loss is that of the entire batch, however it is split into micro-batches and processes (GradCache, Gao et al. 2021,
    arXiv:2101.06983): all sequences are embedded, the gradient of the loss with respect to the embeddings is computed, and
    each micro-batch propagates its part of this gradient backward.
    """

    EVALUATION_SIZE: ClassVar[int] = 64  # features compared with each other in evaluation, whatever the batch size is

    @abstractmethod
    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the embeddings [S, D] of the sequences of a micro-batch."""

    @abstractmethod
    def batch_loss(
        self, embeddings: "torch.Tensor", counts: Array, features: Features, indices: Array
    ) -> "tuple[torch.Tensor, float]":
        """Returns the loss of an entire batch, summed over targets, and their number.

        Args:
            embeddings: Of all sequences of the batch [S, D].
            counts: Number of sequences of each feature [B].
            features: The features of the split.
            indices: Those of the batch [B].
        """

    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        import torch

        embeddings = forwards.embed_all(self.embed).requires_grad_()
        features, indices = forwards.features, forwards.indices
        loss, count = self.batch_loss(embeddings, features.count_sequences(indices), features, indices)
        (gradient,) = torch.autograd.grad(loss, embeddings)

        def compute_surrogate(outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float]:
            """Returns a sum whose gradient is the micro-batch's part of the gradient of the batch's loss."""
            own = self.embed(outputs, batch).float()
            return (own * gradient[forwards.find_positions(batch)]).sum(), 0.0

        return UpdateLoss(micro_batch=compute_surrogate, total=(float(loss.detach()), count))

    def evaluate(self, outputs: "torch.Tensor", batch: Batch) -> tuple[float, float]:
        return 0.0, 0.0  # mean() computes the loss from the embeddings

    def mean(self, sums: Sequence[tuple[float, float]], outputs: Outputs, features: Features, indices: Array) -> float:
        """Compares the features in groups of EVALUATION_SIZE, in their order. outputs: Embeddings [sequences, D] of each."""
        import torch

        if features.labels is None:
            return math.nan
        parts = []
        for start in range(0, len(indices), self.EVALUATION_SIZE):
            group = slice(start, start + self.EVALUATION_SIZE)
            embeddings = torch.from_numpy(np.concatenate(outputs[group]))
            counts = np.array([len(array) for array in outputs[group]])
            loss, count = self.batch_loss(embeddings, counts, features, indices[group])
            parts.append((float(loss), count))
        return math.fsum(loss for loss, _ in parts) / (math.fsum(count for _, count in parts) or math.nan)

    def timing_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        return self.embed(outputs, batch).sum()

    def with_loss(self, function: Callable[..., Any]) -> "InBatchObjective":
        return OwnBatchLoss(function=function, objective=self)


@dataclass(frozen=True, kw_only=True)
class OwnBatchLoss(InBatchObjective):
    """A loss function of one's own over the embeddings of a batch, with the arguments and the result of batch_loss()."""

    function: Callable[..., Any]
    objective: InBatchObjective

    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        return self.objective.embed(outputs, batch)

    def batch_loss(
        self, embeddings: "torch.Tensor", counts: Array, features: Features, indices: Array
    ) -> "tuple[torch.Tensor, float]":
        """Returns what the function returns. InputError if that is not a sum and a number of targets."""
        return check_loss(self.function(embeddings, counts, features, indices))


@dataclass(frozen=True, kw_only=True)
class EvaluationOutput:
    """The mean loss over all targets (nan without any), and what Scoring.reduce() returned for each feature, in order."""

    loss: float
    outputs: Outputs


class Runner(Protocol):
    """Runs the model over features of one split. All processes share the work, and all get the results. Each feature is
    computed exactly once."""

    def compute_outputs(self, indices: Array) -> EvaluationOutput:
        """Returns the mean loss of the features at `indices`, and their reduced outputs."""

    def generate_texts(self, generate: Callable[[Any, Batch], list[Array]], indices: Array) -> list[str]:
        """Returns the texts of the token ids that `generate` returns for the features at `indices`."""


class Scoring(ABC):
    """Turns outputs of the model into metrics and predictions.

    The outputs of a split may be too large to keep. So reduce() is called after each forward pass, and the other methods take
    what it returned for all features.
    """

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
        result = runner.compute_outputs(indices)
        known = self.default_metric if metric in own_metrics else metric
        values = {"loss": result.loss, **self.compute_metrics(known, result.outputs, features, table, indices)}
        for name in more_metrics:
            if name not in values:
                values[name] = self.compute_metrics(name, result.outputs, features, table, indices)[name]
        if own_metrics:
            inputs = self.make_metric_inputs(result.outputs, features, table, indices)
            values |= compute_own_metrics(own_metrics, inputs)
        return values

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """Returns what metrics of one's own are computed from. The arguments are those of compute_metrics().

        InputError if the task has nothing to give to them.
        """
        raise InputError(
            f"evaluation.metrics: {type(self).__name__} has no predictions that a metric of your own could be computed from"
        )

    def predict(self, runner: Runner, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields a prediction for each row of the table, in order."""
        return self.make_predictions(runner.compute_outputs(np.arange(len(features))).outputs, features, table)

    def make_document(self, predictions: Sequence[Mapping[str, Any]]) -> Any:
        """Returns what `hf-finetune predict --out FILE.json` writes for all predictions."""
        return list(predictions)

    def for_inference(self, tokenizer: Any) -> Self:
        """Returns the scoring of rows without targets, if it differs."""
        return self


class GeneratingScoring(Scoring):
    """Scoring of a task whose predictions are generated texts: the outputs that make_predictions() takes are these texts."""

    @abstractmethod
    def generate(self, model: Any, batch: Batch) -> list[Array]:
        """Returns the token ids [length] that the model generates for each of the B features."""

    def predict(self, runner: Runner, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        return self.make_predictions(runner.generate_texts(self.generate, np.arange(len(features))), features, table)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task. from_table() makes it for a new run, from_state() for a model that an earlier run trained.

    Args:
        columns, encoding, objective, scoring: The four parts.
        head: The head with which the backbone is loaded.
        pipeline_tag: Name of the task on the Hub.
        problem: The variant of the task, such as single_label.
        label_names: Names of the head's outputs, if they have any.

    Class variables:
        Settings: The dataclass of the settings `task.*`.
        auto_classes: Classes of transformers whose models belong to this task, for models that were trained elsewhere.
        library_name: The library that loads the exported model.
        loss_settings: The settings `task.*` of its loss, which have no effect on a loss of one's own (train.loss).
    """

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    auto_classes: ClassVar[tuple[str, ...]] = ()
    library_name: ClassVar[str] = "transformers"
    loss_settings: ClassVar[tuple[str, ...]] = ()

    columns: Columns
    encoding: Encoding
    objective: Objective
    scoring: Scoring
    head: HeadSpec
    pipeline_tag: str
    problem: str
    label_names: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def make_columns(cls, config: RunConfig) -> Columns:
        """Returns the columns that the settings name. InputError if they do not fit the task."""

    @classmethod
    @abstractmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> Self:
        """Returns the task with the state of an earlier run, as state_dict() returned it."""

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> Self:
        """Returns the task with what it learns from the training table, such as the labels.

        InputError with file and line if a row cannot be used.
        """
        return cls.from_state(config, {})

    @classmethod
    def read_state(cls, model_config: Any) -> dict[str, Any]:
        """Returns the state of a model that was trained elsewhere, as far as its config contains it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Returns what from_table() learned from the training table, as plain values. It is equal for equal data."""
        return {}

    def prepare_model(self, model: Any, tokenizer: Any) -> None:  # noqa: B027 - most tasks have nothing to change
        """Changes the model's config, generation settings or the tokenizer before training; the exported model has them too.

        InputError if the model cannot do the task.
        """

    def write_extras(self, folder: "Path", model: Any, max_length: int) -> None:  # noqa: B027
        """Writes further files into the exported folder, next to model and tokenizer."""

    def with_loss(self, function: Callable[..., Any], config: RunConfig) -> Self:
        """Returns the task with a loss function of one's own. InputError if a setting of the task's own loss is set."""
        defaults = {field.name: field.default for field in fields(self.Settings)}
        changed: dict[str, Any] = (
            {"train.label_smoothing": config.train.label_smoothing} if config.train.label_smoothing else {}
        )
        for name in self.loss_settings:
            if (value := getattr(config.task, name)) != defaults[name]:
                changed[f"task.{name}"] = list(value) if isinstance(value, tuple) else value
        for key, value in changed.items():
            require(False, key, value, f"has no effect on train.loss ({config.train.loss}); leave one of them out")
        return replace(self, objective=self.objective.with_loss(function))

    @abstractmethod
    def describe_for_card(self) -> str:
        """Returns the end of the model card's sentence "fine-tuned with hf-finetune for ...", and more sentences."""

    def for_inference(self, tokenizer: Any) -> Self:
        """Returns the task for rows without targets."""
        return replace(
            self, encoding=self.encoding.for_inference(tokenizer), scoring=self.scoring.for_inference(tokenizer)
        )
