"""Text and sentence-pair classification: one label, several labels, or a number. B examples, C classes."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_finetune.config.sections import RunConfig, check
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Batch, Features
from hf_finetune.data.table import ColumnSpec, Table, has_fractions, text_and_label_spec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import Kept, Task
from hf_finetune.tasks.losses import cross_entropy

if TYPE_CHECKING:
    import numpy as np
    import torch

LARGEST_TARGET = 3.4028234663852886e38  # of float32, which the targets of a regression are

DECISION_THRESHOLD = 0.5  # of a label's probability, multi_label


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Labels known from the training table, and what follows from them."""

    problem: str
    label_names: tuple[str, ...]
    text_columns: tuple[str, ...] = ("text",)
    label_column: str
    label_separator: str | None = None
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    reason: str = ""  # why this problem

    name = "classification"
    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    settings = frozenset({"problem", "label_separator", "class_weights", "focal_gamma"})

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        columns = config.data.text_columns
        check(len(columns) in (1, 2), "data.text_columns", list(columns), "takes one or two columns")
        check(config.data.label_column is not None, "data.label_column", None, "classification needs labels")
        return text_and_label_spec(config.data, numbers=config.task.problem == "regression")

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Classification":
        """Reads the problem (where task.problem is auto) and the labels, in a fixed order, off the training rows."""
        column = str(config.data.label_column)
        problem: str = config.task.problem
        reason = "as task.problem says"
        if problem == "auto":
            problem, reason = guess_problem(table, column, config.task.label_separator)
        task = replace(cls.from_facts(config, {"problem": problem, "labels": []}), reason=reason)
        for key, value in (("train.label_smoothing", task.label_smoothing), ("task.focal_gamma", task.focal_gamma),
                           ("task.class_weights", list(config.task.class_weights))):  # fmt: skip
            check(not value or problem == "single_label", key, value,
                  f"is for single_label problems, and this one is {problem}")  # fmt: skip
        names = ("score",) if problem == "regression" else task.find_labels(table)
        task = replace(task, label_names=names)
        counts = (
            Counter(task.labels_of(table, row)[0] for row in range(len(table))) if config.task.class_weights else {}
        )
        return replace(task, class_weights=weights_of(config.task.class_weights, names, counts))

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "Classification":
        return cls(
            problem=facts["problem"],
            label_names=tuple(facts["labels"]),
            text_columns=config.data.text_columns,
            label_column=str(config.data.label_column),
            label_separator=config.task.label_separator,
            label_smoothing=config.train.label_smoothing,
            class_weights=tuple(facts.get("class_weights", ())),
            focal_gamma=config.task.focal_gamma,
        )

    @classmethod
    def facts_of_model(cls, model_config: Any) -> dict[str, Any]:
        problem = model_config.problem_type or (
            "regression" if model_config.num_labels == 1 else "single_label_classification"
        )
        names = [model_config.id2label[number] for number in range(model_config.num_labels)]
        return {"problem": problem.removesuffix("_classification"), "labels": names}

    def facts(self) -> dict[str, Any]:
        return {"problem": self.problem, "labels": list(self.label_names), "class_weights": list(self.class_weights)}

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

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        name = metrics.SHORT_NAMES.get(name, name)
        if name != "loss":
            metrics.load(name, key)
            metrics.check_fits(name, self.problem, key)
        return name

    def model_settings(self) -> dict[str, Any]:
        names = dict(enumerate(self.label_names))
        problem = self.problem if self.problem == "regression" else f"{self.problem}_classification"
        return {
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
            "problem_type": problem,
        }

    def encoded_columns(self) -> tuple[str, ...]:
        return self.text_columns

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        return tokenize([table.columns[name] for name in self.text_columns], tokenizer, max_length)

    def labels(self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]":
        """Class numbers [N] int64, 0/1 [N, C] float32, or numbers [N] float32."""
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

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Besides the input: the problem and why; the labels and how many training examples have each."""
        import numpy as np

        labels: Any = features.labels
        head = f"{self.problem}, {self.reason}: "
        lines = Task.describe(self, features, table, max_length)
        if self.problem == "regression":
            return [*lines, ("labels", f"{head}from {labels.min():g} to {labels.max():g}")]
        totals = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(self.label_names))
        counts = {name: int(total) for name, total in zip(self.label_names, totals, strict=True)}
        return [*lines, ("labels", head + distribution(counts)), *weights_line(self.label_names, self.class_weights)]

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Sum of cross entropy, binary cross entropy over all B x C, or squared errors; and the number of terms."""
        from torch.nn import functional as F

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

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """Logits [C]."""
        return list(outputs.float().cpu().numpy())

    def metrics(
        self, metric: str, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        import numpy as np

        logits = np.stack(kept)
        return metrics.compute_all(
            (metric, *self.metric_names),
            predictions=self.decode(logits),
            scores=self.scores(logits),
            references=features.get_labels(rows),
        )

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """For each text: label (or labels, or score) and the probability of every label."""
        import numpy as np

        for scores in self.scores(np.stack(kept)):
            yield dict(self.describe_scores(scores))

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        asked = len(self.text_columns)
        if len(texts) != asked:
            raise InputError(f"--text: takes {'one text' if asked == 1 else 'two texts'}, as the model was trained")
        return dict(zip(self.text_columns, texts, strict=True))

    def card(self) -> str:
        labels = "Label" if len(self.label_names) == 1 else f"{len(self.label_names)} labels"
        return f"{self.problem.replace('_', '-')} text classification.\n{labels}: {', '.join(self.label_names)}."

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

    def describe_scores(self, scores: Sequence[float]) -> Mapping[str, Any]:
        """`{label, probabilities}`, `{labels, probabilities}` or `{score}`."""
        if self.problem == "regression":
            return {"score": float(scores[0])}
        probabilities = {name: float(score) for name, score in zip(self.label_names, scores, strict=True)}
        if self.problem == "multi_label":
            labels = [name for name, score in probabilities.items() if score > DECISION_THRESHOLD]
            return {"labels": labels, "probabilities": probabilities}
        return {"label": max(probabilities, key=lambda name: probabilities[name]), "probabilities": probabilities}


def distribution(counts: Mapping[str, int], most: int = 8) -> str:
    """Names and how many there are of each, the most frequent first."""
    ordered = Counter(counts).most_common()
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:most])
    return shown + (f", and {len(ordered) - most} more" if len(ordered) > most else "")


