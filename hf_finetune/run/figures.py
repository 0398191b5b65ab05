"""The charts of scored examples that TensorBoard shows as images.

N examples, C labels, L labels that are shown.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.run.pictures import (
    COLORS,
    GREY,
    HEIGHT,
    INK,
    TEXT,
    TITLE,
    WIDTH,
    Canvas,
    Plot,
    describe_name,
    fit,
    load_font,
    shade,
)
from hf_finetune.system.axes import Axis, make_axis
from hf_finetune.tasks.example_scores import ExampleScores

MOST_CELLS = 20  # labels of a confusion matrix, the last one standing for all others
MOST_ROWS = 20  # labels with their F1
MOST_CURVES = len(COLORS)
MOST_POINTS = 300  # of a curve
MOST_DOTS = 1500
CELL = 56  # smallest width of a cell
NAMES = 190  # width of the names of labels
RIGHT, WRONG, OTHER = (0, 114, 178), (213, 94, 0), (128, 134, 139)
SHARE = make_axis(0, 1, num_ticks=5)


def draw_figures(split: str, scores: ExampleScores, details: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the name and the image (PIL) of each chart that says something of the examples.

    Args:
        split: Its name.
        scores: The examples of the split.
        details: What run.details.describe_details() returns for them.
    """
    where = f"{split}, {len(scores):,} examples"
    kinds: dict[str, Callable[[str, ExampleScores, Mapping[str, Any]], Canvas | None]] = {
        "confusion": draw_confusion,
        "f1": draw_label_scores,
        "precision_recall": draw_precision_recall,
        "reliability": draw_calibration,
        "numbers": draw_numbers,
        "length": draw_lengths,
    }
    for name, draw in kinds.items():
        canvas = draw(where, scores, details)
        if canvas is not None:
            yield name, canvas.image


def number_names(scores: ExampleScores, details: Mapping[str, Any]) -> dict[str, int]:
    """Returns the numbers of the labels, then of the types of entities."""
    names = dict.fromkeys([*scores.label_names, *(entry["label"] for entry in details.get("labels", ()))])
    return {name: number for number, name in enumerate(names)}


def list_renamed(scores: ExampleScores, details: Mapping[str, Any]) -> dict[str, str]:
    """Returns the names of the labels that charts show by their number, by what they show."""
    shown = {describe_name(name, number): name for name, number in number_names(scores, details).items()}
    return {text: name for text, name in shown.items() if text.startswith("label ") and text != name}


# --- labels ---------------------------------------------------------------------------------------------------------


