"""Whether the values of a column are numbers, and how they are written. A column is read by its distinct values."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?|[-+]?inf(inity)?", re.IGNORECASE | re.ASCII)
GROUPED = re.compile(r"[-+]?\d{1,3}((\.\d{3})+,\d+|(,\d{3})+\.\d+)", re.ASCII)  # 1.234,5 or 1,234.5
LIKE_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}", re.ASCII)  # 1,234: 1234, or 1.234 with a decimal comma
AMOUNT = re.compile(r"(?P<before>[$€£¥]?)\s?[-+]?\d+(?:[.,]\d+)*\s?(?P<after>[%‰°$€£¥]?)", re.ASCII)

# What programs write for a missing value, in lower case. Among words they may be labels (na for "not applicable")
MISSING_WORDS = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "null", "none", "nat"})


def is_missing(value: Any) -> bool:
    """True for None, nan and blank strings."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value  # nan is not equal to itself


def is_missing_word(value: Any) -> bool:
    """True for a string that stands for a missing value in a column of numbers, such as NA."""
    return isinstance(value, str) and value.strip().lower() in MISSING_WORDS


def is_number(value: Any) -> bool:
    """True for a number, or a string that writes one, with a decimal point or a decimal comma."""
    if isinstance(value, str):
        return NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What is known of a column of numbers.

    Args:
        has_fractions: At least one is not a whole number.
        with_comma: The first that is written with a decimal comma; None if none is.
        with_point: The first that is written with a decimal point; None if none is.
        unclear: The first that can be read in two ways, such as 1,234 or 1.234,5; None if there is none.
    """

    has_fractions: bool
    with_comma: str | None = None
    with_point: str | None = None
    unclear: str | None = None


def find_numbers(values: Iterable[Any]) -> Numbers | None:
    """Returns what is known of a column if all its values are numbers or missing; None if not, or if all are missing."""
    numbers = []
    for value in values:
        if isinstance(value, (list, tuple, dict)):
            return None
        if not is_missing(value) and not is_missing_word(value):
            if not is_number(value) and not (isinstance(value, str) and GROUPED.fullmatch(value.strip())):
                return None
            numbers.append(value)
    if not numbers:
        return None
    texts = [value.strip() for value in numbers if isinstance(value, str)]
    grouped = [text for text in texts if GROUPED.fullmatch(text)]
    comma = [text for text in texts if "," in text]
    point = [text for text in texts if "." in text and "," not in text]
    unclear = grouped or (comma if all(LIKE_THOUSANDS.fullmatch(text) for text in comma) else [])
    return Numbers(
        has_fractions=bool(grouped) or any(not is_integer(value) for value in numbers),
        with_comma=next(iter(comma), None),
        with_point=next(iter(point), None),
        unclear=next(iter(unclear), None),
    )


def find_sign(text: str) -> str | None:
    """Returns the sign of a number such as 12% or $9.50; "" if it has none, None if the text is not a number."""
    match = AMOUNT.fullmatch(text)
    return None if match is None else match["before"] or match["after"]


def is_integer(value: Any) -> bool:
    """True if a number, or a string that writes one, has no fraction. False for infinity."""
    if isinstance(value, int):
        return True
    try:
        number = parse_number(value)
    except OverflowError:
        return False
    return number.is_integer()


def parse_number(value: Any) -> float:
    """Returns a number, or the one that a string writes, with a decimal point or a decimal comma.

    ValueError or TypeError if it is none, OverflowError for an integer that is too large for a float.
    """
    if value is None or isinstance(value, bool):
        raise TypeError
    return float(value.strip().replace(",", ".") if isinstance(value, str) else value)


def has_fractions(values: Iterable[Any]) -> bool:
    """True if all values are numbers (or strings of such) or missing, and at least one is not a whole number."""
    numbers = find_numbers(values)
    return numbers is not None and numbers.has_fractions
