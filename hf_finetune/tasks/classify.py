"""Classification of texts and pairs of texts: one label, several labels, or a number to predict.

B examples of a batch, N examples of a split, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from hf_finetune.config.sections import RunConfig, require
from hf_finetune.data.columns import find_distinct
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, ClassSets, Features
from hf_finetune.data.label_counts import format_counts
from hf_finetune.data.table import Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.markdown import escape_markdown
from hf_finetune.tasks.base import Encoding, Task
from hf_finetune.tasks.calibration import Calibrator
from hf_finetune.tasks.class_scoring import ClassificationObjective, ClassificationScoring
from hf_finetune.tasks.classify_columns import (
    Settings,
    TextColumns,
    check_calibration,
    check_columns,
    check_loss_settings,
    check_windows,
)
from hf_finetune.tasks.labels import compute_class_weights, describe_class_weights, read_names
from hf_finetune.tasks.text.label_checks import (
    MOST_SHOWN,
    advise_on_rare_labels,
    find_label_warnings,
    find_number_warnings,
    find_numbers_as_labels,
    find_own_labels,
)
from hf_finetune.tasks.text.label_index import spell_label
from hf_finetune.tasks.text.label_reader import LabelReader, guess_problem
from hf_finetune.tasks.text.token_windows import encode_windows
from hf_finetune.tasks.window_scoring import WindowScoring


@dataclass(frozen=True, kw_only=True)
class TextEncoding(Encoding):
    """Turns the one or two texts of an example into one sequence. A subclass says what its targets are.

    Args:
        texts: The text columns.
    """

    rows_are_independent: ClassVar[bool] = True

    texts: tuple[str, ...]

    def encoded_columns(self) -> tuple[str, ...]:
        return self.texts

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        return tokenize([table.columns[name] for name in self.texts], tokenizer, max_length)


@dataclass(frozen=True, kw_only=True)
class ClassificationEncoding(TextEncoding):
    """Turns the one or two texts of an example into one sequence, or a long text into windows, and its labels into a class
    number, a set of class numbers or a number.

    Args:
        texts: The text columns.
        reader: Reads the labels.
        label_names: Names of the C classes.
        class_weights: Weights of the classes, for describe().
        reason: Why this problem was chosen, for describe().
        has_windows: Texts that are longer than max_length become windows; they are cut if not.
        window_overlap: See Settings.
    """

    rows_are_independent: ClassVar[bool] = True

    reader: LabelReader
    label_names: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()
    reason: str = ""
    has_windows: bool = False
    window_overlap: int | None = None

    def encoding_settings(self) -> dict[str, Any]:
        return {"window_overlap": self.window_overlap, "windows": True} if self.has_windows else {}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        if not self.has_windows:
            return super().tokenize(table, tokenizer, max_length)
        return encode_windows(table.columns[self.texts[0]], tokenizer, max_length, self.window_overlap)

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array | ClassSets:
        """Returns class numbers [N] int64, the sets of class numbers for multi_label, or numbers [N] float32 for regression; for
        each window those of its text."""
        targets = self.reader.read_targets(table, self.label_names)
        return targets if not self.has_windows else take_targets(targets, arrays["examples"])

    def count_labels(self, table: Table) -> dict[str, int]:
        targets = self.reader.read_targets(table, self.label_names)
        return {} if self.reader.problem == "regression" else count_targets(targets, self.label_names)

    def unify_labels(self, table: Table) -> Sequence[Any]:
        """The targets of the rows."""
        targets = self.reader.read_targets(table, self.label_names)
        return (
            [part.tolist() for part in map(targets.get, range(len(table)))]
            if isinstance(targets, ClassSets)
            else targets.tolist()
        )

    def check_rows(self, table: Table) -> None:
        self.reader.read_targets(table, self.label_names)

    def find_warnings(self, tables: Mapping[str, Table]) -> list[str]:
        train = tables["train"]
        if self.reader.problem == "regression":
            column = self.reader.column
            return find_number_warnings(find_distinct(train.columns[column])[1], column)
        counts = self.count_labels(train)
        if self.reader.problem == "multi_label" and len(train) > 1:
            everywhere = [name for name, count in counts.items() if count == len(train)]
            if everywhere:
                shown = f"{', '.join(everywhere[:MOST_SHOWN])}{', ...' if len(everywhere) > MOST_SHOWN else ''}"
                return [
                    f"all {len(train):,} rows have the labels {shown}, so that nothing can be learned of them",
                    *find_label_warnings(counts),
                ]
        return find_label_warnings(counts) + (self.find_kind(counts) if train.class_names is None else [])

    def find_kind(self, counts: Mapping[str, int]) -> list[str]:
        """Returns a warning about labels that are no classes. counts: The training examples by label."""
        if self.reader.problem != "single_label" or self.reader.names:
            return []
        return find_numbers_as_labels(counts) or find_own_labels(counts, self.reader.column)

    def advise_on_rare_labels(self, counts: Mapping[str, int]) -> str:
        if self.find_kind(counts):
            return ""
        return advise_on_rare_labels(counts, may_predict_numbers=self.reader.problem == "single_label")

    def describe_problem(self, table: Table) -> list[tuple[str, str]]:
        """The problem and why it was chosen, and the range of the numbers of a regression."""
        if self.reader.problem != "regression":
            return [("labels", f"{self.reader.problem}, {self.reason}")]
        numbers: Any = self.reader.read_targets(table, self.label_names)
        return [("labels", f"regression, {self.reason}: from {numbers.min():g} to {numbers.max():g}")]

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The input, the problem and why it was chosen, the labels and the number of training examples of each."""
        labels: Any = self.reader.read_targets(table, self.label_names) if self.has_windows else features.labels
        head = f"{self.reader.problem}, {self.reason}: "
        lines = super().describe(features, table, max_length)
        if self.has_windows:
            num_split = int((np.bincount(features.example_indices) > 1).sum())  # type: ignore[arg-type]
            shown = (
                f"{num_split:,} longer training texts in {len(features) - len(table) + num_split:,} overlapping windows"
            )
            lines = [("input", f"at most {max_length} tokens; {shown}")]
        if self.reader.problem == "regression":
            return [*lines, *self.describe_problem(table)]
        counts = format_counts(count_targets(labels, self.label_names))
        spelling = [("spelling", phrase) for phrase in self.reader.describe_spelling(table)]
        weights = describe_class_weights(self.label_names, self.class_weights)
        return [*lines, ("labels", head + counts), *spelling, *weights]


