"""Tables of examples of reranking: a row is a query with its documents. Each error names file and line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from hf_finetune.data.columns import iterate
from hf_finetune.data.table import Table
from hf_finetune.data.written_lists import check_form
from hf_finetune.system.errors import InputError

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


def shorten(text: str) -> str:
    """Returns the beginning of a text in quotes, for a message."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
