"""What `hf-finetune evaluate` prints: the metrics, and the tables of what follows from single examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.system.console import align_columns, escape_controls

MOST_LABELS = 30  # that are printed
MOST_CONFUSIONS = 10


def format_evaluation(values: Mapping[str, float], details: Mapping[str, Any]) -> str:
    """Returns the metrics of an evaluation and its details (export.evaluation.describe_evaluation()) as text."""
    parts = [format_values(values, details)]
    if details:
        parts += [
            format_labels(details.get("labels", ())),
            format_confusions(details.get("confusions", ())),
            format_calibration(details.get("calibration", {})),
            *(format_slices(name, slices) for name, slices in details.get("slices", {}).items()),
            format_examples("worst", details.get("worst", ())),
            format_examples("least certain", details.get("least_certain", ())),
        ]
    return "\n\n".join(part for part in parts if part)


def format_values(values: Mapping[str, float], details: Mapping[str, Any]) -> str:
    """Returns a line for each metric, with its interval."""
    width = max(20, *map(len, values))
    intervals = details.get("intervals", {})
    lines = [
        f"{name:<{width}} {value:.4f}" + (f"   {format_interval(intervals[name])}" if name in intervals else "")
        for name, value in values.items()
    ]
    if details:
        confidence, resamples, examples = details["confidence"], details["resamples"], details["examples"]
        lines.append(f"intervals: {confidence:.0%}, {resamples:,} resamples of {examples:,} examples")
    return "\n".join(lines)


def format_interval(interval: Sequence[float | None]) -> str:
    """Returns `low to high`; "undefined" if the metric is not defined in many resamples."""
    low, high = interval
    return "undefined" if low is None or high is None or low != low else f"{low:.4f} to {high:.4f}"


def format_table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Returns a table with its title above it; "" if it has no rows besides its head."""
    return f"{title}\n{align_columns(rows)}" if len(rows) > 1 else ""


def format_labels(labels: Sequence[Mapping[str, Any]]) -> str:
    """Returns the scores of each label."""
    rows: list[tuple[str, ...]] = [("label", "examples", "precision", "recall", "f1", "interval of f1")]
    for entry in labels[:MOST_LABELS]:
        scores = [f"{entry[name]:.4f}" for name in ("precision", "recall", "f1")]
        rows.append((cut(entry["label"]), f"{entry['support']:,}", *scores, format_interval(entry["f1_interval"])))
    left_out = f", the {MOST_LABELS} most frequent of {len(labels)}" if len(labels) > MOST_LABELS else ""
    return format_table(f"by label{left_out}", rows)


def format_confusions(confusions: Sequence[Mapping[str, Any]]) -> str:
    """Returns the most frequent mistakes."""
    rows = [("right", "predicted", "examples")]
    for entry in confusions[:MOST_CONFUSIONS]:
        rows.append((cut(entry["label"]), cut(entry["prediction"]), f"{entry['count']:,}"))
    return format_table("most frequent mistakes", rows)


def format_calibration(calibration: Mapping[str, Any]) -> str:
    """Returns the calibration error and the reliability bins."""
    rows = [("confidence", "answers", "mean confidence", "right")]
    for one in calibration.get("bins", ()):
        bounds = f"{one['low']:.2f} to {one['high']:.2f}"
        rows.append((bounds, f"{one['count']:,}", f"{one['confidence']:.4f}", f"{one['accuracy']:.4f}"))
    return format_table(f"calibration: expected error {calibration.get('error', 0):.4f}", rows)


def format_slices(name: str, slices: Sequence[Mapping[str, Any]]) -> str:
    """Returns the metrics of each slice with the interval of the first."""
    metrics = [key for key in slices[0] if key not in ("slice", "examples") and not key.endswith("_interval")]
    rows = [(name, "examples", metrics[0], f"interval of {metrics[0]}", *metrics[1:])]
    for entry in slices:
        values = [f"{entry[metric]:.4f}" for metric in metrics]
        interval = format_interval(entry[f"{metrics[0]}_interval"])
        rows.append((cut(entry["slice"]), f"{entry['examples']:,}", values[0], interval, *values[1:]))
    return format_table(f"by {name}", rows)


def format_examples(title: str, examples: Sequence[Mapping[str, Any]]) -> str:
    """Returns single examples, two lines each: what is known of them, and their text."""
    lines = []
    for example in examples:
        known = [f"loss {example['loss']:.4f}"] if "loss" in example else []
        known += [f"{name} {value:.4g}" for name, value in example.get("numbers", {}).items() if value is not None]
        if "label" in example:
            known.append(f"right: {cut(example['label'])}")
        if "prediction" in example:
            known.append(f"predicted: {cut(example['prediction'])}{format_confidence(example)}")
        lines.append(f"  {example['where']}  {', '.join(known)}")
        lines += [f"    {escape_controls(text)}" for text in example["text"].values()]
    return "\n".join([title, *lines]) if lines else ""


def format_confidence(example: Mapping[str, Any]) -> str:
    """Returns the largest probability of an example with one label, in brackets; "" if it has none."""
    probabilities = example.get("probabilities")
    if not probabilities or isinstance(example["prediction"], list):
        return ""
    values = probabilities.values() if isinstance(probabilities, dict) else probabilities
    return f" ({max(values):.2f})"


def cut(value: Any) -> str:
    """Returns a value as short text, "(none)" for no label and no text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(cut, value)) if isinstance(value, list) else escape_controls(str(value))
    return (text if len(text) <= 60 else text[:59] + "…") or "(none)"
