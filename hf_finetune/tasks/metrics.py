"""Metrics that need no network. Any other one is Python code of the Hub or of a file, and runs only if the user trusts it.

A metric is a function of predictions and references that returns a number. B examples, C classes.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.system.errors import InputError, first_line
from hf_finetune.system.locations import install_hint

Values = Any  # anything that numpy makes an array of
Metric = Callable[[Values, Values], float]  # of predictions and references

LOWER_IS_BETTER = frozenset(
    {
        *("loss", "mse", "mae", "rmse", "mape", "smape", "perplexity", "wer", "cer", "ter"),
        *("ece", "brier_score", "log_loss"),  # of probabilities
    }
)


def accuracy(predictions: Values, references: Values) -> float:
    """Share of correct predictions. With several labels an example, every label counts as one prediction."""
    return float(np.mean(np.asarray(predictions) == np.asarray(references)))


def exact_match(predictions: Values, references: Values) -> float:
    """Share of examples with all labels correct."""
    equal = np.asarray(predictions) == np.asarray(references)
    return float(np.mean(equal.reshape(len(equal), -1).all(axis=1)))


def make_averaged(name: str, average: str) -> Metric:
    """Returns f1, precision or recall with this average. A class for which it is undefined counts as 0."""

    def compute(predictions: Values, references: Values) -> float:
        return compute_counted(f"{name}_{average}", count_classes(np.asarray(predictions), np.asarray(references)))

    return compute


def matthews_correlation(predictions: Values, references: Values) -> float:
    """Matthews correlation coefficient, for any number of classes; 0 if predictions or references are all of one class."""
    counts = count_classes(np.asarray(predictions), np.asarray(references))
    predicted, actual, size = counts.predicted, counts.actual, counts.num_examples
    covariance = int(counts.right.sum()) * size - int(actual @ predicted)
    variances = (size**2 - int(actual @ actual)) * (size**2 - int(predicted @ predicted))
    return covariance / math.sqrt(variances) if variances else 0.0


def roc_auc(predictions: Values, references: Values) -> float:
    """Area under the ROC curve, nan if a class does not occur in the references.

    Args:
        predictions: Probabilities: of the second of two classes [B], of two classes [B, 2], or of more classes [B, C] (each class
            against all others, averaged over classes).
        references: Class numbers [B]; or 0/1 [B, C] for several labels an example, averaged over the labels that have both.
    """
    from sklearn.metrics import roc_auc_score

    scores, targets = np.asarray(predictions, dtype=float), np.asarray(references)
    if targets.ndim == 2:
        has_both = (targets.min(axis=0) == 0) & (targets.max(axis=0) == 1)
        if not has_both.any():
            return math.nan
        return float(roc_auc_score(targets[:, has_both], scores[:, has_both], average="macro"))
    if scores.ndim == 2 and scores.shape[1] == 2:
        scores = scores[:, 1]
    num_classes = max(2, scores.shape[1]) if scores.ndim == 2 else 2
    if len(np.unique(targets)) < num_classes:
        return math.nan
    if scores.ndim == 2:
        return float(roc_auc_score(targets, scores, average="macro", multi_class="ovr"))
    return float(roc_auc_score(targets, scores, average="macro"))


def make_correlation(name: str) -> Metric:
    """Returns scipy's pearsonr or spearmanr. The value is nan if predictions or references are constant."""

    def compute(predictions: Values, references: Values) -> float:
        import scipy.stats

        ours, theirs = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        if len(ours) < 2 or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
            return math.nan
        return float(getattr(scipy.stats, name)(ours, theirs).statistic)

    return compute


def mse(predictions: Values, references: Values) -> float:
    """Mean squared error."""
    return float(np.mean((np.asarray(predictions, dtype=float) - np.asarray(references, dtype=float)) ** 2))