def draw_confusion(where: str, scores: ExampleScores, _: Mapping[str, Any]) -> Canvas | None:
    """Draws how often each label is predicted in place of each other one; None if an example does not have one label."""
    if not scores.label_names or scores.labels is None or scores.has_several_labels:
        return None
    names, counts = count_confusions(scores)
    cell = max(CELL, 480 // len(names))
    room = min(NAMES, max(load_font(TEXT).getlength(name) for name in names))
    left, top, size = 60 + round(room), 110, cell * len(names)
    canvas = Canvas(max(WIDTH, left + size + 20), top + size + round(room) + 40)
    canvas.write((20, 20), f"confusion: {where}", anchor="lt", size=TITLE)
    canvas.write((left + size / 2, 84), "predicted", color=GREY)
    canvas.write_upwards((18, top + size / 2), "right label")
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    for row, name in enumerate(names):
        y = top + cell * row
        canvas.write((left - 12, y + cell / 2), name, anchor="rm", width=NAMES)
        canvas.write_upwards((left + cell * (row + 0.5), top + size + 12), name, is_end=True, width=NAMES)
        for column in range(len(names)):
            corner = left + cell * column, y
            # Examples of two other labels are in one cell, whether they are right or not
            is_mixed = row == column == len(names) - 1 and len(names) < len(scores.label_names)
            color = OTHER if is_mixed else RIGHT if row == column else WRONG
            draw_cell(canvas, corner, cell, counts[row, column], shares[row, column], color)
    return canvas


def draw_cell(
    canvas: Canvas, corner: tuple[int, int], size: int, count: int, share: float, color: tuple[int, int, int]
) -> None:
    """Draws a cell of the confusion matrix: the darker, the larger its share of the examples with this label."""
    x, y = corner
    canvas.draw.rectangle((x, y, x + size, y + size), fill=shade(color, share), outline="white", width=2)
    if count:
        text, ink = f"{count:,}", "white" if share > 0.6 else INK
        size_of_text = TEXT if fit(text, TEXT, size - 4) == text else TEXT * 2 // 3
        canvas.write((x + size / 2, y + size / 2), text, size=size_of_text, color=ink)


def count_confusions(scores: ExampleScores) -> tuple[list[str], Array]:
    """Returns names of labels and the number of examples by right and predicted label [L, L]. Of many labels those with the most
    examples are shown, in the order of all labels, and the rest as one."""
    right, predicted = scores.label_numbers, scores.prediction_numbers
    size = len(scores.label_names)
    shown = np.arange(size)
    if size > MOST_CELLS:
        shown = pick_frequent(np.bincount(right, minlength=size), MOST_CELLS - 1)
    places = np.full(size, len(shown))
    places[shown] = np.arange(len(shown))
    names = [describe_name(scores.label_names[number], number) for number in shown.tolist()]
    names += [f"{size - len(shown)} others"] if size > len(shown) else []
    pairs = np.bincount(places[right] * len(names) + places[predicted], minlength=len(names) ** 2)
    return names, pairs.reshape(len(names), len(names))


def pick_frequent(counts: Array, most: int) -> Array:
    """Returns the numbers of the labels with the largest counts, ascending."""
    return np.sort(np.argsort(-counts, kind="stable")[:most])


def draw_label_scores(where: str, scores: ExampleScores, details: Mapping[str, Any]) -> Canvas | None:
    """Draws the F1 of each label, tag or type of entities with its interval, those with the most examples first."""
    entries = details.get("labels", ())[:MOST_ROWS]
    if not entries:
        return None
    numbers = number_names(scores, details)
    height = 56 * len(entries)
    canvas = Canvas(WIDTH, height + 170)
    more = len(details["labels"]) - len(entries)
    title = f"F1 by label: {where}" if not more else f"F1 of {len(entries)} frequent labels: {where}"
    canvas.write((20, 20), title, anchor="lt", size=TITLE, width=WIDTH - 40)
    canvas.write((WIDTH - 20, 76), "examples", anchor="rm", color=GREY)
    plot = Plot(canvas, (NAMES + 50, 100, WIDTH - 120, 100 + height), SHARE, Axis(low=len(entries), high=0, ticks=()))
    for row, entry in enumerate(entries):
        low, high = entry["f1_interval"]
        plot.draw_interval((low, row + 0.5), (high, row + 0.5), COLORS[0])
        plot.draw_dot((entry["f1"], row + 0.5), COLORS[0])
        _, y = plot.find_place((0, row + 0.5))
        name = describe_name(entry["label"], numbers[entry["label"]])
        canvas.write((NAMES + 30, y), name, anchor="rm", width=NAMES + 10)
        canvas.write((WIDTH - 20, y), f"{entry['support']:,}", anchor="rm", color=GREY)
    return canvas


# --- probabilities --------------------------------------------------------------------------------------------------


def draw_precision_recall(where: str, scores: ExampleScores, _: Mapping[str, Any]) -> Canvas | None:
    """Draws precision against recall over all thresholds, for the labels with the most examples; None without all
    probabilities."""
    if not scores.label_names or scores.labels is None or not isinstance(scores.probabilities, np.ndarray):
        return None
    has_label = mark_labels(scores)
    numbers = [number for number in pick_frequent(has_label.sum(0), MOST_CURVES) if has_label[:, number].any()]
    canvas = Canvas()
    canvas.write((20, 20), f"precision and recall: {where}", anchor="lt", size=TITLE, width=WIDTH - 40)
    plot = Plot(canvas, (110, 90, 430, HEIGHT - 100), SHARE, SHARE)
    plot.name_axes("recall", "precision")
    canvas.write((460, 110), "average precision", anchor="lm", color=GREY)
    for place, number in enumerate(numbers):
        curve, average = compute_curve(scores.probabilities[:, number], has_label[:, number])
        plot.draw_line(curve, COLORS[place])
        y = 156 + 40 * place
        canvas.draw.rectangle((460, y - 8, 476, y + 8), fill=COLORS[place])
        canvas.write((486, y), f"{average:.2f}", anchor="lm")
        canvas.write((542, y), describe_name(scores.label_names[number], number), anchor="lm", width=WIDTH - 552)
    return canvas


def mark_labels(scores: ExampleScores) -> Array:
    """Returns which labels are right for each example [N, C]."""
    labels: Any = scores.label_numbers
    if scores.has_several_labels:
        return np.asarray(labels.toarray() > 0)
    return np.asarray(labels[:, None] == np.arange(len(scores.label_names)))


def compute_curve(probabilities: Array, has_label: Array) -> tuple[list[tuple[float, float]], float]:
    """Returns pairs of recall and precision of a label, from the highest threshold to the lowest, and the average precision: the
    mean of the precisions, weighted by the recall that each threshold adds.

    probabilities, has_label: Of each example [N].
    """
    order = np.argsort(-probabilities, kind="stable")
    found = np.cumsum(has_label[order])
    # Examples of equal probability share a threshold
    ends = np.append(np.flatnonzero(np.diff(probabilities[order])), len(order) - 1)
    precision, recall = found[ends] / (ends + 1), found[ends] / found[-1]
    average = float(np.diff(recall, prepend=0) @ precision)
    shown = np.unique(np.linspace(0, len(ends) - 1, MOST_POINTS).astype(int))
    points = list(zip(recall[shown].tolist(), precision[shown].tolist(), strict=True))
    return [(0.0, points[0][1]), *points], average


def draw_calibration(where: str, _: ExampleScores, details: Mapping[str, Any]) -> Canvas | None:
    """Draws the share of right answers by their confidence (reliability diagram); None without probabilities of labels."""
    if "calibration" not in details:
        return None
    bins, error = details["calibration"]["bins"], details["calibration"]["error"]
    canvas = Canvas()
    canvas.write((20, 20), f"reliability: {where}", anchor="lt", size=TITLE, width=WIDTH - 40)
    canvas.write((20, 66), f"calibration error {error:.3f}; larger dots: more answers", anchor="lt", color=GREY)
    plot = Plot(canvas, (110, 120, WIDTH - 40, HEIGHT - 100), SHARE, SHARE)
    plot.name_axes("confidence", "right answers")
    plot.draw_line([(0, 0), (1, 1)], GREY, width=3)
    plot.draw_line([(part["confidence"], part["accuracy"]) for part in bins], COLORS[0])
    total = sum(part["count"] for part in bins)
    for part in bins:
        plot.draw_dot((part["confidence"], part["accuracy"]), COLORS[0], 5 + 25 * math.sqrt(part["count"] / total))
    return canvas


# --- numbers and lengths --------------------------------------------------------------------------------------------


def draw_numbers(where: str, scores: ExampleScores, _: Mapping[str, Any]) -> Canvas | None:
    """Draws predicted against right numbers; None if the examples do not have one of each."""
    if not {"predicted", "expected"} <= {*scores.columns} or not len(scores):
        return None
    size = -(-len(scores) // MOST_DOTS)
    expected, predicted = (scores.get_column(name)[::size] for name in ("expected", "predicted"))
    is_finite = np.isfinite(expected) & np.isfinite(predicted)
    expected, predicted = expected[is_finite], predicted[is_finite]
    if not len(expected):
        return None
    # A mean squared error compares numbers of one scale, which cosines and ratings are not
    has_one_scale = "mse" in scores.metrics
    ranges = [np.concatenate([expected, predicted])] * 2 if has_one_scale else [expected, predicted]
    x_axis, y_axis = (make_axis(float(part.min()), float(part.max()), num_ticks=5) for part in ranges)
    canvas = Canvas()
    canvas.write((20, 20), f"prediction and label: {where}", anchor="lt", size=TITLE, width=WIDTH - 40)
    plot = Plot(canvas, (140, 90, WIDTH - 40, HEIGHT - 100), x_axis, y_axis)
    plot.name_axes("label", "prediction")
    if has_one_scale:
        plot.draw_line([(x_axis.low, x_axis.low), (x_axis.high, x_axis.high)], GREY, width=3)
    for point in zip(expected.tolist(), predicted.tolist(), strict=True):
        plot.draw_dot(point, COLORS[0], 4)
    return canvas


def draw_lengths(where: str, _scores: ExampleScores, details: Mapping[str, Any]) -> Canvas | None:
    """Draws metrics of the examples by their length, with intervals; None if there are no different lengths."""
    slices = details.get("lengths", ())
    names = [name for name in (slices[0] if slices else ()) if f"{name}_interval" in slices[0]]
    panels = [(name, read_slices(slices, name)) for name in names]
    panels = [(name, points) for name, points in panels if points]
    if not panels:
        return None
    canvas = Canvas()
    canvas.write((20, 20), f"by length: {where}", anchor="lt", size=TITLE, width=WIDTH - 40)
    height = (HEIGHT - 190) // len(panels) - 40
    for number, (name, points) in enumerate(panels):
        top = 90 + (height + 40) * number
        y_axis = make_axis(min(low for _, _, low, _ in points), max(high for *_, high in points), num_ticks=4)
        plot = Plot(canvas, (140, top, WIDTH - 40, top + height), Axis(low=0, high=len(slices), ticks=()), y_axis)
        canvas.write_upwards((24, top + height / 2), name, width=height)
        plot.draw_line([(place, value) for place, value, _, _ in points], COLORS[number], width=3)
        for place, value, low, high in points:
            plot.draw_interval((place, low), (place, high), COLORS[number])
            plot.draw_dot((place, value), COLORS[number])
    for place, entry in enumerate(slices):
        x, _ = plot.find_place((place + 0.5, y_axis.low))
        canvas.write((x, HEIGHT - 86), entry["slice"])
    canvas.write(((140 + WIDTH - 40) / 2, HEIGHT - 36), "tokens; about as many examples in each part", color=GREY)
    return canvas


def read_slices(slices: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float, float, float]]:
    """Returns the horizontal place, the value of a metric and its interval for each slice that has them."""
    found = [(place + 0.5, entry[name], *entry[f"{name}_interval"]) for place, entry in enumerate(slices)]
    return [entry for entry in found if all(map(math.isfinite, entry))]
