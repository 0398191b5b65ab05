"""The sections of a report that follow from settings, results and environment: what trains, the data, where the time went."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.analysis.settings import complete_settings, find_defaults, format_setting, list_own_settings
from hf_finetune.analysis.tables import NOTHING, Row, Table, format_count, format_metric, format_seconds, format_share

SPLITS = ("train", "validation", "test")
PHASES = ("start", "load", "encode", "cache", "check", "train", "evaluate", "save", "export")
NOT_RECORDED = "The run does not record it: it is not finished, or an earlier version made it."
NO_BREAK = "\u00a0"
NARROWEST = 0.6  # percent, of the bar of a part of the model
MOST_LABELS = 30  # whose counts are listed


# --- the first table ------------------------------------------------------------------------------------------------


def make_summary(runs: Sequence[RunFiles]) -> Table:
    """Returns the table of what one asks first."""
    rows = [Row(name="state", cells=tuple(describe_state(run) for run in runs))]
    for split in ("test", "validation"):
        cells = tuple(describe_decisive(run, split) for run in runs)
        metrics = dict.fromkeys(str(run.metric) for run in runs)
        rows.append(Row(name=f"{' or '.join(metrics)} on {split}", cells=cells))
    rows.append(Row(name="best checkpoint", cells=tuple(describe_best(run) for run in runs)))
    examples = tuple(format_count(get(run.results, "examples", "train")) for run in runs)
    rows.append(Row(name="examples of training", cells=examples))
    rows.append(Row(name="trained parameters", cells=tuple(describe_parameters(run) for run in runs)))
    rows.append(Row(name="seconds", cells=tuple(format_seconds(get(run.results, "seconds", "total")) for run in runs)))
    rows.append(Row(name="peak memory", cells=tuple(describe_memory(run) for run in runs)))
    return Table(caption="The runs in short", head=get_labels(runs), rows=rows)


def get(values: Any, *keys: str) -> Any:
    """Returns a value of nested mappings, None if there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def get_labels(runs: Sequence[RunFiles]) -> tuple[str, ...]:
    """Returns the names of the runs."""
    return tuple(run.label for run in runs)


def describe_state(run: RunFiles) -> str:
    """Returns whether the run is finished, and how far it is."""
    updates = run.results.get("updates") if run.state == "finished" else run.last_update
    early = ", stopped early" if run.results.get("stopped_early") else ""
    return f"{run.state}, {updates or 0:,} updates{early}"


def describe_decisive(run: RunFiles, split: str) -> str:
    """Returns the metric that chooses the best checkpoint, on a split."""
    value = get(run.results, split, str(run.metric))
    return format_metric(value) + describe_bounds(get(run.results, "details", split, "intervals", str(run.metric)))


def describe_bounds(bounds: Sequence[float | None] | None) -> str:
    """Returns the bounds of an interval with a blank before; "" if there are none. A line can break before it, not inside."""
    if bounds is None or None in bounds:
        return ""
    low, high = bounds
    return f" [{low:.4f},{NO_BREAK}{high:.4f}]"


def describe_best(run: RunFiles) -> str:
    """Returns when the best checkpoint was saved."""
    best = run.results.get("best")
    return f"update {best['update']:,}, epoch {best['epoch']}" if best else NOTHING


def describe_parameters(run: RunFiles) -> str:
    """Returns how many parameters trained, and which share of all."""
    parameters = run.results.get("parameters")
    if not parameters:
        return NOTHING
    share = format_share(parameters["trainable"], parameters["total"])
    return f"{parameters['trainable']:,} ({share})"


def describe_memory(run: RunFiles) -> str:
    """Returns the peak memory."""
    memory = run.results.get("peak_memory_mb")
    return NOTHING if memory is None else f"{memory:,.0f} MB"


# --- what is frozen -------------------------------------------------------------------------------------------------


