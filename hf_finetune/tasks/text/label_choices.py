"""Choices as Label Studio writes them into a label column: a text for one choice, {"choices": [...]} for several."""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_finetune.data.literals import read_literal

CHOICES = "choices"


def read_choices(value: Any) -> list[Any] | None:
    """Returns the labels of {"choices": [...]}, which may be written as text; None if the value is anything else."""
    value = read_literal(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping) or list(value) != [CHOICES]:
        return None
    return list(value[CHOICES]) if isinstance(value[CHOICES], (list, tuple)) else None


def count_most_choices(values: Iterable[Any]) -> int | None:
    """Returns the most labels that a value of a label column holds as choices; None if no value holds choices."""
    counts = [len(choices) for choices in map(read_choices, values) if choices is not None]
    return max(counts, default=None)
