"""Reads queries with their documents from the rows of tables. Each error names file and line.

Rows are of one of three forms, which their columns show:
lists      a query, a list of documents, and a list of their labels or the index of the one relevant document
positives  a query, its relevant documents, and others
pairs      a query, one document, and its label

In the last two, all rows of a query are one example.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from hf_finetune.data.columns import iterate
from hf_finetune.data.literals import read_literal
from hf_finetune.data.table import Table, describe_value
from hf_finetune.data.written_lists import (
    check_form,
    describe_written_lists,
    find_forms,
    is_blank,
    is_missing,
    is_written_list,
    read_texts,
)
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import LARGEST_TARGET

FORMS = {
    "lists": "a list of documents",
    "positives": "relevant and other documents",
    "pairs": "one document",
}
LABEL_NAMES = ("labels", "label", "scores", "score")  # columns that are looked for if data.label_column is not given

# Columns of a table of examples, next to that of the query
DOCUMENTS = "documents"  # the texts of a query's documents
LABELS = "labels"  # a label for each document: 0 is not relevant, a larger number is more relevant, None is not known
FORM = "#form"  # a key of FORMS
NUM_ROWS = "#rows"  # the number of rows that the example was made of
NUM_ADDED = "#added"  # the number of documents that add_negatives() added
WRITTEN = "#written"  # of the columns that its documents had as text in: whether the texts were lists of texts
EXAMPLE_COLUMNS = (DOCUMENTS, LABELS, FORM, NUM_ROWS, NUM_ADDED, WRITTEN)


@dataclass(kw_only=True)
class Example:
    """A query's documents while its rows are read. origins: the row of each document."""

    row: int
    texts: list[str] = field(default_factory=list)
    labels: list[float | None] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)  # of the different texts
    num_rows: int = 0
    written: dict[str, bool] = field(default_factory=dict)  # as WRITTEN


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


def add_document(
    example: Example, table: Table, row: int, text: str, label: float | None, *, keeps_equal: bool
) -> None:
    """Adds a document of a row to an example. InputError if the example has it with another label.

    keeps_equal: Adds a document that the example has already, so that the indices of predictions are those of the row's list.
    """
    position = example.positions.setdefault(text, len(example.texts))
    if position < len(example.texts):
        if example.labels[position] != label:
            labels = " and ".join(format_label(value) for value in (example.labels[position], label))
            where = " and ".join(dict.fromkeys((table.where(example.origins[position]), table.where(row))))
            raise InputError(f"{where}: the document {shorten(text)} has the labels {labels} for one query")
        if not keeps_equal:
            return
    example.texts.append(text)
    example.labels.append(label)
    example.origins.append(row)


def join_values(values: Sequence[Any], rows: Sequence[int]) -> Any:
    """Returns the value that some rows of a column have, or the list of their values if they differ."""
    chosen = [values[row] for row in dict.fromkeys(rows)]
    return chosen[0] if all(value == chosen[0] for value in chosen) else chosen


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


def add_negatives(table: Table, found: Table, query: str) -> Table:
    """Returns a table of examples with documents of another one added as not relevant.

    A document that the query has already is not added: a file of retrieved documents may hold the relevant one.

    Args:
        table: Examples with labels.
        found: Examples whose documents are to be added. Their labels are None or 0. Other queries' are not used.
        query: The column of the query.

    InputError if a document that the table does not have is labelled as relevant, if the tables share no query, or if one of them
    has lists that are written as text in a column in which the other has other texts.
    """
    forms = collect_forms(table)
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(table.columns[query]):
        rows.setdefault(text, []).append(row)
    columns = {name: list(values) for name, values in table.columns.items()}
    shared = [row for row, text in enumerate(found.columns[query]) if text in rows]
    if not shared:
        raise InputError(
            f"task.negatives ({found.files[0]}): none of its {len(found):,} queries is one of the training queries"
        )
    check_forms(found.take(shared), forms)
    for other in shared:
        texts, labels = found.columns[DOCUMENTS][other], found.columns[LABELS][other]
        for row in rows[found.columns[query][other]]:
            known = {*columns[DOCUMENTS][row]}
            for text, label in zip(texts, labels, strict=True):
                if label and text not in known:
                    raise InputError(
                        f"{found.where(other)}: the document {shorten(text)} is labelled as relevant, and the training rows do "
                        "not have it; task.negatives is for documents that are not relevant"
                    )
            new = list(dict.fromkeys(text for text in texts if text not in known))
            columns[DOCUMENTS][row] = [*columns[DOCUMENTS][row], *new]
            columns[LABELS][row] = [*columns[LABELS][row], *[0.0] * len(new)]
            columns[NUM_ADDED][row] += len(new)
            columns[WRITTEN][row] = {**columns[WRITTEN][row], **found.columns[WRITTEN][other]}
    return table.with_columns(columns)


def collect_forms(table: Table) -> dict[str, bool]:
    """Returns for each column of the rows of examples that had texts whether they were lists of texts."""
    forms: dict[str, bool] = {}
    for written in chain.from_iterable(iterate(table.columns[WRITTEN])):
        forms |= written
    return forms


def check_forms(table: Table, known: Mapping[str, bool]) -> None:
    """Raises InputError, with the file and the first line of the example, if the texts of a column are lists where those of
    training are not, or are not where these are. known: What collect_forms() returned for the training rows."""
    for row, written in enumerate(chain.from_iterable(iterate(table.columns[WRITTEN]))):
        for name, is_list in written.items():
            check_form(table, row, name, is_list=is_list, known=known.get(name))


def format_label(label: float | None) -> str:
    """Returns a label for a message."""
    return "null" if label is None else f"{label:g}"


def join_names(names: Sequence[str]) -> str:
    """Returns names with "or" between them."""
    return " or ".join(names) or "(none is named)"


def shorten(text: str) -> str:
    """Returns the beginning of a text in quotes, for a message."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
