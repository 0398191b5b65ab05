"""The command `hf-finetune data`: the report on data without training.

torch is imported only if model.backbone is given: its import takes longer than the report on small files.
"""

import argparse
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hf_finetune.config.loading import load_config, split_arguments
from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import DataConfig, RunConfig
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.recipe import report_errors
from hf_finetune.system.console import align_columns, label_lines
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_root
from hf_finetune.system.output import open_standard_output

if TYPE_CHECKING:
    from hf_finetune.data.column_report import ColumnSummary
    from hf_finetune.data.table import Table

DESCRIPTION = """Reports on data without training: rows, labels, what was recognised in the files, and what may be wrong, as a run
does before it trains. Without --task, reports on the columns and the tasks that they fit."""
OPTIONS = {
    "--task NAME": f"one of {', '.join(TASKS)}, or your own class as my_package.tasks:MyTask",
    "--validation FILE ...": "validation data, as data.validation",
    "--test FILE ...": "test data, as data.test",
    "--format json": "print all of the report as JSON, as data.json holds it",
    "--strict": "exit code 2 if there are warnings, as data.strict",
    "--SECTION.KEY VALUE": "settings of the task's recipe, such as --data.label_column stars. With --model.backbone, texts that "
    "are cut and characters that its tokenizer does not know are reported too",
}
USAGE = "hf-finetune data FILE ... [--task NAME] [options] [settings]"
NO_BACKBONE = "none"  # stands for model.backbone, which settings must have and the report does not need
SAMPLE_ROWS = 200  # that a task must be able to read to be suggested
NO_CHANGES: Mapping[str, Any] = MappingProxyType({})
SHORT = {"task": "task.kind", "validation": "data.validation", "test": "data.test"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """The words of the command line.

    Attributes:
        files: The training data.
        kind: The task; None if it is not named.
        settings: The settings as words of a command line.
        is_json: Print JSON.
        is_strict: Warnings are errors.
        has_backbone: The settings name a backbone.
    """

    files: tuple[str, ...]
    kind: str | None
    settings: tuple[str, ...]
    is_json: bool
    is_strict: bool
    has_backbone: bool


def add_data(commands: Any) -> None:
    """Adds the parser of hf-finetune data, which prints its help. run_data() reads the words."""
    lines = "\n".join(f"  {name:<24}{text}" for name, text in OPTIONS.items())
    parser = commands.add_parser(
        "data",
        help="report on data without training: labels, duplicates, shared rows, and more",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=f"options:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=lambda options: run_data([]))


def run_data(words: Sequence[str]) -> int:
    """Runs hf-finetune data, and returns the exit code: 2 if the data cannot be used, or with --strict if there are warnings."""
    return report_errors(lambda: print_report(read_request(words)), debug="--debug" in words)


def read_request(words: Sequence[str]) -> Request:
    """Returns what the words ask for. InputError if they cannot be read."""
    flags = {"--debug", "--strict"} & {*words}
    words = [word for word in words if word not in flags]
    first = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
    options = {SHORT.get(key, key): values for key, values in split_arguments(words[first:])}
    shown = options.pop("format", ["table"])
    if shown not in (["json"], ["table"]):
        raise InputError(f"--format ({' '.join(shown)}): must be table or json")
    kind = options.pop("task.kind", None)
    if kind is not None and len(kind) != 1:
        raise InputError(f"--task ({' '.join(kind)}): takes one name; files come first: {USAGE}")
    files = tuple(words[:first])
    if not files and not options.keys() & {"data.train", "data.dataset", "config"}:
        raise InputError(f"data: name the files: {USAGE}")
    return Request(
        files=files,
        kind=kind[0] if kind else None,
        settings=tuple(word for key, values in options.items() for word in (f"--{key}", *values)),
        is_json=shown == ["json"],
        is_strict="--strict" in flags,
        has_backbone="model.backbone" in options,
    )


def print_report(request: Request) -> None:
    """Prints the report. InputError if the data cannot be used, or with --strict if there are warnings."""
    if request.kind is None:
        print_columns(request)
        return
    config = make_config(request)
    from hf_finetune.run.data_report import make_report

    report = make_report(config, has_backbone=config.model.backbone != NO_BACKBONE, asks_tokenizer=request.has_backbone)
    if request.is_json:
        print(report.to_json(), file=open_standard_output())
    else:
        print("\n".join(report.describe()))
    if (request.is_strict or config.data.strict) and report.warnings:
        raise InputError(f"data.strict: the data have {report.count_warnings()}")


def make_config(request: Request, kind: str | None = None) -> RunConfig:
    """Returns the settings of the recipe of a task, that of the request if not given, with those of the command line."""
    defaults = dict(read_defaults(kind or str(request.kind)))
    defaults["model.backbone"] = defaults.get("model.backbone") or NO_BACKBONE
    files = ["--data.train", *request.files] if request.files else []
    return load_config(defaults, [*request.settings, *files])


def print_columns(request: Request) -> None:
    """Prints the columns of the files and the tasks that they fit. Columns of files without names are called 1, 2, 3, ..."""
    from hf_finetune.data.column_report import guess_text_and_labels, lacks_names, read_all_columns, summarize_columns

    config = make_config(request, "classify")
    if config.data.dataset is not None:
        raise InputError(f"data.dataset ({config.data.dataset}): name the task, as --task classify")
    data, root, words = config.data, cache_root(config.cache.dir), [*request.files, *request.settings]
    table = read_all_columns(data.train, data, root)
    if lacks_names(data.train, data):
        data, words = replace(data, header=False), [*words, "--data.header", "false"]
        table = replace(read_all_columns(data.train, data, root), warnings=table.warnings)
    summaries = summarize_columns(table)
    rows = sample_rows(table)
    fitting = find_fitting_tasks(rows, data)
    begin = f"hf-finetune data {shlex.join(words)} --task"
    commands = [f"{begin} {kind}" for kind in fitting]
    guess = guess_text_and_labels(summaries) if set(fitting) <= {"model_language"} else None
    if guess is not None:
        changes = {
            "data.text_columns": [guess[0]],
            "data.label_column": guess[1][0] if len(guess[1]) == 1 else guess[1],
        }
        if fits("classify", rows, data, changes):
            options = ("--data.text_columns", guess[0], "--data.label_column", *guess[1])
            commands.append(f"{begin} classify {shlex.join(options)}")
    commands = commands or [f"{begin} NAME"]
    if request.is_json:
        columns = [summary.to_dict() for summary in summaries]
        content = {
            "rows": len(table),
            "notes": table.notes,
            "warnings": table.warnings,
            "columns": columns,
            "tasks": fitting,
            "next": commands,
        }
        print(json.dumps(content, indent=2, ensure_ascii=False), file=open_standard_output())
        return
    print("\n".join(describe_columns(table, summaries, fitting, commands)))


def describe_columns(
    table: "Table",
    summaries: "Sequence[ColumnSummary]",
    fitting: Sequence[str],
    commands: Sequence[str],
) -> list[str]:
    """Returns the lines about columns and tasks."""
    header = ("column", "type", "missing", "distinct", "from ... to", "example")
    lines = [*label_lines("rows", [f"{len(table):,}"]), *label_lines("files", table.notes)]
    lines += label_lines("data", [f"warning: {warning}" for warning in table.warnings])
    lines += ["columns", align_columns([header, *(summary.describe() for summary in summaries)], left=True)]
    shown = "these columns are the default ones of " + ", ".join(fitting) if fitting else "no recipe's default columns"
    lines += label_lines("tasks", [shown])
    return [*lines, "", "next:", *(f"  {command}" for command in commands)]


def sample_rows(table: "Table") -> list[dict[str, Any]]:
    """Returns rows from everywhere in a table, at most SAMPLE_ROWS."""
    step = max(1, len(table) // SAMPLE_ROWS)
    sample = table.take(range(0, len(table), step))
    return [dict(zip(sample.columns, values, strict=True)) for values in zip(*sample.columns.values(), strict=True)]


def find_fitting_tasks(rows: Sequence[Mapping[str, Any]], data: DataConfig) -> list[str]:
    """Returns the tasks that read rows with the defaults of their recipes; if there is none besides model_language, also those
    that have the right columns: their errors say what is wrong with the rows."""
    fitting = [kind for kind in TASKS if fits(kind, rows, data)]
    if set(fitting) <= {"model_language"}:
        fitting = [kind for kind in TASKS if kind in fitting or has_columns(kind, rows[0], data)]
    return fitting


def has_columns(kind: str, names: Collection[str], data: DataConfig) -> bool:
    """True if the columns that a task's recipe reads by default, or others that it reads, are all among `names`."""
    spec = load_task(kind).make_columns(make_default_config(kind, data)).spec
    needed = [name for name in (*spec.inputs, *spec.labels) if spec.requires(name, names)]
    return all(name in names or name.partition(".")[0] in names for name in needed)


def make_default_config(kind: str, data: DataConfig, changes: Mapping[str, Any] = NO_CHANGES) -> RunConfig:
    """Returns the settings of a task's recipe for the files of `data`. changes: Other settings."""
    defaults = {**read_defaults(kind), "data.train": list(data.train), **changes}
    defaults["model.backbone"] = defaults.get("model.backbone") or NO_BACKBONE
    return load_config(defaults)


def fits(
    kind: str, rows: Sequence[Mapping[str, Any]], data: DataConfig, changes: Mapping[str, Any] = NO_CHANGES
) -> bool:
    """True if a task reads rows with the defaults of its recipe. changes: Other settings."""
    from hf_finetune.data.memory import read_memory

    config, task_class = make_default_config(kind, data, changes), load_task(kind)
    try:
        table = read_memory(rows, "train", config.data, task_class.make_columns(config).spec)
        if task_class.needs_backbone:
            return True
        encoding = task_class.from_table(config, table).encoding
        encoding.count_labels(table)
        encoding.find_warnings({"train": table})
        encoding.check_rows(table)
    except InputError:
        return False
    return True
