"""From a recipe's defaults, YAML files and the command line to a checked RunConfig, or an error of one line.

An error names the dotted key, the value and the fix, or the nearest right key, and is the same for YAML and command line.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml

from hf_finetune.config.sections import RENAMED, RunConfig, TaskSettings, flatten, to_dict
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.config.values import convert, convert_option, format_value, is_list, is_mapping, quote_list
from hf_finetune.config.yaml_files import read_yaml
from hf_finetune.system.errors import InputError

SPLIT_NAMES = ("", "train", "training", "data", "dataset")  # of files; they do not say what the data are

SECTIONS = tuple(
    field.name for field in fields(RunConfig) if field.name not in ("name", "output_dir", "seed", "start_from")
)


def get_section_classes(settings: type[TaskSettings] = TaskSettings) -> dict[str, Any]:
    """Returns the class of every section by its name. settings: the Settings class of the task."""
    hints = typing.get_type_hints(RunConfig) | {"task": settings}
    return {section: hints[section] for section in SECTIONS}


def get_setting_types(settings: type[TaskSettings] = TaskSettings) -> dict[str, Any]:
    """Returns the type of every setting by its dotted key. settings: the Settings class of the task."""
    types = {key: hint for key, hint in typing.get_type_hints(RunConfig).items() if key not in SECTIONS}
    for name, section in get_section_classes(settings).items():
        hints = typing.get_type_hints(section)
        types |= {f"{name}.{field.name}": hints[field.name] for field in fields(section)}
    return types


def check_key(key: str, value: Any, kind: str, types: Mapping[str, Any]) -> None:
    """Raises InputError if no setting is called `key`. The error names the key's new name, or the nearest right key.

    value: what the setting was given, for the error. kind, types: the task's name and all setting types.
    """
    if key in types:
        return
    shown = key if value is None else f"{key} ({format_value(value)})"
    if key in RENAMED:
        raise InputError(f"{shown}: is now called {RENAMED[key]}")
    if key in SECTIONS:
        first = next(name for name in types if name.startswith(f"{key}."))
        raise InputError(f"{key}: is a section; set one of its keys, such as {first}")
    if key.startswith("task."):
        own = ", ".join(name for name in types if name.startswith("task.") and name != "task.kind")
        raise InputError(f"{shown}: {kind} has no such setting; it has {own or 'no settings of its own'}")
    tails = {name.rsplit(".", 1)[-1]: name for name in types}
    near = difflib.get_close_matches(key, types, n=1) or difflib.get_close_matches(
        key.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7
    )
    hint = f"did you mean {tails.get(near[0], near[0])}?" if near else "--help lists the settings"
    raise InputError(f"{shown}: there is no such setting; {hint}")


def split_arguments(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Returns `(key, words)` of each `--key word ...` and `--key=word`, in order; keys are not checked."""
    pairs: list[tuple[str, list[str]]] = []
    takes_words = False
    for argument in arguments:
        if argument.startswith("--") and argument != "--":
            key, equals, word = argument[2:].partition("=")
            pairs.append((key, [word] if equals else []))
            takes_words = not equals
        elif takes_words:
            pairs[-1][1].append(argument)
        else:
            raise InputError(f"{argument}: settings are written --section.key VALUE")
    return pairs


def join_words(key: str, words: Sequence[str], hint: Any) -> str | list[str]:
    """The value that the words after `--key` give: one word, or several of a list."""
    if not words:
        raise InputError(f"{key} (nothing): takes one value")
    if len(words) == 1:
        return words[0]
    text = " ".join(words)
    if not is_list(hint):
        raise InputError(f"{key} ({text}): takes one value")
    opens = words[0].startswith("[") and words[0].count("[") > words[0].count("]")
    closes = words[-1].endswith("]") and words[-1].count("]") > words[-1].count("[")
    if opens and closes:  # the shell has split [a, b], and removed its quotes
        inner = [word.strip("[],'\"") for word in words]
        raise InputError(
            f"{key} ({text}): must be in quotes, because a shell splits it: write {quote_list(inner)}, or the words alone: "
            f"{' '.join(inner)}"
        )
    return list(words)


