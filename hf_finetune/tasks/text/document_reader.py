"""Reads queries with their documents from the rows of tables. Each error names file and line.

Rows are of one of three forms, which their columns show:
lists      a query, a list of documents, and a list of their labels or the index of the one relevant document
positives  a query, its relevant documents, and others
pairs      a query, one document, and its label

In the last two, all rows of a query are one example.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_finetune.data.literals import read_literal
from hf_finetune.data.table import Table, describe_value
from hf_finetune.data.written_lists import (
    describe_written_lists,
    find_forms,
    is_blank,
    is_missing,
    is_written_list,
    read_texts,
)
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import LARGEST_TARGET
from hf_finetune.tasks.text.document_examples import (
    DOCUMENTS,
    FORM,
    LABELS,
    NUM_ADDED,
    NUM_ROWS,
    WRITTEN,
    Example,
    add_document,
    join_values,
)

FORMS = {
    "lists": "a list of documents",
    "positives": "relevant and other documents",
    "pairs": "one document",
}
LABEL_NAMES = ("labels", "label", "scores", "score")  # columns that are looked for if data.label_column is not given


@dataclass(frozen=True, kw_only=True)
class DocumentReader:
    """Makes one example of each query.

    Args:
        query: The column of the query.
        documents: Columns of documents whose labels are in a column. Each holds a text, a list of texts, or null.
        positives: Columns of relevant documents, in the same forms.
        negatives: Columns of documents that are not relevant, in the same forms.
        labels: The column of the labels, or those that may be it.
    """

    query: str
    documents: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    labels: tuple[str, ...]

    def read_examples(self, table: Table) -> Table:
        """Returns a table with a row for each query: the columns query and EXAMPLE_COLUMNS, and those that this reader does not
        know. These hold the value of the query's rows, or, if it differs, the list of the values of the rows that gave documents.

        A document that occurs again among the rows of its query is one document. InputError if its labels differ, or if the rows
        are not all of one form.
        """
        forms = find_forms(table, (*self.documents, *self.positives, *self.negatives))
        examples: dict[Hashable, Example] = {}
        form = self.find_form(table, 0) if len(table) else ""
        for row, key in enumerate(self.find_keys([table])):
            example = examples.setdefault(key, Example(row=row))
            example.num_rows += 1
            cells = ((name, table.columns[name][row]) for name in forms)
            example.written |= {
                name: forms[name] for name, cell in cells if isinstance(cell, str) and not is_blank(cell)
            }
            for text, label in self.read_row(table, row, form):
                add_document(example, table, row, text, label, keeps_equal=form == "lists")
        made = list(examples.values())
        rows = table.take([example.row for example in made])
        known = {self.query, *self.documents, *self.positives, *self.negatives, *self.labels}
        columns = {
            name: [join_values(values, example.origins) for example in made]
            for name, values in table.columns.items()
            if name not in known
        } | {
            self.query: rows.columns[self.query],
            DOCUMENTS: [example.texts for example in made],
            LABELS: [example.labels for example in made],
            FORM: [form] * len(made),
            NUM_ROWS: [example.num_rows for example in made],
            NUM_ADDED: [0] * len(made),
            WRITTEN: [example.written for example in made],
        }
        written = [name for name, is_list in forms.items() if is_list]
        notes = (*rows.notes, describe_written_lists(written)) if written else rows.notes
        return replace(rows.with_columns(columns), notes=notes)

    def find_keys(self, tables: Iterable[Table]) -> Iterator[Hashable]:
        """Yields what the rows of an example have in common: the query, or the row's number if it has a list of documents.
        InputError if the rows are not all of one form."""
        first, where, number = "", "", 0
        for table in tables:
            for row, query in enumerate(table.columns[self.query]):
                form = self.find_form(table, row)
                first, where = first or form, where or table.where(row)
                if form != first:
                    raise InputError(
                        f"{table.where(row)}: has {FORMS[form]}, and {where} has {FORMS[first]}; all rows must be of one form"
                    )
                yield number if form == "lists" else query
                number += 1

    # --- one row ----------------------------------------------------------------------------------------------------

    def find_form(self, table: Table, row: int) -> str:
        """Returns the form of a row, a key of FORMS. InputError if it has none, or two."""
        listed = self.find_filled(table, row, self.documents)
        sided = self.find_filled(table, row, (*self.positives, *self.negatives))
        if listed and sided:
            raise InputError(
                f"{table.where(row)}: has {listed[0]}, whose documents have labels, and {sided[0]}; it must have one of them "
                "(task.document_columns, task.positive_columns, task.negative_columns)"
            )
        if sided:
            return "positives"
        if not listed:
            raise InputError(
                f"{table.where(row)}: has no document; it needs a column {join_names(self.documents)} "
                f"(task.document_columns), or {join_names(self.positives)} (task.positive_columns) with "
                f"{join_names(self.negatives)} (task.negative_columns){table.describe_unread()}"
            )
        cells = [table.columns[name][row] for name in listed]
        if all(isinstance(cell, str) and not is_written_list(cell) for cell in cells):
            return "pairs"
        return "lists"

    def find_filled(self, table: Table, row: int, names: Iterable[str]) -> list[str]:
        """Returns the columns in which a row has documents. InputError if one holds a blank text, unless a csv file has it for
        none."""
        cells = ((name, table.columns[name][row]) for name in names if name in table.columns)
        return [name for name, cell in cells if not is_missing(table, row, name, cell)]

    def find_label_columns(self, table: Table, row: int) -> list[str]:
        """Returns the columns that a row has labels in. An empty text is none."""
        return [name for name in self.labels if name in table.columns and table.columns[name][row] not in (None, "")]

    def read_row(self, table: Table, row: int, form: str) -> list[tuple[str, float | None]]:
        """Returns the documents of a row with their labels."""
        if form == "positives":
            if named := self.find_label_columns(table, row):
                raise InputError(
                    f"{table.where(row)}: has {named[0]} next to relevant and other documents, which need no labels; remove it"
                )
            relevant, others = self.read_texts(table, row, self.positives), self.read_texts(table, row, self.negatives)
            return [*((text, 1.0) for text in relevant), *((text, 0.0) for text in others)]
        texts = self.read_texts(table, row, self.documents)
        return list(zip(texts, self.read_labels(table, row, form, len(texts)), strict=True))

    def read_texts(self, table: Table, row: int, names: Sequence[str]) -> list[str]:
        """Returns the texts in some columns of a row."""
        texts: list[str] = []
        for name in self.find_filled(table, row, names):
            value, where = read_texts(table.columns[name][row]), f"{table.where(row)}: {name}"
            values = value if isinstance(value, (list, tuple)) else [value]
            if not values:
                raise InputError(f"{where} is empty")
            for text in values:
                if not isinstance(text, str) or not text.strip():
                    raise InputError(f"{where} is {describe_value(text)}")
                texts.append(text)
        return texts

    def read_labels(self, table: Table, row: int, form: str, count: int) -> list[float | None]:
        """Returns the labels of a row's `count` documents; None for each if it has no labels."""
        names, where = self.find_label_columns(table, row), table.where(row)
        if len(names) > 1:
            raise InputError(f"{where}: has {' and '.join(names)}; name the column of the labels in data.label_column")
        if not names:
            return [None] * count
        value = table.columns[names[0]][row]
        written = read_literal(value) if isinstance(value, str) else None
        value = written if isinstance(written, list) else value
        if isinstance(value, (list, tuple)) and form == "lists":
            if len(value) != count:
                raise InputError(f"{where}: {names[0]} has {len(value)} labels for {count} documents")
            return [read_label(entry, f"{where}: {names[0]}") for entry in value]
        if form == "pairs":
            return [read_label(value, f"{where}: {names[0]}")]
        index = read_index(value, count)
        if index is None:
            raise InputError(
                f"{where}: {names[0]} ({value}) is neither a list of labels nor the index, from 0, of the relevant one of "
                f"{count} documents"
            )
        return [float(position == index) for position in range(count)]


def read_label(value: Any, where: str) -> float:
    """Returns a label: a number from 0, or true or false. InputError if it is another value. where: its file, line and column."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not 0 <= number <= LARGEST_TARGET:
        raise InputError(
            f"{where} ({value}) is not a label: a number from 0, which is not relevant; a larger number is more relevant"
        )
    return number


def read_index(value: Any, count: int) -> int | None:
    """Returns an index below `count`, written as a number or text. None if the value is not one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal())
    ):
        return None
    return int(value) if 0 <= int(value) < count else None


def join_names(names: Sequence[str]) -> str:
    """Returns names with "or" between them."""
    return " or ".join(names) or "(none is named)"
