"""Lists of texts that are written as text, in the cells of columns that take a text or a list of texts.

A csv file has no lists: pandas writes ["a", "b"] into it as the text "['a', 'b']".
"""

from collections.abc import Sequence
from typing import Any

from hf_finetune.data.columns import iterate
from hf_finetune.data.literals import read_literal
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

# What is wrong with a text of a column that was read in the other way in training: by whether the text is a list
DIFFERENCES = {
    True: "is a list that is written as text, and those of training are no lists; use a jsonl or parquet file with lists",
    False: 'is a text, and those of training are lists that are written as text; write it as a list of texts, ["a text"]',
}


def read_texts(value: Any) -> Any:
    """Returns the list of texts that a text holds, as JSON, Python or numpy write it; any other value as it is. A text in a list
    may be missing (None)."""
    literal = read_literal(value) if isinstance(value, str) else None
    is_list = isinstance(literal, list) and all(isinstance(text, str) or text is None for text in literal)
    return literal if is_list else value


def is_written_list(value: Any) -> bool:
    """True if a value is a text that holds a list of texts."""
    return isinstance(value, str) and isinstance(read_texts(value), list)


def find_written_lists(table: Table, names: Sequence[str]) -> list[str]:
    """Returns those of the columns whose texts are lists of texts. InputError, with both rows, if a column has lists that are
    written as text, and other texts: one of them may be read wrongly."""
    return [name for name in names if name in table.columns and holds_written_lists(table, name)]


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
                if known is not None and is_list != known:
                    raise InputError(f"{table.where(row)}: {name} {DIFFERENCES[is_list]}")
                first.setdefault(is_list, row)
                if len(first) > 1:
                    raise InputError(
                        f"{table.where(first[True])}: {name} is a list that is written as text, and {table.where(first[False])} "
                        'has a text that is not such a list; write all of them as lists of texts, ["a text"], or use a jsonl or '
                        "parquet file with lists"
                    )
            row += 1
    return next(iter(first), None)


def describe_written_lists(names: Sequence[str]) -> str:
    """Returns a sentence about the columns of find_written_lists()."""
    return f"lists that are written as text are read as lists: {', '.join(names)}"
