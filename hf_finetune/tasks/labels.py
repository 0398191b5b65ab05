"""Labels and numbers as several tasks read and print them."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from hf_finetune.config.sections import require
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

LARGEST_TARGET = 3.4028234663852886e38  # of float32, which the targets of a regression are


def format_counts(counts: Mapping[str, int], most: int = 8) -> str:
    """Names and their counts, the most frequent first."""
    ordered = Counter(counts).most_common()
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:most])
    return shown + (f", and {len(ordered) - most} more" if len(ordered) > most else "")


def compute_class_weights(
    requested: Sequence[str], names: Sequence[str], counts: Mapping[str, int]
) -> tuple[float, ...]:
    """The weight of each label under task.class_weights; () if that is empty.

    balanced: all labels / (number of labels x labels of the name), as scikit-learn's compute_class_weight; a name that
    training does not have weighs 1.
    """
    if not requested:
        return ()
    if list(requested) == ["balanced"]:
        present = sum(count > 0 for count in counts.values())
        return tuple(sum(counts.values()) / (present * counts[name]) if counts.get(name) else 1.0 for name in names)
    weights = dict.fromkeys(names, 1.0)
    for entry in requested:
        name, _, value = entry.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        takes = "takes balanced, or label=weight, weights above 0"
        require(0 < weight < math.inf, "task.class_weights", entry, takes)
        require(name in weights, "task.class_weights", entry, f"training has the labels {', '.join(names)}")
        weights[name] = weight
    return tuple(weights.values())


def describe_class_weights(names: Sequence[str], weights: Sequence[float]) -> list[tuple[str, str]]:
    """A start-up line with the class weights, if there are any."""
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=False))
    return [("weights", shown)] if weights else []


def sort_numbers_first(name: str) -> tuple[int, float, str]:
    """Sort key: whole numbers by value, then names. No two labels are equal."""
    return (0, float(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0.0, name)


def read_number(table: Table, row: int, column: str, reason: str = "which task.problem regression needs") -> float:
    """A finite number to predict. InputError with file and line if the value is not one; `reason` says why it must be."""
    value = table.columns[column][row]
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        number = float(value)
    except OverflowError:  # a whole number beyond every float
        number = math.inf
    except (TypeError, ValueError):
        shown = "null" if value is None else repr(value)
        raise InputError(f"{table.where(row)}: {column} ({shown}) is not a number, {reason}") from None
    if not abs(number) <= LARGEST_TARGET:
        raise InputError(f"{table.where(row)}: {column} ({number}) is not finite, or too large for float32")
    return number
