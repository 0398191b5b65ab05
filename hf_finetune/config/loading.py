"""From recipe defaults, a YAML file and the command line to a checked RunConfig, or one line that says what is wrong.

jsonargparse does the typing, the help and --print_config. What is ours: the wording of errors (one line, dotted key,
value, nearest right key, the same from YAML and command line) and plain values where a list is expected.
"""

import argparse
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from hf_finetune.config.sections import RunConfig, as_dict, flatten
from hf_finetune.system.errors import InputError


def setting_types(section: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every setting's dotted key and its annotated type."""
    hints = typing.get_type_hints(section)
    types: dict[str, Any] = {}
    for field in fields(section):
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            types |= setting_types(hint, f"{prefix}{field.name}.")
        else:
            types[f"{prefix}{field.name}"] = hint
    return types


TYPES = setting_types()

# What a broken file makes yaml raise: ValueError for dates and numbers that are none, RecursionError where aliases of
# mappings or lists go round in circles
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)

MOST_VALUES = 100_000  # in one file; what an alias stands for counts each time

SECTIONS = frozenset(key.split(".")[0] for key in TYPES if "." in key)


def check_key(key: str, value: Any = None) -> None:
    """Raises InputError with the nearest right key where there is no setting `key`; `value` is what it was given."""
    if key in TYPES:
        return
    if key in SECTIONS:
        raise InputError(
            f"{key}: is a section; set one of its keys, such as {next(k for k in TYPES if k.startswith(key + '.'))}"
        )
    tails = {k.rsplit(".", 1)[-1]: k for k in TYPES}
    near = difflib.get_close_matches(key, TYPES, n=1) or difflib.get_close_matches(
        key.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7
    )
    hint = f"; did you mean {tails.get(near[0], near[0])}?" if near else "; --help lists the settings"
    given = "" if value is None else f" ({shown(value)})"
    raise InputError(f"{key}{given}: there is no such setting{hint}")


def expected(hint: Any) -> str:
    """What a type hint takes, in words."""
    if typing.get_origin(hint) is tuple:
        is_string = typing.get_args(hint)[0] is str
        return "a list of strings" if is_string else "a list of mappings, such as [{epoch: 2, layers: 1}]"
    if typing.get_origin(hint) is typing.Literal:
        values = [str(value) for value in typing.get_args(hint)]
        return f"one of {', '.join(values)}" if len(values) > 1 else f'"{values[0]}"'
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(hint) or " or ".join(expected(part) for part in typing.get_args(hint))


def load_yaml(text: str) -> Any:
    """The plain values that YAML writes. Raises one of NOT_YAML, also where aliases of aliases stand for so many values that
    writing them out would never end."""
    loaded = yaml.safe_load(text)
    left, count = [loaded], 1
    while left:
        value = left.pop()
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
        count += len(inner)
        if count > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
        left.extend(inner)
    return loaded


def read_yaml(path: str) -> dict[str, Any]:
    """The settings in a YAML file as `{dotted key: value}`, every key checked."""
    try:
        loaded = load_yaml(Path(path).read_text(encoding="utf-8"))
        flat = dict(flatten({str(key): value for key, value in loaded.items()})) if isinstance(loaded, Mapping) else {}
    except OSError as error:
        raise InputError(f"--config ({path}): {error.strerror}") from None
    except NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{place}: not YAML: {reason}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise InputError(f"--config ({path}): must hold settings as `key: value`, not a {type(loaded).__name__}")
    settings: dict[str, Any] = {}
    for key, value in flat.items():
        if value is None and key in SECTIONS:  # `train:` with nothing under it
            continue
        check_key(key, value)
        settings[key] = value
    return settings


