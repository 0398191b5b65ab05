"""Lists of labels: as lists, as text, joined by a separator, or as choices of Label Studio.

N rows of a table.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.data.literals import read_literal
from hf_finetune.data.numbers import is_missing
from hf_finetune.tasks.labels import canonical_label
from hf_finetune.tasks.text.label_choices import read_choices
from hf_finetune.tasks.text.label_places import are_bits


def read_list(value: Any, separator: str | None) -> list[Any] | None:
    """Returns the labels of a value that holds several: a list, a list that is written as text, a string with separators, or
    choices of Label Studio. None if it is nothing of the kind."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if (choices := read_choices(value)) is not None:
        return choices
    if not isinstance(value, str):
        return None
    if separator:
        return [part.strip() for part in value.split(separator) if part.strip()]
    literal = read_literal(value)
    return [] if literal == {} else literal if isinstance(literal, list) else None  # {} is written for an empty set


def are_written_lists(values: Sequence[Any]) -> bool:
    """True if all values that are not missing are lists that are written as text. {} alone is none.

    values: The distinct values of a column.
    """
    present = [value for value in values if not is_missing(value)]
    if not all(isinstance(value, str) and read_list(value, None) is not None for value in present):
        return False
    return any(value != "{}" for value in present)


def unpack_values(values: Sequence[Any], names: Collection[str] = ()) -> list[Any]:
    """Returns the distinct values of a column with lists in place of choices of Label Studio, and of lists that are written as
    text if all values are such lists.

    names: Those of the classes, if they are known. A text that is one of them stays as it is.
    """
    if are_written_lists(values):
        return [
            value if is_missing(value) or canonical_label(value) in names else read_list(value, None)
            for value in values
        ]
    return [value if (choices := read_choices(value)) is None else choices for value in values]


def is_list_of_one(value: Any) -> bool:
    """True for a list with one item."""
    return isinstance(value, (list, tuple)) and len(value) == 1


def describe_lists_of_one(codes: Array, values: Sequence[Any]) -> str:
    """Returns how lists that have one label each can be read as single labels; "" if one has several, or 0 or 1 at its place.

    codes: The number of each row's distinct value, [N]. values: The distinct values.
    """
    values = unpack_values(values)
    lists = [value for value in values if isinstance(value, (list, tuple))]
    if not any(lists) or any(len(value) > 1 or are_bits(value) for value in lists if value):
        return ""
    num_empty = int(np.isin(codes, [code for code, value in enumerate(values) if value in ([], ())]).sum())
    if not num_empty:
        return " of one label each, which task.problem single_label reads as single labels"
    rows = "1 row has" if num_empty == 1 else f"{num_empty:,} rows have"
    return (
        f" of one label, and {rows} an empty one: task.problem single_label with task.ignore_labels null reads single labels and "
        "leaves out the others"
    )
