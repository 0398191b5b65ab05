"""Numbers to predict: the labels of a regression. N rows of a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_finetune.data.columns import find_distinct
from hf_finetune.data.features import Array
from hf_finetune.data.numbers import find_numbers, is_missing, is_missing_word
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import read_number
from hf_finetune.tasks.text.label_errors import LEAVE_OUT, describe_missing, locate_value


def read_numbers(table: Table, column: str) -> Array:
    """Returns the numbers of a regression, [N] float32. InputError with file and line if one is missing or not finite, or if
    the numbers can be read in two ways."""
    codes, values = find_distinct(table.columns[column])
    numbers = find_numbers(values)
    if numbers is not None and numbers.unclear is not None:
        where = locate_value(table, column, find_text(values, numbers.unclear))
        raise InputError(
            f"{where}: {column} ({numbers.unclear}) can be read in two ways; write numbers without separators of "
            "thousands"
        )
    if numbers is not None and numbers.with_comma is not None and numbers.with_point is not None:
        comma, point = (find_text(values, text) for text in (numbers.with_comma, numbers.with_point))
        raise InputError(
            f"{locate_value(table, column, comma)}: {column} ({numbers.with_comma}) has a decimal comma, and "
            f"{locate_value(table, column, point)} ({numbers.with_point}) a decimal point; write all numbers in one way"
        )
    rows = [int(row) for row in np.unique(codes, return_index=True)[1]]
    for row, value in zip(rows, values, strict=True):
        if is_missing(value) or is_missing_word(value):
            raise InputError(f"{table.where(row)}: {column} is {describe_missing(value)}; {LEAVE_OUT}")
    return np.array([read_number(table, row, column) for row in rows], dtype=np.float32)[codes]


def find_text(values: Sequence[Any], text: str) -> int:
    """Returns the number of the value that is this text, with or without blanks around it."""
    return next(number for number, value in enumerate(values) if isinstance(value, str) and value.strip() == text)
