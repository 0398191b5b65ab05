"""Labels and numbers: functions that several tasks read and print them with."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from hf_finetune.config.sections import require
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

LARGEST_TARGET = 3.4028234663852886e38  # the largest float32: targets of a regression are float32


def format_counts(counts: Mapping[str, int], most: int = 8) -> str:
    """Returns names and their counts as text, the most frequent first, and at most `most` of them."""
    ordered = Counter(counts).most_common()
    shown = [f"{name} {count:,}" for name, count in ordered[:most]]
    if len(ordered) > most:
        shown.append(f"and {len(ordered) - most} more")
    return ", ".join(shown)


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


def sort_numbers_first(name: str) -> tuple[int, float, str]:
    """Returns a sort key that puts integers first, by value, and then all other names by alphabet.

    Different labels have different keys, so that the order never depends on the rows.
    """
    return (0, float(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0.0, name)


def read_number(table: Table, row: int, column: str, reason: str = "which task.problem regression needs") -> float:
    """Returns the number in a row. InputError with file and line if it is not a finite number; `reason` says why it must be."""
    value = table.columns[column][row]
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        number = float(value)
    except OverflowError:  # an integer that is too large for a float
        number = math.inf
    except (TypeError, ValueError):
        shown = "null" if value is None else repr(value)
        raise InputError(f"{table.where(row)}: {column} ({shown}) is not a number, {reason}") from None
    if not abs(number) <= LARGEST_TARGET:
        raise InputError(f"{table.where(row)}: {column} ({number}) is not finite, or too large for float32")
    return number
