"""What text classification reads: its settings, and the columns of texts and labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hf_finetune.config.sections import TaskSettings, require
from hf_finetune.data.table import ColumnSpec, Table, text_and_label_spec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns
from hf_finetune.tasks.text.label_checks import leave_out_ignored
from hf_finetune.tasks.text.label_rows import LabelRows

# What task.calibrate may name, with the problem that it is for
CALIBRATIONS = {"temperature": "", "thresholds": "multi_label", "abstention": "single_label", "conformal": ""}


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of text classification.

    Args:
        problem: single_label, multi_label or regression; auto chooses by the label column and prints why.
        label_names: Names of all classes, in their order. If not given, they are found in the training data. They name the places
            of lists of 0 and 1, or the numbers 0, 1, 2, ... of labels that are numbers.
        ignore_labels: Labels that mean that a text is not labelled, such as -100; null for a missing label. Such rows are left
            out.
        label_separator: Splits a string of several labels; not needed if the column holds lists.
        class_weights: Weights of the labels in the loss: balanced, or label=weight for some labels; the others weigh 1.
        focal_gamma: Exponent of the focal loss; 0 is plain cross entropy.
        long_texts: What happens to a text that is longer than data.max_length: cut, or windows, which overlap and share the loss
            of their text.
        window_pooling: How a text gets its scores from those of its windows: mean or max.
        window_overlap: Tokens that neighbouring windows share; a quarter of a window if not given.
        calibrate: What predictions are given with, fitted on validation after training: temperature (probabilities that can be
            trusted), thresholds (of each label, if a text may have several), abstention (no label for a text that the model is
            not certain of) and conformal (a set of labels that holds the right one with a stated probability).
        target_accuracy: Accuracy that the answered texts shall reach, with task.calibrate abstention.
        coverage: Probability with which a set holds the right label, with task.calibrate conformal.
    """

    takes_label_columns = True

    problem: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    label_names: tuple[str, ...] = ()
    ignore_labels: tuple[str | int | None, ...] = ()
    label_separator: str | None = None
    class_weights: tuple[str, ...] = ()
    focal_gamma: float = 0.0
    long_texts: Literal["cut", "windows"] = "cut"
    window_pooling: Literal["mean", "max"] = "mean"
    window_overlap: int | None = None
    calibrate: tuple[str, ...] = ()
    target_accuracy: float = 0.95
    coverage: float = 0.9

    def __post_init__(self) -> None:
        overlap = self.window_overlap
        require(overlap is None or overlap >= 0, "task.window_overlap", overlap, "must be 0 or more")
        require(self.label_separator != "", "task.label_separator", "''", "must not be empty")
        require(
            self.label_separator is None or self.problem in ("auto", "multi_label"),
            "task.label_separator",
            self.label_separator,
            f"has no effect with task.problem {self.problem}",
        )
        names = self.label_names
        require(len(set(names)) == len(names), "task.label_names", list(names), "must differ from each other")
        require(
            not names or self.problem != "regression", "task.label_names", list(names), "has no effect on a regression"
        )
        require(0 <= self.focal_gamma < float("inf"), "task.focal_gamma", self.focal_gamma, "must be 0 or more")
        self.check_calibration()

    def check_calibration(self) -> None:
        """Raises InputError if task.calibrate names something else, or if a setting of it has no effect."""
        methods, shown = self.calibrate, list(self.calibrate)
        known = all(name in CALIBRATIONS for name in methods)
        require(known, "task.calibrate", shown, f"must be some of {', '.join(CALIBRATIONS)}")
        require(len(set(methods)) == len(methods), "task.calibrate", shown, "must differ from each other")
        for key, method, default in (("target_accuracy", "abstention", 0.95), ("coverage", "conformal", 0.9)):
            value = getattr(self, key)
            require(0 < value < 1, f"task.{key}", value, "must be between 0 and 1")
            is_used = method in methods or value == default
            require(is_used, f"task.{key}", value, f"has no effect without task.calibrate {method}")


@dataclass(frozen=True, kw_only=True)
class TextColumns(Columns):
    """One or two text columns and a label column.

    Args:
        texts: The text columns.
        label: The label column; or several, if each says by 0 or 1 whether a text has its label.
        numbers: The labels are numbers to predict.
        ignored: Labels of rows that are left out (task.ignore_labels).
        needs_one: Each row needs one label (task.problem single_label).
    """

    texts: tuple[str, ...]
    label: str | tuple[str, ...]
    numbers: bool = False
    ignored: tuple[str, ...] = ()
    needs_one: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The label columns."""
        return self.label if isinstance(self.label, tuple) else (self.label,)

    @property
    def spec(self) -> ColumnSpec:
        first, *others = self.labels
        spec = text_and_label_spec(self.texts, first, numbers=self.numbers or bool(others))
        return replace(
            spec,
            labels=self.labels,
            adapter=None if others else LabelRows(texts=self.texts, label=first),
            keep_labelled=self.keep_labelled if self.ignored else None,
        )

    def keep_labelled(self, table: Table) -> Table:
        """Returns the rows of a table without those whose label is ignored."""
        return leave_out_ignored(table, self.labels, self.ignored, needs_one=self.needs_one)

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        needed = len(self.texts)
        if len(texts) != needed:
            raise InputError(f"--text: takes {'one text' if needed == 1 else 'two texts'}, as the model was trained")
        return dict(zip(self.texts, texts, strict=True))


# --- settings that do not fit ----------------------------------------------------------------------------------------


def check_columns(settings: Settings, columns: Sequence[str]) -> None:
    """Raises InputError if settings do not fit several label columns."""
    if len(columns) == 1:
        return
    shown, key = list(columns), "data.label_column"
    require(settings.problem in ("auto", "multi_label"), key, shown, f"has one column for {settings.problem}")
    require(settings.label_separator is None, key, shown, "has one column with task.label_separator")
    names = settings.label_names
    require(
        len(names) in (0, len(columns)), "task.label_names", list(names), f"must be {len(columns)}, a name a column"
    )


def check_windows(settings: Settings, texts: Sequence[str]) -> None:
    """Raises InputError if there are windows of pairs of texts, or settings of windows without windows."""
    if settings.long_texts == "windows":
        require(len(texts) == 1, "task.long_texts", "windows", f"is for one text column, not {len(texts)}")
        return
    fix = "has no effect without task.long_texts windows"
    require(settings.window_pooling == "mean", "task.window_pooling", settings.window_pooling, fix)
    require(settings.window_overlap is None, "task.window_overlap", settings.window_overlap, fix)


def check_calibration(settings: Settings, problem: str) -> None:
    """Raises InputError if task.calibrate names what is not for this problem."""
    shown = list(settings.calibrate)
    require(
        not shown or problem != "regression", "task.calibrate", shown, "is for labels, and this problem is regression"
    )
    for name in settings.calibrate:
        fits = CALIBRATIONS[name] in ("", problem)
        reason = f"{name} is for {CALIBRATIONS[name]} problems, and this one is {problem}"
        require(fits, "task.calibrate", shown, reason)


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
