"""A task: what the columns of the data mean. It has four parts, each tested apart; none of them knows how a run trains.

columns    which columns the task reads
encoding   text to tokens and targets
objective  what is minimized
scoring    what is kept of the model's outputs, the metrics and the predictions

B features of a batch, S sequences, T tokens, N features of a split, D numbers of an embedding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings
from hf_finetune.data.features import Array, Batch, Features, Ragged
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError

if TYPE_CHECKING:
    # The files of tasks import torch inside functions: --help reads their Settings, and has no second to spare for it
    from pathlib import Path

    import torch

Outputs = Sequence[Any]  # N entries, one for each feature: arrays of any shape


class Columns(ABC):
    """Which columns a task reads, and what the words of `hf-finetune predict --text` mean."""

    @property
    @abstractmethod
    def spec(self) -> ColumnSpec:
        """The columns, and how rows are grouped when splits are drawn."""

    @property
    def num_example_texts(self) -> int:
        """How many texts of one example `hf-finetune predict --text` takes."""
        return len(self.spec.inputs)

    @abstractmethod
    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        """The row that the texts of `hf-finetune predict --text` stand for. InputError if they are too few or too many."""


class Encoding(ABC):
    """Text to tokens and targets."""

    @property
    def name(self) -> str:
        """A name that no other encoding has: part of the key of the cache of encoded texts."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def why_inputs_change(self) -> str:
        """Why the inputs differ from epoch to epoch, or "" if they do not. Inputs that differ cannot be cached."""
        return ""

    @abstractmethod
    def encoded_columns(self) -> tuple[str, ...]:
        """The columns that tokenize() reads."""

    def encoding_settings(self) -> dict[str, Any]:
        """The plain settings that tokenize() depends on, apart from max_length."""
        return {}

    @abstractmethod
    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Flat arrays as data.features.make_features() takes them. A pure function: its result is kept on disk."""

    @abstractmethod
    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array | Ragged | None:
        """Targets of the N features, from the table and the arrays of tokenize(). InputError with file and line if a label
        cannot be used."""

    def prepare(self, batch: Batch, features: Features, model: Any, epoch: int) -> Batch:
        """The batch as the model takes it. `epoch` counts from 1 in training and is 0 in evaluation."""
        return batch

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Lines about the training data, printed before update 0: pairs of a short name and a text."""
        cut = f"{features.num_truncated:,} training texts are longer and were cut"
        return [("input", f"at most {max_length} tokens; {cut}")]

    def for_inference(self, tokenizer: Any) -> Self:
        """The encoding of rows without targets, if it differs: a prompt without its answer, for example."""
        return self


@dataclass(frozen=True, kw_only=True)
class UpdateLoss:
    """The loss of one update.

    micro_batch: outputs and batch of a micro-batch to the loss that backward() takes, a sum over targets, and their number.
    total: sum and number of targets of the whole batch over all processes, if they are known before the micro-batches run.
    """

    micro_batch: "Callable[[torch.Tensor, Batch], tuple[torch.Tensor, float]]"
    total: tuple[float, float] | None = None


class UpdateForwards(Protocol):
    """The forward passes of one update, as an objective may ask for them."""

    features: Features
    indices: Array  # [B] of the features of the whole batch, over all micro-batches and processes

    def embed_all(self, embed: "Callable[[torch.Tensor, Batch], torch.Tensor]") -> "torch.Tensor":
        """Embeddings [S, D] of all sequences of the batch, from all processes, without a graph."""

    def find_positions(self, batch: Batch) -> list[int]:
        """Positions of a micro-batch's sequences among the S of embed_all()."""


class Objective(ABC):
    """What is minimized. Write a SummedObjective if the loss is a sum over targets, an InBatchObjective if it compares the
    features of a batch with each other."""

    @abstractmethod
    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        """The loss of an update, before its micro-batches run."""

    @abstractmethod
    def evaluate(self, outputs: "torch.Tensor", batch: Batch) -> tuple[float, float]:
        """Loss of one evaluation batch, summed over targets, and their number."""

    @abstractmethod
    def mean(self, sums: Sequence[tuple[float, float]], outputs: Outputs, features: Features, indices: Array) -> float:
        """Mean loss of the features at `indices`, nan without targets. sums: what evaluate() returned for each batch.
        outputs: what Scoring.reduce() kept of each feature."""

    @abstractmethod
    def timing_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """A loss of one micro-batch alone, for measuring how long a backward pass takes."""


class SummedObjective(Objective):
    """A loss that is a sum over targets."""

    @abstractmethod
    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Loss summed over all targets, and their number (or the sum of their weights). Law 1: nothing else counts targets.
        `outputs`: what model.heads.run_model() returned."""

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


class InBatchObjective(Objective):
    """A loss that compares the sequences of a batch with each other, such as in-batch negatives.

    It is exact over micro-batches and processes (GradCache, Gao et al. 2021, arXiv:2101.06983): all sequences are embedded, the
    gradient of the whole batch's loss with respect to each embedding is taken, and each micro-batch goes backward from its
    part of it.
    """

    EVALUATION_SIZE: ClassVar[int] = 64  # features that an evaluation compares; fixed, so that losses can be compared

    @abstractmethod
    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Embeddings [S, D] of a batch's sequences."""

    @abstractmethod
    def batch_loss(
        self, embeddings: "torch.Tensor", counts: Array, features: Features, indices: Array
    ) -> "tuple[torch.Tensor, float]":
        """Loss of a whole batch, summed over targets, and their number. embeddings: [S, D]. counts: [B] sequences of each
        feature. indices: [B] of the features."""

    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        import torch

        embeddings = forwards.embed_all(self.embed).requires_grad_()
        features, indices = forwards.features, forwards.indices
        loss, count = self.batch_loss(embeddings, features.count_sequences(indices), features, indices)
        (gradient,) = torch.autograd.grad(loss, embeddings)

        def pull(outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float]:
            """A sum whose gradient is that of the whole batch's loss."""
            own = self.embed(outputs, batch).float()
            return (own * gradient[forwards.find_positions(batch)]).sum(), 0.0

        return UpdateLoss(micro_batch=pull, total=(float(loss.detach()), count))

    def evaluate(self, outputs: "torch.Tensor", batch: Batch) -> tuple[float, float]:
        return 0.0, 0.0  # mean() computes the loss from the embeddings

    def mean(self, sums: Sequence[tuple[float, float]], outputs: Outputs, features: Features, indices: Array) -> float:
        """Over groups of EVALUATION_SIZE features in their order. outputs: embeddings [sequences, D] of each feature."""
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


