"""The Task protocol: all that varies between tasks. Its defaults are those of a task with one output a feature.

B features of a batch, S sequences, T tokens, C outputs of the head.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import Batch, Features, Ragged
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.heads import HeadSpec
from hf_finetune.system.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

# What a forward leaves of each feature: an array of any shape, [N] of them; or the texts that were written
Kept = Sequence[Any]


class Task(Protocol):
    """What the columns mean. A frozen dataclass that subclasses this, built by from_table() or from_facts().

    name: its key in TASKS. problem: which of the task's problems it is. label_names: of the head's outputs, where they have
    names. auto_class: the class of transformers that loads its models. pipeline_tag: the Hub's name of the task.
    library_name: what the Hub says loads the model. settings: the fields of TaskConfig that it reads. couples_rows: the loss
    of a batch is no sum over its features (in-batch negatives); then represent() and coupled_loss() are used, and loss() is
    not. changing_inputs: why inputs differ from epoch to epoch, where they do: nothing of them can be cached then.
    """

    name: str
    problem: str
    label_names: tuple[str, ...] = ()
    auto_class: str
    pipeline_tag: str
    library_name: str = "transformers"
    settings: frozenset[str] = frozenset()
    couples_rows: bool = False
    changing_inputs: str = ""

    # --- built from data, or from what an earlier run learned of them

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        """The columns it reads. InputError where settings do not fit the task."""

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> Self:
        """The task with what the training table says. InputError with file and line where rows cannot be used."""
        return cls.from_facts(config, {})

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> Self:
        """The task as facts() of an earlier run has it."""

    @classmethod
    def facts_of_model(cls, model_config: Any) -> dict[str, Any]:
        """The facts as far as a model of unknown origin tells them by its config."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Plain values: all that was learned from the training table. Two runs on the same data have the same."""
        return {}

    # --- metrics

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that are reported; the first decides what is best, unless evaluation.metric names another."""

    @property
    def default_metric(self) -> str:
        """What evaluation.metric auto means."""
        return self.metric_names[0]

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """The full name of a metric; InputError where it cannot be computed for this task."""
        if name not in ("loss", *self.metric_names):
            raise InputError(f"{key} ({name}): {self.name} has loss, {', '.join(self.metric_names)}")
        return name

    def metrics(
        self, metric: str, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        """All of metric_names, and `metric`, from what keep() left of these rows of the features, in their order."""

    def generated_rows(self, features: Features) -> "np.ndarray[Any, Any] | None":
        """The rows that evaluation generates text for, by generate(); None where nothing is generated."""
        return None

    def generated_metrics(
        self, texts: Sequence[str], features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        """The metrics of the texts that generate() wrote for these rows."""
        return {}

    # --- model

    @property
    def head(self) -> HeadSpec:
        """The head that its backbone is loaded with."""
        return HeadSpec(
            auto_class=self.auto_class, config_entries=self.model_settings(), has_labels=bool(self.label_names)
        )

    def model_settings(self) -> dict[str, Any]:
        """Entries of the model's config that follow from the labels."""
        return {}

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Sets what the exported model should carry (generation settings) before it is trained; InputError where the model
        cannot do the task."""

    def write_extras(self, folder: "Path", model: Any, max_length: int) -> None:
        """Writes what the exported folder holds beside model and tokenizer."""

    # --- data

    def encoded_columns(self) -> tuple[str, ...]:
        """The columns that tokenize() reads."""

    def encoding_settings(self) -> dict[str, Any]:
        """The plain settings that tokenize() depends on, besides max_length."""
        return {}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """Flat arrays as data.make_features() takes them. Pure: it is done once for the same columns, and kept on disk."""

    def labels(
        self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]"
    ) -> "np.ndarray[Any, Any] | Ragged | None":
        """Targets of the features, from the table and what tokenize() returned. InputError with file and line where one
        cannot be used."""

    def prepare(self, batch: Batch, features: Features, model: Any, view: int) -> Batch:
        """The batch as the model takes it. `view` is the epoch, counted from 1, in training, and 0 in evaluation."""
        return batch

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """What is said of the training data before update 0: pairs of a short name and a line."""
        cut = f"{features.num_truncated:,} training texts are longer and were cut"
        return [("input", f"at most {max_length} tokens; {cut}")]

    # --- forward

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Sum of the loss over all targets, and their number (or the sum of their weights). Law 1: nobody else counts
        targets. `outputs`: what heads.run() returned."""

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """For each of the B features what metrics() and predictions() need of its outputs: little."""

    def represent(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """[S, D] of each sequence what coupled_loss() compares. Only where couples_rows."""
        raise NotImplementedError

    def coupled_loss(
        self,
        representations: "torch.Tensor",
        counts: "np.ndarray[Any, Any]",
        features: Features,
        rows: "np.ndarray[Any, Any]",
    ) -> "tuple[torch.Tensor, float]":
        """Sum of the loss of a whole batch, all processes' rows in it, and the number of targets. Only where couples_rows.
        representations: [S, D], `counts` of them for each of the rows."""
        raise NotImplementedError

    def generate(self, model: Any, batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """For each of the B features the token ids that the model writes."""
        raise NotImplementedError

    # --- use

    def for_predictions(self, tokenizer: Any) -> Self:
        """The task as predictions take it, where what is asked differs from what is trained on (a prompt without its answer),
        or the tokenizer is needed."""
        return self

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """One row of `hf-finetune predict` for each row of the table, in its order. `kept`: of all features; where
        predicts_by_generating, the texts (str) that generate() wrote for them."""

    def document(self, predictions: Sequence[Mapping[str, Any]]) -> Any:
        """What `hf-finetune predict --out FILE.json` writes of all predictions."""
        return list(predictions)

    @property
    def predicts_by_generating(self) -> bool:
        """Whether predictions() are made of generated text."""
        return False

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        """The row that the words of `hf-finetune predict --text` mean; InputError where they are too few or too many."""

    def card(self) -> str:
        """What the model was fine-tuned for, as the card says it, and more where there is more to say."""
