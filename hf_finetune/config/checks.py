"""Checks of settings: InputError `key (value): message` if one fails."""

from hf_finetune.config.references import is_reference
from hf_finetune.system.errors import InputError


def require(condition: bool, key: str, value: object, message: str) -> None:
    """Raises InputError `key (value): message` if the condition is false."""
    if not condition:
        raise InputError(f"{key} ({value}): {message}")


def check_reference(key: str, value: str | None) -> None:
    """Raises InputError if a setting that takes an import path is given anything else."""
    require(value is None or is_reference(value), key, value, "must be an import path, as my_module:name")
