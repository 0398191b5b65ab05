"""From rows to the examples of a task: its own columns are made of others, and rows are left out or joined."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hf_finetune.data.arrow_columns import ROWS_AT_ONCE
from hf_finetune.data.table import ColumnSpec, Table, TableBuilder, check_texts, pack_table
from hf_finetune.system.files import remove_quietly


def make_examples(table: Table, spec: ColumnSpec, *, needs_labels: bool = True) -> Table:
    """Returns the table of a task's examples: the rows, or what spec.join_rows makes of them. InputError at the first row that
    cannot be used. needs_labels: False for rows to predict, all of which are kept."""
    table = convert_columns(table, spec)
    check_texts(table, spec)
    return join_rows(table, spec, needs_labels=needs_labels)


def join_rows(table: Table, spec: ColumnSpec, *, needs_labels: bool) -> Table:
    """Returns the examples of a table whose columns are the task's own, and whose texts were checked."""
    if needs_labels and spec.keep_labelled is not None:
        table = spec.keep_labelled(table)
    return table if spec.join_rows is None else pack_table(spec.join_rows(table))


def convert_columns(table: Table, spec: ColumnSpec) -> Table:
    """Returns the table with the task's own columns, made of those that it has in place of them. No value is checked."""
    if spec.find_conversion is None:
        return table
    conversion = spec.find_conversion(table)
    made = {} if conversion is None else conversion.convert(table.columns)
    columns: dict[str, Sequence[Any]] = {name: table.columns[name] for name in spec.own_columns}
    columns |= {name: list(values) for name, values in made.items() if name in columns}
    notes = () if conversion is None else conversion.notes
    return pack_table(replace(table, columns=columns, notes=(*table.notes, *notes)))


def convert_rows(builder: TableBuilder, add_rows: Callable[[TableBuilder], list[str]], spec: ColumnSpec) -> list[str]:
    """Adds rows with the task's own columns. Until then, they lie as they are next to the file of the builder, if it has one: how
    they are converted depends on all of them.

    Args:
        builder: Takes the rows.
        add_rows: Adds the rows as they are to another builder, and returns sentences about what was recognised.
        spec: The columns of the task.

    Returns these sentences, and others about how the columns were made.
    """
    path = builder.path and builder.path.with_name("given.arrow")
    given = TableBuilder(spec.own_columns, path)
    notes = add_rows(given)
    notes += add_converted(builder, given.finish(), spec)
    if path is not None:
        remove_quietly(path)
    return notes


def add_converted(builder: TableBuilder, table: Table, spec: ColumnSpec) -> tuple[str, ...]:
    """Adds the rows of a table with the task's own columns, a part at a time. Returns sentences about how these were made."""
    assert spec.find_conversion is not None
    conversion = spec.find_conversion(table)
    builder.add_unread(table.unread)
    for start in range(0, len(table), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        columns = {name: list(column[part]) for name, column in table.columns.items()}
        if conversion is not None:
            columns |= {name: list(values) for name, values in conversion.convert(columns).items()}
        rows = zip(*(columns[name] for name in builder.names), strict=True)
        words = [None] * len(table.files[part]) if table.word_lines is None else table.word_lines[part]
        for values, file, line, word_lines in zip(rows, table.files[part], table.lines[part], words, strict=True):
            builder.add(values, file, line, word_lines)
    return () if conversion is None else conversion.notes
