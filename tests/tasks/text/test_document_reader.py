"""Queries with their documents: the three forms of rows, labels, equal documents, more documents from a file, and errors."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.document_examples import (
    DOCUMENTS,
    EXAMPLE_COLUMNS,
    FORM,
    LABELS,
    NUM_ADDED,
    NUM_ROWS,
    WRITTEN,
    add_negatives,
    check_forms,
    collect_forms,
)
from hf_finetune.tasks.text.document_reader import LABEL_NAMES, DocumentReader

READER = DocumentReader(
    query="query",
    documents=("documents", "document"),
    positives=("positive", "positives"),
    negatives=("negatives", "negative"),
    labels=LABEL_NAMES,
)
COLUMNS = ("query", *READER.documents, *READER.positives, *READER.negatives, *READER.labels)


def make_table(*rows: dict[str, Any], file: str = "a.jsonl") -> Table:
    """Returns a table of rows from lines 1, 2, ... with all columns, as read_table() makes it."""
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    return Table(columns=columns, files=[file] * len(rows), lines=list(range(1, len(rows) + 1)))


def read(*rows: dict[str, Any], file: str = "a.jsonl") -> list[tuple[Any, ...]]:
    """Returns query, documents and labels of the examples that rows give."""
    table = READER.read_examples(make_table(*rows, file=file))
    return list(zip(table.columns["query"], table.columns[DOCUMENTS], table.columns[LABELS], strict=True))


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "read_as"),
    [
        ([0, 1, 2.5], [0, 1, 2.5]),
        (["0", "1", "0"], [0, 1, 0]),
        ([True, False, False], [1, 0, 0]),
        (2, [0, 0, 1]),
        (0.0, [1, 0, 0]),
        (" 1 ", [0, 1, 0]),
        (None, [None, None, None]),
    ],
)
def test_lists_have_a_label_for_each_document_or_the_index_of_the_relevant_one(labels: Any, read_as: list[Any]) -> None:
    assert read({"query": "q", "documents": ["a", "b", "c"], "labels": labels}) == [("q", ["a", "b", "c"], read_as)]


def test_each_row_with_a_list_is_an_example_and_keeps_equal_documents() -> None:
    rows = [
        {"query": "q", "documents": ["a", "b", "a"], "labels": [1, 0, 1]},
        {"query": "q", "documents": ["c"], "label": [0]},
    ]
    assert read(*rows) == [("q", ["a", "b", "a"], [1, 0, 1]), ("q", ["c"], [0])]


def test_all_rows_of_a_query_with_one_document_each_are_one_example() -> None:
    table = READER.read_examples(
        make_table(
            {"query": "q", "document": "a", "score": 2},
            {"query": "r", "document": "a", "score": "0"},
            {"query": "q", "document": "b", "score": 0},
            {"query": "q", "document": "a", "score": 2},
        )
    )
    assert table.columns["query"] == ["q", "r"]
    assert table.columns[DOCUMENTS] == [["a", "b"], ["a"]]
    assert table.columns[LABELS] == [[2, 0], [0]]
    assert table.columns[FORM] == ["pairs", "pairs"]
    assert table.columns[NUM_ROWS] == [3, 1]
    assert [table.where(row) for row in range(2)] == ["a.jsonl:1", "a.jsonl:2"]


def test_rows_with_positive_and_negatives_are_joined_by_query() -> None:
    rows = [
        {"query": "q", "positive": "a", "negatives": ["b", "c"], "negative": "d"},
        {"query": "q", "positive": "a", "negative": "e"},
        {"query": "q", "positives": ["f"], "negative": None},
        {"query": "r", "negatives": ["b"]},
    ]
    assert read(*rows) == [("q", ["a", "b", "c", "d", "e", "f"], [1, 0, 0, 0, 0, 1]), ("r", ["b"], [0])]


@pytest.mark.parametrize("write", [json.dumps, str, lambda texts: str(np.array(texts))])
def test_lists_that_are_written_as_text_are_lists(write: Callable[[list[Any]], str]) -> None:
    """As a csv file has them. A column that has a list in one row may have one that is not text in another."""
    documents, labels = ["a", "it's b", "c"], [0, 1, 0]
    rows = [
        {"query": "q", "documents": write(documents), "labels": write(labels)},
        {"query": "r", "documents": ["d", "e"], "labels": "1"},
    ]
    assert read(*rows) == [("q", documents, labels), ("r", ["d", "e"], [0, 1])]
    note = "lists that are written as text are read as lists: documents"
    assert READER.read_examples(make_table(*rows)).notes == (note,)
    sided = {"query": "q", "positive": "a", "negatives": write(["b", "c"])}
    assert read(sided, sided | {"negatives": ""}, file="a.csv") == [("q", ["a", "b", "c"], [1, 0, 0])]


def test_examples_have_the_form_of_the_texts_of_each_column() -> None:
    rows = [
        {"query": "q", "positive": "a", "negatives": None},
        {"query": "q", "positive": None, "negatives": "['b', 'c']"},
        {"query": "r", "positive": ["d"], "negative": ["e"]},
    ]
    table = READER.read_examples(make_table(*rows))
    assert list(table.columns[WRITTEN]) == [{"positive": False, "negatives": True}, {}]
    assert collect_forms(table) == {"positive": False, "negatives": True}
    check_forms(table, {"positive": False, "negative": True})
    with pytest.raises(
        InputError, match=r"a.jsonl:1: negatives is a list that is written as text, and those of training"
    ):
        check_forms(table, {"negatives": False})


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_document_is_none_in_a_csv_file_and_an_error_in_others(blank: str) -> None:
    rows = [{"query": "q", "document": "a", "label": 1}, {"query": "q", "document": blank, "label": 0}]
    sided = {"query": "q", "positive": "a", "negatives": blank}
    assert read(sided, file="a.tsv.gz") == [("q", ["a"], [1])]
    for reader in (lambda: read(*rows), lambda: read(sided, sided)):
        with pytest.raises(
            InputError, match=r"a.jsonl:[12]: (document|negatives) is empty; write null if there is no text"
        ):
            reader()
    with pytest.raises(InputError, match=r"a.csv:2: has no document"):
        read(*rows, file="a.csv")


def test_other_columns_are_kept() -> None:
    """As `predict --keep` reads them. Of rows with one document, in the order of the documents."""
    rows = [{"query": "q", "document": text, "score": 1} for text in ("a", "b", "a")] + [
        {"query": "r", "document": "a"}
    ]
    table = make_table(*rows)
    table = table.with_columns(table.columns | {"id": [5, 6, 7, 8], "user": ["x"] * 4})
    made = READER.read_examples(table)
    assert made.columns["id"] == [[5, 6], 8]
    assert made.columns["user"] == ["x", "x"]
    assert set(made.columns) == {"query", "id", "user", *EXAMPLE_COLUMNS}


# --- errors ---------------------------------------------------------------------------------------------------------

LISTED = {"query": "q", "documents": ["a", "b"], "labels": [0, 1]}
SIDED = {"query": "q", "positive": "a", "negatives": ["b"]}
PAIR = {"query": "q", "document": "a", "label": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q"}, r"a.jsonl:2: has no document; it needs a column documents or document \(task.document_columns\), or"),
        (LISTED | SIDED, "a.jsonl:2: has documents, whose documents have labels, and positive; it must have one of them"),
        (LISTED | {"document": "c"}, r"a.jsonl:2: labels has 2 labels for 3 documents"),
        (PAIR, "a.jsonl:2: has one document, and a.jsonl:1 has a list of documents; all rows must be of one form"),
        (SIDED, "a.jsonl:2: has relevant and other documents, and a.jsonl:1 has a list of documents"),
        (LISTED | {"documents": []}, "a.jsonl:2: documents is empty"),
        (LISTED | {"documents": ["a", " "]}, "a.jsonl:2: documents is empty"),
        (LISTED | {"documents": ["a", None]}, "a.jsonl:2: documents is null"),
        (LISTED | {"documents": ["a", 5]}, "a.jsonl:2: documents is an int, not a string"),
        (LISTED | {"documents": {"a": 1}}, "a.jsonl:2: documents is a dict, not a string"),
        (LISTED | {"labels": [0]}, "a.jsonl:2: labels has 1 labels for 2 documents"),
        (LISTED | {"label": 1}, "a.jsonl:2: has labels and label; name the column of the labels in data.label_column"),
        (LISTED | {"labels": 2}, r"a.jsonl:2: labels \(2\) is neither a list of labels nor the index, from 0, of the"),
        (LISTED | {"labels": -1}, r"a.jsonl:2: labels \(-1\) is neither"),
        (LISTED | {"labels": 0.5}, r"a.jsonl:2: labels \(0.5\) is neither"),
        (LISTED | {"labels": True}, r"a.jsonl:2: labels \(True\) is neither"),
        (LISTED | {"labels": "b"}, r"a.jsonl:2: labels \(b\) is neither"),
        (LISTED | {"labels": [0, -1]}, r"a.jsonl:2: labels \(-1\) is not a label: a number from 0, which is not relevant; a"),
        (LISTED | {"labels": [0, float("nan")]}, r"a.jsonl:2: labels \(nan\) is not a label"),
        (LISTED | {"labels": [0, 10**400]}, r"a.jsonl:2: labels \(10+\) is not a label"),
        (LISTED | {"labels": [0, "yes"]}, r"a.jsonl:2: labels \(yes\) is not a label"),
        (LISTED | {"labels": [0, None]}, r"a.jsonl:2: labels \(None\) is not a label"),
        (LISTED | {"documents": ["a", "a"]}, "a.jsonl:2: the document 'a' has the labels 0 and 1 for one query"),
    ],
)  # fmt: skip
def test_errors_of_lists(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(LISTED, row)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (PAIR, PAIR | {"label": 0}, "a.jsonl:1 and a.jsonl:2: the document 'a' has the labels 1 and 0 for one query"),
        (PAIR, PAIR | {"label": None}, "a.jsonl:1 and a.jsonl:2: the document 'a' has the labels 1 and null"),
        (PAIR, PAIR | {"document": "b", "label": [0, 1]}, r"a.jsonl:2: label \(\[0, 1\]\) is not a label"),
        (PAIR, PAIR | {"document": '["a", "b"]'}, "a.jsonl:2: document is a list that is written as text, and a.jsonl:1"),
        (PAIR, PAIR | {"document": "['a', 'b']"}, "a.jsonl:2: document is a list that is written as text, and a.jsonl:1"),
        (SIDED | {"negatives": "b"}, SIDED | {"negatives": "['b']"}, "a.jsonl:2: negatives is a list that is written as"),
        (SIDED | {"negatives": "['b']"}, SIDED | {"negatives": "[b, c]"}, "a.jsonl:1: negatives is a list .* and a.jsonl:2"),
        (SIDED, SIDED | {"positive": "b"}, "a.jsonl:1 and a.jsonl:2: the document 'b' has the labels 0 and 1 for one query"),
        (SIDED, SIDED | {"score": 1}, "a.jsonl:2: has score next to relevant and other documents, which need no labels; rem"),
        (SIDED, SIDED | {"negatives": ["x" * 50, "x" * 50], "positives": "x" * 50}, f"document '{'x' * 40}...' has the labels"),
    ],
)  # fmt: skip
def test_errors_of_other_rows(first: dict[str, Any], second: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("...'", r"\.\.\.'")):
        read(first, second)


def test_a_text_in_brackets_is_a_document() -> None:
    for text in ("[a note]", "[1, 2]", "[1](https://a.b)"):
        assert read(PAIR | {"document": text}) == [("q", [text], [1])]


# --- more documents -------------------------------------------------------------------------------------------------


def test_documents_that_are_not_relevant_are_added_once() -> None:
    table = READER.read_examples(make_table(LISTED, LISTED | {"query": "r"}, LISTED | {"query": "s"}))
    found = READER.read_examples(
        make_table({"query": "q", "documents": ["b", "c", "c", "a"]}, {"query": "s", "documents": ["d"], "labels": [0]},
                   {"query": "t", "documents": ["e"]})
    )  # fmt: skip
    made = add_negatives(table, found, "query")
    assert made.columns[DOCUMENTS] == [["a", "b", "c"], ["a", "b"], ["a", "b", "d"]]
    assert made.columns[LABELS] == [[0, 1, 0], [0, 1], [0, 1, 0]]
    assert made.columns[NUM_ADDED] == [1, 0, 1]
    assert table.columns[DOCUMENTS] == [["a", "b"]] * 3  # unchanged


def test_errors_of_added_documents() -> None:
    table = READER.read_examples(make_table(LISTED))

    def add(row: dict[str, Any]) -> None:
        add_negatives(table, READER.read_examples(make_table(row, file="more.jsonl")), "query")

    with pytest.raises(
        InputError, match=r"task.negatives \(more.jsonl\): none of its 1 queries is one of the training"
    ):
        add(LISTED | {"query": "x"})
    add(LISTED)  # the relevant document is known
    with pytest.raises(
        InputError, match=r"more.jsonl:1: the document 'c' is labelled as relevant, and the training rows do"
    ):
        add(SIDED | {"positive": "c"})
