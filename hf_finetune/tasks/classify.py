"""Classification of texts and pairs of texts: one label, several labels, or a number to predict.

B examples of a batch, N examples of a split, C classes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.numbers import has_fractions
from hf_finetune.data.table import ColumnSpec, Table, describe_value, text_and_label_spec
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import Columns, Encoding, Outputs, Scoring, SummedObjective, Task
from hf_finetune.tasks.labels import (
    compute_class_weights,
    describe_class_weights,
    format_counts,
    read_number,
    sort_numbers_first,
)
from hf_finetune.tasks.own_functions import MetricInputs

if TYPE_CHECKING:
    import torch

DECISION_THRESHOLD = 0.5  # multi_label: labels with a larger probability are predicted


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of text classification.

    Args:
        problem: single_label, multi_label or regression; auto chooses by the label column and prints why.
        label_separator: Splits a string of several labels; not needed if the column holds lists.
        class_weights: Weights of the labels in the loss: balanced, or label=weight for some labels; the others weigh 1.
        focal_gamma: Exponent of the focal loss; 0 is plain cross entropy.
    """

    problem: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    label_separator: str | None = None
    class_weights: tuple[str, ...] = ()
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        require(self.label_separator != "", "task.label_separator", "''", "must not be empty")
        require(
            self.label_separator is None or self.problem in ("auto", "multi_label"),
            "task.label_separator",
            self.label_separator,
            f"has no effect with task.problem {self.problem}",
        )
        require(0 <= self.focal_gamma < float("inf"), "task.focal_gamma", self.focal_gamma, "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class TextColumns(Columns):
    """One or two text columns and a label column. numbers: the labels are numbers to predict."""

    texts: tuple[str, ...]
    label: str
    numbers: bool = False

    @property
    def spec(self) -> ColumnSpec:
        return text_and_label_spec(self.texts, self.label, numbers=self.numbers)

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        needed = len(self.texts)
        if len(texts) != needed:
            raise InputError(f"--text: takes {'one text' if needed == 1 else 'two texts'}, as the model was trained")
        return dict(zip(self.texts, texts, strict=True))


@dataclass(frozen=True, kw_only=True)
class LabelReader:
    """Reads the label names of a row.

    Args:
        problem: single_label, multi_label or regression.
        column: The label column.
        separator: Splits a string of several labels (multi_label); None if the column holds lists.
    """

    problem: str
    column: str
    separator: str | None

    def read(self, table: Table, row: int) -> list[str]:
        """Returns the label names of a row: exactly one for single_label, any number for multi_label.

        InputError with file and line if there is no usable label.
        """
        value = table.columns[self.column][row]
        if self.problem != "multi_label":
            return [self.name_label(table, row, value)]
        if isinstance(value, str) and self.separator:
            values: list[Any] = [part.strip() for part in value.split(self.separator) if part.strip()]
        elif isinstance(value, (list, tuple)):
            values = list(value)
        elif value is None:
            raise InputError(f"{table.where(row)}: {self.column} is null; give a row without labels an empty list")
        else:
            raise InputError(
                f"{table.where(row)}: {self.column} ({value}) is not a list; a string of several labels needs "
                "task.label_separator"
            )
        return [self.name_label(table, row, value) for value in values]

    def name_label(self, table: Table, row: int, value: Any) -> str:
        """Returns the name of one label: of the data set's classes if these are known and the value is a number."""
        where, names = f"{table.where(row)}: {self.column}", table.class_names
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InputError(f"{where} is {describe_value(value)}")
        if isinstance(value, (list, tuple, dict)):
            raise InputError(f"{where} ({value}) is not a single label; set task.problem to multi_label for lists")
        if isinstance(value, float):
            if not value.is_integer():
                raise InputError(f"{where} ({value}) is not a class; set task.problem to regression for numbers")
            value = int(value)
        if names is not None and isinstance(value, int):
            if not 0 <= value < len(names):
                raise InputError(f"{where} ({value}) is not among the data set's classes")
            return names[value]
        return str(value)

    def find_names(self, table: Table) -> tuple[str, ...]:
        """Returns all labels: in the data set's own order if it has one, else integers by value, then names by alphabet.

        Never in the order of the rows, which would change with the split. InputError if there are fewer than two.
        """
        counts = Counter(label for row in range(len(table)) for label in self.read(table, row))
        if len(counts) < 2:
            only = f"only {next(iter(counts))!r}" if counts else "no label"
            raise InputError(f"data.label_column ({self.column}): training has {only}; at least two classes are needed")
        return table.class_names or tuple(sorted(counts, key=sort_numbers_first))


@dataclass(frozen=True, kw_only=True)
class TextEncoding(Encoding):
    """Turns the one or two texts of an example into one sequence. A subclass says what its targets are.

    Args:
        texts: The text columns.
    """

    texts: tuple[str, ...]

    def encoded_columns(self) -> tuple[str, ...]:
        return self.texts

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        return tokenize([table.columns[name] for name in self.texts], tokenizer, max_length)


@dataclass(frozen=True, kw_only=True)
class ClassificationEncoding(TextEncoding):
    """Turns the one or two texts of an example into one sequence, and its labels into a class number, 0/1 [C] or a number.

    Args:
        texts: The text columns.
        reader: Reads the labels.
        label_names: Names of the C classes.
        class_weights: Weights of the classes, for describe().
        reason: Why this problem was chosen, for describe().
    """

    reader: LabelReader
    label_names: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()
    reason: str = ""

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array:
        """Returns class numbers [N] int64, 0/1 [N, C] float32 for multi_label, or numbers [N] float32 for regression."""
        if self.reader.problem == "regression":
            column = self.reader.column
            return np.array([read_number(table, row, column) for row in range(len(table))], dtype=np.float32)
        index = {name: number for number, name in enumerate(self.label_names)}
        rows = [[index.get(name, -1) for name in self.reader.read(table, row)] for row in range(len(table))]
        for row, numbers in enumerate(rows):
            if -1 in numbers:
                name = self.reader.read(table, row)[numbers.index(-1)]
                raise InputError(
                    f"{table.where(row)}: the label {name!r} is not one of the {len(index)} labels of the training data"
                )
        if self.reader.problem == "single_label":
            return np.array([numbers[0] for numbers in rows], dtype=np.int64)
        targets = np.zeros((len(rows), len(index)), dtype=np.float32)
        for row, numbers in enumerate(rows):
            targets[row, numbers] = 1.0
        return targets

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The input, the problem and why it was chosen, the labels and the number of training examples of each."""
        labels: Any = features.labels
        head = f"{self.reader.problem}, {self.reason}: "
        lines = super().describe(features, table, max_length)
        if self.reader.problem == "regression":
            return [*lines, ("labels", f"{head}from {labels.min():g} to {labels.max():g}")]
        totals = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(self.label_names))
        counts = {name: int(total) for name, total in zip(self.label_names, totals, strict=True)}
        weights = describe_class_weights(self.label_names, self.class_weights)
        return [*lines, ("labels", head + format_counts(counts)), *weights]


@dataclass(frozen=True, kw_only=True)
class ClassificationObjective(SummedObjective):
    """Cross entropy (single_label), binary cross entropy of each label (multi_label), or squared error (regression).

    class_weights, focal_gamma: As in losses.cross_entropy(), for single_label only.
    """

    problem: str
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Returns the loss summed over its terms (B, or B x C for multi_label), and their number. outputs: logits [B, C]."""
        from torch.nn import functional as F

        from hf_finetune.tasks.losses import cross_entropy

        logits, labels = outputs.float(), batch.labels
        assert labels is not None
        if self.problem == "single_label":
            return cross_entropy(
                logits,
                labels,
                label_smoothing=self.label_smoothing,
                class_weights=self.class_weights,
                focal_gamma=self.focal_gamma,
            )
        if self.problem == "multi_label":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum"), labels.numel()
        return F.mse_loss(logits.squeeze(-1), labels, reduction="sum"), len(labels)


@dataclass(frozen=True, kw_only=True)
class ClassificationScoring(Scoring):
    """Turns logits into probabilities, metrics and predictions.

    Args:
        top_k: The number of labels whose probabilities a prediction lists, the most probable first; None for all, in their order.
        threshold: multi_label: labels with a larger probability are predicted.
    """

    problem: str
    label_names: tuple[str, ...]
    top_k: int | None = None
    threshold: float = DECISION_THRESHOLD

    def with_options(self, *, top_k: int | None = None, threshold: float | None = None) -> Self:
        if top_k is not None:
            require(self.problem != "regression", "top_k", top_k, "has no effect on a model that predicts a number")
            require(top_k >= 1, "top_k", top_k, "must be 1 or more")
        if threshold is not None:
            reason = "is for models that predict several labels of a text; this one predicts " + (
                "a number" if self.problem == "regression" else "the most probable label"
            )
            require(self.problem == "multi_label", "threshold", threshold, reason)
            require(0 <= threshold <= 1, "threshold", threshold, "must be from 0 to 1")
        return replace(self, top_k=top_k, threshold=self.threshold if threshold is None else threshold)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return {
            "single_label": ("accuracy", "f1_macro"),
            "multi_label": ("f1_micro", "f1_macro", "exact_match"),
            "regression": ("pearson", "spearman", "mse"),
        }[self.problem]

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        name = metrics.expand_name(name)
        if name != "loss":
            metrics.load_metric(name, key)
            metrics.check_fits(name, self.problem, key)
        return name

    def is_from_hub(self, name: str) -> bool:
        return metrics.expand_name(name) not in ("loss", *metrics.OFFLINE)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns the logits [C] of each example."""
        return list(outputs.float().cpu().numpy())

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        logits = np.stack(outputs)
        return metrics.compute_all(
            (metric, *self.metric_names),
            predictions=self.decode(logits),
            scores=self.compute_scores(logits),
            references=features.get_labels(indices),
        )

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """Class numbers [N] and probabilities [N, C]; 0/1 [N, C] for multi_label; numbers [N] and no scores for regression."""
        logits = np.stack(outputs)
        return MetricInputs(
            predictions=self.decode(logits),
            references=features.get_labels(indices),
            scores=None if self.problem == "regression" else self.compute_scores(logits),
            label_names=self.label_names,
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields `{label, probabilities}`, `{labels, probabilities}` or `{score}` for each example."""
        for scores in self.compute_scores(np.stack(outputs)):
            yield dict(self.describe_scores(scores))

    def decode(self, logits: Array) -> Array:
        """Returns the predicted class numbers [B], 0/1 [B, C] for multi_label, or numbers [B] for regression."""
        if self.problem == "single_label":
            return logits.argmax(-1)
        if self.problem == "multi_label":
            return (self.compute_scores(logits) > self.threshold).astype(int)
        return logits[:, 0]

    def compute_scores(self, logits: Array) -> Array:
        """Returns probabilities [B, C] by softmax or sigmoid, or the numbers [B, 1] for regression."""
        from scipy.special import expit, softmax

        if self.problem == "regression":
            return logits
        return softmax(logits, axis=-1) if self.problem == "single_label" else expit(logits)

    def describe_scores(self, scores: Sequence[float]) -> Mapping[str, Any]:
        """Returns the prediction of one example from its probabilities [C], or from its number [1]."""
        if self.problem == "regression":
            return {"score": float(scores[0])}
        probabilities = {name: float(score) for name, score in zip(self.label_names, scores, strict=True)}
        best_first = sorted(probabilities, key=lambda name: -probabilities[name])
        shown = (
            probabilities if self.top_k is None else {name: probabilities[name] for name in best_first[: self.top_k]}
        )
        if self.problem == "multi_label":
            labels = [name for name, score in probabilities.items() if score > self.threshold]
            return {"labels": labels, "probabilities": shown}
        return {"label": best_first[0], "probabilities": shown}


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Text classification.

    Args:
        problem: single_label, multi_label or regression.
        class_weights: The weight of each label, or ().
    """

    Settings = Settings
    auto_classes = ("AutoModelForSequenceClassification",)
    loss_settings = ("class_weights", "focal_gamma")

    class_weights: tuple[float, ...] = ()

    @classmethod
    def make_columns(cls, config: RunConfig) -> TextColumns:
        assert isinstance(config.task, Settings)
        texts, label = config.data.text_columns, config.data.label_column
        require(len(texts) in (1, 2), "data.text_columns", list(texts), "must be one column or two")
        require(label is not None, "data.label_column", None, "must be the column of the labels")
        return TextColumns(texts=texts, label=str(label), numbers=config.task.problem == "regression")

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Classification":
        """Finds the problem (if task.problem is auto) and the labels, in a fixed order, in the training rows."""
        assert isinstance(config.task, Settings)
        settings, column = config.task, str(config.data.label_column)
        problem, reason = str(settings.problem), "set by task.problem"
        if problem == "auto":
            problem, reason = guess_problem(table, column, settings.label_separator)
        check_loss_settings(config.train.label_smoothing, settings, problem)
        reader = LabelReader(problem=problem, column=column, separator=settings.label_separator)
        names = ("score",) if problem == "regression" else reader.find_names(table)
        weights: tuple[float, ...] = ()
        if settings.class_weights:
            counts = Counter(reader.read(table, row)[0] for row in range(len(table)))
            weights = compute_class_weights(settings.class_weights, names, counts)
        return cls.compose(config, problem, names, weights, reason)

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Classification":
        return cls.compose(config, state["problem"], tuple(state["labels"]), tuple(state.get("class_weights", ())))

    @classmethod
    def compose(
        cls, config: RunConfig, problem: str, names: tuple[str, ...], weights: tuple[float, ...], reason: str = ""
    ) -> "Classification":
        """Returns the task of a problem, its labels and their weights. reason: why it is this problem."""
        assert isinstance(config.task, Settings)
        settings, columns = config.task, cls.make_columns(config)
        reader = LabelReader(problem=problem, column=columns.label, separator=settings.label_separator)
        return cls(
            problem=problem,
            label_names=names,
            class_weights=weights,
            pipeline_tag="text-classification",
            head=HeadSpec(
                auto_class=cls.auto_classes[0], config_entries=make_config_entries(problem, names), has_labels=True
            ),
            columns=columns,
            encoding=ClassificationEncoding(
                texts=columns.texts, reader=reader, label_names=names, class_weights=weights, reason=reason
            ),
            objective=ClassificationObjective(
                problem=problem,
                label_smoothing=config.train.label_smoothing,
                class_weights=weights,
                focal_gamma=settings.focal_gamma,
            ),
            scoring=ClassificationScoring(problem=problem, label_names=names),
        )

    @classmethod
    def read_state(cls, model_config: Any) -> dict[str, Any]:
        problem = model_config.problem_type or (
            "regression" if model_config.num_labels == 1 else "single_label_classification"
        )
        names = [model_config.id2label[number] for number in range(model_config.num_labels)]
        return {"problem": problem.removesuffix("_classification"), "labels": names}

    def state_dict(self) -> dict[str, Any]:
        return {"problem": self.problem, "labels": list(self.label_names), "class_weights": list(self.class_weights)}

    def describe_for_card(self) -> str:
        labels = "Label" if len(self.label_names) == 1 else f"{len(self.label_names)} labels"
        return f"{self.problem.replace('_', '-')} text classification.\n{labels}: {', '.join(self.label_names)}."


def check_loss_settings(label_smoothing: float, settings: Settings, problem: str) -> None:
    """Raises InputError if a setting of the cross entropy was changed for a problem with another loss."""
    if problem == "single_label":
        return
    changed = {
        "train.label_smoothing": label_smoothing,
        "task.focal_gamma": settings.focal_gamma,
        "task.class_weights": list(settings.class_weights),
    }
    for key, value in changed.items():
        require(not value, key, value, f"is for single_label problems, and this one is {problem}")


def make_config_entries(problem: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns entries of the model's config: the names of the labels, and transformers' name of the problem."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": problem if problem == "regression" else f"{problem}_classification",
    }


def guess_problem(table: Table, column: str, separator: str | None) -> tuple[str, str]:
    """Returns the problem that a label column looks like, and why."""
    values = table.columns[column]
    if separator is not None:
        return "multi_label", f"task.label_separator splits {column}"
    if any(isinstance(value, (list, tuple)) for value in values):
        return "multi_label", f"{column} holds lists"
    if has_fractions(values):
        return "regression", f"{column} holds numbers with fractions"
    return "single_label", f"{column} holds single labels"
