"""The recipes' files, and the defaults that they hold: the one place where a task's default settings stand."""

import runpy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hf_finetune.config.tasks import TASKS
from hf_finetune.system.errors import InputError


def recipe_path(name: str) -> Path:
    """The file of a recipe: inside the package if it was installed from a wheel, next to the package in a checkout."""
    package = Path(__file__).parents[1]
    folders = (package / "recipes", package.parent / "recipes")
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    known = sorted(path.stem for folder in folders for path in folder.glob("*.py"))
    raise InputError(f"train {name}: there is no such recipe; the recipes are {', '.join(known)}")


@cache
def read_defaults(kind: str) -> Mapping[str, Any]:
    """The default settings of a task by their dotted keys: those of its recipe; of a task of one's own, only task.kind."""
    if kind not in TASKS:
        return {"task.kind": kind}
    defaults: Mapping[str, Any] = runpy.run_path(str(recipe_path(kind)))["DEFAULTS"]
    return defaults
