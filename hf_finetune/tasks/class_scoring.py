"""Loss, metrics and predictions of classification.

B examples of a batch, N examples of a split, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import CountedObjective, Metric, Outputs, Scoring
from hf_finetune.tasks.calibration import DECISION_THRESHOLD, Calibrator, list_labels
from hf_finetune.tasks.class_examples import (
    compute_exact_scores,
    compute_losses,
    describe_classes,
    describe_numbers,
    summarize,
)
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.objectives import LinearTargets
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.scoring import ComputeMetrics, KeptOutputs, Reduce

if TYPE_CHECKING:
    import torch

COUNTED_AT_ONCE = 4_000_000  # decisions
SCORED_AT_ONCE = 1_000_000  # probabilities of predictions
MOST_SCORES = 1_000_000_000  # that are held at once, 4 GB


@dataclass(frozen=True, kw_only=True)
class ClassificationObjective(CountedObjective):
    """Cross entropy (single_label), binary cross entropy of each label (multi_label), or squared error (regression).

    class_weights, focal_gamma: As in losses.cross_entropy(), for single_label only.
    """

    problem: str
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0

    @property
    def linear_targets(self) -> LinearTargets:
        return LinearTargets(problem=self.problem, class_weights=self.class_weights)

    def count(self, batch: Batch) -> float:
        """Returns the number of terms of the loss: B, or B x C for multi_label, or the sum of their weights."""
        from hf_finetune.tasks.losses import count_targets

        assert batch.labels is not None
        if self.problem == "single_label":
            return count_targets(batch.labels, self.class_weights, batch.weights)
        if batch.weights is None:
            return float(batch.labels.numel())
        return float(batch.weights.double().sum()) * (batch.labels.numel() // len(batch.labels))

    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the loss summed over its terms. outputs: logits [B, C].

        The terms of windows count by their weights, so that the windows of a text share its loss.
        """
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
                example_weights=batch.weights,
            )
        if batch.weights is not None:
            if self.problem == "multi_label":
                terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)
            else:
                terms = F.mse_loss(logits.squeeze(-1), labels, reduction="none")
            return (terms * batch.weights).sum()
        if self.problem == "multi_label":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")


