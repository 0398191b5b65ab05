"""Labels as lists of 0 and 1 that have a place for each class, as in [0, 1, 0]."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hf_finetune.data.numbers import is_number
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
    """True if lists have 0 or 1 for each of the C classes. If classes are called so, the values are their names, unless a list
    holds one twice."""
    if count_places(lists) != len(names):
        return False
    return not BITS.keys() & set(names) or any(map(repeats_a_value, lists))


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


def find_other_list(lists: Sequence[Sequence[Any]], num_places: int | None) -> int | None:
    """Returns the number of the first list that is not written as those of training; None if all are.

    num_places: The number of places of 0 and 1 in each list of training; None if these list the labels.
    """

    def differs(values: Sequence[Any]) -> bool:
        if num_places is None:
            return repeats_a_value(values) and are_bits(values)
        return len(values) != num_places or not are_bits(values)

    return next((number for number, values in enumerate(lists) if differs(values)), None)


def are_words(lists: Sequence[Sequence[Any]]) -> bool:
    """True if no list holds 0, 1 or another number, so that the values can only be names of classes."""
    values = [value for of_row in lists for value in of_row]
    return all(read_bit(value) is None and not is_number(canonical_label(value) or "") for value in values)


def repeats_a_value(values: Sequence[Any]) -> bool:
    """True if a list holds a value twice."""
    return len(values) > 1 and len(set(map(str, values))) < len(values)
