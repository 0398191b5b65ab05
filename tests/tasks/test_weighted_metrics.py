"""Metrics of weighted examples are those of the examples repeated as often as they were drawn."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from scipy.special import expit, softmax

from hf_finetune.data.features import ClassSets
from hf_finetune.statistics.calibration import (
    compute_brier_score,
    compute_calibration_error,
    compute_log_loss,
    find_confidences,
)
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.class_examples import compute_losses, describe_classes, describe_numbers, summarize
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.tag_examples import describe_tags
from hf_finetune.tasks.text.tags import score_entities
from hf_finetune.tasks.translate import Translation, compute_bleu_and_chrf, count_matches
from hf_finetune.tasks.weighted_metrics import compute_value, compute_weighted

NAMES = ("cold", "mild", "warm", "hot")
TAGS = ("O", "B-cat", "I-cat", "B-dog", "I-dog")


def draw_weights(size: int, seed: int = 0) -> np.ndarray:
    """Returns three resamples, and one in which half of the examples are missing [4, N]."""
    generator = np.random.default_rng(seed)
    drawn = [np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(3)]
    return np.array([*drawn, np.arange(size) % 2 * 2], dtype=float)


def assert_repeats(scores: ExampleScores, metric: str, compute: Callable[[np.ndarray], float]) -> None:
    """A metric of weighted examples is what `compute` returns for the places of the repeated ones."""
    weights = draw_weights(len(scores))
    expected = [compute(np.repeat(np.arange(len(scores)), row.astype(int))) for row in weights]
    assert compute_weighted(scores, metric, weights) == pytest.approx(np.array(expected), abs=1e-12, nan_ok=True)
    assert compute_value(scores, metric) == pytest.approx(compute(np.arange(len(scores))), abs=1e-12, nan_ok=True)


def make_classes(problem: str, *, size: int = 40, num_labels: int = 4) -> tuple[ExampleScores, Any, Any, Any]:
    """Returns scores of drawn outputs, with predictions, references and probabilities as arrays."""
    generator = np.random.default_rng(7)
    names = tuple(f"{NAMES[0]} {number}" for number in range(num_labels))
    logits = generator.normal(size=(size, num_labels))
    if problem == "single_label":
        probabilities, references = softmax(logits, axis=-1), generator.integers(num_labels - 1, size=size)
        predictions: Any = probabilities.argmax(-1)
        targets: Any = references
    else:
        probabilities, references = expit(logits), (generator.random((size, num_labels)) < 0.4).astype(int)
        predictions = (probabilities > 0.5).astype(int)
        offsets = np.concatenate([[0], np.cumsum(references.sum(1))])
        targets = ClassSets(values=np.nonzero(references)[1], offsets=offsets, num_classes=num_labels)
    losses = compute_losses(problem, probabilities, references)
    summaries = summarize(problem, probabilities, predictions, losses)
    return describe_classes(problem, names, np.arange(size), targets, summaries), predictions, references, probabilities


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_metrics_of_labels_are_those_of_repeated_examples(problem: str) -> None:
    scores, predictions, references, probabilities = make_classes(problem)
    names = {name for name in metrics.OFFLINE if metrics.fits_problem(name, problem)}
    assert scores.metrics.keys() == {"loss", "log_loss", "ece", "brier_score"} | names
    for name in names - {"roc_auc"}:
        assert_repeats(
            scores, name, lambda places, name=name: metrics.OFFLINE[name](predictions[places], references[places])
        )
    values = probabilities.astype(np.float32)
    assert_repeats(scores, "roc_auc", lambda places: metrics.roc_auc(values[places], references[places]))
    if problem == "single_label":
        assert_repeats(
            scores,
            "loss",
            lambda places: sklearn.metrics.log_loss(references[places], probabilities[places], labels=range(4)),
        )
    else:
        assert_repeats(
            scores,
            "loss",
            lambda places: np.mean(
                [
                    sklearn.metrics.log_loss(references[places, one], probabilities[places, one], labels=[0, 1])
                    for one in range(4)
                ]
            ),
        )


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_how_far_probabilities_can_be_trusted_is_that_of_repeated_examples(problem: str) -> None:
    scores, _, references, probabilities = make_classes(problem)
    kept = probabilities.astype(np.float32)
    functions = {
        "ece": lambda values, right: compute_calibration_error(*find_confidences(values, right)),
        "brier_score": compute_brier_score,
        "log_loss": compute_log_loss,
    }
    for name, function in functions.items():
        values = probabilities if name == "log_loss" else kept
        assert_repeats(
            scores, name, lambda places, f=function, values=values: f(values[places].astype(float), references[places])
        )
    assert compute_value(scores, "ece") > 0.1
    best = compute_value(scores, "brier_score")
    if problem == "multi_label":
        by_label = [sklearn.metrics.brier_score_loss(references[:, one], kept[:, one]) for one in range(4)]
        assert best == pytest.approx(np.mean(by_label), abs=1e-7)


def test_of_many_labels_the_most_probable_are_kept_and_the_metrics_stay_exact() -> None:
    scores, predictions, references, probabilities = make_classes("multi_label", num_labels=60)
    assert not {"roc_auc", "ece", "brier_score"} & scores.metrics.keys()
    assert_repeats(scores, "log_loss", lambda places: compute_log_loss(probabilities[places], references[places]))
    best = np.argsort(-probabilities, axis=-1)[:, :5]
    assert np.array_equal(scores.probabilities.numbers, best)  # type: ignore[union-attr]
    assert np.allclose(scores.probabilities.values, np.take_along_axis(probabilities, best, -1))  # type: ignore[union-attr]
    for name in ("f1_macro", "f1_micro", "exact_match"):
        assert_repeats(
            scores, name, lambda places, name=name: metrics.OFFLINE[name](predictions[places], references[places])
        )


def test_correlations_are_those_of_repeated_examples() -> None:
    generator = np.random.default_rng(3)
    expected = generator.integers(6, size=50).astype(float)  # with equal values
    predicted = np.round(expected + generator.normal(size=50), 1)
    scores = describe_numbers(np.arange(50), predicted, expected)
    assert_repeats(
        scores, "pearson", lambda places: scipy.stats.pearsonr(predicted[places], expected[places]).statistic
    )
    assert_repeats(
        scores, "spearman", lambda places: scipy.stats.spearmanr(predicted[places], expected[places]).statistic
    )
    assert_repeats(scores, "mse", lambda places: metrics.mse(predicted[places], expected[places]))
    constant = describe_numbers(np.arange(50), predicted, np.full(50, 0.1))
    assert math.isnan(compute_value(constant, "pearson"))
    assert math.isnan(compute_value(constant, "spearman"))


def draw_tags(seed: int, size: int = 30) -> list[list[str]]:
    """Returns the tags of sentences; the words at some places are not labelled."""
    generator = np.random.default_rng(seed)
    lengths = np.random.default_rng(1).integers(1, 8, size=size)
    rows = [[TAGS[number] for number in generator.integers(len(TAGS), size=length)] for length in lengths]
    return [["" if place == 3 else tag for place, tag in enumerate(row)] for row in rows]


def test_metrics_of_tags_are_those_of_repeated_sentences() -> None:
    predicted, references = draw_tags(4), draw_tags(5)
    losses = np.stack([np.arange(30.0), np.full(30, 2.0)], 1)
    made: dict[str, Any] = {"rows": np.arange(30), "predicted": predicted, "references": references, "losses": losses}
    scores = describe_tags(TAGS, ("cat", "dog", "cow"), **made)

    def score(name: str) -> Callable[[np.ndarray], float]:
        def compute(places: np.ndarray) -> float:
            ours, right = ([rows[place] for place in places] for rows in (predicted, references))
            return score_entities(right, ours, ("cat", "dog", "cow"))[name]

        return compute

    for name in ("f1", "precision", "recall", "f1/cat", "precision/dog", "recall/dog", "f1/cow"):
        assert_repeats(scores, name, score(name))
    assert_repeats(scores, "loss", lambda places: float(places.sum() / (2 * len(places))))
    as_tags = describe_tags(TAGS, None, **made)

    def score_words(places: np.ndarray) -> float:
        ours, right = ([tag for place in places for tag in rows[place] if tag] for rows in (predicted, references))
        index = {tag: number for number, tag in enumerate(TAGS)}
        return metrics.OFFLINE["f1_macro"]([index[tag] for tag in ours], [index[tag] for tag in right])

    assert_repeats(as_tags, "f1_macro", score_words)


def test_bleu_of_repeated_texts_follows_from_their_counts() -> None:
    texts = [
        "the cat sat on the mat",
        "a dog runs through the wet grass",
        "it rains today again",
        "no",
        "the sun is out",
    ]
    references = [
        ["the cat sat on a mat", "a cat sat on the mat today"],
        ["a dog runs in the wet grass"],
        ["it rains again today, and again"],
        ["no"],
        ["the sun is out of sight"],
    ]
    counts = count_matches(texts, references)
    scores = ExampleScores(
        rows=np.arange(5),
        metrics=dict(Translation.text_metrics.rules),
        columns=tuple(counts),
        numbers=np.column_stack([*counts.values()]),
    )
    assert_repeats(
        scores,
        "bleu",
        lambda places: compute_bleu_and_chrf(
            [texts[place] for place in places], [references[place] for place in places]
        )["bleu"],
    )


def test_means_leave_out_what_an_example_does_not_have_and_shares_are_counted() -> None:
    ranks = np.array([1.0, 4.0, 2.0, np.nan])
    scores = ExampleScores(
        rows=np.arange(4),
        metrics={
            "mean": ("mean", "rank"),
            "recall_at_2": ("at_most", "rank", 2),
            "perplexity": ("perplexity", "sum", "count"),
        },
        columns=("rank", "sum", "count"),
        numbers=np.column_stack([ranks, [1.0, 2.0, 3.0, 4000.0], [1.0, 1.0, 2.0, 1.0]]),
    )
    weights = np.array([[1.0, 1.0, 1.0, 0.0], [2.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    assert compute_weighted(scores, "mean", weights) == pytest.approx([7 / 3, 1.0, math.nan], nan_ok=True)
    assert compute_weighted(scores, "recall_at_2", weights) == pytest.approx([2 / 3, 2 / 3, 0.0])
    assert compute_weighted(scores, "perplexity", weights) == pytest.approx([math.exp(6 / 4), math.inf, math.inf])
    with pytest.raises(
        InputError, match=r"metric \(bleu\): cannot be computed from single examples here; those that can are mean, "
    ):
        compute_weighted(scores, "bleu", weights)
