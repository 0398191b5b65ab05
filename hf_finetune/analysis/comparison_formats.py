"""A comparison of runs as a table for a terminal, as JSON or as csv."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hf_finetune.analysis.comparison import COSTS, Group, MetricOfGroup, RunComparison
from hf_finetune.analysis.settings import format_setting
from hf_finetune.analysis.tables import NOTHING, format_count, format_metric
from hf_finetune.system.console import align_columns

UNITS = {"seconds": "seconds", "peak_memory_mb": "memory, MB", "trainable_parameters": "trained parameters"}


def format_comparison(comparison: RunComparison, style: str) -> str:
    """Returns the comparison as text. style: table, json or csv."""
    formats: dict[str, Callable[[RunComparison], str]] = {"table": as_table, "json": as_json, "csv": as_csv}
    return formats[style](comparison)


def as_table(comparison: RunComparison) -> str:
    """Returns tables for a terminal: settings and costs, then each metric with its differences, then notes."""
    groups = comparison.groups
    lines = [*describe_groups(groups), ""]
    rows = [("", *(name_group(number) for number in range(len(groups))))]
    for key in groups[0].settings:
        rows.append((key, *(format_setting(group.settings[key]) for group in groups)))
    for name in COSTS:
        rows.append((UNITS[name], *(format_count(group.get_cost(name)) for group in groups)))
    lines += [align_columns(rows), ""]
    if comparison.values:
        lines.append(
            f"on {comparison.num_examples:,} {comparison.split} examples; 95 % intervals of the differences from A"
        )
        lines += [align_columns(list_metric_rows(comparison)), ""]
    lines += [f"note: {note}" for note in comparison.notes]
    return "\n".join(lines).rstrip()


def name_group(number: int) -> str:
    """Returns a short name of a group: A, B, ..., Z, A1, ..."""
    letter = chr(ord("A") + number % 26)
    return letter if number < 26 else f"{letter}{number // 26}"


def describe_groups(groups: Sequence[Group]) -> list[str]:
    """Returns a line for each group: its short name and its runs."""
    lines = []
    for number, group in enumerate(groups):
        num_runs, num_seeds = len(group.runs), len({run.settings.get("seed") for run in group.runs})
        seeds = f" ({num_seeds} seeds, means)" if num_runs > 1 else ""
        if num_seeds < num_runs:
            seeds = f" ({num_runs} runs of {num_seeds} seed{'s' * (num_seeds > 1)}, means: those of one seed are one run twice)"
        lines.append(f"{name_group(number)}  {group.label}{seeds}")
    return lines


def list_metric_rows(comparison: RunComparison) -> list[tuple[str, ...]]:
    """Returns the rows of the table of metrics."""
    rows: list[tuple[str, ...]] = [("metric", "run", "value", "difference", "95 % interval", "")]
    for name, values in comparison.values.items():
        for number, value in enumerate(values):
            cells = describe_difference(value)
            rows.append((name if number == 0 else "", name_group(number), format_value(value.value), *cells))
    return rows


def describe_difference(value: MetricOfGroup) -> tuple[str, str, str]:
    """Returns the difference, its interval and the verdict as cells."""
    if value.difference is None:
        return "", "", ""
    found = value.difference
    bounds = f"[{found.low:+.4f}, {found.high:+.4f}]" if math.isfinite(found.low) else NOTHING
    return f"{found.value:+.4f}", bounds, value.verdict


def format_value(value: float) -> str:
    """Returns a metric as a cell has it."""
    return format_metric(None if math.isnan(value) else value)


# --- for programs ---------------------------------------------------------------------------------------------------


def as_json(comparison: RunComparison) -> str:
    """Returns the comparison as a JSON document. Numbers that are not finite are null."""
    content = {
        "split": comparison.split,
        "examples": comparison.num_examples,
        "groups": [
            {
                "runs": [str(run.folder) for run in group.runs],
                "settings": dict(group.settings),
                **{name: group.get_cost(name) for name in COSTS},
                "metrics": {name: describe_value(values[number]) for name, values in comparison.values.items()},
            }
            for number, group in enumerate(comparison.groups)
        ],
        "notes": list(comparison.notes),
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def describe_value(value: MetricOfGroup) -> dict[str, Any]:
    """Returns a metric of a group as plain values."""
    described: dict[str, Any] = {"value": make_finite(value.value)}
    if value.difference is not None:
        found = value.difference
        bounds = [make_finite(found.low), make_finite(found.high)]
        described |= {"difference": make_finite(found.value), "interval": bounds, "verdict": value.verdict}
    return described


def make_finite(value: float) -> float | None:
    """Returns the number, None if it is not finite."""
    return value if math.isfinite(value) else None


def as_csv(comparison: RunComparison) -> str:
    """Returns a row for each group, with a header."""
    names = [*comparison.groups[0].settings, *COSTS]
    header = ["runs", *names]
    for name in comparison.values:
        header += [name, *(f"{name} {part}" for part in ("difference", "low", "high", "verdict"))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for number, group in enumerate(comparison.groups):
        row: list[Any] = [" ".join(str(run.folder) for run in group.runs)]
        row += [format_setting(value) for value in group.settings.values()]
        row += [group.get_cost(name) for name in COSTS]
        for values in comparison.values.values():
            found = describe_value(values[number])
            low, high = found.get("interval", (None, None))
            row += [found["value"], found.get("difference"), low, high, found.get("verdict")]
        writer.writerow(row)
    return text.getvalue().rstrip("\n")