def make_freeze_picture(run: RunFiles) -> list[dict[str, Any]]:
    """Returns the parts of the model from the top down, neighbouring blocks that are alike as one row. [] if not recorded.

    Each row has its name, the numbers of values (of all, and of those that train), what it does, and the bars of its parts: the
    start, the width and the trained width, in percent of the widest row.
    """
    groups: list[list[dict[str, Any]]] = []
    for part in run.results.get("freeze_plan", []):
        previous = groups[-1][-1] if groups else None
        is_alike = previous is not None and all(part[key] == previous[key] for key in ("parameters", "trainable"))
        if is_alike and {part["part"].split()[0], groups[-1][-1]["part"].split()[0]} == {"block"}:
            groups[-1].append(part)
        else:
            groups.append([part])
    widest = max((sum(part["parameters"] for part in group) for group in groups), default=1)
    return [draw_group(group, 100 / widest) for group in reversed(groups)]


def draw_group(group: Sequence[Mapping[str, Any]], scale: float) -> dict[str, Any]:
    """Returns a row of the freeze picture. scale: Percent a value."""
    size = sum(part["parameters"] for part in group)
    trainable = sum(part["trainable"] for part in group)
    name, last = group[0]["part"], group[-1]["part"]
    if len(group) > 1:
        name = f"blocks {name.removeprefix('block ')}–{last.removeprefix('block ')}"
    bars, start = [], 0.0
    for part in group:
        width = max(NARROWEST, scale * part["parameters"])
        bars.append((round(start, 3), round(width, 3), round(width * part["trainable"] / part["parameters"], 3)))
        start += width
    state = "trains" if trainable == size else "frozen" if not trainable else f"{trainable:,} train"
    return {"name": name, "size": size, "trainable": trainable, "state": state, "bars": bars}


# --- data -----------------------------------------------------------------------------------------------------------