def read_arguments(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """`(key, value)` of `--key value`, `--key=value` and, for lists, `--key value value`, in order.

    A value is the string typed, except where YAML reads it as a list or null; `config` stands among the keys.
    """
    pairs: list[tuple[str, Any]] = []
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("--") or word == "--":
            raise InputError(f"{word}: settings are written --section.key VALUE")
        key, equals, value = word[2:].partition("=")
        values = [value] if equals else []
        while position < len(arguments) and not arguments[position].startswith("--") and not equals:
            values.append(arguments[position])
            position += 1
        if key != "config":
            check_key(key, " ".join(values) or None)
        is_list = typing.get_origin(TYPES.get(key)) is tuple
        if not values or (len(values) > 1 and not is_list):
            given = " ".join(values) if values else "nothing"
            raise InputError(f"{key} ({given}): takes one value")
        pairs.append((key, values if len(values) > 1 else values[0]))
    return pairs


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def typed(parser: ArgumentParser, key: str, value: Any) -> Any:
    """`value` as the type of setting `key`, or InputError."""
    hint = TYPES[key]
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) and re.match(r"\s*\[.*\]\s*$", value) and key != "freeze.patterns":  # "[0-3]"
            try:
                value = load_yaml(value)
            except NOT_YAML:
                raise InputError(f"{key} ({value}): must be {expected(hint)}") from None
        value = [] if value in (None, "null") else list(value) if isinstance(value, (list, tuple)) else [value]
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if hint == int | str and (isinstance(value, bool) or not isinstance(value, int)):
        value = shown(value)  # its own check says what it takes
    if isinstance(value, str) and set(typing.get_args(hint)) | {hint} <= {str, str | None, type(None)}:
        return None if value == "null" and type(None) in typing.get_args(hint) else value  # as typed: "#" is no comment
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    try:
        parsed = parser.parse_object(nested, defaults=False)[key]
        if parsed is None and type(None) not in typing.get_args(hint):  # jsonargparse lets null pass for any type
            raise TypeError
    except (argparse.ArgumentError, TypeError, ValueError):
        raise InputError(f"{key} ({shown(value)}): must be {expected(hint)}") from None
    return parsed


def build_parser(prog: str, description: str) -> ArgumentParser:
    """The parser whose help groups the settings by section."""
    parser = ArgumentParser(
        prog=prog, description=description, exit_on_error=False, allow_abbrev=False, default_env=False
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="settings in YAML; the command line goes over it")
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings as YAML and stop")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(RunConfig)
    return parser


def help_text(parser: ArgumentParser, description: str) -> str:
    """The help, with the description's own lines, and without jsonargparse's options that take a section's file."""
    text = parser.format_help().partition("\noptions:")[2]
    for section in SECTIONS:
        text = re.sub(rf"^  --{section} CONFIG .*\n", "", text, flags=re.MULTILINE)
    usage = f"usage: {parser.prog} [--config FILE.yaml] [--section.key VALUE ...] [--print_config]"
    return f"{usage}\n\n{description}\n\noptions:{text}"


def load_config(
    defaults: Mapping[str, Any],
    arguments: Sequence[str],
    *,
    demo: Mapping[str, Any] | None = None,
    prog: str = "classify",
    description: str = "",
) -> RunConfig | None:
    """The recipe's `defaults` ({dotted key: value}), then `--config FILE.yaml`, then the other `arguments`.

    `demo` goes over the defaults where the file and the arguments name no data (data.train, data.dataset).
    Prints and returns None for `--print_config`; `--help` prints and exits with 0. Raises InputError.
    """
    parser = build_parser(prog, description)
    words = [word for word in arguments if word not in ("--print_config", "--debug")]
    for key in defaults:
        check_key(key)
    if "--help" in words or "-h" in words:
        parser.set_defaults({**defaults, **(demo or {})})
        print(help_text(parser, description))
        raise SystemExit(0)
    pairs = read_arguments(words)
    asked: dict[str, Any] = {}
    for path in (value for key, value in pairs if key == "config"):
        asked |= read_yaml(path)
    asked |= {key: value for key, value in pairs if key != "config"}
    names_data = "data.train" in asked or "data.dataset" in asked
    config = resolve(parser, {**defaults, **({} if names_data else demo or {}), **asked})
    if "--print_config" in arguments:
        print(to_yaml(config), end="")
        return None
    return config


def resolve(parser: ArgumentParser, settings: Mapping[str, Any]) -> RunConfig:
    """The RunConfig of the parser's defaults with `settings` ({dotted key: value}) over them."""
    typed_settings = {key: typed(parser, key, value) for key, value in settings.items()}
    namespace = parser.get_defaults()
    for key, value in typed_settings.items():
        namespace[key] = value
    instantiated = parser.instantiate(namespace)
    return RunConfig(**{field.name: instantiated[field.name] for field in fields(RunConfig)})


def to_yaml(config: RunConfig) -> str:
    """The settings as YAML that `--config` reads back to an equal RunConfig."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The RunConfig of what `as_dict` made, checked again."""
    settings = dict(flatten(values))
    for key in settings:
        check_key(key)
    return resolve(build_parser("config", ""), settings)
