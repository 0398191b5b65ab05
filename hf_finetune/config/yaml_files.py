"""Settings in YAML files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_finetune.config.sections import flatten
from hf_finetune.system.errors import InputError

# What yaml raises for broken files: ValueError for impossible dates and numbers, RecursionError for aliases of mappings or
# lists that contain themselves
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)

MAX_VALUES = 100_000  # in one file; the values that an alias stands for count each time


def load_yaml(text: str) -> Any:
    """Returns the plain values of a YAML text.

    Raises one of YAML_ERRORS; also if aliases of aliases stand for more than MAX_VALUES values, which could fill the memory.
    """
    loaded = yaml.safe_load(text)
    waiting, count = [loaded], 1
    while waiting:
        value = waiting.pop()
        inner: Any = ()
        if isinstance(value, (list, tuple)):
            inner = value
        elif isinstance(value, Mapping):
            inner = value.values()
        count += len(inner)
        if count > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
        waiting.extend(inner)
    return loaded


def read_yaml(path: str, option: str = "--config") -> dict[str, Any]:
    """Returns the settings in a YAML file as `{dotted key: value}`; keys are not checked.

    option: The option that named the file. Raises InputError with file and line if it is not YAML, or does not hold settings.
    """
    try:
        loaded = load_yaml(Path(path).read_text(encoding="utf-8"))
        is_mapping = isinstance(loaded, Mapping)
        flat = dict(flatten({str(key): value for key, value in loaded.items()})) if is_mapping else {}
    except OSError as error:
        raise InputError(f"{option} ({path}): {error.strerror}") from None
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{place}: not YAML: {reason}") from None
    if loaded is not None and not is_mapping:
        raise InputError(f"{option} ({path}): must hold settings as `key: value`, not a {type(loaded).__name__}")
    return flat
