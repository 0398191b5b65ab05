"""Finds a csv or tsv file whose first line is a row like those after it, and not the names of the columns."""

from collections.abc import Sequence

from hf_finetune.data.numbers import is_number
from hf_finetune.data.rows import FileWarning

FEWEST_ROWS = 2  # after the first line
FEW_VALUES = 0.5  # of the rows: a column with fewer different values holds classes
RARE = 0.25  # of the rows that a class has on average: a value with fewer is not evidence
SHORT = 0.05  # of the texts of a column are shorter than a text that could be one of them


class HeaderWarning(FileWarning):
    """The warning about a file whose first line is a row, perhaps."""


def find_repeated_name(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    """Returns the name of a column that is a value of it, too, if the first line of a file seems to be a row; else None.

    Such a name alone shows nothing: a column `token` may hold the word token, a column `spam` the classes spam and ham. So the
    value must be frequent, and all other names must be such as their columns hold.

    Args:
        names: The fields of the first line.
        rows: Those of the lines after it.
    """
    columns = [[value for row in rows if (value := row[place].strip())] for place in range(len(names))]
    pairs = [(name.strip(), values) for name, values in zip(names, columns, strict=True)]
    if len(rows) < FEWEST_ROWS or len(names) < 2 or not all(fits(name, values) for name, values in pairs):
        return None
    return next((name for name, values in pairs if is_frequent(name, values)), None)


def is_frequent(name: str, values: Sequence[str]) -> bool:
    """True if a name is one of several values of its column, and not a much rarer one than the others."""
    distinct = set(values)
    return len(distinct) > 1 and name in distinct and values.count(name) >= RARE * len(values) / len(distinct)


def fits(name: str, values: Sequence[str]) -> bool:
    """True if a name could be one of the values of its column, which are not blank."""
    if not name or not values or name in values:
        return True
    if len(set(values)) <= FEW_VALUES * len(values):
        return False
    if all(map(is_number, values)):
        return is_number(name)
    lengths = sorted(map(len, values))
    return len(name) >= lengths[int(SHORT * len(lengths))]


def describe_header(file: str, name: str) -> HeaderWarning:
    """Returns the warning about the first line of a file, one of whose names is a value of its column, too."""
    return HeaderWarning(
        f"{file}: the first line is read as the names of the columns, and may be a row of the data: {name!r} is a value of its "
        "column, too; if it is a row, set data.header false, which calls the columns 1, 2, 3, ..."
    )
