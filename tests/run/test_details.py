"""Intervals, scores by label, confusions, calibration and slices, against scikit-learn and scipy."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from scipy.special import softmax

from hf_finetune.config.sections import RunConfig
from hf_finetune.run import details
from hf_finetune.tasks.class_examples import compute_losses, describe_classes, describe_numbers, summarize
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.train import finetune

NAMES = ("cold", "mild", "warm")


def make_scores(size: int = 300, seed: int = 0) -> tuple[ExampleScores, np.ndarray, np.ndarray, np.ndarray]:
    """Returns scored examples of three classes, with their predictions, references and probabilities."""
    generator = np.random.default_rng(seed)
    references = generator.choice(3, size=size, p=[0.6, 0.3, 0.1])
    probabilities = softmax(generator.normal(size=(size, 3)) + 1.5 * np.eye(3)[references], axis=-1)
    predictions = probabilities.argmax(-1)
    losses = compute_losses("single_label", probabilities, references)
    summaries = summarize("single_label", probabilities, predictions, losses)
    scores = describe_classes("single_label", NAMES, np.arange(size), references, summaries)
    return scores, predictions, references, probabilities


def describe(scores: ExampleScores, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the details of scored examples, whose lengths are their numbers."""
    return details.describe_details(scores, names, np.arange(len(scores)), names[0])


def test_intervals_are_those_of_scipy() -> None:
    scores, predictions, references, _ = make_scores()
    described = describe(scores, ("accuracy", "f1_macro", "kappa"))
    assert (described["examples"], described["resamples"], described["confidence"]) == (300, 1000, 0.95)
    assert described["intervals"].keys() == {"accuracy", "f1_macro"}
    for name, compute in (
        ("accuracy", sklearn.metrics.accuracy_score),
        ("f1_macro", lambda right, ours: sklearn.metrics.f1_score(right, ours, average="macro")),
    ):
        found = scipy.stats.bootstrap(
            (references, predictions),
            compute,
            paired=True,
            vectorized=False,
            method="percentile",
            n_resamples=1000,
            random_state=np.random.default_rng(1),
        ).confidence_interval
        assert described["intervals"][name] == pytest.approx([found.low, found.high], abs=0.012)


def test_scores_by_label_are_those_of_scikit_learn_with_intervals_around_them() -> None:
    scores, predictions, references, _ = make_scores()
    entries = describe(scores, ("accuracy",))["labels"]
    expected = sklearn.metrics.precision_recall_fscore_support(references, predictions)
    assert [entry["label"] for entry in entries] == ["cold", "mild", "warm"]  # by their number
    for number, entry in enumerate(entries):
        values = [entry["precision"], entry["recall"], entry["f1"], entry["support"]]
        assert values == pytest.approx([column[number] for column in expected])
        assert entry["predicted"] == (predictions == number).sum()
        for name in ("precision", "recall", "f1"):
            low, high = entry[f"{name}_interval"]
            assert low < entry[name] < high
    widths = [entry["f1_interval"][1] - entry["f1_interval"][0] for entry in entries]
    assert widths == sorted(widths)  # the fewer examples, the wider


def test_confusions_and_calibration_are_those_of_the_predictions() -> None:
    scores, predictions, references, probabilities = make_scores()
    described = describe(scores, ("accuracy",))
    matrix = sklearn.metrics.confusion_matrix(references, predictions)
    assert described["confusion"] == matrix.tolist()
    pairs = {(entry["label"], entry["prediction"]): entry["count"] for entry in described["confusions"]}
    assert pairs == {
        (NAMES[one], NAMES[other]): matrix[one, other] for one in range(3) for other in range(3) if one != other
    }
    assert list(pairs.values()) == sorted(pairs.values(), reverse=True)
    calibration, confidence = described["calibration"], probabilities.max(-1)
    assert sum(one["count"] for one in calibration["bins"]) == 300
    gap = 0.0
    for one in calibration["bins"]:
        inside = (confidence > one["low"]) & (confidence <= one["high"])
        assert one["accuracy"] == pytest.approx((predictions == references)[inside].mean())
        gap += abs(one["accuracy"] - confidence[inside].mean()) * inside.mean()
    assert calibration["error"] == pytest.approx(gap, abs=1e-6)


