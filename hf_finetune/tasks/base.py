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

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.features import Array, Batch, Features, Ragged
from hf_finetune.data.label_counts import WAY_OUT
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.tasks.objectives import (
    CountedObjective,
    InBatchObjective,
    Objective,
    Outputs,
    SummedObjective,
    UpdateForwards,
    UpdateLoss,
)
from hf_finetune.tasks.own_functions import Metric, MetricInputs
from hf_finetune.tasks.scoring import EvaluationOutput, GeneratingScoring, Runner, Scoring

if TYPE_CHECKING:
    # --help imports the tasks for their Settings, and torch takes a second to import: tasks import it inside functions
    from pathlib import Path


# All that a task of one's own needs can be imported from here
__all__ = [
    "Columns",
    "CountedObjective",
    "Encoding",
    "EvaluationOutput",
    "GeneratingScoring",
    "InBatchObjective",
    "Metric",
    "MetricInputs",
    "Objective",
    "Outputs",
    "Runner",
    "Scoring",
    "SummedObjective",
    "Task",
    "UpdateForwards",
    "UpdateLoss",
]


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
    """Turns rows of a table into tokens and targets.

    Class variables:
        rows_are_independent: What tokenize() makes of a row does not depend on other rows, so that parts of a table are encoded
            on all cores. The arrays of the parts are then put one after the other; `rows`, those whose name ends in "offsets"
            and `examples` count on from those of the part before, and single numbers are added. join() makes any others. What a
            class says here counts for its own tokenize(), not for one of a derived class.
    """

    rows_are_independent: ClassVar[bool] = False

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

        Must be a pure function of the arguments, encoded_columns() and encoding_settings(): its result is cached on disk. The
        code of a class of the user's own counts too, but not that of other modules which it calls.
        """

    def join(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the arrays that are not those of the parts of a table, one after the other. arrays: those of all parts."""
        return {}

    @abstractmethod
    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array | Ragged | None:
        """Returns the targets [N, ...] of the features, made from the table and the arrays of tokenize().

        InputError with file and line if a label cannot be used.
        """

    def prepare(self, batch: Batch, features: Features, model: Any, epoch: int) -> Batch:
        """Returns the batch, which is on the CPU, as the model takes it. epoch: from 1 in training (with data.streaming the
        number of the block of rows), 0 in evaluation."""
        return batch

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Returns the lines about the training data that are printed before training: pairs of a short name and a text."""
        cut = f"{features.num_truncated:,} training texts are longer and were cut"
        return [("input", f"at most {max_length} tokens; {cut}")]

    def count_labels(self, table: Table) -> dict[str, int]:
        """Returns the number of examples of each label, by its name; {} if the task has no names of labels."""
        return {}

    def describe_problem(self, table: Table) -> list[tuple[str, str]]:
        """Returns the line about the problem, with the range of targets that are numbers; [] if a task has only one problem."""
        return []

    def unify_labels(self, table: Table) -> Sequence[Any] | None:
        """Returns a plain value for each row, equal for rows whose labels mean the same; None if they are equal only if they are
        written in one way."""
        return None

    def advise_on_rare_labels(self, counts: Mapping[str, int]) -> str:
        """Returns what can be done about labels with few examples; "" if find_warnings() says more about them.

        counts: The training examples by label.
        """
        return WAY_OUT

    def check_rows(self, table: Table) -> None:  # noqa: B027 - the other methods check the rows of most tasks
        """Raises InputError at the first row that tokenize() or labels() would refuse, as far as that shows without a tokenizer.

        `hf-finetune data` calls it. Only needed for what count_labels() and find_warnings() do not read.
        """

    def find_warnings(self, tables: Mapping[str, Table]) -> list[str]:
        """Returns what may be wrong with the data, a sentence each: warnings before training, errors with data.strict.

        tables: The rows by split: train, validation and, if there is one, test.
        """
        return []

    def find_row_warnings(self, table: Table) -> list[str]:
        """Returns what may be wrong with how the rows of one table are read, a sentence each: of each split as find_warnings(),
        and of the rows that Predictor.evaluate() gets."""
        return []

    def for_inference(self, tokenizer: Any) -> Self:
        """Returns the encoding of rows without targets. It differs, for example, if a prompt is encoded without its answer."""
        return self


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
        needs_backbone: from_table() reads the config of the backbone.
    """

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    auto_classes: ClassVar[tuple[str, ...]] = ()
    library_name: ClassVar[str] = "transformers"
    loss_settings: ClassVar[tuple[str, ...]] = ()
    needs_backbone: ClassVar[bool] = False

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
    def extend_training(cls, config: RunConfig, table: Table) -> Table:
        """Returns the training table with what other files of the task's settings add to it, such as hard negatives.

        Rows stay as many. Validation and test stay as they are. InputError with file and line if a row cannot be used.
        """
        return table

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

    def prepare_tokenizer(self, tokenizer: Any) -> None:  # noqa: B027
        """Changes the tokenizer before texts are encoded, without a model. prepare_model() does this too."""

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
