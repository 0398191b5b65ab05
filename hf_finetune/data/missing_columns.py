"""The error about a column that rows lack: the columns that there are, and the settings that name others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import explain_missing_column
from hf_finetune.data.row_adapter import WORD_LINES
from hf_finetune.data.table import ColumnSpec, find_column_setting
from hf_finetune.system.errors import InputError


def missing_column_error(
    where: str, name: str, row: Mapping[str, Any], config: DataConfig, spec: ColumnSpec, *, needs_labels: bool = True
) -> InputError:
    """Returns the error for a row without a required column.

    Args:
        where: The origin of the row.
        name: The column.
        row: The row, of which the names of the columns are used, and the entries of objects.
        config: The names of the columns.
        spec: The columns that the task reads.
        needs_labels: The row needs its labels too.
    """
    columns = [str(column) for column in row if column != WORD_LINES]
    inside = [f"{outer}.{name}" for outer, value in row.items() if isinstance(value, Mapping) and name in value]
    if inside:
        setting = find_column_setting(name, config, spec)
        way_out = f"see {setting}: set it to {' or '.join(inside)} for the entry of an object"
    else:
        missing = list(dict.fromkeys((name, *spec.list_missing(columns, needs_labels=needs_labels))))
        way_out = find_way_out(missing, columns, config, spec, needs_labels=needs_labels)
        way_out += explain_missing_column(Path(where.rpartition(":")[0]), config, spec.text_files)
    return InputError(f"{where}: no column {name!r} (columns: {', '.join(columns) or 'none'}); {way_out}")


def find_way_out(
    missing: Sequence[str], columns: Sequence[str], config: DataConfig, spec: ColumnSpec, *, needs_labels: bool
) -> str:
    """Returns the settings that name the missing columns, and what to set them to if the row has these in capitals or small
    letters. The arguments are those of missing_column_error(); columns: Those of the row."""
    written = find_other_case(columns, spec)
    if has_all_renamed(missing, written, columns, spec, needs_labels=needs_labels):
        return f"rename {join_words([f'{column!r} to {known!r}' for known, column in written.items()])}"
    others = dict.fromkeys(find_column_setting(name, config, spec) for name in missing if name not in written)
    settled = {
        name: column for name, column in written.items() if find_column_setting(name, config, spec) not in others
    }
    changes = describe_changes(settled, [*columns, *missing], config, spec)
    ways = [f"set {join_words(changes)}"] if changes else []
    ways += [f"see {join_words(list(others))}"] if others else []
    hints = [
        f"{name!r} is there as {column!r}"
        for name, column in written.items()
        if name in missing and name not in settled
    ]
    return "; ".join([*ways, *hints])


def find_other_case(columns: Sequence[str], spec: ColumnSpec) -> dict[str, str]:
    """Returns the columns that the task reads and that rows have in capitals or small letters, or with blanks around them, each
    with its name in the rows. columns: Those of the rows."""
    known = {name.strip().casefold(): name for name in reversed(spec.columns)}
    written: dict[str, str] = {}
    for column in columns:
        name = known.get(column.strip().casefold())
        if name is not None and name not in columns and column not in spec.columns:
            written.setdefault(name, column)
    return written


def has_all_renamed(
    missing: Sequence[str], written: Mapping[str, str], columns: Sequence[str], spec: ColumnSpec, *, needs_labels: bool
) -> bool:
    """True if rows have other columns in place of those that are missing (ColumnSpec.alternatives), once some are renamed."""
    if all(name in written for name in missing):
        return False
    return bool(written) and not spec.list_missing([*columns, *written], needs_labels=needs_labels)


def describe_changes(
    written: Mapping[str, str], columns: Sequence[str], config: DataConfig, spec: ColumnSpec
) -> list[str]:
    """Returns `data.text_columns to Text` for each setting that names columns of `written`.

    columns: Those of the rows, and those that they must have. Others that a setting names are left out.
    """
    named = (*config.text_columns, *config.label_columns, *spec.settings)
    values: dict[str, list[str]] = {
        find_column_setting(name, config, spec): [] for name in spec.own_columns if name in written and name in named
    }
    for name in spec.own_columns:
        setting = find_column_setting(name, config, spec)
        if name in named and setting in values and (name in written or name in columns):
            values[setting].append(written.get(name, name))
    return [f"{setting} to {' '.join(names)}" for setting, names in values.items()]


def join_words(words: Sequence[str]) -> str:
    """Returns `a`, `a and b`, or `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
