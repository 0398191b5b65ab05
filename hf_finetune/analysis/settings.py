"""The settings of runs that differ from the defaults of their recipes, or from one another."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.config.changes import BEFORE_SETTING, list_defaults
from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import RunConfig, flatten, to_dict
from hf_finetune.config.tasks import TASKS

# They name a run, and do nothing to its numbers
NAMES = ("name", "output_dir")
# What load_config() must be given; the values are no defaults
REQUIRED = {"model.backbone": "-", "data.train": ["-"]}


def make_default_config(kind: str) -> RunConfig:
    """Returns the config of a recipe that is given nothing but what it must be given.

    For a task of one's own it is that of classify without its recipe: a report imports no code that a run folder names.
    """
    if kind in TASKS:
        return load_config({**read_defaults(kind), **REQUIRED})
    return load_config({"task.kind": "classify", **REQUIRED})


def find_defaults(kind: str) -> dict[str, Any]:
    """Returns the defaults of a task's recipe by dotted keys; of a task of one's own, those of the sections but for task."""
    config = make_default_config(kind)
    defaults = {key: value for key, value in flatten(to_dict(config)) if key not in REQUIRED}
    given = read_defaults(kind).get("model.backbone") if kind in TASKS else None
    if given is not None:
        defaults["model.backbone"] = given
    return {key: value for key, value in defaults.items() if kind in TASKS or not key.startswith("task.")}


def complete_settings(run: RunFiles) -> dict[str, Any]:
    """Returns the settings of a run with those that are newer than it: such a run did what the section's default does."""
    earlier = dict(flatten(list_defaults(make_default_config(run.kind))))
    if run.kind not in TASKS:
        earlier = {key: value for key, value in earlier.items() if not key.startswith("task.")}
    return {**earlier, **BEFORE_SETTING, **run.settings}


def list_own_settings(run: RunFiles) -> dict[str, Any]:
    """Returns the settings of a run that differ from the defaults of its recipe, without its name."""
    defaults = find_defaults(run.kind)
    return {
        key: value
        for key, value in run.settings.items()
        if key not in NAMES and not (key in defaults and defaults[key] == value)
    }


def list_differences(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Returns the settings that differ between runs, with the value of each run; None if a run's task has no such setting."""
    return find_differences([complete_settings(run) for run in runs])


def find_differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the settings that have not the same value everywhere, but for names; start_from replaces model.backbone."""
    keys = dict.fromkeys(key for values in settings for key in values if key not in NAMES)
    rows = {key: [values.get(key) for values in settings] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row[1:])}


def format_setting(value: Any) -> str:
    """Returns the value of a setting as a config file has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(format_setting, value)) if value else "[]"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_setting(item)}" for key, item in value.items()) if value else "{}"
    return str(value)
