"""Values of other libraries as plain Python values, as files give them. Imports none of these libraries."""

import decimal
from collections.abc import Mapping
from typing import Any

from hf_finetune.data.rows import name_type
from hf_finetune.system.errors import InputError

CELLS = (str, bool, int, float, type(None), list, dict)  # what a cell may be, as in a JSON file


def is_frame(value: Any) -> bool:
    """True if the value is a data frame of pandas or polars. Imports neither."""
    return name_library(value) in ("pandas", "polars") and type(value).__name__ == "DataFrame"


def is_series(value: Any) -> bool:
    """True if the value is a series of pandas or polars. Imports neither."""
    return name_library(value) in ("pandas", "polars") and type(value).__name__ == "Series"


def is_dataset(value: Any) -> bool:
    """True if the value is a datasets.Dataset. Does not import the library."""
    return name_library(value) == "datasets" and hasattr(value, "column_names") and hasattr(value, "features")


def name_library(value: Any) -> str:
    """Returns the name of the package that the value's type comes from."""
    return type(value).__module__.partition(".")[0]


def make_plain(value: Any) -> Any:
    """Returns a cell, or nested lists of cells, as plain Python values: nan, NA and NaT as None, numpy's numbers, strings and
    arrays as Python's, Decimals as int or float, UTF-8 bytes as text."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return decode_bytes(value)
    if isinstance(value, (bool, int, type(None))):
        return value
    if isinstance(value, decimal.Decimal):
        return make_plain(int(value) if value == value.to_integral_value() else float(value))
    if isinstance(value, float):
        return None if value != value else float(value)
    if isinstance(value, Mapping):
        return {key: make_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or is_series(value):
        return [make_plain(item) for item in value]
    if name_library(value) == "numpy" and hasattr(value, "tolist"):
        return make_plain(value.tolist())
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return None
    return value


def decode_bytes(value: bytes) -> Any:
    """Returns bytes as text if they are UTF-8, else as they are."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def check_cell(value: Any, where: str, column: str) -> Any:
    """Returns a cell. InputError if it is, or contains, a value of a type that text files do not have, such as bytes or a date of
    another library: it could be read as a text or as a number."""
    odd = find_odd_value(value)
    if odd is not None:
        shown = "bytes that are not UTF-8 text" if isinstance(odd, bytes) else name_type(odd)
        raise InputError(f"{where}: {column} holds {shown}; store a string or a number instead, or name another column")
    return value


def find_odd_value(value: Any) -> Any:
    """Returns the first value in a cell whose type files do not have; None if there is none."""
    if not isinstance(value, CELLS):
        return value
    if isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            if type(inner) is not str and (odd := find_odd_value(inner)) is not None:
                return odd
    return None
