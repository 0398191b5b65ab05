"""What errors about labels say: where the label is, what is wrong with it, and what to do."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_finetune.data.columns import find_distinct
from hf_finetune.data.joined_labels import find_joined
from hf_finetune.data.table import Table, describe_value

LEAVE_OUT = "to leave out the rows without a label, set task.ignore_labels to null"


def locate_value(table: Table, column: str, code: int) -> str:
    """Returns the file and line of the first row with a distinct value of a column. code: The number of the value."""
    codes, _ = find_distinct(table.columns[column])
    return table.where(int(np.argmax(codes == code)))


def advise_on_object(value: Any, column: str, *, is_in_list: bool) -> str:
    """Returns what to do about a list or an object where a label should be. is_in_list: It is one of several labels."""
    if is_span(value):
        return "these are spans of characters: --task tag"
    if isinstance(value, dict) and value and not is_in_list:
        name = next((name for name, entry in value.items() if isinstance(entry, str)), next(iter(value)))
        return f"set data.label_column to the entry that is the label, such as {column}.{name}"
    return "write each label as a text" if is_in_list else "set task.problem to multi_label for lists"


def is_span(value: Any) -> bool:
    """True for a span of characters with its label, such as [0, 4, "PER"] or {"start": 0, "end": 4, "labels": ["PER"]}."""
    if isinstance(value, dict):
        return {"start", "end"} <= value.keys() or {"start_offset", "end_offset"} <= value.keys()
    return len(value) == 3 and [type(part) for part in value] == [int, int, str]


def describe_missing(value: Any) -> str:
    """Returns how a missing label is written, for error messages: null, empty, nan or NA."""
    is_blank = value is None or (isinstance(value, str) and not value.strip())
    return describe_value(value) if is_blank else str(value).strip()


def describe_joined(values: Sequence[Any]) -> str:
    """Returns the end of an error about a missing label: what else it may be if other labels look joined. values: The distinct
    labels."""
    joined = find_joined([value.strip() for value in values if isinstance(value, str)])
    if joined is None:
        return ""
    return f"; {joined}: with task.label_separator {joined.separator!r} texts have several labels each, and an empty one has none"
