"""Labels and numbers: functions that several tasks read and print them with."""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Self

from hf_finetune.config.sections import require
from hf_finetune.data.numbers import find_numbers, find_sign, is_missing, is_missing_word, parse_number
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

LARGEST_TARGET = 3.4028234663852886e38  # the largest float32: targets of a regression are float32

INTEGER = re.compile(
    r"(-?(?:0|[1-9]\d*))(?:\.0*|,0+)?", re.ASCII
)  # 11, 11.0, 11. and 11,0; not 011, which may be a code
BOOLEANS = frozenset({"true", "false"})

# --- the canonical form ---------------------------------------------------------------------------------------------


def canonical_label(value: Any) -> str | None:
    """Returns the form of a label that is the same in every type of file; None if it is missing (null, nan, blank).

    11, 11.0, Decimal("11.0"), "11.0" and " 11 " are "11"; true is "true"; bytes are UTF-8; text is stripped and has composed
    accents (NFC). Whether "True" or "nan" is a word, and whether "2.0" is the number 2, is a question to the entire column: see
    LabelForm.
    """
    text = clean_label(value)
    match = None if text is None else INTEGER.fullmatch(text)
    return text if match is None or "," in match[0] else format_integer(match[1])


def clean_label(value: Any) -> str | None:
    """Returns a label as text; None if it is missing. A string keeps how it writes a number."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        return str(int(value)) if value == int(value) else format(value, "f" if isinstance(value, Decimal) else "")
    return unicodedata.normalize("NFC", str(value)).strip()


def format_integer(digits: str) -> str:
    """Returns a whole number without the sign of -0."""
    return "0" if digits == "-0" else digits


@dataclass(frozen=True, kw_only=True)
class LabelForm:
    """How the labels of a column are written, found from all its values: as text, as whole numbers, as numbers of which some are
    not whole numbers, or as true and false.

    Only whole numbers lose their zeros: "2.0" stays as it is next to "1.5", because both may be versions, and so does "007".
    Among numbers and among true and false, NaN and NA stand for missing labels; among words they are words.
    """

    kind: Literal["text", "integer", "decimal", "boolean"] = "text"

    @classmethod
    def find(cls, values: Iterable[Any]) -> Self:
        """Returns the form of a column with these values, none of which is a list."""
        present = [value for value in values if not is_missing(value) and not is_missing_word(value)]
        texts = {str(clean_label(value)) for value in present}
        if texts and {text.lower() for text in texts} <= BOOLEANS:
            return cls(kind="boolean")
        numbers = find_numbers(present) if texts else None
        if numbers is not None and numbers.unclear is None:  # 1,000 may be 1 or 1000: it stays as it is
            return cls(kind="integer" if all(INTEGER.fullmatch(text) for text in texts) else "decimal")
        return cls()

    def read(self, value: Any) -> str | None:
        """Returns the canonical form of a label; None if it is missing."""
        text = clean_label(value)
        if text is None or self.kind == "text":
            return text
        if is_missing_word(text):
            return None
        if self.kind == "boolean":
            return text.lower() if text.lower() in BOOLEANS else text
        match = INTEGER.fullmatch(text) if self.kind == "integer" else None
        return text if match is None else format_integer(match[1])


# --- class weights and counts ---------------------------------------------------------------------------------------


def compute_class_weights(
    requested: Sequence[str], names: Sequence[str], counts: Mapping[str, int]
) -> tuple[float, ...]:
    """Returns the weight of each label, in the order of `names`; () if no weights are requested.

    balanced gives the weights of scikit-learn's compute_class_weight, n / (k x n of the label), for n training labels of which
    k are different. A label that does not occur in training has the weight 1.

    Args:
        requested: The setting task.class_weights. InputError if it is not balanced or label=weight.
        names: All labels.
        counts: The number of training examples by label.
    """
    if not requested:
        return ()
    if list(requested) == ["balanced"]:
        total, num_present = sum(counts.values()), sum(count > 0 for count in counts.values())
        return tuple(total / (num_present * counts[name]) if counts.get(name) else 1.0 for name in names)
    weights = dict.fromkeys(names, 1.0)
    for entry in requested:
        name, _, value = entry.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        fix = "must be balanced, or label=weight with a weight above 0"
        require(0 < weight < math.inf, "task.class_weights", entry, fix)
        require(name in weights, "task.class_weights", entry, f"the label must be one of {', '.join(names)}")
        weights[name] = weight
    return tuple(weights.values())


def describe_class_weights(names: Sequence[str], weights: Sequence[float]) -> list[tuple[str, str]]:
    """Returns the line about class weights that is printed before training; no line if there are no weights."""
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=False))
    return [("weights", shown)] if weights else []


def read_names(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the labels of a task's state, which a model recorded. InputError if it has none."""
    names = state["labels"]
    if not isinstance(names, (list, tuple)) or not names:
        raise InputError(f"labels ({names!r}): must be a list of the names of the labels")
    return tuple(names)


def sort_numbers_first(name: str) -> tuple[int, float, str]:
    """Returns a sort key that puts numbers first, by value, and then all other names by alphabet.

    Different labels have different keys, so that the order never depends on the rows.
    """
    return (0, float(name), name) if re.fullmatch(r"-?\d+(\.\d+)?", name, re.ASCII) else (1, 0.0, name)


def read_number(table: Table, row: int, column: str, reason: str = "which task.problem regression needs") -> float:
    """Returns the number in a row. InputError with file and line if it is not a finite number; `reason` says why it must be."""
    value = table.columns[column][row]
    try:
        number = parse_number(value)
    except OverflowError:  # an integer that is too large for a float
        number = math.inf
    except (TypeError, ValueError):
        shown = "null" if value is None else repr(value)
        sign = find_sign(value.strip()) if isinstance(value, str) else None
        hint = f"; write it without {sign}" if sign else ""
        raise InputError(f"{table.where(row)}: {column} ({shown}) is not a number, {reason}{hint}") from None
    if not abs(number) <= LARGEST_TARGET:
        raise InputError(f"{table.where(row)}: {column} ({number}) is not finite, or too large for float32")
    return number
