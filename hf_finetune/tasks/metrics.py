"""Metrics that work offline, called as `evaluate`'s are; any other name is loaded through `evaluate`.

`load(name).compute(predictions=..., references=...)` returns `{name: value}`.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from hf_finetune.system.errors import InputError

Values = Any  # anything numpy makes an array of

LOWER_IS_BETTER = frozenset(
    {"loss", "mse", "mae", "rmse", "mape", "smape", "perplexity", "wer", "cer", "ter", "brier_score"}
)


def accuracy(predictions: Values, references: Values) -> float:
    """Share of examples that are right; of several labels, share of all decisions."""
    return float(np.mean(np.asarray(predictions) == np.asarray(references)))


def exact_match(predictions: Values, references: Values) -> float:
    """Share of examples that are right in every label."""
    equal = np.asarray(predictions) == np.asarray(references)
    return float(np.mean(equal.reshape(len(equal), -1).all(axis=1)))


def averaged(name: str, average: str) -> Callable[[Values, Values], float]:
    """scikit-learn's f1, precision or recall, 0 where it is undefined."""

    def compute(predictions: Values, references: Values) -> float:
        import sklearn.metrics

        return float(
            getattr(sklearn.metrics, f"{name}_score")(references, predictions, average=average, zero_division=0)
        )

    return compute


def matthews_correlation(predictions: Values, references: Values) -> float:
    """Matthews correlation coefficient, over any number of classes."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def roc_auc(predictions: Values, references: Values) -> float:
    """Area under the ROC curve; `predictions` are probabilities: [B], [B, 2], [B, C] (one against the rest, macro), or
    [B, C] beside 0/1 references [B, C]. nan where a class is missing."""
    from sklearn.metrics import roc_auc_score

    scores, targets = np.asarray(predictions, dtype=float), np.asarray(references)
    if targets.ndim == 1 and scores.ndim == 2 and scores.shape[1] == 2:
        scores = scores[:, 1]
    multi_class = targets.ndim == 1 and scores.ndim == 2
    if multi_class and len(np.unique(targets)) < scores.shape[1]:
        return math.nan
    if targets.ndim == 2:
        both = (targets.min(axis=0) == 0) & (targets.max(axis=0) == 1)
        if not both.any():
            return math.nan
        targets, scores = targets[:, both], scores[:, both]
    elif len(np.unique(targets)) < 2:
        return math.nan
    return float(roc_auc_score(targets, scores, average="macro", **({"multi_class": "ovr"} if multi_class else {})))


def correlation(name: str) -> Callable[[Values, Values], float]:
    """scipy's pearsonr or spearmanr; nan where one side is constant."""

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


OFFLINE: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    **{
        f"{name}_{average}": averaged(name, average)
        for name in ("f1", "precision", "recall")
        for average in ("macro", "micro", "weighted")
    },
    "matthews_correlation": matthews_correlation,
    "roc_auc": roc_auc,
    "pearson": correlation("pearsonr"),
    "spearman": correlation("spearmanr"),
    "mse": mse,
}

SHORT_NAMES = {
    "f1": "f1_macro",
    "precision": "precision_macro",
    "recall": "recall_macro",
    "matthews": "matthews_correlation",
    "pearsonr": "pearson",
    "spearmanr": "spearman",
}

NEEDS_SCORES = frozenset({"roc_auc"})

FOR_NUMBERS = frozenset({"pearson", "spearman", "mse"})  # the offline ones that a regression can use, with loss

FOR_ONE_LABEL = frozenset({"matthews_correlation"})


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric computed offline, with the call of evaluate's."""

    name: str

    def compute(self, *, predictions: Values, references: Values) -> dict[str, float]:
        """`{name: value}`."""
        return {self.name: OFFLINE[self.name](predictions, references)}


@dataclass(frozen=True, kw_only=True)
class HubMetric:
    """A metric of the Hub, through `evaluate`; of several values the one called as the metric, else the first."""

    name: str
    module: Any

    def compute(self, *, predictions: Values, references: Values) -> dict[str, float]:
        """`{name: value}`."""
        values = self.module.compute(predictions=predictions, references=references)
        return {self.name: float(values.get(self.name, next(iter(values.values()))))}


@cache
def load(name: str, key: str = "evaluation.metric") -> Metric | HubMetric:
    """The metric `name`; InputError, naming `key` and the nearest right name, where there is none such."""
    name = SHORT_NAMES.get(name, name)
    if name in OFFLINE:
        return Metric(name=name)
    import evaluate  # 4 seconds: only where a metric of the Hub is asked for

    try:
        return HubMetric(name=name, module=evaluate.load(name))
    except (OSError, ImportError, ValueError) as error:
        near = difflib.get_close_matches(name, [*OFFLINE, *SHORT_NAMES], n=1)
        hint = f"did you mean {near[0]}?" if near else f"offline there are {', '.join(OFFLINE)}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{key} ({name}): no such metric; {hint} (evaluate.load: {reason})") from None


def check_fits(name: str, problem: str, key: str = "evaluation.metric") -> None:
    """Raises InputError, naming `key`, where an offline metric cannot be computed for a problem."""
    if name not in OFFLINE:
        return
    fits = name in FOR_NUMBERS if problem == "regression" else name not in FOR_NUMBERS
    if not fits or (name in FOR_ONE_LABEL and problem == "multi_label"):
        raise InputError(f"{key} ({name}): cannot be computed for a {problem} problem")


def greater_is_better(name: str) -> bool:
    """Whether a larger value is better."""
    return name not in LOWER_IS_BETTER


def compute_all(names: Iterable[str], *, predictions: Values, scores: Values, references: Values) -> dict[str, float]:
    """The metrics of those names, each from the predictions or, where it needs them, the probabilities."""
    values: dict[str, float] = {}
    for name in dict.fromkeys(SHORT_NAMES.get(name, name) for name in names if name != "loss"):
        given = scores if name in NEEDS_SCORES else predictions
        values |= load(name).compute(predictions=given, references=references)
    return values
