"""References, which generated texts are compared with, and the metrics that do so."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from hf_finetune.data.columns import iterate
from hf_finetune.data.table import Table, describe_value
from hf_finetune.data.written_lists import is_written_list
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import install_hint


@dataclass(frozen=True, kw_only=True)
class TextMetrics:
    """Metrics that compare generated texts with references.

    Args:
        names: Their names; the first decides which checkpoint is best, unless evaluation.metric names another.
        compute: A function of texts and of the one or more references of each, which returns the values by name.
        score_each: A function of the same that returns numbers of each text by name, of which metrics follow by their rules.
        rules: How they follow (tasks.example_scores). A metric without a rule can be computed of all texts only.
    """

    names: tuple[str, ...]
    compute: Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]
    score_each: Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, list[float]]] = lambda *_: {}
    rules: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)


def import_package(module: str, purpose: str) -> Any:
    """Returns the imported module. InputError with the pip command if its package is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        install = install_hint(module.partition(".")[0])
        raise InputError(f"task.generate_examples: {purpose} needs a package: {install}; or set it to 0") from None


def list_references(value: Any) -> list[str]:
    """Returns the references of a target: itself, or the items of a list. Empty if any of them is not a text."""
    texts = as_list(value)
    return texts if all(isinstance(text, str) and text.strip() for text in texts) else []


def read_references(table: Table, row: int, column: str) -> list[str]:
    """Returns the one or more references of a row. InputError with file and line if they cannot be used."""
    value = table.columns[column][row]
    references = list_references(value)
    if references:
        return references
    where = f"{table.where(row)}: {column}"
    if isinstance(value, (list, tuple)) and value:
        item = next(text for text in value if not isinstance(text, str) or not text.strip())
        raise InputError(f"{where} has an item that is {describe_value(item)}")
    raise InputError(f"{where} is {describe_value(value, 'a text or a list of texts')}")


def find_lists_in_csv(table: Table, column: str) -> list[int]:
    """Returns the rows of csv and tsv files, which hold no lists, whose target is a list of texts that is written as text."""
    values = chain.from_iterable(iterate(table.columns[column]))
    return [row for row, value in enumerate(values) if is_written_list(value) and table.is_delimited(row)]


def as_list(value: Any) -> list[Any]:
    """Returns the items of a list or tuple as a list, or any other value as the only item of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
