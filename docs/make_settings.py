"""Writes docs/settings.md from the sections of RunConfig and the Settings of each task: `make docs`."""

import typing
from dataclasses import MISSING, fields
from pathlib import Path

from hf_finetune.config.help import INSTEAD_OF_DEFAULT, format_default, read_help_texts, read_summary
from hf_finetune.config.loading import SECTIONS, get_section_classes
from hf_finetune.config.sections import RunConfig, get_default
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.config.values import describe_type

PAGE = Path(__file__).parent / "settings.md"

INTRODUCTION = """# Settings

Made from the code by `make docs`. On the command line a setting is `--section.key VALUE`, in YAML `section: {key: VALUE}`, in
Python `{"section.key": VALUE}`. The defaults are the package's. A recipe has other defaults for some settings:
`hf-finetune train RECIPE --help` shows them, and `--print_config` prints all settings of a run.

On the command line a list is several words (`--data.train a.csv b.csv`), one word, or a list in quotes
(`'["a.csv", "b.csv"]'`, `[]`). Brackets without quotes, such as `[0-3]`, could be a list or one text: they are an error that
shows how to write both."""


def make_table(name: str, section: type) -> list[str]:
    """The rows of a section's settings. name: the section, or "" for the settings of the run itself."""
    hints, texts = typing.get_type_hints(section), read_help_texts(section)
    lines = ["| setting | takes | default | |", "|---|---|---|---|"]
    for field in fields(section):
        key = f"{name}.{field.name}" if name else field.name
        if key in SECTIONS:
            continue
        value = get_default(field)
        default = "" if value in (None, "", (), {}) else f"`{format_default(value)}`"
        if value is MISSING or key in INSTEAD_OF_DEFAULT:
            default = INSTEAD_OF_DEFAULT.get(key, "required").removeprefix("default: ")
        lines.append(f"| `{key}` | {describe_type(hints[field.name])} | {default} | {texts[field.name]} |")
    return lines


def make_page() -> str:
    """The complete page."""
    lines = [INTRODUCTION, "", "## run", "", *make_table("", RunConfig)]
    for name, section in get_section_classes().items():
        lines += ["", f"## {name}", "", read_summary(section), "", *make_table(name, section)]
        if name == "task":
            for kind in TASKS:
                settings = load_task(kind).Settings
                rows = [row for row in make_table("task", settings) if not row.startswith("| `task.kind`")]
                lines += ["", f"### task: {kind}", "", read_summary(settings), "", *rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
