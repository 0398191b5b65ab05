"""Labels as lists of 0 and 1 that have a place for each class, as in [0, 1, 0]."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hf_finetune.tasks.labels import canonical_label

BITS = {"0": False, "1": True, "false": False, "true": True}


def read_bit(value: Any) -> bool | None:
    """Returns True for 1 and true, False for 0 and false, None for anything else."""
    return BITS.get((canonical_label(value) or "").lower()) if not isinstance(value, (list, dict)) else None


def are_bits(values: Sequence[Any]) -> bool:
    """True if all values are 0 or 1."""
    return all(read_bit(value) is not None for value in values)


def count_places(lists: Sequence[Sequence[Any]]) -> int:
    """Returns the number of places of lists of 0 and 1 that are all of one length of at least 2; 0 if they are others."""
    lengths = {len(values) for values in lists}
    if len(lengths) != 1 or min(lengths) < 2 or not all(map(are_bits, lists)):
        return 0
    return lengths.pop()


def is_places(lists: Sequence[Sequence[Any]], names: Sequence[str]) -> bool:
    """True if lists have 0 or 1 for each of the C classes. Not if classes are called so: the values are their names then."""
    return count_places(lists) == len(names) and not {"0", "1", "true", "false"} & set(names)


def find_odd_list(lists: Sequence[Sequence[Any]]) -> tuple[int, int] | None:
    """Returns the number of the first list that has not 0 or 1 at each place as the others have, and their number of places.

    None if all are alike, or if they list the names of classes. A list that holds 0 or 1 twice, as [0, 1, 0], has places: no text
    has a class twice.
    """
    if not any(repeats_a_value(values) and are_bits(values) for values in lists):
        return None
    lengths = Counter(len(values) for values in lists if len(values) > 1 and are_bits(values))
    places = lengths.most_common(1)[0][0]
    odd = (number for number, values in enumerate(lists) if len(values) != places or not are_bits(values))
    return next(((number, places) for number in odd), None)


def repeats_a_value(values: Sequence[Any]) -> bool:
    """True if a list holds a value twice."""
    return len(values) > 1 and len(set(map(str, values))) < len(values)
