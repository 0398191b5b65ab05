"""Names of labels that are several labels in one string."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from hf_finetune.data.literals import read_literal
from hf_finetune.data.numbers import find_sign

SEPARATORS = (",", ";", "|", "/")


@dataclass(frozen=True, kw_only=True)
class JoinedLabels:
    """Names that look like several labels each.

    Args:
        separator: What stands between the labels.
        names: The names that hold it.
    """

    separator: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        looks = "label looks" if len(self.names) == 1 else "labels look"
        return f"{len(self.names):,} {looks} joined by {self.separator!r}, such as {self.names[0]}"


def find_joined(names: Collection[str]) -> JoinedLabels | None:
    """Returns the names whose parts are all names, too, or parts of several names; None if there are none.

    The separator is the one that joins most names.
    """
    known, found = set(names), []
    for separator in SEPARATORS:
        parts = {
            name: split(name, separator)
            for name in names
            if separator in name and not is_in_brackets(name) and not find_sign(name)  # 10,1 % is a number
        }
        uses = Counter(part for of_name in parts.values() for part in set(of_name))
        joined = tuple(
            name
            for name, of_name in parts.items()
            if len(set(of_name)) > 1 and all(part and (uses[part] > 1 or part in known) for part in of_name)
        )
        if joined:
            found.append(JoinedLabels(separator=separator, names=joined))
    return max(found, key=lambda joined: len(joined.names), default=None)


def find_bare_lists(names: Collection[str]) -> list[str]:
    """Returns the names that are lists without quotes, as in [a, b]; [] if none of them has a comma."""
    found = [name for name in names if is_in_brackets(name) and read_literal(name) is None]
    return found if any("," in name for name in found) else []


def split(name: str, separator: str) -> list[str]:
    """Returns the parts of a name without blanks at their ends."""
    return [part.strip() for part in name.split(separator)]


def is_in_brackets(name: str) -> bool:
    """True if a name begins and ends as a list or a set does."""
    return (name[:1], name[-1:]) in (("[", "]"), ("{", "}"))
