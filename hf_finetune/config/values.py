"""Values of settings: from what YAML, Python or the command line gives to the type that a setting has."""

import json
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union

import yaml

from hf_finetune.config.yaml_files import YAML_ERRORS, load_yaml
from hf_finetune.system.errors import InputError

NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    NoneType: "null",
    tuple[str, ...]: "a list of strings",
    tuple[str | int | None, ...]: "a list of labels, such as [-100, null]",
    tuple[dict[str, int | str], ...]: "a list of mappings, such as [{epoch: 2, layers: 1}]",
    Mapping[str, Any]: "a mapping of options, such as {momentum: 0.9}",
}


def convert(key: str, hint: Any, value: Any) -> Any:
    """Returns `value` as the type `hint`. Raises InputError `key (value): must be ...` if it is of another type.

    A string may write a number, true, false, null or a list, as in YAML; for a setting that takes strings it is the
    string itself.
    """
    try:
        if is_mapping(hint):
            return convert_mapping(key, value)
        if is_list(hint):
            return convert_list(key, hint, value) if hint in NAMES else convert_one_or_several(key, hint, value)
        return convert_scalar(hint, value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{key} ({format_value(value)}): must be {describe_type(hint)}{suggest_quotes(hint, value)}"
        ) from None


def is_list(hint: Any) -> bool:
    """True if a setting of this type takes a list."""
    return any(typing.get_origin(part) is tuple for part in list_alternatives(hint))


def is_mapping(hint: Any) -> bool:
    """True if a setting of this type takes options by name, with keys that are not known here."""
    return typing.get_origin(hint) is Mapping


def list_alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a union consists of; any other type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)


def describe_type(hint: Any) -> str:
    """The values that a setting of this type takes, in words."""
    if hint in NAMES:
        return NAMES[hint]
    if typing.get_origin(hint) is Literal:
        values = [str(value) for value in typing.get_args(hint)]
        return f"one of {', '.join(values)}" if len(values) > 1 else f'"{values[0]}"'
    alternatives = list_alternatives(hint)
    if len(alternatives) == 1:
        raise TypeError(
            f"a setting cannot have the type {hint}; it takes int, float, str, bool, None, Literal, tuple[str, ...], "
            "Mapping[str, Any] or a union"
        )
    return " or ".join(describe_type(part) for part in alternatives)


def format_value(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def suggest_quotes(hint: Any, value: Any) -> str:
    """The end of an error about a YAML value that would have been the string if it had been in quotes."""
    if str not in list_alternatives(hint) or isinstance(value, (list, tuple, Mapping, NoneType)):
        return ""
    return f'; put it in quotes: "{format_value(value)}"'


def convert_scalar(hint: Any, value: Any) -> Any:
    """Returns `value` as a type that is not a list. Raises TypeError, ValueError or OverflowError."""
    alternatives = list_alternatives(hint)
    if NoneType in alternatives and value in (None, "null"):
        return None
    if {int, str} <= set(alternatives):  # such as freeze.layers, whose section checks the string
        number = parse_scalar(value) if isinstance(value, str) else value
        return number if type(number) is int else format_value(value)
    if isinstance(value, str) and str in alternatives:
        return value
    for part in alternatives:
        if typing.get_origin(part) is Literal and (choice := find_choice(part, value)) is not None:
            return choice
    number = parse_scalar(value) if isinstance(value, str) else value
    if bool in alternatives and isinstance(number, bool):
        return number
    if isinstance(number, bool):
        raise TypeError
    if int in alternatives and isinstance(number, int):
        return number
    if float in alternatives and isinstance(number, (int, float, str)):
        return float(number)  # of a string, too: YAML reads 1e-5 as one
    raise TypeError


def find_choice(hint: Any, value: Any) -> Any:
    """The choice of a Literal that `value` names, or None. YAML reads on and off as true and false."""
    if isinstance(value, bool):
        value = "on" if value else "off"
    return next((choice for choice in typing.get_args(hint) if choice == value), None)


def parse_scalar(text: str) -> Any:
    """The value that YAML reads in `text`, or the text if it is not YAML. A whole number is decimal: YAML reads 010 as 8."""
    try:
        if re.fullmatch(r"[-+]?[0-9]+", text):
            return int(text)
        return load_yaml(text)
    except YAML_ERRORS:
        return text


def convert_mapping(key: str, value: Any) -> dict[str, Any]:
    """Returns `value` as options by name. Raises TypeError if it is not a mapping, or InputError for a wrong option."""
    if isinstance(value, str):
        value = parse_scalar(value)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise TypeError
    return {name: convert_option(f"{key}.{name}", option) for name, option in value.items()}


def convert_option(key: str, value: Any) -> Any:
    """Returns the value of an option whose type is not known here: a number, a string, a boolean, None, or a list of these.

    A string that writes a number is that number: YAML reads 1e-8 as a string. Raises InputError for anything else.
    """
    if isinstance(value, str):
        value = parse_scalar(value)
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value) else value
    if isinstance(value, (list, tuple)):
        return [convert_option(key, item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float):  # a number of another library may be a subclass
        if isinstance(value, kind):
            return kind(value)
    raise InputError(
        f"{key} ({format_value(value)}): must be a number, a string, true, false, null, or a list of these"
    )


def convert_one_or_several(key: str, hint: Any, value: Any) -> str | tuple[str, ...] | None:
    """Returns the value of a setting that takes a string or a list of strings: one string, a tuple of several, or None. Raises as
    convert_list()."""
    several = next(part for part in list_alternatives(hint) if is_list(part))
    items = convert_list(key, several, value)
    return (items[0] if len(items) == 1 else items) or None


def convert_list(key: str, hint: Any, value: Any) -> tuple[Any, ...]:
    """Returns `value` as a tuple. Raises TypeError, or InputError if a string in brackets could be a list or a text."""
    item = typing.get_args(hint)[0]
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        value = read_bracketed(key, hint, value)
    if NoneType in list_alternatives(item):  # labels, of which null is one
        labels = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(label, (list, tuple, Mapping)) for label in labels):
            raise TypeError
        return tuple(format_value(label) for label in labels)
    if value is None or value == "null":
        return ()
    items = value if isinstance(value, (list, tuple)) else [value]
    if item is str:
        if not all(isinstance(part, str) for part in items):
            raise TypeError
        return tuple(items)
    if not all(isinstance(part, Mapping) and all(isinstance(name, str) for name in part) for part in items):
        raise TypeError
    return tuple({name: convert_scalar(int | str, part) for name, part in mapping.items()} for mapping in items)


def read_bracketed(key: str, hint: Any, text: str) -> Any:
    """The list that a string in brackets writes: mappings, or strings that are all in quotes.

    Without quotes it could also be one text, such as a character class of a regular expression or of a file pattern.
    """
    try:
        if typing.get_args(hint)[0] is not str:
            return load_yaml(text)
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
        if all(getattr(part, "style", None) in ("'", '"') for part in node.value):
            return [part.value for part in node.value]
        values = load_yaml(text)
    except YAML_ERRORS:
        if typing.get_args(hint)[0] is not str:
            raise TypeError from None
        values = None
    ways = f"{quote_list([text])} for the text {text}"
    if isinstance(values, list) and all(isinstance(part, (str, int, float)) for part in values):
        ways = f"{quote_list([format_value(part) for part in values])} for a list, {ways}"
    raise InputError(f"{key} ({text}): must be a list in quotes, because it could also be one text: write {ways}")


def quote_list(texts: Sequence[str]) -> str:
    """A list of strings as a shell takes it."""
    return shlex.quote(json.dumps(list(texts), ensure_ascii=False))
