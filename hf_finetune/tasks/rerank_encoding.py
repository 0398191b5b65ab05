"""How reranking encodes a query with each of its documents, and what is said of them.

S sequences (a query with one of its documents), C documents of a query.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Features, Ragged
from hf_finetune.data.formats import name_type
from hf_finetune.data.label_counts import format_counts
from hf_finetune.data.table import Table, describe_value
from hf_finetune.data.written_lists import warn_of_joined_texts
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Encoding
from hf_finetune.tasks.text.document_examples import DOCUMENTS, FORM, LABELS, NUM_ADDED, NUM_ROWS, check_forms
from hf_finetune.tasks.text.document_reader import FORMS, LABEL_NAMES, read_label


@dataclass(frozen=True, kw_only=True)
class RerankingEncoding(Encoding):
    """A sequence for each document of a query, and the documents' labels.

    Args:
        query: The column of the query.
        loss: As Settings.loss.
        highest_label: The highest label of the training rows.
        written_lists: Whether the texts of a column of documents are lists written as text; of the columns that have texts in
            training.
    """

    rows_are_independent: ClassVar[bool] = True

    query: str
    loss: str
    highest_label: float
    written_lists: Mapping[str, bool] = field(default_factory=dict)

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.query, DOCUMENTS)

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Encodes each document as a pair of texts: the query and the document."""
        check_forms(table, self.written_lists)
        documents = [read_documents(table, row) for row in range(len(table))]
        counts = [len(texts) for texts in documents]
        queries = [query for query, count in zip(table.columns[self.query], counts, strict=True) for _ in range(count)]
        arrays = tokenize([queries, [text for texts in documents for text in texts]], tokenizer, max_length)
        return {**arrays, "rows": np.cumsum([0, *counts], dtype=np.int64)}

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Ragged:
        """Returns the labels of each query's documents, float32 [C] each."""
        rows = self.read_all_labels(table)
        values = np.array([label for labels in rows for label in labels], dtype=np.float32)
        return Ragged(values=values, offsets=np.asarray(arrays["rows"]))

    def read_all_labels(self, table: Table) -> list[list[float]]:
        """Returns the labels of each query's documents. InputError with file and line if one of them cannot be used, or if the
        documents are written in another way than those of training: their tokens may be known from a file in another form."""
        check_forms(table, self.written_lists)
        rows = [read_labels(table, row) for row in range(len(table))]
        if not any(map(any, rows)):
            raise InputError(f"{table.files[0]}: no document of any query is relevant (has a label above 0)")
        for row, labels in enumerate(rows):
            if self.loss == "pointwise" and max(labels) > self.highest_label:
                raise InputError(
                    f"{table.where(row)}: the label {max(labels):g} is above the highest of training, {self.highest_label:g}, "
                    "which task.loss pointwise trains as the probability 1"
                )
        return rows

    def check_rows(self, table: Table) -> None:
        self.read_all_labels(table)

    def find_row_warnings(self, table: Table) -> list[str]:
        """Documents that are not relevant, and that may be several in one text."""
        return warn_of_joined_texts(table, partial(split_documents, table), "documents that are not relevant")

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Returns lines about the form of the rows, the documents and their labels, queries without effect, and the input."""
        assert isinstance(features.labels, Ragged)
        counts = features.count_sequences(np.arange(len(features)))
        num_added = np.array(table.columns[NUM_ADDED])
        lines = [
            ("task", self.describe_rows(table)),
            ("documents", f"{len(features.labels.values):,}, {counts.min():,} to {counts.max():,} for each query"),
            ("labels", self.describe_labels(features.labels.values)),
        ]
        if num_added.any():
            added = (
                f"{num_added.sum():,} of task.negatives added to {(num_added > 0).sum():,} of {len(table):,} queries"
            )
            lines.append(("negatives", added))
        if unused := sum(not teaches(features.labels.get(row), self.loss) for row in range(len(features))):
            reason = "no relevant document" if self.loss == "listwise" else "no two documents with different labels"
            lines.append(("unused", f"{unused:,} queries have no effect: they have one document, or {reason}"))
        cut = f"{features.num_truncated:,} queries with a document are longer and were cut"
        return [*lines, ("input", f"at most {max_length} tokens; {cut}")]

    def describe_rows(self, table: Table) -> str:
        """Returns the form of the rows, how many were joined, and how many lists belong to a query that has another one."""
        num_rows, num_repeated = sum(table.columns[NUM_ROWS]), len(table) - len(set(table.columns[self.query]))
        shown = f"reranking; {num_rows:,} rows with a query and {FORMS[table.columns[FORM][0]]}"
        if num_rows > len(table):
            shown += f", joined to {len(table):,} queries"
        if num_repeated:
            shown += f"; {num_repeated:,} queries occur again, and each list is ranked by itself"
        return shown

    def describe_labels(self, values: Array) -> str:
        """Returns how often each label occurs, or the range of many labels; and what a pointwise loss makes of them."""
        numbers = Counter(values.tolist())
        shown = f"{values.min():g} to {values.max():g}"
        if len(numbers) <= 8:
            shown = format_counts({f"{label:g}": count for label, count in sorted(numbers.items())})
        if self.loss == "pointwise" and self.highest_label != 1:
            shown += f"; trained as probabilities: {self.highest_label:g} as 1"
        return f"{shown}; a document above 0 is relevant"


def read_documents(table: Table, row: int) -> list[str]:
    """Returns a query's documents. InputError if they are not a list of texts, as a row of train.augment may have them."""
    texts: list[str] = table.columns[DOCUMENTS][row]
    if not isinstance(texts, (list, tuple)) or not texts:
        raise InputError(f"{table.where(row)}: {DOCUMENTS} is {describe_value(texts, 'a list of texts')}")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{table.where(row)}: {DOCUMENTS} has a text that is {describe_value(text)}")
    return list(texts)


def read_labels(table: Table, row: int) -> list[float]:
    """Returns the labels of a query's documents. InputError with file and line if one has none, or if they are not a list with a
    number for each, as a row of train.augment may have them."""
    labels, count = table.columns[LABELS][row], len(table.columns[DOCUMENTS][row])
    if not isinstance(labels, (list, tuple)) or len(labels) != count:
        found = f"has {len(labels)} labels" if isinstance(labels, (list, tuple)) else f"is {name_type(labels)}"
        raise InputError(f"{table.where(row)}: {LABELS} {found}; it must be a list of labels for {count} documents")
    known = [read_label(label, f"{table.where(row)}: {LABELS}") for label in labels if label is not None]
    if len(known) < len(labels):
        raise InputError(
            f"{table.where(row)}: {len(labels) - len(known)} of {len(labels)} documents of this query have no label; the column "
            f"must be named {', '.join(LABEL_NAMES)}, or be given in data.label_column{table.describe_unread()}"
        )
    return known


def split_documents(table: Table, row: int) -> tuple[list[str], list[str]]:
    """Returns the documents of a query that are not relevant, and those that are. Neither has those without a label."""
    pairs = list(zip(table.columns[DOCUMENTS][row], table.columns[LABELS][row], strict=True))
    return [text for text, label in pairs if label == 0], [text for text, label in pairs if label]


def teaches(labels: Array, kind: str) -> bool:
    """True if a query whose documents have these labels [C] has an effect on a loss."""
    if kind == "pointwise":
        return True
    return len(labels) > 1 and bool(labels.min() < labels.max() if kind == "pairwise" else labels.max() > 0)