def test_of_many_examples_there_are_fewer_resamples_and_of_many_labels_only_the_most_frequent() -> None:
    assert [details.choose_num_resamples(size) for size in (0, 20_000, 100_000, 200_000, 10**7)] == [
        1000,
        1000,
        200,
        100,
        100,
    ]
    generator = np.random.default_rng(0)
    names, references = tuple(f"label {number}" for number in range(300)), generator.integers(300, size=2000)
    logits = generator.normal(size=(2000, 300))
    summaries = summarize("single_label", softmax(logits, -1), logits.argmax(-1), np.zeros(2000))
    described = describe(describe_classes("single_label", names, np.arange(2000), references, summaries), ("accuracy",))
    supports = [entry["support"] for entry in described["labels"]]
    assert supports == sorted(np.bincount(references), reverse=True)[:100]
    assert "confusion" not in described
    assert len(described["confusions"]) == 50
    assert 0 <= described["calibration"]["error"] <= 1


def test_slices_by_length_have_the_metric_of_their_examples() -> None:
    scores, predictions, references, _ = make_scores()
    entries = describe(scores, ("accuracy",))["lengths"]
    assert [entry["slice"] for entry in entries] == ["0 to 59", "60 to 119", "120 to 179", "180 to 239", "240 to 299"]
    for number, entry in enumerate(entries):
        part = slice(60 * number, 60 * (number + 1))
        assert entry["accuracy"] == (predictions == references)[part].mean()
        assert entry["loss"] == pytest.approx(scores.losses[part].mean())  # type: ignore[index]
        assert entry["accuracy_interval"][0] < entry["accuracy"] < entry["accuracy_interval"][1]
    assert details.slice_by_length(np.array([3, 3, 3])).keys() == {"3"}
    found = details.slice_by_value(["a", None, "a", 7])
    assert {name: places.tolist() for name, places in found.items()} == {"a": [0, 2], "null": [1], "7": [3]}


def test_the_worst_examples_come_first_and_the_least_certain_ones() -> None:
    scores, _, _, probabilities = make_scores(20)
    assert (
        details.order_by_error(scores, "accuracy").tolist()
        == np.argsort(-np.asarray(scores.losses), kind="stable").tolist()
    )
    margins = np.diff(np.sort(probabilities.astype(np.float32), -1)[:, -2:])[:, 0]
    doubtful = details.order_by_doubt(scores)
    assert doubtful is not None
    assert doubtful.tolist() == np.argsort(margins, kind="stable").tolist()
    pairs = ExampleScores(
        rows=np.arange(4),
        metrics={"spearman": ("spearman", "predicted", "expected")},
        columns=("predicted", "expected"),
        numbers=np.array([[0.1, 1.0], [0.9, 2.0], [0.3, 3.0], [0.4, 4.0]]),
    )
    assert details.order_by_error(pairs, "spearman")[0] == 1
    assert details.order_by_doubt(pairs) is None
    ranks = ExampleScores(
        rows=np.arange(3),
        metrics={"recall_at_1": ("at_most", "rank", 1)},
        columns=("rank",),
        numbers=np.array([[1.0], [9.0], [np.nan]]),
    )
    assert details.order_by_error(ranks, "recall_at_1").tolist() == [1, 0, 2]
    assert details.describe_calibration(describe_numbers(np.arange(2), np.zeros(2), np.ones(2))) == {}


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_results_have_the_details_of_both_splits(make_config: Callable[..., RunConfig], problem: str) -> None:
    settings: dict[str, Any] = {"train.epochs": 1, "cache.activations": "off", "tracking.trackers": []}
    result = finetune(make_config(problem, **settings))
    written = json.loads((result.run_dir / "results.json").read_text(encoding="utf-8"))["details"]
    assert written.keys() == {"validation", "test"}
    for split, described in written.items():
        values = result.results[split]
        assert described["intervals"].keys() == values.keys()
        for name, (low, high) in described["intervals"].items():
            assert math.isnan(values[name]) or low is None or low <= values[name] <= high
        assert sum(entry["examples"] for entry in described["lengths"]) == described["examples"] == 24
        assert ("labels" in described) == ("calibration" in described) == (problem != "regression")