def take_targets(targets: Array | ClassSets, rows: Array) -> Array | ClassSets:
    """Returns the targets of rows, in their order."""
    return targets.take(rows) if isinstance(targets, ClassSets) else targets[rows]


def count_targets(targets: Array | ClassSets, names: Sequence[str]) -> dict[str, int]:
    """Returns the number of examples of each label. targets: What LabelReader.read_targets() returned."""
    counts = targets.count() if isinstance(targets, ClassSets) else np.bincount(targets, minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


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

    encoding: ClassificationEncoding
    class_weights: tuple[float, ...] = ()

    @classmethod
    def make_columns(cls, config: RunConfig) -> TextColumns:
        assert isinstance(config.task, Settings)
        texts, label = config.data.text_columns, config.data.label_column
        require(len(texts) in (1, 2), "data.text_columns", list(texts), "must be one column or two")
        require(label is not None, "data.label_column", None, "must be the column of the labels")
        assert label is not None
        check_columns(config.task, config.data.label_columns)
        check_windows(config.task, texts)
        ignored = tuple(map(str, config.task.ignore_labels))
        problem = config.task.problem
        return TextColumns(
            texts=texts,
            label=label,
            numbers=problem == "regression",
            ignored=ignored,
            needs_one=problem == "single_label",
        )

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Classification":
        """Finds the problem (if task.problem is auto) and the labels, in a fixed order, in the training rows."""
        assert isinstance(config.task, Settings)
        settings, columns = config.task, config.data.label_columns
        problem, reason = str(settings.problem), "set by task.problem"
        if len(columns) > 1:
            problem, reason = "multi_label", f"data.label_column names {len(columns)} columns of 0 and 1"
        elif problem == "auto":
            problem, reason = guess_problem(table, columns[0], settings.label_separator)
        check_loss_settings(config.train.label_smoothing, settings, problem)
        check_calibration(settings, problem)
        reader = make_reader(config, problem)
        names = ("score",) if problem == "regression" else reader.find_names(table)
        reader = replace(reader, has_places=reader.find_places(table, names))
        if reader.has_places:
            reason += " with a place of 0 or 1 for each label"
        weights: tuple[float, ...] = ()
        if settings.class_weights:
            counts = count_targets(reader.read_targets(table, names), names)
            weights = compute_class_weights(settings.class_weights, names, counts)
        return cls.compose(config, reader, names, weights, reason)

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Classification":
        if state["problem"] not in ("single_label", "multi_label", "regression"):
            raise ValueError(f"{state['problem']!r} is not a problem of classification")
        reader = replace(make_reader(config, state["problem"]), has_places=state.get("has_places"))
        return cls.compose(config, reader, read_names(state), tuple(state.get("class_weights", ())))

    @classmethod
    def compose(
        cls,
        config: RunConfig,
        reader: LabelReader,
        names: tuple[str, ...],
        weights: tuple[float, ...],
        reason: str = "",
    ) -> "Classification":
        """Returns the task of what reads its labels, their names and weights. reason: why it is this problem."""
        assert isinstance(config.task, Settings)
        settings, columns, problem = config.task, cls.make_columns(config), reader.problem
        return cls(
            problem=problem,
            label_names=names,
            class_weights=weights,
            pipeline_tag="text-classification",
            head=HeadSpec(
                auto_class=cls.auto_classes[0],
                config_entries=make_config_entries(problem, names),
                has_labels=True,
                spell_label=partial(spell_label, names=names),
            ),
            columns=columns,
            encoding=ClassificationEncoding(
                texts=columns.texts,
                reader=reader,
                label_names=names,
                class_weights=weights,
                reason=reason,
                has_windows=settings.long_texts == "windows",
                window_overlap=settings.window_overlap,
            ),
            objective=ClassificationObjective(
                problem=problem,
                label_smoothing=config.train.label_smoothing,
                class_weights=weights,
                focal_gamma=settings.focal_gamma,
            ),
            scoring=make_scoring(settings, problem, names),
        )

    @classmethod
    def read_state(cls, model_config: Any) -> dict[str, Any]:
        problem = model_config.problem_type or (
            "regression" if model_config.num_labels == 1 else "single_label_classification"
        )
        names = [model_config.id2label[number] for number in range(model_config.num_labels)]
        return {"problem": problem.removesuffix("_classification"), "labels": names}

    def state_dict(self) -> dict[str, Any]:
        state = {"problem": self.problem, "labels": list(self.label_names), "class_weights": list(self.class_weights)}
        return state | ({"has_places": self.encoding.reader.has_places} if self.problem == "multi_label" else {})

    def describe_for_card(self) -> str:
        labels = "Label" if len(self.label_names) == 1 else f"{len(self.label_names)} labels"
        names = ", ".join(map(escape_markdown, self.label_names))
        return f"{self.problem.replace('_', '-')} text classification.\n{labels}: {names}."


def make_scoring(settings: Settings, problem: str, names: tuple[str, ...]) -> ClassificationScoring:
    """Returns what scores texts, or the windows of texts."""
    calibrator = None
    if settings.calibrate:
        calibrator = Calibrator(
            methods=settings.calibrate,
            accuracy=settings.target_accuracy,
            coverage=settings.coverage,
            problem=problem,
            label_names=names,
        )
    if settings.long_texts == "cut":
        return ClassificationScoring(problem=problem, label_names=names, calibrator=calibrator)
    pooling = settings.window_pooling
    return WindowScoring(problem=problem, label_names=names, calibrator=calibrator, pooling=pooling)


def make_reader(config: RunConfig, problem: str) -> LabelReader:
    """Returns what reads the labels for a problem."""
    settings = config.task
    assert isinstance(settings, Settings)
    return LabelReader(
        problem=problem,
        columns=config.data.label_columns,
        separator=settings.label_separator,
        names=settings.label_names,
    )


def make_config_entries(problem: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns entries of the model's config: the names of the labels, and transformers' name of the problem."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": problem if problem == "regression" else f"{problem}_classification",
    }
