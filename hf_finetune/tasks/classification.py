"""Text and sentence-pair classification: one label, several labels, or a number. B examples, C classes."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_finetune.config import RunConfig, check
from hf_finetune.errors import InputError
from hf_finetune.sources import Table, has_fractions

if TYPE_CHECKING:
    import numpy as np
    import torch

LARGEST_TARGET = 3.4028234663852886e38  # of float32, which the targets of a regression are
DECISION_THRESHOLD = 0.5  # of a label's probability, multi_label


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Labels known from the training table, and what follows from them."""

    problem: str
    label_names: tuple[str, ...]
    label_column: str
    label_separator: str | None = None
    label_smoothing: float = 0.0
    reason: str = ""  # why this problem

    name = "classification"
    auto_class = "AutoModelForSequenceClassification"

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Classification":
        """Reads the problem (where task.problem is auto) and the labels, in a fixed order, off the training rows."""
        column = config.data.label_column
        problem: str = config.task.problem
        reason = "as task.problem says"
        if problem == "auto":
            problem, reason = guess_problem(table, column, config.task.label_separator)
        task = cls(
            problem=problem,
            label_names=(),
            label_column=column,
            label_separator=config.task.label_separator,
            label_smoothing=config.train.label_smoothing,
            reason=reason,
        )
        check(
            task.label_smoothing == 0 or problem == "single_label",
            "train.label_smoothing",
            task.label_smoothing,
            f"is for single_label problems, and this one is {problem}",
        )
        names = ("score",) if problem == "regression" else task.find_labels(table)
        return cls(
            problem=problem,
            label_names=names,
            label_column=column,
            label_separator=task.label_separator,
            label_smoothing=task.label_smoothing,
            reason=reason,
        )

    def find_labels(self, table: Table) -> tuple[str, ...]:
        """The labels in the data set's own order, else numbers by value and names by alphabet. Never by first seen."""
        found = Counter(label for row in range(len(table)) for label in self.labels_of(table, row))
        names = table.class_names or tuple(sorted(found, key=numeric_first))
        if len(found) < 2:
            only = f"only {next(iter(found))!r}" if found else "no label"
            raise InputError(f"data.label_column ({self.label_column}): training has {only}; two classes are the least")
        return names

    def labels_of(self, table: Table, row: int) -> list[str]:
        """The label names of a row: exactly one for single_label, any number for multi_label."""
        value = table.columns[self.label_column][row]
        if self.problem == "multi_label":
            if isinstance(value, str) and self.label_separator:
                values: list[Any] = [part.strip() for part in value.split(self.label_separator) if part.strip()]
            elif isinstance(value, (list, tuple)):
                values = list(value)
            elif value is None:
                raise InputError(
                    f"{table.where(row)}: {self.label_column} is null; a row without labels has an empty list"
                )
            else:
                raise InputError(
                    f"{table.where(row)}: {self.label_column} ({value}) is no list; a string of several "
                    "labels needs task.label_separator"
                )
        else:
            values = [value]
        return [self.label_name(table, row, value) for value in values]

    def label_name(self, table: Table, row: int, value: Any) -> str:
        """One label as a string."""
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InputError(f"{table.where(row)}: {self.label_column} is {'null' if value is None else 'empty'}")
        if isinstance(value, (list, tuple, dict)):
            raise InputError(f"{table.where(row)}: {self.label_column} ({value}) is no single label; see task.problem")
        if isinstance(value, float):
            if not value.is_integer():
                raise InputError(
                    f"{table.where(row)}: {self.label_column} ({value}) is no class; see task.problem regression"
                )
            value = int(value)
        if table.class_names is not None and isinstance(value, int):
            if not 0 <= value < len(table.class_names):
                raise InputError(
                    f"{table.where(row)}: {self.label_column} ({value}) is not among the data set's classes"
                )
            return table.class_names[value]
        return str(value)

    @property
    def default_metric(self) -> str:
        return {"single_label": "accuracy", "multi_label": "f1_micro", "regression": "pearson"}[self.problem]

    @property
    def metric_names(self) -> tuple[str, ...]:
        return {
            "single_label": ("accuracy", "f1_macro"),
            "multi_label": ("f1_micro", "f1_macro", "exact_match"),
            "regression": ("pearson", "spearman", "mse"),
        }[self.problem]

    def encode_labels(self, table: Table) -> "np.ndarray[Any, Any]":
        """Class numbers [B] int64, 0/1 [B, C] float32, or numbers [B] float32."""
        import numpy as np

        if self.problem == "regression":
            return np.array([number_of(table, row, self.label_column) for row in range(len(table))], dtype=np.float32)
        index = {name: number for number, name in enumerate(self.label_names)}
        rows = [[index.get(name, -1) for name in self.labels_of(table, row)] for row in range(len(table))]
        for row, numbers in enumerate(rows):
            if -1 in numbers:
                name = self.labels_of(table, row)[numbers.index(-1)]
                raise InputError(
                    f"{table.where(row)}: the label {name!r} is not among the {len(index)} that training has"
                )
        if self.problem == "single_label":
            return np.array([numbers[0] for numbers in rows], dtype=np.int64)
        targets = np.zeros((len(rows), len(index)), dtype=np.float32)
        for row, numbers in enumerate(rows):
            targets[row, numbers] = 1.0
        return targets

    def loss(self, logits: "torch.Tensor", labels: "torch.Tensor") -> "tuple[torch.Tensor, int]":
        """Sum of cross entropy, binary cross entropy over all B x C, or squared errors; and the number of terms."""
        from torch.nn import functional as F

        logits = logits.float()
        if self.problem == "single_label":
            return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing), len(labels)
        if self.problem == "multi_label":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum"), labels.numel()
        return F.mse_loss(logits.squeeze(-1), labels, reduction="sum"), len(labels)

    def decode(self, logits: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Class numbers [B], 0/1 [B, C] by a probability above 0.5, or numbers [B]."""
        if self.problem == "single_label":
            return logits.argmax(-1)
        if self.problem == "multi_label":
            return (self.scores(logits) > DECISION_THRESHOLD).astype(int)
        return logits[:, 0]

    def scores(self, logits: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Softmax or sigmoid [B, C], or the numbers [B, 1]."""
        from scipy.special import expit, softmax

        if self.problem == "regression":
            return logits
        return softmax(logits, axis=-1) if self.problem == "single_label" else expit(logits)

    def describe(self, scores: Sequence[float]) -> Mapping[str, Any]:
        """`{label, probabilities}`, `{labels, probabilities}` or `{score}`."""
        if self.problem == "regression":
            return {"score": float(scores[0])}
        probabilities = {name: float(score) for name, score in zip(self.label_names, scores, strict=True)}
        if self.problem == "multi_label":
            labels = [name for name, score in probabilities.items() if score > DECISION_THRESHOLD]
            return {"labels": labels, "probabilities": probabilities}
        return {"label": max(probabilities, key=lambda name: probabilities[name]), "probabilities": probabilities}


def numeric_first(name: str) -> tuple[int, float, str]:
    """Sort key: whole numbers by value, then names. No two labels are equal."""
    return (0, float(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0.0, name)


def number_of(table: Table, row: int, column: str) -> float:
    """A finite regression target, or InputError with file and line."""
    value = table.columns[column][row]
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        number = float(value)
    except OverflowError:  # a whole number beyond every float
        number = math.inf
    except (TypeError, ValueError):
        shown = "null" if value is None else repr(value)
        raise InputError(
            f"{table.where(row)}: {column} ({shown}) is no number, as task.problem regression needs"
        ) from None
    if not abs(number) <= LARGEST_TARGET:
        raise InputError(f"{table.where(row)}: {column} ({number}) is not finite, or too large for float32")
    return number


def guess_problem(table: Table, column: str, separator: str | None) -> tuple[str, str]:
    """The problem that a label column looks like, and why."""
    values = table.columns[column]
    if separator is not None:
        return "multi_label", f"task.label_separator splits {column}"
    if any(isinstance(value, (list, tuple)) for value in values):
        return "multi_label", f"{column} holds lists"
    if has_fractions(values):
        return "regression", f"{column} holds numbers with fractions"
    return "single_label", f"{column} holds single labels"
