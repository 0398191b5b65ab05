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
from hf_finetune.tasks.class_scoring import ClassificationScoring
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.scoring import ComputeMetrics, Reduce
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
        return scores, indices[np.unique(examples, return_index=True)[1]]

    def score_examples(self, outputs: Outputs, features: Features, indices: Array) -> MetricInputs:
        """As of ClassificationScoring, for each text."""
        scores, windows = self.pool(outputs, features, indices)
        if self.problem == "single_label":
            predictions = scores.argmax(-1)
        else:
            predictions = (scores > self.threshold).astype(int) if self.problem == "multi_label" else scores[:, 0]
        references = features.get_labels(windows)
        return MetricInputs(predictions=predictions, references=references, scores=scores, label_names=self.label_names)

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        for scores in self.pool(outputs, features, np.arange(len(features)))[0]:
            yield dict(self.describe_scores(scores))
