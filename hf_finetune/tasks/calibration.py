"""How a trained classifier decides (task.calibrate): what is fitted on validation, what it changes in predictions, and how well
it does that on labelled examples.

N examples, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.features import Array
from hf_finetune.statistics.calibration import (
    compute_brier_score,
    compute_calibration_error,
    compute_log_loss,
    compute_logits,
    compute_probabilities,
    find_confidences,
    fit_temperature,
)
from hf_finetune.statistics.conformal import count_needed, fit_label_set_thresholds, fit_set_threshold, make_sets
from hf_finetune.statistics.thresholds import count_answers, fit_abstention_threshold, fit_label_thresholds
from hf_finetune.tasks import metrics

DECISION_THRESHOLD = 0.5  # multi_label: labels with a larger probability are predicted
PREFIX = "calibrated/"  # of the names of metrics that a calibration changes
MOST_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted on validation. What was not asked for, or could not be fitted, is None.

    Args:
        num_examples: The number of validation examples.
        temperature: Logits are divided by it.
        thresholds: multi_label: by label, the probability above which it is predicted.
        abstention_threshold: single_label: the smallest probability of the most probable label that is an answer.
        set_threshold: single_label: the probability from which on labels belong to the set.
        set_thresholds: multi_label: the same by label.
    """

    num_examples: int
    temperature: float | None = None
    thresholds: dict[str, float] | None = None
    abstention_threshold: float | None = None
    set_threshold: float | None = None
    set_thresholds: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What is decided for N examples, apart from their probabilities [N, C].

    Args:
        predicted: Which labels are predicted [N, C]: of single_label the most probable one, or none where the model abstains.
        sets: Which labels belong to the sets [N, C]; None without sets.
    """

    probabilities: Array
    predicted: Array
    sets: Array | None


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """Fits and applies a calibration.

    Args:
        methods: Names of task.calibrate.
        accuracy: task.target_accuracy.
        coverage: task.coverage.
        problem: single_label or multi_label.
        label_names: Names of the C classes.
        threshold: multi_label: labels without a threshold of their own are predicted from larger probabilities.
        fitted: What was fitted; None before.
    """

    methods: tuple[str, ...]
    accuracy: float
    coverage: float
    problem: str
    label_names: tuple[str, ...]
    threshold: float = DECISION_THRESHOLD
    fitted: Calibration | None = None

    @property
    def has_several(self) -> bool:
        """True if an example may have several labels."""
        return self.problem == "multi_label"

    # --- fitting

    def check(self, counts: Mapping[str, int], num_examples: int) -> list[str]:
        """Returns warnings about the validation examples. InputError if they are too few for the accuracy or the coverage.

        counts: The number of examples of each label.
        """
        fix = "give more (data.validation, data.validation_fraction), or lower it"
        if "abstention" in self.methods:
            needed = count_answers(self.accuracy)
            reason = f"needs {needed:,} validation examples, and there are {num_examples:,}; {fix}"
            require(num_examples >= needed, "task.target_accuracy", self.accuracy, reason)
        if "conformal" not in self.methods:
            return []
        needed = count_needed(self.coverage)
        enough = max(counts.values()) if self.has_several else num_examples
        kind = "validation examples of a label" if self.has_several else "validation examples"
        reason = f"needs {needed:,} {kind}, and there are {enough:,}; {fix}"
        require(enough >= needed, "task.coverage", self.coverage, reason)
        rare = [name for name, count in counts.items() if count < needed]
        if not self.has_several or not rare:
            return []
        shown = ", ".join(rare[:MOST_SHOWN]) + (", ..." if len(rare) > MOST_SHOWN else "")
        return [
            f"{len(rare)} of {len(counts)} labels have fewer than the {needed:,} validation examples that task.coverage "
            f"({self.coverage}) needs, so that every set holds them: {shown}"
        ]

    def fit(self, probabilities: Array, references: Array) -> Self:
        """Returns the calibrator with what it fits on the validation split.

        probabilities: [N, C] float64. references: Class numbers [N], or 0/1 [N, C].
        """
        fitted = Calibration(num_examples=len(probabilities))
        if "temperature" in self.methods:
            logits = compute_logits(probabilities, self.has_several)
            fitted = replace(fitted, temperature=fit_temperature(logits, references))
        probabilities = replace(self, fitted=fitted).scale(probabilities)
        if "thresholds" in self.methods:
            thresholds = fit_label_thresholds(probabilities, references)
            fitted = replace(fitted, thresholds=self.name(thresholds))
        if "abstention" in self.methods:
            confidences, is_right = find_confidences(probabilities, references)
            fitted = replace(
                fitted, abstention_threshold=fit_abstention_threshold(confidences, is_right, self.accuracy)
            )
        if "conformal" in self.methods and self.has_several:
            thresholds = fit_label_set_thresholds(probabilities, references, self.coverage)
            fitted = replace(fitted, set_thresholds=self.name(thresholds))
        elif "conformal" in self.methods:
            right = probabilities[np.arange(len(references)), references]
            fitted = replace(fitted, set_threshold=fit_set_threshold(right, self.coverage))
        return replace(self, fitted=fitted)

    def name(self, values: Array) -> dict[str, float]:
        """Returns numbers [C] by label."""
        return dict(zip(self.label_names, values.tolist(), strict=True))

    # --- applying

    def scale(self, probabilities: Array) -> Array:
        """Returns the probabilities [N, C] at the temperature."""
        if self.fitted is None or self.fitted.temperature is None:
            return probabilities
        logits = compute_logits(probabilities, self.has_several)
        return compute_probabilities(logits / self.fitted.temperature, self.has_several)

    def decide(self, probabilities: Array) -> Decisions:
        """Returns what is decided for examples with these probabilities [N, C] of the model."""
        assert self.fitted is not None
        fitted, scaled = self.fitted, self.scale(probabilities)
        if self.has_several:
            predicted = scaled > (self.threshold if fitted.thresholds is None else self.take(fitted.thresholds))
        else:
            confidences = scaled.max(axis=1, keepdims=True)
            answers = confidences >= (fitted.abstention_threshold or 0.0)
            predicted = answers & (np.arange(scaled.shape[1]) == scaled.argmax(axis=1)[:, None])
        sets = None
        if fitted.set_threshold is not None:
            sets = make_sets(scaled, fitted.set_threshold)
        elif fitted.set_thresholds is not None:
            sets = make_sets(scaled, self.take(fitted.set_thresholds))
        return Decisions(probabilities=scaled, predicted=predicted, sets=sets)

    def with_threshold(self, threshold: float) -> Self:
        """Returns the calibrator with one threshold for all labels."""
        fitted = None if self.fitted is None else replace(self.fitted, thresholds=None)
        return replace(self, threshold=threshold, fitted=fitted)

    def take(self, values: Mapping[str, float]) -> Array:
        """Returns numbers by label as an array [C]."""
        return np.array([values[name] for name in self.label_names])

    # --- measuring

    def measure(self, probabilities: Array, references: Array) -> dict[str, float]:
        """Returns metrics of labelled examples: how far the model's probabilities can be trusted; and under names that begin with
        PREFIX, what the calibration makes of them.

        The arguments are those of fit().
        """
        assert self.fitted is not None
        decisions = self.decide(probabilities)
        actual = references.astype(bool)
        if not self.has_several:
            actual = np.arange(len(self.label_names)) == references[:, None]
        values: dict[str, float] = {}
        if self.fitted.temperature is not None:
            values |= measure_probabilities(decisions.probabilities, references)
        if self.fitted.thresholds is not None:
            predicted = decisions.predicted.astype(int)
            names = ("f1_micro", "f1_macro", "exact_match")
            values |= metrics.compute_all(names, predictions=predicted, scores=None, references=references)
        if self.fitted.abstention_threshold is not None:
            answered = decisions.predicted.any(axis=1)
            values["answered"] = float(answered.mean())
            right = (decisions.predicted & actual).any(axis=1)
            values["answered_accuracy"] = float(right[answered].mean()) if answered.any() else float("nan")
        if decisions.sets is not None:
            held = decisions.sets[actual]
            values["set_coverage"] = float(held.mean()) if len(held) else float("nan")
            values["set_size"] = float(decisions.sets.sum(axis=1).mean())
        return measure_probabilities(probabilities, references) | {
            f"{PREFIX}{key}": value for key, value in values.items()
        }

    # --- recording

    def to_record(self) -> dict[str, Any] | None:
        """Returns what was fitted as plain values; None before."""
        if self.fitted is None:
            return None
        return {name: value for name, value in asdict(self.fitted).items() if value is not None}

    def from_record(self, record: Mapping[str, Any]) -> Self:
        """Returns the calibrator with what to_record() returned. Raises KeyError, TypeError or ValueError for anything else."""
        fitted = Calibration(**record)
        for values in (fitted.thresholds, fitted.set_thresholds):
            if values is not None and not np.isfinite(self.take(values)).all():
                raise ValueError("a threshold is not a number")
        for value in (fitted.temperature, fitted.abstention_threshold, fitted.set_threshold):
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                raise ValueError(f"{value} is not a number of 0 or more")
        return replace(self, fitted=fitted)

    def describe(self) -> list[str]:
        """Returns what was fitted, a line each."""
        if self.fitted is None:
            return []
        fitted, lines = self.fitted, []
        if fitted.temperature is not None:
            lines.append(f"temperature {fitted.temperature:.4g}: logits are divided by it")
        if fitted.thresholds is not None:
            low, high = min(fitted.thresholds.values()), max(fitted.thresholds.values())
            lines.append(f"thresholds from {low:.3f} to {high:.3f}, one a label, for its largest F1")
        if fitted.abstention_threshold is not None:
            lines.append(
                f"abstention below a probability of {fitted.abstention_threshold:.3f}, for an accuracy of {self.accuracy}"
            )
        elif "abstention" in self.methods:
            lines.append(
                f"no abstention: no threshold reaches task.target_accuracy ({self.accuracy}) on validation, so that every text "
                "gets an answer"
            )
        if fitted.set_threshold is not None or fitted.set_thresholds is not None:
            held = "each label of a text" if self.has_several else "the right label"
            lines.append(f"sets of labels that hold {held} with a probability of {self.coverage}")
        return lines


def measure_probabilities(probabilities: Array, references: Array) -> dict[str, float]:
    """Returns how far probabilities can be trusted. The arguments are those of Calibrator.fit()."""
    confidences, is_right = find_confidences(probabilities, references)
    return {
        "ece": compute_calibration_error(confidences, is_right),
        "brier_score": compute_brier_score(probabilities, references),
        "log_loss": compute_log_loss(probabilities, references),
    }


def list_labels(chosen: Array, probabilities: Array, names: Sequence[str]) -> list[str]:
    """Returns the names of the chosen labels of an example, the most probable first. Arrays [C]."""
    order = np.argsort(-probabilities, kind="stable")
    return [names[number] for number in order if chosen[number]]
