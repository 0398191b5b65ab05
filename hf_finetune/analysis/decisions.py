"""What task.calibrate fitted on validation, and what it changes in the metrics of a split. From results.json."""

from typing import Any

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.analysis.sections import get
from hf_finetune.analysis.tables import NOTHING, Row, Table, format_metric
from hf_finetune.tasks.calibration import PREFIX, Calibrator

# What a calibration changes: the metric of its results, the one without it, and the setting that asks for a value
EFFECTS = {
    "ece": ("expected calibration error", "ece", None),
    "brier_score": ("Brier score", "brier_score", None),
    "log_loss": ("log loss", "log_loss", None),
    "f1_micro": ("f1_micro", "f1_micro", None),
    "f1_macro": ("f1_macro", "f1_macro", None),
    "exact_match": ("exact_match", "exact_match", None),
    "answered": ("share of texts that get an answer", None, None),
    "answered_accuracy": ("accuracy of the answers", "accuracy", "task.target_accuracy"),
    "set_coverage": ("share of right labels that are in the sets", None, "task.coverage"),
    "set_size": ("labels in a set, mean", None, None),
}


def make_decisions(run: RunFiles, split: str) -> dict[str, Any]:
    """Returns `lines` about what was fitted, a table of its `effect` on a split, and one of the `thresholds` of labels, None
    without any. {} if nothing was fitted."""
    record = run.results.get("calibration")
    if not record:
        return {}
    calibrator = Calibrator(
        methods=tuple(run.settings["task.calibrate"]),
        accuracy=run.settings["task.target_accuracy"],
        coverage=run.settings["task.coverage"],
        problem=run.results["problem"],
        label_names=tuple(run.results["labels"]),
    )
    return {
        "lines": calibrator.from_record(record).describe(),
        "num_examples": record["num_examples"],
        "effect": make_effect_table(run, split),
        "thresholds": make_threshold_table(record),
    }


def make_effect_table(run: RunFiles, split: str) -> Table:
    """Returns the metrics that the calibration changes, without and with it."""
    rows = []
    for name, (title, plain, setting) in EFFECTS.items():
        value = get(run.results, split, f"{PREFIX}{name}")
        if value is not None:
            without = get(run.results, split, plain) if plain else 1.0 if name == "answered" else None
            asked = NOTHING if setting is None else f"{run.settings[setting]:g}"
            rows.append(Row(name=title, cells=(format_metric(without), format_metric(value), asked)))
    head: tuple[str, ...] = ("without", "with", "asked for")
    if all(row.cells[-1] == NOTHING for row in rows):
        rows = [Row(name=row.name, cells=row.cells[:-1]) for row in rows]
        head = head[:-1]
    return Table(caption=f"Metrics on {split} without and with task.calibrate", head=head, rows=rows)


def make_threshold_table(record: dict[str, Any]) -> Table | None:
    """Returns the thresholds of each label; None if labels have none of their own."""
    columns = {"thresholds": "predicted above", "set_thresholds": "in the set from"}
    known = {title: record[name] for name, title in columns.items() if record.get(name)}
    if not known:
        return None
    labels = next(iter(known.values()))
    rows = [Row(name=label, cells=tuple(f"{values[label]:.4f}" for values in known.values())) for label in labels]
    return Table(caption="Thresholds of the probability of each label", head=tuple(known), rows=rows)
