"""A run that is finished, and is called again: whether it trains on, and what is printed if it does not."""

import json
import math
from collections.abc import Mapping
from typing import Any

from hf_finetune import __version__
from hf_finetune.config.changes import CARRIED_OVER, get_length, list_changes
from hf_finetune.config.sections import RunConfig, to_dict
from hf_finetune.model import backbone
from hf_finetune.run.folder import describe_new_run, read_config_file, read_environment
from hf_finetune.run.inputs import find_changed_inputs
from hf_finetune.run.parts import NO_PARTS, Parts
from hf_finetune.run.results import summarize_results
from hf_finetune.system.errors import InputError


def read_finished_results(config: RunConfig) -> dict[str, Any] | None:
    """Returns the content of results.json if the run of this config is finished and has its model, else None.

    A run is finished only for the length that it was trained with: with more epochs it is not.
    """
    path = config.run_dir / "results.json"
    if config.checkpoint.resume != "auto" or not path.exists() or not backbone.holds_model(config.run_dir / "model"):
        return None
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recorded = get_length(read_config_file(config.run_dir))
    except (ValueError, InputError):
        return None
    # config.yaml has another length than results.json if the run was stopped while it trained on
    lengths = [get_length(to_dict(config)), results.get("length"), recorded]
    is_finished = results.get("status") == "finished" and lengths[0] == lengths[1] == lengths[2]
    return restore_nan(results) if is_finished else None


def restore_nan(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns results with nan for the metrics that JSON has as null."""
    metrics = {
        key: restore_numbers(results[key]) for key in ("best", "average", "validation", "test") if results.get(key)
    }
    return {**results, **metrics, "history": [restore_numbers(row) for row in results.get("history", ())]}


def restore_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns numbers with nan for null."""
    return {name: math.nan if value is None else value for name, value in values.items()}


# The places of the data: only what lies there counts (inputs.json)
PLACES = ("data.train", "data.validation", "data.test")


def check_finished_run(config: RunConfig) -> None:
    """Raises InputError if the finished run was made with other settings, whose results its results would not be."""
    changes = list_changes(read_config_file(config.run_dir), config)
    listed = ", ".join(
        f"{key} (was {before}, now {now})"
        for key, before, now in changes
        if key.startswith(CARRIED_OVER) and key not in PLACES
    )
    if listed:
        raise InputError(
            f"name ({config.name}): {config.run_dir} holds a finished run that was made with another config: {listed}; to "
            f"train from its weights with the new settings, {describe_new_run(config)}; to start from the beginning, "
            "choose another name"
        )


def describe_finished_run(config: RunConfig, results: Mapping[str, Any], parts: Parts = NO_PARTS) -> str:
    """Returns what is printed if a finished run is called again: its results; and if its data or functions have changed since,
    what has changed and how to train on with them. If another version made it, that too: the same files may give other rows."""
    lines = [f"{config.run_dir} is finished, there is nothing to train; {summarize_results(results)}"]
    versions = read_environment(config.run_dir).get("versions")
    version = str(versions.get("hf-finetune", __version__)) if isinstance(versions, dict) else __version__
    if version.split(".")[:2] != __version__.split(".")[:2]:
        lines.append(
            f"It was made with hf-finetune {version}; {__version__} may read the same files and labels in another way "
            f"(CHANGELOG.md). To train with it, {describe_new_run(config)}"
        )
    if changes := find_changed_inputs(config, parts):
        lines.append("What it was made from has changed since:")
        lines += [f"  {change}" for change in changes]
        lines.append(f"To train on with what is there now, {describe_new_run(config)}")
    return "\n".join(lines)
