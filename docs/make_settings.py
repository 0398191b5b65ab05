"""Writes docs/settings.md from the sections of RunConfig and the Settings of each task: `make docs`."""

import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from hf_finetune.config.changes import AFTER_TRAINING, EXTENDABLE, FREE_ON_RESUME
from hf_finetune.config.help import INSTEAD_OF_DEFAULT, format_default, read_help_texts, read_summary
from hf_finetune.config.loading import SECTIONS, get_section_classes, get_setting_types
from hf_finetune.config.optimizers import OPTIMIZERS
from hf_finetune.config.schedules import SCHEDULES
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
shows how to write both.

Options are a mapping in YAML and in Python (`optimizer_options: {betas: [0.9, 0.95]}`). On the command line each is a key of its
own (`--train.optimizer_options.betas 0.9 0.95`), or all of them a mapping in quotes
(`--train.optimizer_options '{betas: [0.9, 0.95]}'`), which replaces those of a YAML file."""

OPTIMIZERS_INTRODUCTION = """### Optimizers

`train.optimizer` takes these names. *Memory* is the state for each trained parameter of a large fp32 matrix, in bytes, as a test
measures it; the parameter and its gradient have 4 bytes each. *Decay* is how `train.weight_decay` acts: decoupled from the
gradient as in AdamW, or added to the gradient (L2). [training.md](training.md) has examples."""

SCHEDULES_INTRODUCTION = """### Schedules

`train.schedule` takes these names. The factor on the peak learning rate rises in a line over the first `train.warmup_fraction` of
all updates and then follows the formula, where x is the share of the other updates that are done. A factor f with `min_ratio` m
is m + (1 - m) f. After the warm-up the schedules are those of `transformers.get_scheduler`."""

RESUME_INTRODUCTION = """## When a run is called again

With the same name, a run continues from its last checkpoint. [again.md](again.md) explains how to train on."""

# What holds for a setting if a run is called again, by the name of the rule
RULES = {
    "free": "may change",
    "length": "may change: the run trains on, or ends earlier, but not before what it has trained",
    "after": "may change: a finished run fits again with them, and does not train",
    "data": "may change as long as the encoded rows and the labels stay the same, for example if files were moved",
    "freeze": "may change without adapters: parameters that train before and after keep their optimizer state",
    "fixed": "must not change: begin a new run, with another `name` and `start_from`",
    "name": "another name is another run",
}


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


def format_options(options: Mapping[str, Any]) -> str:
    """Options with their defaults, in one cell of a table."""
    return ", ".join(f"`{name}` {format_option(default)}" for name, default in options.items())


def format_option(value: Any) -> str:
    """A default as YAML has it."""
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else format_default(value)


def make_optimizer_table() -> list[str]:
    """A row for each optimizer."""
    lines = ["| optimizer | memory | decay | options | needs | source |", "|---|---|---|---|---|---|"]
    for name, kind in OPTIMIZERS.items():
        memory = f"{kind.state_bytes:g}"
        memory += " (rows and columns)" if name == "adafactor" else ""
        memory += "; 8 for the parameters of AdamW" if kind.only_hidden_matrices else ""
        memory += "; 4 with momentum" if name == "sgd" else ""
        extra = f"`[{kind.extra}]`" if kind.extra else ""
        lines.append(
            f"| `{name}` | {memory} | {kind.decay} | {format_options(kind.options)} | {extra} | {kind.source} |"
        )
    return lines


def make_schedule_table() -> list[str]:
    """A row for each schedule."""
    lines = ["| schedule | factor after the warm-up | options |", "|---|---|---|"]
    for name, kind in SCHEDULES.items():
        lines.append(f"| `{name}` | {kind.formula} | {format_options(kind.complete({}))} |")
    return lines


def make_resume_table() -> list[str]:
    """A row for each rule about the settings of a run that is called again."""
    own = {
        key: None for kind in TASKS for key in get_setting_types(load_task(kind).Settings)
    }  # in the order of the page
    rules = {key: find_rule(key) for key in own}
    lines = ["| settings | |", "|---|---|"]
    for rule, text in RULES.items():
        names = [key for key, chosen in rules.items() if chosen == rule]
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {text} |")
    return lines


def find_rule(key: str) -> str:
    """The rule of RULES for a setting."""
    if key == "name":
        return "name"
    if key in EXTENDABLE:
        return "length"
    if key in AFTER_TRAINING:
        return "after"
    if not key.startswith(FREE_ON_RESUME):
        return "fixed"
    section = key.partition(".")[0]
    return section if section in RULES else "free"


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
        if name == "train":
            lines += ["", OPTIMIZERS_INTRODUCTION, "", *make_optimizer_table()]
            lines += ["", SCHEDULES_INTRODUCTION, "", *make_schedule_table()]
    lines += ["", RESUME_INTRODUCTION, "", *make_resume_table()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