@dataclass(frozen=True, kw_only=True)
class EvaluationOutput:
    """Mean loss over all targets (nan without any), and what Scoring.reduce() kept of each feature, in their order."""

    loss: float
    outputs: Outputs


class Runner(Protocol):
    """Runs the model over features of one split, on all processes. Each feature is computed exactly once."""

    def compute_outputs(self, indices: Array) -> EvaluationOutput:
        """Loss and reduced outputs of the features at `indices`."""

    def generate_texts(self, generate: Callable[[Any, Batch], list[Array]], indices: Array) -> list[str]:
        """The texts that `generate` has the model write for the features at `indices`."""


class Scoring(ABC):
    """What is kept of the model's outputs, the metrics and the predictions."""

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that are reported. The first decides which checkpoint is best, unless evaluation.metric names another."""

    @property
    def default_metric(self) -> str:
        """The metric that evaluation.metric auto stands for."""
        return self.metric_names[0]

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """The full name of a metric. InputError, naming `key`, if it cannot be computed for this task."""
        if name not in ("loss", *self.metric_names):
            raise InputError(f"{key} ({name}): this task has loss, {', '.join(self.metric_names)}")
        return name

    @abstractmethod
    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """For each of the B features the little that compute_metrics() and make_predictions() need of its outputs."""

    @abstractmethod
    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """All of metric_names, and `metric`, from what reduce() kept of the features at `indices`, in their order."""

    @abstractmethod
    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """One row of `hf-finetune predict` for each row of the table, in its order. outputs: of all features."""

    def evaluate(
        self,
        runner: Runner,
        features: Features,
        table: Table,
        *,
        metric: str,
        indices: Array,
        max_texts: int | None = None,
    ) -> dict[str, float]:
        """Loss and metrics of the features at `indices`. max_texts: generate at most that many texts."""
        found = runner.compute_outputs(indices)
        return {"loss": found.loss, **self.compute_metrics(metric, found.outputs, features, table, indices)}

    def predict(self, runner: Runner, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Predictions for all rows of a table."""
        return self.make_predictions(runner.compute_outputs(np.arange(len(features))).outputs, features, table)

    def make_document(self, predictions: Sequence[Mapping[str, Any]]) -> Any:
        """What `hf-finetune predict --out FILE.json` writes of all predictions."""
        return list(predictions)

    def for_inference(self, tokenizer: Any) -> Self:
        """The scoring of rows without targets, if it differs."""
        return self


class GeneratingScoring(Scoring):
    """Scoring of a task whose predictions are generated texts. make_predictions() takes these texts."""

    @abstractmethod
    def generate(self, model: Any, batch: Batch) -> list[Array]:
        """For each of the B features the token ids that the model generates."""

    def predict(self, runner: Runner, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        return self.make_predictions(runner.generate_texts(self.generate, np.arange(len(features))), features, table)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What the columns mean. Built by from_table() for a run, by from_state() for a model that an earlier run made.

    Args:
        columns, encoding, objective, scoring: The four parts.
        head: The head that the backbone is loaded with.
        pipeline_tag: The Hub's name of the task.
        problem: Which of the task's problems this is, such as single_label.
        label_names: Names of the head's outputs, if they have any.
    """

    Settings: ClassVar[type[TaskSettings]] = TaskSettings  # the fields of `task.*`
    auto_classes: ClassVar[tuple[str, ...]] = ()  # of transformers, for finding the task of a model made elsewhere
    library_name: ClassVar[str] = "transformers"  # the library that loads the exported model

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
        """The columns that the settings name. InputError if they do not fit the task."""

    @classmethod
    @abstractmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> Self:
        """The task as state_dict() of an earlier run has it."""

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> Self:
        """The task as the training table has it. InputError with file and line if a row cannot be used."""
        return cls.from_state(config, {})

    @classmethod
    def read_state(cls, model_config: Any) -> dict[str, Any]:
        """The state as far as the config of a model that was made elsewhere tells it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Plain values: all that was learned from the training table. Two runs on the same data have the same."""
        return {}

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Sets what the exported model carries (generation settings), before training. InputError if the model cannot do the
        task."""

    def write_extras(self, folder: "Path", model: Any, max_length: int) -> None:
        """Writes files that the exported folder holds next to model and tokenizer."""

    @abstractmethod
    def describe_for_card(self) -> str:
        """What the model was fine-tuned for, as the model card says it."""

    def for_inference(self, tokenizer: Any) -> Self:
        """The task for rows without targets."""
        return replace(
            self, encoding=self.encoding.for_inference(tokenizer), scoring=self.scoring.for_inference(tokenizer)
        )
