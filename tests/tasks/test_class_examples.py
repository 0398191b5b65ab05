"""What an evaluation of classification keeps of each example."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from hf_finetune.data.features import Batch
from hf_finetune.tasks.class_scoring import ClassificationScoring
from hf_finetune.training.outputs import pack


def make_examples(problem: str, num_labels: int) -> tuple[ClassificationScoring, torch.Tensor, Batch]:
    """Returns a scoring, drawn logits of a batch, some of them equal, and the batch with its labels."""
    generator = np.random.default_rng(num_labels)
    logits = generator.normal(size=(40, num_labels)).round(1).astype(np.float32) * 4
    logits[:3] = 0
    labels: Any = generator.integers(num_labels, size=40)
    if problem == "multi_label":
        labels = (generator.random((40, num_labels)) < 0.3).astype(np.float32)
    names = tuple(f"label {number}" for number in range(num_labels))
    rows, ones = np.arange(40), np.ones(40, dtype=np.int64)
    batch = Batch(
        feature_indices=rows, sequence_indices=rows, sequence_counts=ones, inputs={}, labels=torch.from_numpy(labels)
    )
    return ClassificationScoring(problem=problem, label_names=names), torch.from_numpy(logits), batch


@pytest.mark.parametrize("num_labels", [2, 50, 51, 300])
@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_decisions_are_those_of_an_evaluation_that_keeps_nothing_else(problem: str, num_labels: int) -> None:
    scoring, logits, batch = make_examples(problem, num_labels)
    summaries: Any = scoring.summarize(logits, batch)
    assert summaries["decision"].tolist() == np.asarray(scoring.decide(logits, batch)).tolist()
    assert pack(summaries) is summaries  # nothing is made of each example


@pytest.mark.parametrize("num_labels", [2, 60])
@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_losses_and_probabilities_are_computed_once_in_double_precision(problem: str, num_labels: int) -> None:
    scoring, logits, batch = make_examples(problem, num_labels)
    assert batch.labels is not None
    summaries: Any = scoring.summarize(logits, batch)
    exact, labels = logits.numpy().astype(np.float64), batch.labels.numpy()
    if problem == "single_label":
        probabilities = softmax(exact, -1)
        losses = -np.log(probabilities[np.arange(40), labels])
    else:
        probabilities = expit(exact)
        losses = -np.log(np.where(labels > 0, probabilities, 1 - probabilities)).mean(-1)
    np.testing.assert_allclose(summaries["loss"], losses, rtol=1e-9)
    if num_labels > 50:
        probabilities = -np.sort(-probabilities, axis=-1)[:, :5]
    np.testing.assert_allclose(summaries["values"], probabilities.astype(np.float32), rtol=1e-7)


def test_the_most_probable_labels_are_in_order_where_single_precision_has_0_for_them() -> None:
    scoring, _, batch = make_examples("single_label", 60)
    logits = torch.arange(60.0).repeat(40, 1)
    logits[:, 7] = 400
    summaries: Any = scoring.summarize(logits, batch)
    assert summaries["numbers"].tolist() == [[7, 59, 58, 57, 56]] * 40
