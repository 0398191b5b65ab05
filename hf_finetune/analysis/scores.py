"""The scores of runs in a report: metrics with intervals, by label, by length, confusions, calibration. From results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.analysis.sections import SPLITS, describe_bounds, get, get_labels
from hf_finetune.analysis.tables import NOTHING, Row, Table, format_count, format_metric

NO_DETAILS = (
    "There are no intervals, scores by label or confusions: the run is not finished, or an earlier version made it."
)
MOST_LABELS = 40  # rows of the table by label
SHADES = 9  # of a confusion matrix, in style.css
DIAMETERS = (3.0, 9.0)  # pixels, of the points of a reliability diagram


def choose_split(runs: Sequence[RunFiles]) -> str:
    """Returns the split that scores are shown of: test, or validation if a run has no test split."""
    return "test" if all(get(run.results, "test") for run in runs) else "validation"


def make_score_tables(runs: Sequence[RunFiles]) -> list[tuple[str, Table]]:
    """Returns a table of the metrics for each split that a run has."""
    tables = []
    for split in reversed(SPLITS[1:]):
        has_labels = any(
            get(run.results, "details", split, "labels") for run in runs
        )  # then f1/person has a table of its own
        names = dict.fromkeys(
            name for run in runs for name in get(run.results, split) or {} if not (has_labels and "/" in name)
        )
        rows = [Row(name=name, cells=tuple(describe_score(run, split, name) for run in runs)) for name in names]
        if rows:
            table = Table(caption=f"Metrics on {split} with 95 % intervals", head=get_labels(runs), rows=rows)
            tables.append((split, table))
    return tables


def describe_score(run: RunFiles, split: str, name: str) -> str:
    """Returns a metric with its interval, if there is one."""
    value = get(run.results, split, name)
    return format_metric(value) + describe_bounds(get(run.results, "details", split, "intervals", name))


# --- by label and by length -----------------------------------------------------------------------------------------


def make_label_scores(runs: Sequence[RunFiles], split: str) -> dict[str, Any]:
    """Returns the F1 of each label: its name, its support, and for each run the text and the places of value and bounds in
    percent. {} if no run has them."""
    known = [get(run.results, "details", split, "labels") or [] for run in runs]
    by_label = [{entry["label"]: entry for entry in entries} for entries in known]
    names = list(dict.fromkeys(entry["label"] for entries in known for entry in entries))
    if not names:
        return {}
    rows = []
    for name in names[:MOST_LABELS]:
        entries = [entries.get(name) for entries in by_label]
        first = next(entry for entry in entries if entry is not None)
        rows.append(
            {
                "label": name,
                "support": format_count(first["support"]),
                "runs": [describe_label(entry, number) for number, entry in enumerate(entries)],
            }
        )
    return {"rows": rows, "num_more": len(names) - len(rows)}


def describe_label(entry: Mapping[str, Any] | None, number: int) -> dict[str, Any]:
    """Returns the scores of a label in a run as text, and the places of its F1 and the bounds."""
    if entry is None:
        return {"color": number, "texts": [NOTHING] * 3, "bounds": "", "place": None, "span": None}
    bounds = entry.get("f1_interval")
    span = None if bounds is None or None in bounds else [round(100 * bound, 2) for bound in bounds]
    return {
        "color": number,
        "texts": [format_metric(entry[name]) for name in ("precision", "recall", "f1")],
        "bounds": describe_bounds(bounds).strip(),
        "place": None if entry["f1"] is None else round(100 * entry["f1"], 2),
        "span": span,
    }


def make_length_table(runs: Sequence[RunFiles], split: str) -> Table | None:
    """Returns the metric by the number of tokens of an example, of the runs that have the same slices as the first one."""
    slices = [get(run.results, "details", split, "lengths") or [] for run in runs]
    names = [entry["slice"] for entry in slices[0]]
    if not names or any([entry["slice"] for entry in entries] != names for entries in slices):
        return None
    rows = []
    for place, name in enumerate(names):
        cells = [format_count(slices[0][place]["examples"])]
        for run, entries in zip(runs, slices, strict=True):
            entry, metric = entries[place], str(run.metric)
            cells.append(format_metric(entry.get(metric)) + describe_bounds(entry.get(f"{metric}_interval")))
        rows.append(Row(name=f"{name} tokens", cells=tuple(cells)))
    titles = get_labels(runs) if len(runs) > 1 else (str(runs[0].metric),)
    return Table(caption="Scores by the length of examples", head=("examples", *titles), rows=rows)


# --- confusions and calibration -------------------------------------------------------------------------------------


def make_confusion(run: RunFiles, split: str) -> dict[str, Any]:
    """Returns the confusion matrix with a shade of each cell by its share of the row, and the most frequent confusions."""
    details = get(run.results, "details", split) or {}
    matrix, labels = details.get("confusion"), run.results.get("labels", [])
    rows = []
    if matrix and len(matrix) == len(labels):
        for label, counts in zip(labels, matrix, strict=True):
            total = sum(counts) or 1
            cells = [(count, -(-SHADES * count // total)) for count in counts]
            rows.append((label, cells))
    pairs = [(entry["label"], entry["prediction"], entry["count"]) for entry in details.get("confusions", [])[:8]]
    return {"labels": labels, "rows": rows, "pairs": pairs}


def make_reliability(run: RunFiles, split: str) -> dict[str, Any]:
    """Returns the points of the reliability diagram, in percent, and the calibration error. {} if there are none."""
    calibration = get(run.results, "details", split, "calibration")
    if not calibration or not calibration["bins"]:
        return {}
    most = max(entry["count"] for entry in calibration["bins"])
    points = [
        {
            "x": round(100 * entry["confidence"], 2),
            "y": round(100 * (1 - entry["accuracy"]), 2),
            "radius": round(DIAMETERS[0] + (DIAMETERS[1] - DIAMETERS[0]) * (entry["count"] / most) ** 0.5, 1),
            "text": f"confidence {entry['confidence']:.3f}, right {entry['accuracy']:.3f}, {entry['count']:,} answers",
        }
        for entry in calibration["bins"]
    ]
    return {"points": points, "error": format_metric(calibration["error"])}
