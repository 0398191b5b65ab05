"""Charts of scored examples: what they count, against scikit-learn, and that an image shows it."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import softmax

from hf_finetune.run import figures
from hf_finetune.run.details import describe_details
from hf_finetune.run.pictures import WIDTH, describe_name, fit, load_font
from hf_finetune.tasks.class_examples import compute_losses, describe_classes, describe_numbers, summarize
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.tag_examples import describe_tags

ALL = ["confusion", "f1", "precision_recall", "reliability", "length"]


def make_scores(num_labels: int = 3, size: int = 300, names: tuple[str, ...] = ()) -> ExampleScores:
    """Returns scored examples with one label."""
    generator = np.random.default_rng(0)
    references = generator.integers(num_labels, size=size)
    probabilities = softmax(generator.normal(size=(size, num_labels)) + 2 * np.eye(num_labels)[references], axis=-1)
    losses = compute_losses("single_label", probabilities, references)
    summaries = summarize("single_label", probabilities, probabilities.argmax(-1), losses)
    names = names or tuple(f"label-{number}" for number in range(num_labels))
    return describe_classes("single_label", names, np.arange(size), references, summaries)


def make_several() -> ExampleScores:
    """Returns scored examples with several labels each."""
    generator, names = np.random.default_rng(1), np.array(["a", "b", "c"])
    matrix = generator.random((80, 3)) < 0.4
    probabilities = (0.4 * matrix + 0.6 * generator.random((80, 3))).astype(np.float32)
    return ExampleScores(
        rows=np.arange(80),
        metrics={"loss": ("loss",), "f1_micro": ("labels", "f1_micro")},
        labels=[names[row].tolist() for row in matrix],
        predictions=[names[row].tolist() for row in probabilities > 0.5],
        losses=compute_losses("multi_label", probabilities, matrix.astype(np.float32)),
        probabilities=probabilities,
        label_names=("a", "b", "c"),
    )


def describe(scores: ExampleScores, metric: str) -> dict[str, Any]:
    """Returns the details of scored examples of different lengths."""
    return describe_details(scores, (metric, "loss"), np.arange(len(scores)) % 40, metric)


def draw(scores: ExampleScores, metric: str) -> dict[str, Any]:
    """Returns the charts by their names."""
    return dict(figures.draw_figures("test", scores, describe(scores, metric)))


# --- labels ---------------------------------------------------------------------------------------------------------


def test_the_confusion_matrix_is_that_of_scikit_learn_and_a_changed_prediction_changes_its_image_alone() -> None:
    scores = make_scores()
    names, counts = figures.count_confusions(scores)
    assert names == list(scores.label_names)
    assert counts.tolist() == sklearn.metrics.confusion_matrix(scores.labels, scores.predictions).tolist()

    details, images = describe(scores, "accuracy"), draw(scores, "accuracy")
    assert list(images) == ALL
    first = scores.predictions[0] if scores.predictions else ""
    other = next(name for name in names if name != first)
    changed = dataclasses.replace(scores, predictions=[other, *(scores.predictions or ())[1:]])
    again = dict(figures.draw_figures("test", changed, details))
    assert [name for name in ALL if images[name].tobytes() != again[name].tobytes()] == ["confusion"]
    for image in images.values():
        assert image.width >= WIDTH
        assert len(image.getcolors(1 << 20)) > 3  # something is drawn


def test_of_many_labels_the_frequent_ones_are_shown_and_the_others_count_as_one() -> None:
    scores = make_scores(num_labels=60, size=900)
    names, counts = figures.count_confusions(scores)
    assert len(names) == figures.MOST_CELLS
    assert names[-1] == "41 others"
    assert counts.sum() == 900
    shown = np.bincount(scores.label_numbers, minlength=60)
    assert sorted(counts.sum(1)[:-1].tolist()) == sorted(shown.tolist())[-19:]
    assert list(draw(scores, "accuracy")) == ["confusion", "f1", "reliability", "length"]  # not all probabilities known


def test_names_without_a_picture_in_the_font_are_numbers_and_are_listed() -> None:
    assert [describe_name(name, 7) for name in ("plain", "été", "b\nc", "标签", "", "\x00")] == [
        "plain", "ete", "b c", "label 7", "label 7", "label 7"
    ]  # fmt: skip
    scores = make_scores(names=("positive", "标签", "label 1x"))
    assert figures.list_renamed(scores, describe(scores, "accuracy")) == {"label 1": "标签"}
    assert figures.count_confusions(scores)[0] == ["positive", "label 1", "label 1x"]


def test_a_long_name_loses_its_middle() -> None:
    names = [f"the-same-long-beginning-{number}" for number in (10, 11)]
    shown = [fit(name, 24, 150) for name in names]
    assert all(load_font(24).getlength(name) <= 150 for name in shown)
    assert shown[0] != shown[1]
    assert shown[0].startswith("the")
    assert (fit("short", 24, 150), fit("any", 24, 1)) == ("short", "...")


def test_entities_have_the_f1_of_their_types() -> None:
    references = [["B-ORG", "O", "B-PER"]] * 10
    predicted = [["B-ORG", "O", "O"]] * 4 + references[4:]
    scores = describe_tags(
        ("O", "B-ORG", "B-PER"), ("ORG", "PER"), rows=np.arange(10), predicted=predicted, references=references,
        losses=np.ones((10, 2)),
    )  # fmt: skip
    assert list(draw(scores, "f1")) == ["f1", "length"]
    assert figures.number_names(scores, describe(scores, "f1")) == {"O": 0, "B-ORG": 1, "B-PER": 2, "ORG": 3, "PER": 4}


# --- probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 6])  # with one digit many examples share a threshold
def test_precision_and_recall_are_those_of_scikit_learn(digits: int) -> None:
    generator = np.random.default_rng(2)
    has_label = generator.random(200) < 0.3
    probabilities = np.round(np.clip(0.3 * has_label + 0.7 * generator.random(200), 0, 1), digits)
    points, average = figures.compute_curve(probabilities, has_label)
    assert average == pytest.approx(sklearn.metrics.average_precision_score(has_label, probabilities))
    precision, recall, _ = sklearn.metrics.precision_recall_curve(has_label, probabilities)
    expected = list(zip(recall.tolist(), precision.tolist(), strict=True))[-2::-1]
    assert points[1:] == [pytest.approx(point) for point in expected]
    assert points[0] == (0.0, pytest.approx(expected[0][1]))


def test_examples_with_several_labels_have_curves_and_no_confusion_matrix() -> None:
    scores = make_several()
    assert list(draw(scores, "f1_micro")) == ["f1", "precision_recall", "reliability", "length"]
    marked = figures.mark_labels(scores)
    assert [[name for name, has in zip("abc", row, strict=True) if has] for row in marked] == scores.labels


def test_more_points_than_a_curve_shows_keep_its_ends() -> None:
    generator = np.random.default_rng(3)
    has_label = generator.random(5000) < 0.5
    points, _ = figures.compute_curve(generator.random(5000), has_label)
    assert len(points) <= figures.MOST_POINTS + 1
    assert points[-1] == (1.0, pytest.approx(has_label.mean()))


# --- numbers and lengths --------------------------------------------------------------------------------------------


def test_numbers_are_drawn_against_each_other() -> None:
    expected = np.linspace(0, 5, 50)
    scores = describe_numbers(np.arange(50), expected**0.5, expected)
    images = draw(scores, "mse")
    assert list(images) == ["numbers", "length"]
    moved = describe_numbers(np.arange(50), 5 - expected, expected)
    assert images["numbers"].tobytes() != draw(moved, "mse")["numbers"].tobytes()
    assert list(draw(describe_numbers(np.arange(3), np.full(3, math.nan), np.ones(3)), "mse")) == []


def test_a_part_without_the_metric_is_left_out() -> None:
    slices = [
        {"slice": "1 to 5", "examples": 9, "pearson": 0.5, "pearson_interval": [0.4, 0.6]},
        {"slice": "6 to 9", "examples": 9, "pearson": math.nan, "pearson_interval": [math.nan, math.nan]},
    ]
    assert figures.read_slices(slices, "pearson") == [(0.5, 0.5, 0.4, 0.6)]
    scores = make_scores()
    assert figures.draw_lengths("test", scores, {"lengths": slices}) is not None
    assert figures.draw_lengths("test", scores, {"lengths": slices[1:]}) is None
    assert figures.draw_lengths("test", scores, {}) is None
