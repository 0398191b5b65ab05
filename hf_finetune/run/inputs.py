"""What a run was made from: the rows of its data and digests of them, of the task's files, and of the user's own code.

It lies in the run's folder as inputs.json, so that a run that is called again knows what has changed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.data.function_digest import digest_function
from hf_finetune.data.hub_datasets import digest_dataset
from hf_finetune.data.memory import read_memory
from hf_finetune.data.shards import find_streamed_data
from hf_finetune.data.sources import digest_files, find_files
from hf_finetune.data.splits import SPLITS, read_given_splits
from hf_finetune.data.table import Table
from hf_finetune.run.parts import FUNCTIONS, NO_PARTS, Parts, load_parts
from hf_finetune.system.errors import InputError

INPUTS = "inputs.json"


# --- what a run is made from ----------------------------------------------------------------------------------------


def describe_inputs(
    config: RunConfig, parts: Parts = NO_PARTS, num_rows: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Returns the content of inputs.json.

    That is `data`, with the number of rows (None if it is not known) and a digest for each of data.train, data.validation and
    data.test; `files`, with a digest of each file that a setting of the task names; and `parts`, with a digest of each of the
    user's own functions, and of the class of the task if it is the user's own, by its setting.

    Args:
        config: The settings of the run.
        parts: The run's own rows and functions, as load_parts() returns them.
        num_rows: Rows by split (Splits.num_rows).

    Raises InputError if a file is missing, if the data set cannot be loaded, or if the rows of a program are not given.
    """
    counts, digests = num_rows or {}, digest_data(config, parts.rows)
    paths = {f"task.{name}": path for name in config.task.paths if (path := getattr(config.task, name))}
    return {
        "data": {split: {"rows": counts.get(split), "digest": digest} for split, digest in digests.items()},
        "files": {setting: digest_files(find_files((path,), setting)) for setting, path in paths.items()},
        "parts": describe_parts(config, parts),
    }


def describe_parts(config: RunConfig, parts: Parts) -> dict[str, str]:
    """Returns a digest of each of the user's own functions, and of the class of the task if it is the user's own, by its
    setting. parts: As load_parts() returns them."""
    named = {f"train.{name}": function for name in FUNCTIONS if (function := getattr(parts, name)) is not None}
    named |= {f"evaluation.metrics {name}": function for name, function in parts.metrics.items()}
    if config.task.kind not in TASKS:
        named["task.kind"] = load_task(config.task.kind)
    may_collect = ("train.on_update", "evaluation.metrics")  # no number of the training depends on them
    return {
        setting: digest_function(function, is_pure=not setting.startswith(may_collect))
        for setting, function in named.items()
    }


def digest_data(config: RunConfig, rows: Mapping[str, Any]) -> dict[str, str]:
    """Returns a digest of the data of each split: of the bytes of its files, of its rows in memory, or the fingerprint of the
    data set. Of a stream it is one of names, sizes and first bytes. rows: those in memory, by split."""
    if config.data.dataset is not None and not config.data.streaming:
        return digest_dataset(config.data)
    spec = load_task(config.task.kind).make_columns(config).spec
    digests: dict[str, str] = {}
    for split in SPLITS:
        if config.data.streaming and split == "train":
            digests[split] = find_streamed_data(config.data, spec, rows.get(split)).digest()
        elif config.data.dataset is not None:
            continue  # the splits that are evaluated are compared by their features
        elif split in rows:
            digests[split] = digest_table(read_memory(rows[split], split, config.data, spec))
        elif locations := getattr(config.data, split):
            digests[split] = digest_files(find_files(locations, f"data.{split}"))
    return digests


def digest_table(table: Table) -> str:
    """Returns the sha256 of the columns of a table, in hexadecimal."""
    names = sorted(table.columns)
    return hashlib.sha256(json.dumps([names, table.digest(names), table.class_names]).encode()).hexdigest()


# --- what has changed -----------------------------------------------------------------------------------------------


def compare_inputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a line for each split, file and part of the user's own that differs; [] if all are equal.

    old, new: What describe_inputs() returned.
    """
    lines = []
    before, now = old.get("data", {}), new.get("data", {})
    for split in dict.fromkeys((*before, *now)):
        then, today = before.get(split, {}), now.get(split, {})
        if then.get("digest") != today.get("digest"):
            lines.append(f"data.{split}: {describe_change(then, today)}")
    for group, content in (("files", "content"), ("parts", "code")):
        before, now = old.get(group, {}), new.get(group, {})
        for setting in sorted(before.keys() | now.keys()):
            if setting not in now:
                lines.append(f"{setting}: was given, is not given now")
            elif setting not in before:
                lines.append(f"{setting}: was not given, is given now")
            elif before[setting] != now[setting]:
                lines.append(f"{setting}: has other {content} now")
    return lines


def describe_change(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns how the rows of one split have changed. then, now: its entries in inputs.json, {} if it was not given."""
    rows_then, rows_now = then.get("rows"), now.get("rows")
    if not now:
        return "was given, is not given now"
    if not then:
        return "was not given, is given now" + ("" if rows_now is None else f" ({rows_now:,} rows)")
    if rows_then is None or rows_now is None:
        return "has other content now"
    if rows_then == rows_now:
        return f"has other content now, and {rows_now:,} rows as before"
    return f"had {rows_then:,} rows, has {rows_now:,} now"


def read_inputs(run_dir: Path) -> dict[str, Any] | None:
    """Returns the content of a run's inputs.json, None if there is none that can be read."""
    try:
        content = json.loads((run_dir / INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def find_changed_inputs(config: RunConfig, parts: Parts = NO_PARTS) -> list[str]:
    """Returns a line for each split and each function of one's own that has changed since the run of this config was made; [] if
    none has. Rows are only counted if a digest differs. If the inputs cannot be read, the line is the reason."""
    old = read_inputs(config.run_dir)
    if old is None:
        return []
    try:
        parts = load_parts(config, parts)
        new = describe_inputs(config, parts)
        if not compare_inputs(old, new):
            return []
        tables = read_given_splits(config.data, load_task(config.task.kind).make_columns(config).spec, parts.rows)
        for split, entry in new["data"].items():
            entry["rows"] = len(tables[split]) if split in tables else None
        return compare_inputs(old, new)
    except InputError as error:
        return [f"cannot be read: {error}"]


def find_changed_parts(config: RunConfig, parts: Parts) -> list[str]:
    """Returns a line for each function of one's own that has changed since the run of this config was started or continued last;
    [] if none has. parts: As load_parts() returns them."""
    old = read_inputs(config.run_dir)
    return (
        [] if old is None else compare_inputs({"parts": old.get("parts", {})}, {"parts": describe_parts(config, parts)})
    )