def weights_of(asked: Sequence[str], names: Sequence[str], counts: Mapping[str, int]) -> tuple[float, ...]:
    """The weight of each label that task.class_weights means; () where it is empty.

    balanced: all labels / (number of labels x labels of the name), as scikit-learn's compute_class_weight; a name that
    training does not have weighs 1.
    """
    if not asked:
        return ()
    if list(asked) == ["balanced"]:
        present = sum(count > 0 for count in counts.values())
        return tuple(sum(counts.values()) / (present * counts[name]) if counts.get(name) else 1.0 for name in names)
    weights = dict.fromkeys(names, 1.0)
    for each in asked:
        name, _, value = each.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        takes = "takes balanced, or label=weight, weights above 0"
        check(0 < weight < math.inf, "task.class_weights", each, takes)
        check(name in weights, "task.class_weights", each, f"training has the labels {', '.join(names)}")
        weights[name] = weight
    return tuple(weights.values())


def weights_line(names: Sequence[str], weights: Sequence[float]) -> list[tuple[str, str]]:
    """What is said of class weights, where there are any."""
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=False))
    return [("weights", shown)] if weights else []


def numeric_first(name: str) -> tuple[int, float, str]:
    """Sort key: whole numbers by value, then names. No two labels are equal."""
    return (0, float(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0.0, name)


def number_of(table: Table, row: int, column: str, needed: str = "as task.problem regression needs") -> float:
    """A finite number to be predicted, or InputError with file and line."""
    value = table.columns[column][row]
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        number = float(value)
    except OverflowError:  # a whole number beyond every float
        number = math.inf
    except (TypeError, ValueError):
        shown = "null" if value is None else repr(value)
        raise InputError(f"{table.where(row)}: {column} ({shown}) is no number, {needed}") from None
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