def read_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of `--config` files and of the other arguments, which override them, as `{dotted key: value}`.

    Keys are not checked. Values of the command line stay unparsed (Words), because only the type of a setting shows if they
    form a list.
    """
    pairs = split_arguments(arguments)
    files = [read_yaml(str(join_words(key, words, str))) for key, words in pairs if key == "config"]
    return merge_settings(*files, *({key: Words(words)} for key, words in pairs if key != "config"))


class Words(list[str]):
    """The words after a `--key`, as opposed to a list in YAML."""


def choose_kind(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Returns the name of the task: that of the recipe's defaults, or of --config or the command line if there is no recipe.

    Raises InputError if there is none, or if both name one and differ.
    """
    kinds = []
    for settings in (defaults, given):
        if "task.kind" in settings:
            kind = settings["task.kind"]
            kind = join_words("task.kind", kind, str) if isinstance(kind, Words) else kind
            kinds.append(convert("task.kind", str, kind))
    if not kinds:
        raise InputError(
            f"task.kind (null): must be given: one of {', '.join(TASKS)}, or a class as my_package.tasks:MyTask"
        )
    kind = kinds[-1]
    if kind != kinds[0]:
        recipe = kind if kind in TASKS else f"--task.kind {kind}"
        raise InputError(
            f"task.kind ({kind}): must be {kinds[0]}, the task of this recipe; use the other task's recipe "
            f"(hf-finetune train {recipe}), or no recipe at all (hf-finetune train --config FILE.yaml)"
        )
    return kind


def load_config(
    defaults: Mapping[str, Any], arguments: Sequence[str] = (), *, demo: Mapping[str, Any] | None = None
) -> RunConfig:
    """Returns the checked settings: `defaults` ({dotted key: value}), then `--config FILE.yaml`, then the other arguments.

    `demo` overrides the defaults if neither file nor arguments name data (data.train, data.dataset). Raises InputError.
    """
    given = read_settings(arguments)
    kind = choose_kind(defaults, given)
    names_data = "data.train" in given or "data.dataset" in given
    demo = {} if names_data or demo is None else demo
    return make_config(merge_settings(defaults, demo, given, {"task.kind": kind}))


def merge_settings(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of all layers; later ones override earlier ones.

    Options of a mapping are overridden one by one (train.optimizer_options.eps), or all together by the mapping itself
    (train.optimizer_options).
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            overridden = [name for name in settings if "." in key and name.startswith(f"{key}.")]
            for name in [*overridden, key]:
                settings.pop(name, None)
            settings[key] = value
    return settings


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """Returns the RunConfig of settings ({dotted key: value}) that have task.kind; others have their defaults."""
    kind = settings["task.kind"]
    task_settings = load_task(kind).Settings
    types = get_setting_types(task_settings)
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    run_values: dict[str, Any] = {}
    for key, value in settings.items():
        if value in (None, {}) and key in SECTIONS:  # `train:` with nothing under it
            continue
        owner, _, option = key.rpartition(".")
        if option and is_mapping(types.get(owner)):
            word = join_words(key, value, tuple[str, ...]) if isinstance(value, Words) else value
            section, _, name = owner.rpartition(".")
            values[section].setdefault(name, {})[option] = convert_option(key, word)
            continue
        text = " ".join(value) or None if isinstance(value, Words) else value
        check_key(key, text, kind, types)
        if isinstance(value, Words):
            value = join_words(key, value, types[key])
        section, _, name = key.rpartition(".")
        (values[section] if section else run_values)[name] = convert(key, types[key], value)
    for field in fields(task_settings):
        if field.name not in values["task"] and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"task.{field.name} (null): must be given; {kind} has no default for it")
    run_values.setdefault("name", make_run_name(values["data"], kind))
    sections = {name: section(**values[name]) for name, section in get_section_classes(task_settings).items()}
    return RunConfig(**run_values, **sections)


def make_run_name(data: Mapping[str, Any], kind: str) -> str:
    """Returns the name of a run that was given none: that of its training data, without folder and ending.

    A name that only says which split it is, such as train.csv, is replaced by that of its folder. Rows that a program gave have
    no name: the run then has that of the task.
    """
    location = data.get("dataset") or next(iter(data.get("train", ())), "")
    if location.startswith("memory://"):
        location = ""
    parts = [part for part in re.split(r"[/\\]", location.partition("#")[0].removeprefix("package://")) if part]
    stems = [re.sub(r"(\.[A-Za-z]\w*)+$", "", part) for part in parts]
    names = [re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.") for stem in reversed(stems)]
    named = [name for name in names if name.lower() not in SPLIT_NAMES]
    return (named or names or [""])[0] or kind.rpartition(":")[2].rpartition(".")[2]


def to_yaml(config: RunConfig) -> str:
    """The settings as YAML that `--config` reads back to an equal RunConfig."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The RunConfig that `to_dict` made into plain values, checked again."""
    return load_config(dict(flatten(values)))
