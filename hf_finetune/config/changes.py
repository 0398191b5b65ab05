"""The settings that differ between two runs, or between a run and the one that its folder holds, and which of them may."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import RunConfig, flatten, get_default, to_dict

# Settings that no trained number depends on
WITHOUT_EFFECT = (
    "output_dir",
    "cache.",
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "train.shared_rows",
    "evaluation.batch_size",
    "evaluation.trust_metric_code",
    "checkpoint.",
    "run.",
    "tracking.",
    "hub.",
    "train.on_update",
)

# Settings whose effect on an unfinished run is compared with its checkpoint (the content of the data) or carried over parameter
# by parameter, and printed (freeze). A finished run was made with one value of each.
CARRIED_OVER = (
    "task.choice_columns",  # names of columns, as those of data.: the data are recognised by their content
    "data.",
    "freeze.",
    "adapter.merge",
)

# Settings that may change when a run is resumed
FREE_ON_RESUME = (*WITHOUT_EFFECT, *CARRIED_OVER)

# Settings that say how long a run trains. They may change too, so that a run trains on after its end: the checkpoints stay right,
# and results.json records the values that the run was finished with.
EXTENDABLE = ("train.epochs", "train.max_updates", "train.patience", "train.min_delta")

# What a comparison of runs shows of their settings (list_choices)
ALWAYS_SHOWN = ("train.learning_rate", "freeze.layers", "train.epochs", "train.batch_size", "seed")
NEVER_SHOWN = ("name", "output_dir", "task.kind", "checkpoint.", "run.", "tracking.", "hub.")

# What a run did that is older than a setting, if the setting's default does something else: its value now, by its dotted key.
# Such a run is not resumed with other numbers without a word.
BEFORE_SETTING: dict[str, Any] = {}


# Settings of what is fitted after training, and of nothing else: with others, a finished run fits again and does not train
AFTER_TRAINING = ("task.calibrate", "task.target_accuracy", "task.coverage")


def get_length(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of EXTENDABLE, by their dotted keys, of a config as to_dict() returns it; and those of AFTER_TRAINING
    if something is fitted."""
    values = dict(flatten(config))
    return {key: values.get(key) for key in (*EXTENDABLE, *(AFTER_TRAINING if values.get("task.calibrate") else ()))}


def list_defaults(config: RunConfig) -> dict[str, Any]:
    """Returns the defaults of all settings that have one, as nested plain values."""
    sections: dict[str, Any] = {}
    for setting in fields(config):
        value = getattr(config, setting.name)
        owned = fields(value) if is_dataclass(value) else (setting,)
        known = {field.name: get_default(field) for field in owned if get_default(field) is not MISSING}
        plain = {name: list(default) if isinstance(default, tuple) else default for name, default in known.items()}
        sections |= {setting.name: plain} if is_dataclass(value) else plain
    return sections


def list_choices(config: RunConfig) -> dict[str, Any]:
    """Returns the settings that differ from the defaults of the task's recipe, and those of ALWAYS_SHOWN, by their dotted keys.

    The name and place of a run, and what has to do with neither its numbers nor its speed, are left out.
    """
    defaults = {**dict(flatten(list_defaults(config))), **read_defaults(config.task.kind)}
    return {
        key: value
        for key, value in flatten(to_dict(config))
        if key in ALWAYS_SHOWN or (value != defaults.get(key) and value != {} and not key.startswith(NEVER_SHOWN))
    }


def list_changes(old: Mapping[str, Any], config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Returns `(dotted key, old value, new value)` of the settings that differ from a recorded config.

    A setting that the recorded config lacks is newer than the run, which did what its default in the section's class does, or
    what BEFORE_SETTING says. A recipe whose own default differs from that changes the run.

    old: A config as to_dict() returned it, perhaps of an earlier version.
    """
    recorded = dict(flatten(old))
    earlier = {**dict(flatten(list_defaults(config))), **BEFORE_SETTING}
    now = dict(flatten(to_dict(config)))
    missing = {key: earlier[key] for key in now.keys() & earlier.keys() - recorded.keys()}
    before, after = (
        {key: value for key, value in values.items() if value != {}} for values in (missing | recorded, now)
    )
    keys = before.keys() | after.keys()
    if before.get("start_from") == after.get("start_from") is not None:
        keys -= {"model.backbone"}  # which start_from replaces
    return [(key, before.get(key), after.get(key)) for key in sorted(keys) if before.get(key) != after.get(key)]


def changed_keys(old: Mapping[str, Any], config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Returns the list_changes() of settings that must not change when a run is resumed."""
    return [row for row in list_changes(old, config) if not may_change(row[0])]


def may_change(key: str) -> bool:
    """True if a setting may have another value when a run is resumed."""
    return key.startswith((*FREE_ON_RESUME, *EXTENDABLE, *AFTER_TRAINING))
