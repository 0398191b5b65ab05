"""Cells that hold a text, several texts or nothing: lists that are written as text, joined texts, blank cells.

A csv file has no lists: pandas writes ["a", "b"] into it as the text "['a', 'b']". Nor has it null: a blank cell stands for it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from hf_finetune.data.columns import iterate
from hf_finetune.data.findings import locate, shorten
from hf_finetune.data.literals import read_literal
from hf_finetune.data.table import Table, describe_value
from hf_finetune.system.errors import InputError

# What is wrong with a text of a column that was read in the other way in training: by whether the text is a list
DIFFERENCES = {
    True: "is a list that is written as text, and those of training are no lists; use a jsonl or parquet file with lists",
    False: 'is a text, and those of training are lists that are written as text; write it as a list of texts, ["a text"]',
}

SEPARATORS = ("|", ";", ",", "\t", "\n", "[SEP]", "<sep>")  # of texts that are written as one
PROSE = (",", "\n")  # are in many texts
SAMPLE_ROWS = 1000  # in which joined texts are looked for
FEWEST_TEXTS = 4
SHARE_OF_TEXTS = 0.5  # a warning: more of the texts hold a separator,
SHARE_OF_OTHERS = 0.1  # and fewer of texts like them


def read_texts(value: Any) -> Any:
    """Returns the list of texts that a text holds, as JSON, Python or numpy write it; any other value as it is. A text in a list
    may be missing (None)."""
    literal = read_literal(value) if isinstance(value, str) else None
    is_list = isinstance(literal, list) and all(isinstance(text, str) or text is None for text in literal)
    return literal if is_list else value


def is_written_list(value: Any) -> bool:
    """True if a value is a text that holds a list of texts."""
    return isinstance(value, str) and isinstance(read_texts(value), list)


def find_forms(table: Table, names: Sequence[str]) -> dict[str, bool]:
    """Returns for each of the columns that has texts whether they are lists of texts. InputError, with both rows, if a column has
    lists that are written as text, and other texts: one of them may be read wrongly."""
    found = {name: holds_written_lists(table, name) for name in names if name in table.columns}
    return {name: is_list for name, is_list in found.items() if is_list is not None}


def holds_written_lists(table: Table, name: str, known: bool | None = None) -> bool | None:
    """True if the texts of a column are lists of texts, False if none of them is, None if the column has no texts.

    known: What this returned for the training rows. InputError, with file and line, if a text is not as theirs; or, if they had
    none, if some of the texts are lists and others are not.
    """
    first: dict[bool, int] = {}  # the first row of each kind
    row = 0
    for values in iterate(table.columns[name]):
        for value in values:
            if isinstance(value, str) and value.strip():
                is_list = is_written_list(value)
                check_form(table, row, name, is_list=is_list, known=known)
                first.setdefault(is_list, row)
                if len(first) > 1:
                    raise InputError(
                        f"{table.where(first[True])}: {name} is a list that is written as text, and {table.where(first[False])} "
                        'has a text that is not such a list; write all of them as lists of texts, ["a text"], or use a jsonl or '
                        "parquet file with lists"
                    )
            row += 1
    return next(iter(first), None)


def check_form(table: Table, row: int, name: str, *, is_list: bool, known: bool | None) -> None:
    """Raises InputError, with file and line, if a text is written in another way than those of training.

    is_list: The text is a list of texts. known: Those of training are; None if training had none.
    """
    if known is not None and is_list != known:
        raise InputError(f"{table.where(row)}: {name} {DIFFERENCES[is_list]}")


def is_missing(table: Table, row: int, name: str, value: Any) -> bool:
    """True if the value of a cell stands for nothing: null, or a blank text of a csv or tsv file. InputError, with file and line,
    for a blank text of any other file."""
    if not is_blank(value):
        return value is None
    if not table.is_delimited(row):
        raise InputError(f"{table.where(row)}: {name} is {describe_value(value)}; write null if there is no text")
    return True


def is_blank(value: Any) -> bool:
    """True if a value is a text of blanks alone, or an empty one."""
    return isinstance(value, str) and not value.strip()


def describe_written_lists(names: Sequence[str]) -> str:
    """Returns a sentence about the columns whose texts are lists of texts."""
    return f"lists that are written as text are read as lists: {', '.join(names)}"


def warn_of_joined_texts(
    table: Table, read: Callable[[int], tuple[Sequence[str], Sequence[str]]], noun: str
) -> list[str]:
    """Returns a warning if most texts hold the same separator and texts like them do not: each may be several texts.

    Args:
        table: The rows, of which a sample is read.
        read: Returns the texts of a row, and texts of the same kind that are one text each, such as positives.
        noun: What the texts are, in the plural.
    """
    texts: list[tuple[int, str]] = []
    others: list[str] = []
    for row in range(0, len(table), max(1, len(table) // SAMPLE_ROWS)):
        found, alike = read(row)
        texts += ((row, text) for text in found)
        others += alike
    for separator in SEPARATORS:
        joined = [(row, text) for row, text in texts if is_joined(text, separator)]
        if len(texts) < FEWEST_TEXTS or len(joined) < SHARE_OF_TEXTS * len(texts):
            continue
        if others and sum(is_joined(text, separator) for text in others) <= SHARE_OF_OTHERS * len(others):
            row, text = joined[0]
            return [
                f"{len(joined):,} of {len(texts):,} {noun} hold {separator!r} between texts, such as {locate(table, row)} "
                f'({shorten(text)}): each is read as one text; write several as a list of texts, ["a text", "another"]'
            ]
    return []


def is_joined(text: str, separator: str) -> bool:
    """True if a text holds a separator, once or several times in a row, between parts that are not blank. Commas and line breaks
    are in many texts: they must be between three parts or more that are no sentences."""
    parts = [part.strip() for part in re.split(f"(?:{re.escape(separator)})+", text)]
    if separator in PROSE:
        return len(parts) > 2 and all(part and part[-1] not in ".!?" for part in parts)
    return len(parts) > 1 and all(parts)
