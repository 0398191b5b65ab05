"""Settings in YAML files."""

from collections import Counter
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


class UniqueKeyLoader(yaml.SafeLoader):
    """Loads plain values, and refuses a mapping with a key twice: PyYAML would silently forget the first value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Returns the node of the mapping that follows."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":  # which adds other mappings
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return node


def load_yaml(text: str) -> Any:
    """Returns the plain values of a YAML text.

    Raises one of YAML_ERRORS; also for a key that is given twice, and for aliases of aliases that stand for more than MAX_VALUES
    values, which could fill the memory.
    """
    loaded = yaml.load(text, UniqueKeyLoader)
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
        pairs = list(flatten({str(key): value for key, value in loaded.items()})) if is_mapping else []
    except OSError as error:
        raise InputError(f"{option} ({path}): {error.strerror}") from None
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{place}: not YAML: {reason}") from None
    if loaded is not None and not is_mapping:
        raise InputError(f"{option} ({path}): must hold settings as `key: value`, not a {type(loaded).__name__}")
    flat = dict(pairs)
    if len(flat) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"{option} ({path}): gives {twice} twice")
    return flat
