"""Scoring of long texts that were classified in windows: scores of windows become scores of their texts.

W windows, R texts, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.data.features import Array, Features
from hf_finetune.data.table import Table
from hf_finetune.tasks.base import Metric, Outputs
from hf_finetune.tasks.class_examples import compute_losses, describe_classes, describe_numbers, summarize
from hf_finetune.tasks.class_scoring import ClassificationScoring
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.scoring import ComputeMetrics, KeptOutputs, Reduce
from hf_finetune.tasks.text.token_windows import pool_windows


@dataclass(frozen=True, kw_only=True)
class WindowScoring(ClassificationScoring):
    """Metrics and predictions of texts from the logits of their windows.

    Args:
        pooling: A probability (or number) of a text is the mean or the max of those of its windows. With max and one label a
            text, the probabilities are divided by their sum.
    """

    pooling: str

    def plan_metrics(
        self, names: Sequence[str], own_metrics: Mapping[str, Metric], num_features: int
    ) -> tuple[Reduce, ComputeMetrics]:
        """All scores are kept: those of a text depend on all its windows."""
        self.check_size("task.long_texts (windows)", num_features)
        return self.reduce, self.compute_several

    def pool(self, outputs: Outputs, features: Features, indices: Array) -> tuple[Array, Array]:
        """Returns the scores of texts [R, C], and a window of each [R]. outputs: The logits of the windows at `indices`."""
        assert features.example_indices is not None
        examples = features.example_indices[indices]
        scores = pool_windows(self.compute_scores(np.asarray(outputs)), examples, self.pooling)
        if self.pooling == "max" and self.problem == "single_label":
            scores = scores / scores.sum(-1, keepdims=True)
        return scores, find_first_windows(features, indices)

    def score_examples(self, outputs: Outputs, features: Features, indices: Array) -> MetricInputs:
        """As of ClassificationScoring, for each text."""
        scores, windows = self.pool(outputs, features, indices)
        if self.problem == "single_label":
            predictions = scores.argmax(-1)
        else:
            predictions = (scores > self.threshold).astype(int) if self.problem == "multi_label" else scores[:, 0]
        references = features.get_labels(windows)
        return MetricInputs(predictions=predictions, references=references, scores=scores, label_names=self.label_names)

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        """As of ClassificationScoring, for each text. The loss of an evaluation is one of windows."""
        assert features.example_indices is not None
        windows = find_first_windows(features, kept.indices)
        rows = np.asarray(features.example_indices)[windows]
        scored = self.score_examples(kept.outputs, features, kept.indices)
        if self.problem == "regression":
            return describe_numbers(rows, scored.predictions, scored.references)
        losses = compute_losses(self.problem, scored.scores, scored.references)
        summaries = summarize(self.problem, scored.scores, scored.predictions, losses)
        targets = features.take_targets(windows)
        return describe_classes(self.problem, self.label_names, rows, targets, summaries)

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        yield from self.describe_all(self.pool(self.take_logits(outputs), features, np.arange(len(features)))[0])


def find_first_windows(features: Features, indices: Array) -> Array:
    """Returns the first of the windows at `indices` of each text [R]."""
    assert features.example_indices is not None
    return np.asarray(indices[np.unique(features.example_indices[indices], return_index=True)[1]])
