"""Rows that a program gives to a Predictor, as a table: texts, frames, data sets, lists and dicts."""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import name_type
from hf_finetune.data.memory import read_memory
from hf_finetune.data.plain import is_dataset, is_frame, is_series, make_plain
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns


def make_table(rows: Any, columns: Columns, config: DataConfig) -> Table:
    """Returns rows as a table; errors call the fourth one `rows[3]`. An empty list gives an empty table."""
    spec = columns.spec
    if is_series(rows) and any(name in getattr(rows, "index", ()) for name in spec.columns):
        raise InputError(
            "rows: a series that is one row of a frame; give the row as a frame, frame.iloc[[0]], or [rows.to_dict()]"
        )
    is_table = isinstance(rows, (Mapping, bytes, set)) or is_frame(rows) or is_dataset(rows)
    if isinstance(rows, Iterable) and not isinstance(rows, list) and not is_table:
        rows = make_plain(list(rows))  # a series, an array, a generator, a column of a data set
    if isinstance(rows, list):
        if not rows:
            return Table(columns={name: [] for name in spec.columns}, files=[], lines=[])
        if any(isinstance(row, str) for row in rows):
            rows = [make_row(row, f"rows[{number}]", columns) for number, row in enumerate(rows)]
    return read_memory(rows, "rows", config, spec, needs_labels=False)


def make_row(text: Any, where: str, columns: Columns) -> dict[str, Any]:
    """Returns the row of a text. InputError, with its origin, if it is empty, is not a string, or if the model takes more
    columns."""
    if not isinstance(text, str):
        if text is None:
            raise InputError(f"{where}: is null")
        raise InputError(f"{where}: is {name_type(text)}, and other rows are texts; give all in one form")
    if not text.strip():
        raise InputError(f"{where}: is empty")
    try:
        return columns.make_row([text])
    except InputError:
        names = ", ".join(columns.spec.inputs)
        raise InputError(
            f"{where}: one text is not enough for this model; give rows as dicts, or a frame, with the columns {names}"
        ) from None