OFFLINE: dict[str, Metric] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    **{
        f"{name}_{average}": make_averaged(name, average)
        for name in ("f1", "precision", "recall")
        for average in ("macro", "micro", "weighted")
    },
    "matthews_correlation": matthews_correlation,
    "roc_auc": roc_auc,
    "pearson": make_correlation("pearsonr"),
    "spearman": make_correlation("spearmanr"),
    "mse": mse,
}


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """What metrics of N examples with several of C labels are computed from, so that no array [N, C] is needed.

    Args:
        right: The number of examples that are predicted to have a label, and have it, [C].
        predicted: The number of examples that are predicted to have it, [C].
        actual: The number of examples that have it, [C].
        num_exact: The number of examples with all labels correct.
        num_examples: N.
    """

    right: Array
    predicted: Array
    actual: Array
    num_exact: int
    num_examples: int


def count_decisions(parts: Iterable[tuple[Array, Array]], num_labels: int) -> LabelCounts:
    """Returns the counts of examples that come in parts. Each part: true where a label is predicted [B, C], and where an example
    has it [B, C]."""
    sums = np.zeros((3, num_labels), dtype=np.int64)
    num_exact = num_examples = 0
    for predicted, actual in parts:
        sums += np.stack([(predicted & actual).sum(0), predicted.sum(0), actual.sum(0)])
        num_exact += int((predicted == actual).all(axis=1).sum())
        num_examples += len(predicted)
    right, all_predicted, all_actual = sums
    return LabelCounts(
        right=right, predicted=all_predicted, actual=all_actual, num_exact=num_exact, num_examples=num_examples
    )


def count_classes(predictions: Array, references: Array) -> LabelCounts:
    """Returns the counts of one class an example [B], or of 0/1 for each of several labels [B, C]."""
    if references.ndim == 2:
        return count_decisions([(predictions != 0, references != 0)], references.shape[1])
    classes, numbers = np.unique(np.concatenate([predictions, references]), return_inverse=True)
    predicted, actual = np.split(numbers, 2)
    is_right = predicted == actual
    right, all_predicted, all_actual = (
        np.bincount(part, minlength=len(classes)) for part in (actual[is_right], predicted, actual)
    )
    return LabelCounts(
        right=right,
        predicted=all_predicted,
        actual=all_actual,
        num_exact=int(is_right.sum()),
        num_examples=len(references),
    )


def compute_counted(name: str, counts: LabelCounts) -> float:
    """Returns one of COUNTED: the same number as from arrays [N, C]. A label for which it is undefined counts as 0."""
    if name == "exact_match":
        return counts.num_exact / counts.num_examples
    right, predicted, actual = counts.right, counts.predicted, counts.actual
    if name == "accuracy":
        size = counts.num_examples * len(right)
        return float(size - (predicted + actual - 2 * right).sum()) / size
    kind, average = name.split("_")
    if average == "micro":
        right, predicted, actual = (np.array([part.sum()]) for part in (right, predicted, actual))
    above, below = {
        "precision": (right, predicted),
        "recall": (right, actual),
        "f1": (2.0 * right, actual + predicted),
    }[kind]
    values = np.divide(above, below, out=np.zeros(len(below)), where=below != 0)
    weights = actual if average == "weighted" and actual.any() else None
    return float(np.average(values, weights=weights))


LOADED: dict[str, Metric] = {}  # the metrics whose code the user trusts, as far as it has been run

SHORT_NAMES = {
    "f1": "f1_macro",
    "precision": "precision_macro",
    "recall": "recall_macro",
    "matthews": "matthews_correlation",
    "pearsonr": "pearson",
    "spearmanr": "spearman",
}

# Of several labels an example: computed from LabelCounts
COUNTED = frozenset(
    {"accuracy", "exact_match", *(name for name in OFFLINE if name.startswith(("f1", "precision", "recall")))}
)

NEEDS_SCORES = frozenset({"roc_auc"})  # computed from probabilities instead of predicted labels