def make_data_sections(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Returns a part for each different data report, with the names of the runs that have it."""
    reports: list[tuple[Mapping[str, Any], list[str]]] = []
    for run in runs:
        for report, labels in reports:
            if report == run.data_report:
                labels.append(run.label)
                break
        else:
            reports.append((run.data_report, [run.label]))
    return [
        {
            "runs": ", ".join(labels) if len(reports) > 1 else "",
            "is_known": bool(report),
            "rows": make_rows_table(report),
            "labels": make_label_table(report),
            "recognised": [(entry["name"], entry["text"]) for entry in report.get("recognised", [])],
            "findings": [(bool(entry["warning"]), entry["sentence"]) for entry in report.get("findings", [])],
        }
        for report, labels in reports
    ]


def make_rows_table(report: Mapping[str, Any]) -> Table:
    """Returns the number of rows and the lengths of texts by split."""
    splits = tuple(report.get("rows", {}))
    rows = [Row(name="rows", cells=tuple(format_count(report["rows"][split]) for split in splits))] if splits else []
    texts = report.get("texts", {})
    for name in dict.fromkeys(name for columns in texts.values() for name in columns):
        for key, title in (("mean", "mean"), ("longest", "longest")):
            cells = tuple(format_count(get(texts, split, name, key)) for split in splits)
            rows.append(Row(name=f"{name}: characters, {title}", cells=cells))
    return Table(caption="Rows and lengths of texts by split", head=splits, rows=rows)


def make_label_table(report: Mapping[str, Any]) -> Table:
    """Returns the number of examples by label and split, the most frequent ones first."""
    counts = report.get("labels", {})
    splits = tuple(counts)
    first = counts[splits[0]] if splits else {}
    names = sorted(
        dict.fromkeys(name for split in splits for name in counts[split]), key=lambda name: -first.get(name, 0)
    )
    rows = [
        Row(name=name, cells=tuple(describe_count(counts[split], name) for split in splits))
        for name in names[:MOST_LABELS]
    ]
    if len(names) > MOST_LABELS:
        rows.append(Row(name=f"{len(names) - MOST_LABELS:,} more labels", cells=("",) * len(splits)))
    return Table(caption="Examples by label and split", head=splits, rows=rows)


def describe_count(counts: Mapping[str, int], name: str) -> str:
    """Returns the number of a label's examples, and its share."""
    total = sum(counts.values())
    return f"{counts.get(name, 0):,} ({format_share(counts.get(name, 0), total)})"


# --- settings, environment, time ------------------------------------------------------------------------------------


def make_settings_table(runs: Sequence[RunFiles]) -> Table:
    """Returns the settings that differ from the recipe's defaults in one of the runs, those that differ between runs first."""
    complete = [complete_settings(run) for run in runs]
    own = dict.fromkeys(key for run in runs for key in list_own_settings(run))
    defaults = find_defaults(runs[0].kind) if len({run.kind for run in runs}) == 1 else {}
    rows = []
    for key in own:
        values = [values.get(key) for values in complete]
        cells = [format_setting(value) for value in values]
        if defaults:
            cells.append(format_setting(defaults[key]) if key in defaults else "none")
        rows.append(Row(name=key, cells=tuple(cells), is_marked=any(value != values[0] for value in values)))
    head = (*get_labels(runs), "default") if defaults else get_labels(runs)
    rows.sort(key=lambda row: not row.is_marked)
    return Table(caption="Settings that differ from the defaults", head=head, rows=rows, has_numbers=False)


def make_environment_table(runs: Sequence[RunFiles]) -> Table:
    """Returns versions, device and command of the runs."""
    names = {
        "started": "started",
        "device": "device",
        "device_name": "device's name",
        "num_threads": "threads",
        "processes": "processes",
        "precision": "precision",
        "platform": "platform",
        "git_commit": "git commit",
    }
    environments = [run.environment for run in runs]
    keys = [(name, [values.get(key) for values in environments]) for key, name in names.items()]
    packages = dict.fromkeys(package for values in environments for package in values.get("versions", {}))
    keys += [(package, [get(values, "versions", package) for values in environments]) for package in packages]
    keys.append(("command", [" ".join(values.get("command", [])) or None for values in environments]))
    rows = [
        Row(
            name=name,
            cells=tuple(NOTHING if value is None else str(value) for value in values),
            is_marked=any(value != values[0] for value in values),
        )
        for name, values in keys
        if any(value is not None for value in values)
    ]
    return Table(caption="Environment", head=get_labels(runs), rows=rows, has_numbers=False)


def make_time_bars(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Returns a stacked bar of seconds by phase for each run, on one scale."""
    longest = max((get(run.results, "seconds", "total") or 0 for run in runs), default=0)
    return [{"label": run.label, "phases": stack_phases(run, longest)} for run in runs if run.results.get("seconds")]


def stack_phases(run: RunFiles, longest: float) -> list[tuple[str, float, float, str]]:
    """Returns the phase, start and width in percent of the longest run, and seconds as text, for each phase that took any."""
    bars, start = [], 0.0
    for phase in list_phases([run]):
        seconds = run.results["seconds"].get(phase, 0)
        if seconds and longest:
            width = 100 * seconds / longest
            bars.append((phase, round(start, 3), round(width, 3), format_seconds(seconds)))
            start += width
    return bars


def list_phases(runs: Sequence[RunFiles]) -> list[str]:
    """Returns the phases that the runs have, in the order of time."""
    known = {phase for run in runs for phase in run.results.get("seconds", {})} - {"total"}
    return [*(phase for phase in PHASES if phase in known), *sorted(known - {*PHASES})]


def make_time_table(runs: Sequence[RunFiles]) -> Table:
    """Returns the seconds by phase."""
    rows = [
        Row(name=phase, cells=tuple(format_seconds(get(run.results, "seconds", phase)) for run in runs))
        for phase in [*list_phases(runs), "total"]
    ]
    speeds = tuple(format_count(run.results.get("tokens_per_second")) for run in runs)
    rows.append(Row(name="tokens a second", cells=speeds))
    return Table(caption="Seconds by phase", head=get_labels(runs), rows=rows)
