"""Functions and classes that a config names by their import path, `module:name`, such as my_package.losses:focal.

They come from the user's own Python path, and only because the user's config or command names them. Importing a module runs its
code, so no name that came with a model, a checkpoint or data may get here (check_is_named in config/tasks.py).
"""

import importlib
import inspect
import os
import re
import sys
from typing import Any

from hf_finetune.system.errors import InputError


def is_reference(text: str) -> bool:
    """True if the text is an import path, `module:name`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*", text) is not None


def make_reference(value: Any) -> str:
    """Returns the import path of a function or class, `module:name`; of another object, that of its class."""
    has_name = inspect.getattr_static(value, "__qualname__", None) is not None  # without the code of a __getattr__
    named = value if has_name else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def load_reference(key: str, reference: str) -> Any:
    """Imports the object of an import path. The current folder is searched last.

    Raises InputError, with the setting `key`, if there is no such object.
    """
    if not is_reference(reference):
        raise InputError(f"{key} ({reference}): must be an import path as my_module:name")
    module_name, _, name = reference.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:  # as `python -m` has it; the hf-finetune command does not
        sys.path.append(os.getcwd())
    try:
        value: Any = importlib.import_module(module_name)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        hint = ""
        if module_name == "__main__":
            hint = "; it was defined in a program or a notebook: run that again, or move it to a module"
        raise InputError(f"{key} ({reference}): cannot be imported: {error}{hint}") from error
    return value
