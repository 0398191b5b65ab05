"""The help of a recipe: its settings by section, with the defaults that a run on your own data has.

The help texts are the Args sections of the docstrings of the sections and of the task's Settings.
"""

import re
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from hf_finetune.config.loading import SECTIONS, get_section_classes
from hf_finetune.config.sections import RunConfig, TaskSettings, get_default
from hf_finetune.config.values import describe_type, format_value

TEXT_COLUMN = 32
MAX_WIDTH = 110
INSTEAD_OF_DEFAULT = {
    "name": "default: the data's name",
    "model.backbone": "required",
    "data.train": "required, or data.dataset",
}

OPTIONS = {
    "--config FILE.yaml": "Read settings from this file. Settings on the command line override it.",
    "--print_config": "Print all settings as YAML, and stop.",
    "--auto": "Choose depth, schedule, evaluations and the start of the head, as far as they are not given, so that a good model "
    "is there soon; docs/choosing.md.",
    "--dry-run": "Print what the run will take of memory, disk and time, from a few batches, and stop; with --json for programs.",
    "--quiet": "Print only warnings, errors and the final line.",
    "--json": "Print a JSON object a line for each event: start, phase, update, evaluation, save, warning, end, auto.",
    "--debug": "Show the traceback of an error.",
    "--help": "Show this help.",
}
SYNTAX = """A list is several words (--data.train a.csv b.csv), or a list in quotes ('["a.csv", "b.csv"]'; [] for an empty
one). null means that a setting is not given. In YAML the same settings are nested: `train: {epochs: 2}`."""
DEMO = " A value marked demo holds if you name no data: the recipe trains its demo then."


def read_help_texts(section: type) -> dict[str, str]:
    """Returns the help text of each field, from the Args sections of the class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(section.__mro__):
        arguments = (base.__doc__ or "").partition("Args:")[2]
        pairs = re.findall(r"^ {4,8}(\w+): (.+(?:\n {9,}.+)*)", arguments, flags=re.MULTILINE)
        texts |= {name: re.sub(r"\s+", " ", text) for name, text in pairs}
    return texts


def read_summary(section: type) -> str:
    """The part of a docstring before its Args section, on one line."""
    return " ".join((section.__doc__ or "").partition("Args:")[0].split())


def format_default(value: Any) -> str:
    """A default value as it is written on the command line."""
    if isinstance(value, (list, tuple)):
        return " ".join(format_value(item) for item in value) or "[]"
    return format_value(value) or '""'


def format_help(
    settings: type[TaskSettings],
    defaults: Mapping[str, Any],
    *,
    demo: Mapping[str, Any] | None = None,
    prog: str = "",
    description: str = "",
) -> str:
    """Returns the help of a recipe, wrapped to the terminal. settings: the Settings class of its task."""
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    usage = f"usage: {prog} [--config FILE.yaml] [--section.key VALUE ...]"
    paragraphs = [usage, *wrap_description(description, width)]
    paragraphs.append("\n".join(["Options", *(wrap_entry(name, text, width) for name, text in OPTIONS.items())]))
    paragraphs.append(textwrap.fill(" ".join(SYNTAX.split()) + (DEMO if demo else ""), width))
    classes = get_section_classes(settings)
    entries = list(list_entries("", RunConfig, defaults, demo or {}))
    paragraphs.append("\n".join(["The run", *(wrap_entry(key, text, width) for key, text in entries)]))
    for name in SECTIONS:
        lines = [wrap_entry(key, text, width) for key, text in list_entries(name, classes[name], defaults, demo or {})]
        if lines:
            paragraphs.append("\n".join([textwrap.fill(f"{name}: {read_summary(classes[name])}", width), *lines]))
    return "\n\n".join(paragraphs)


def list_entries(
    name: str, section: type, defaults: Mapping[str, Any], demo: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """`(--key, text)` of the settings of a section; the task itself, which the recipe sets, is left out."""
    hints, texts = typing.get_type_hints(section), read_help_texts(section)
    for field in fields(section):
        key = f"{name}.{field.name}" if name else field.name
        if key in SECTIONS or key == "task.kind":
            continue
        notes = [describe_type(hints[field.name]).partition(", such as")[0]]
        value = defaults.get(key, "" if key in INSTEAD_OF_DEFAULT else get_default(field))
        if value is MISSING or (key in INSTEAD_OF_DEFAULT and not value):
            notes.append(INSTEAD_OF_DEFAULT.get(key, "required"))
        elif value is None:
            notes = [notes[0].removesuffix(" or null")]  # "if not given" in the text says what null does
        elif value not in ((), {}):
            notes.append(f"default: {format_default(value)}")
        if key in demo:
            notes.append(f"demo: {format_default(demo[key])}")
        yield f"--{key}", f"{texts.get(field.name, '')} [{'; '.join(notes)}]".strip()


def wrap_entry(name: str, text: str, width: int) -> str:
    """An option and its text in two columns."""
    indent = " " * TEXT_COLUMN
    lines = textwrap.wrap(
        text,
        max(width, TEXT_COLUMN + 30),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    start = f"  {name}"
    if len(start) < TEXT_COLUMN - 1:
        return "\n".join([start.ljust(TEXT_COLUMN) + lines[0].strip(), *lines[1:]])
    return "\n".join([start, *lines])


def wrap_description(description: str, width: int) -> list[str]:
    """The paragraphs of a docstring; indented ones, which are commands, stay as they are."""
    paragraphs = description.strip("\n").split("\n\n")
    return [
        part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), width) for part in paragraphs if part
    ]