FOR_REGRESSION = frozenset({"pearson", "spearman", "mse"})  # of OFFLINE; the others are for labels

FOR_SINGLE_LABELS = frozenset({"matthews_correlation"})


def expand_name(name: str) -> str:
    """Returns the full name of a metric: f1_macro for f1."""
    return SHORT_NAMES.get(name, name)


def get_metric(name: str) -> Metric:
    """Returns an offline metric, or one that load_metric() has loaded."""
    name = expand_name(name)
    return OFFLINE[name] if name in OFFLINE else LOADED[name]


def load_metric(name: str, key: str = "evaluation.metric", *, trust_code: bool = False) -> Metric:
    """Returns the metric of this name. InputError, with the setting `key` and the nearest name, if there is none.

    A metric of the Hub, or of a file, is Python code. It runs only with `trust_code`, and needs the `evaluate` package. If it
    computes several values, the one that has its name counts, else the first. An offline metric never runs code of a file or
    folder that has its name.
    """
    name = expand_name(name)
    if name in OFFLINE:
        return OFFLINE[name]
    near = difflib.get_close_matches(name, [*OFFLINE, *SHORT_NAMES], n=1)
    hint = f"did you mean {near[0]}?" if near else f"offline metrics are {', '.join(OFFLINE)}"
    if not trust_code:
        raise InputError(
            f"{key} ({name}): is not an offline metric ({hint}); the Python code of a metric on the Hub, or in a file, runs only "
            "with evaluation.trust_metric_code true"
        )
    if name not in LOADED:
        LOADED[name] = load_code(name, key, hint)
    return LOADED[name]


def load_code(name: str, key: str, hint: str) -> Metric:
    """Runs the code of a metric of the Hub, or of a file, and returns the metric. The other arguments are for errors."""
    try:
        import evaluate  # takes 4 seconds, so only for metrics of the Hub
    except ImportError:
        install = install_hint("evaluate")
        raise InputError(
            f"{key} ({name}): is not an offline metric ({hint}), and metrics of the Hub need a package: {install}"
        ) from None
    try:
        module = evaluate.load(name)
    except (OSError, ImportError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{key} ({name}): there is no such metric; {hint} (evaluate.load: {reason})") from None
    return make_hub_metric(name, module)


def make_hub_metric(name: str, module: Any) -> Metric:
    """Returns the metric of a module that evaluate.load() returned."""

    def compute(predictions: Values, references: Values) -> float:
        values = module.compute(predictions=predictions, references=references)
        return float(values.get(name, next(iter(values.values()))))

    return compute


def fits_problem(name: str, problem: str) -> bool:
    """True if an offline metric can be computed for a problem of classification."""
    fits = (name in FOR_REGRESSION) == (problem == "regression")
    return fits and not (name in FOR_SINGLE_LABELS and problem == "multi_label")


def check_fits(name: str, problem: str, key: str = "evaluation.metric") -> None:
    """Raises InputError, with the setting `key`, if an offline metric cannot be computed for a problem of classification."""
    if name in OFFLINE and not fits_problem(name, problem):
        raise InputError(f"{key} ({name}): cannot be computed for a {problem} problem")


def needs_scores(name: str) -> bool:
    """True if a metric is computed from probabilities, or with code of the Hub, that may take anything."""
    return name in NEEDS_SCORES or name not in OFFLINE


def greater_is_better(name: str) -> bool:
    """True if a larger value of the metric is better."""
    return name not in LOWER_IS_BETTER


def compute_all(names: Iterable[str], *, predictions: Values, scores: Values, references: Values) -> dict[str, float]:
    """Computes metrics by their names, without "loss": from the predictions, or from the scores (probabilities) if a metric
    needs those."""
    values: dict[str, float] = {}
    for name in dict.fromkeys(expand_name(name) for name in names if name != "loss"):
        inputs = scores if name in NEEDS_SCORES else predictions
        values[name] = get_metric(name)(inputs, references)
    return values
