"""Writes docs/settings.md from the dataclasses of hf_finetune/config.py: `make docs`."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hf_finetune.config.loading import expected, setting_types
from hf_finetune.config.sections import RunConfig

PAGE = Path(__file__).parent / "settings.md"


def helps(section: type) -> dict[str, str]:
    """The help text of each field, from the Args part of a docstring."""
    text = (section.__doc__ or "").partition("Args:")[2]
    pairs = re.findall(r"^ {4,8}(\w+): (.+(?:\n {9,}.+)*)", text, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", words) for name, words in pairs}


def rows(section: Any, prefix: str, types: dict[str, Any]) -> list[str]:
    """Table rows of a section's settings."""
    texts = helps(type(section))
    lines = []
    for field in fields(section):
        value = getattr(section, field.name)
        if not is_dataclass(value):
            default = (
                "" if value is None or value in ("", ()) else f"`{list(value) if isinstance(value, tuple) else value}`"
            )
            key = prefix + field.name
            lines.append(f"| `{key}` | {expected(types[key])} | {default} | {texts[field.name]} |")
    return lines


def page() -> str:
    """The whole page."""
    types = setting_types()
    defaults = object.__new__(RunConfig)  # the defaults alone are no run: a backbone and data are needed
    for field in fields(RunConfig):
        object.__setattr__(defaults, field.name, field.default)
    lines = [
        "# Settings",
        "",
        "Made from the code by `make docs`. On the command line `--section.key VALUE`, in YAML `section: {key: VALUE}`. The",
        "defaults are the package's; a recipe has its own over them (`--print_config` shows what it all comes to).",
    ]
    for section in (defaults, *(getattr(defaults, f.name) for f in fields(RunConfig) if is_dataclass(f.default))):
        name = type(section).__name__.removesuffix("Config").lower()
        prefix = "" if section is defaults else f"{name}."
        lines += [
            "",
            f"## {'run' if section is defaults else name}",
            "",
            "| setting | takes | default | |",
            "|---|---|---|---|",
        ]
        lines += rows(section, prefix, types)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