@dataclass(frozen=True, kw_only=True)
class ClassificationScoring(Scoring):
    """Turns logits into probabilities, metrics and predictions.

    Args:
        top_k: The number of labels whose probabilities a prediction lists, the most probable first; None for all, in their order.
        threshold: multi_label: labels with a larger probability are predicted.
        keeps_examples: As keep_examples().
        calibrator: What task.calibrate names. Metrics under the usual names are those without it.
    """

    problem: str
    label_names: tuple[str, ...]
    top_k: int | None = None
    threshold: float = DECISION_THRESHOLD
    keeps_examples: bool = False
    calibrator: Calibrator | None = None

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
            calibrator = self.calibrator and self.calibrator.with_threshold(threshold)
            return replace(self, top_k=top_k, threshold=threshold, calibrator=calibrator)
        return replace(self, top_k=top_k)

    def calibrate(
        self, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> tuple[Self, dict[str, float]]:
        if self.calibrator is None:
            return self, {}
        logits: Any = np.asarray(outputs, np.float64)
        scored = self.score_examples(logits, features, indices)
        calibrator = self.calibrator.fit(scored.scores, scored.references)
        return replace(self, calibrator=calibrator), calibrator.measure(scored.scores, scored.references)

    def restore_calibration(self, record: Mapping[str, Any]) -> Self:
        return self if self.calibrator is None else replace(self, calibrator=self.calibrator.from_record(record))

    @property
    def fitted(self) -> Calibrator | None:
        """The calibrator if it was fitted, else None."""
        return self.calibrator if self.calibrator is not None and self.calibrator.fitted is not None else None

    @property
    def metric_names(self) -> tuple[str, ...]:
        return {
            "single_label": ("accuracy", "f1_macro"),
            "multi_label": ("f1_micro", "f1_macro", "exact_match"),
            "regression": ("pearson", "spearman", "mse"),
        }[self.problem]

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        name = metrics.expand_name(name)
        metrics.check_fits(name, self.problem, key)
        return name

    def is_foreign_code(self, name: str) -> bool:
        return metrics.expand_name(name) not in ("loss", *metrics.OFFLINE)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns the logits [C] of each example."""
        return list(outputs.float().cpu().numpy())

    def decide(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns the class number of each example, or one bit for each class [C / 8] for multi_label.

        Most metrics need no more, and 10,000 logits for each of a million examples would fill 40 GB.
        """
        decisions = self.decode(outputs.float().cpu().numpy())
        return list(np.packbits(decisions.astype(bool), axis=-1) if self.problem == "multi_label" else decisions)

    def plan_metrics(
        self, names: Sequence[str], own_metrics: Mapping[str, Metric], num_features: int
    ) -> tuple[Reduce, ComputeMetrics]:
        if self.calibrator is not None:
            self.check_size("task.calibrate", num_features)
            return super().plan_metrics(names, own_metrics, num_features)
        need_scores = [*own_metrics, *(name for name in names if name != "loss" and metrics.needs_scores(name))]
        if not need_scores and self.problem != "regression":
            if not self.keeps_examples:
                return self.decide, self.score_decisions
            return self.summarize, self.score_summaries
        self.check_size(f"evaluation.metric ({(*need_scores, *names)[0]})", num_features)
        return super().plan_metrics(names, own_metrics, num_features)

    def keep_examples(self) -> Self:
        return replace(self, keeps_examples=True)

    def summarize(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns the summary of each example (class_examples.summarize())."""
        assert batch.labels is not None
        return self.summarize_logits(outputs.float(), batch.labels)  # type: ignore[return-value]  # a sequence of its rows

    def summarize_logits(self, logits: "torch.Tensor", targets: "Array | torch.Tensor") -> Array:
        """Returns the summaries of logits [B, C]. targets: as Features.get_labels() returns them.

        The decisions are those of decide(). Of many labels, only the most probable ones leave the device.
        """
        single = self.problem == "single_label"
        decisions = logits.argmax(-1).cpu().numpy() if single else self.decode(logits.cpu().numpy())
        scores = compute_exact_scores(self.problem, logits)
        return summarize(self.problem, scores, decisions, compute_losses(self.problem, scores, targets))

    def score_summaries(
        self, names: Sequence[str], summaries: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """As compute_several(). summaries: What summarize() returned for each of the features at `indices`."""
        decisions: Any = np.asarray(summaries)["decision"]
        return self.score_decisions(names, decisions, features, table, indices)

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        import torch

        indices, outputs = kept.indices, np.asarray(kept.outputs)
        if self.problem == "regression":
            return describe_numbers(indices, outputs[:, 0], features.get_targets(indices))
        if outputs.dtype.names is None:
            size = max(1, COUNTED_AT_ONCE // len(self.label_names))
            parts = [slice(start, start + size) for start in range(0, len(indices), size)]
            outputs = np.concatenate(
                [
                    self.summarize_logits(torch.from_numpy(outputs[part]), features.get_targets(indices[part]))
                    for part in parts
                ]
            )
        targets = features.take_targets(indices)
        return describe_classes(self.problem, self.label_names, indices, targets, outputs)

    def check_size(self, what: str, num_examples: int) -> None:
        """Raises InputError if all scores do not fit in memory. what: The setting that needs them."""
        size = num_examples * len(self.label_names)
        if size > MOST_SCORES:
            raise InputError(
                f"{what}: needs all scores of {num_examples:,} examples and {len(self.label_names):,} "
                f"labels at once, {size * 4 / 1e9:.0f} GB; use metrics that count labels, such as {self.default_metric}, or "
                "fewer examples"
            )

    def score_decisions(
        self, names: Sequence[str], decisions: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """As compute_several(). decisions: What decide() returned for each of the features at `indices`."""
        names = [name for name in dict.fromkeys((names[0], *self.metric_names, *names)) if name != "loss"]
        if self.problem == "single_label":
            references = features.get_labels(indices)
            return metrics.compute_all(names, predictions=np.asarray(decisions), scores=None, references=references)

        def read_parts() -> Iterator[tuple[Array, Array]]:
            size = max(1, COUNTED_AT_ONCE // num_labels)
            for start in range(0, len(indices), size):
                actual = features.get_labels(indices[start : start + size])
                assert actual is not None
                packed = np.asarray(decisions[start : start + size])
                yield np.unpackbits(packed, axis=-1, count=num_labels).astype(bool), actual.astype(bool)

        num_labels = len(self.label_names)
        counts = metrics.count_decisions(read_parts(), num_labels)
        return {name: metrics.compute_counted(name, counts) for name in names}

    def score_examples(self, outputs: Outputs, features: Features, indices: Array) -> MetricInputs:
        """Returns the predictions, scores and references of examples. outputs: The logits of the features at `indices`.

        Class numbers [N] and probabilities [N, C]; 0/1 [N, C] and probabilities for multi_label; numbers [N] and [N, 1] for
        regression.
        """
        logits = np.asarray(outputs)
        return MetricInputs(
            predictions=self.decode(logits),
            references=features.get_labels(indices),
            scores=self.compute_scores(logits),
            label_names=self.label_names,
        )

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        scored = self.score_examples(outputs, features, indices)
        values = metrics.compute_all(
            (metric, *self.metric_names),
            predictions=scored.predictions,
            scores=scored.scores,
            references=scored.references,
        )
        if self.fitted is None:
            return values
        exact = self.score_examples(self.take_logits(outputs), features, indices)
        return values | self.fitted.measure(exact.scores, exact.references)

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """Those of score_examples(), without scores for regression."""
        scored = self.score_examples(outputs, features, indices)
        return replace(scored, scores=None) if self.problem == "regression" else scored

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields `{label, probabilities}`, `{labels, probabilities}` or `{score}` for each example."""
        size = max(1, SCORED_AT_ONCE // len(self.label_names))
        for start in range(0, len(outputs), size):
            yield from self.describe_all(self.compute_scores(self.take_logits(outputs[start : start + size])))

    def take_logits(self, outputs: Outputs) -> Any:
        """Returns logits as an array, in the precision that a calibration was fitted in if there is one."""
        return np.asarray(outputs) if self.fitted is None else np.asarray(outputs, np.float64)

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

    def describe_all(self, scores: Array) -> Iterator[dict[str, Any]]:
        """Yields the predictions of examples from their probabilities [N, C], or from their numbers [N, 1].

        With a calibration the label may be None, and there may be a `label_set`, the most probable label first.
        """
        if self.fitted is None:
            yield from (dict(self.describe_scores(row)) for row in scores)
            return
        decisions = self.fitted.decide(scores)
        for number, probabilities in enumerate(decisions.probabilities):
            shown = self.describe_scores(probabilities)["probabilities"]
            chosen = [self.label_names[label] for label in np.flatnonzero(decisions.predicted[number])]
            prediction: dict[str, Any] = {"labels": chosen} if self.problem == "multi_label" else {}
            if self.problem == "single_label":
                prediction["label"] = chosen[0] if chosen else None
            if decisions.sets is not None:
                prediction["label_set"] = list_labels(decisions.sets[number], probabilities, self.label_names)
            yield prediction | {"probabilities": shown}

    def describe_scores(self, scores: Sequence[float]) -> Mapping[str, Any]:
        """Returns the prediction of one example from its probabilities [C], or from its number [1]."""
        if self.problem == "regression":
            return {"score": float(scores[0])}
        exact = np.asarray(scores, np.float64)
        shown: dict[str, float] = dict(zip(self.label_names, exact.tolist(), strict=True))
        if self.top_k is not None:
            best_first = np.argsort(-exact, kind="stable")[: self.top_k]
            shown = {self.label_names[number]: float(exact[number]) for number in best_first}
        if self.problem == "multi_label":
            chosen = np.flatnonzero(exact > self.threshold)
            return {"labels": [self.label_names[number] for number in chosen], "probabilities": shown}
        return {"label": self.label_names[int(exact.argmax())], "probabilities": shown}
