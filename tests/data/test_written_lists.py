"""Cells with texts: lists that are written as text, columns that have both, texts joined with a separator, blank cells."""

from typing import Any

import pytest

from hf_finetune.data.table import Table
from hf_finetune.data.written_lists import (
    find_forms,
    holds_written_lists,
    is_missing,
    read_texts,
    warn_of_joined_texts,
)
from hf_finetune.system.errors import InputError


def make_table(cells: list[Any]) -> Table:
    """Returns a table of one column, with rows from lines 2, 3, ... of a.csv."""
    return Table(columns={"negatives": cells}, files=["a.csv"] * len(cells), lines=list(range(2, len(cells) + 2)))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", null]', ["a", None]),
        ("[]", []),
        ("[1, 2]", "[1, 2]"),
        ("[a, b]", "[a, b]"),
        ("{'a': 1}", "{'a': 1}"),
        ("a text", "a text"),
        (["a"], ["a"]),
        (None, None),
    ],
)
def test_texts_that_hold_a_list_of_texts_are_lists(value: Any, texts: Any) -> None:
    assert read_texts(value) == texts


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (["['a']", None, "", ["b"], "[]"], {"negatives": True}),
        (["a", None, ["b"], "[1]"], {"negatives": False}),
        ([None, ""], {}),
    ],
)
def test_columns_with_lists_as_text_are_found(cells: list[Any], found: dict[str, bool]) -> None:
    assert find_forms(make_table(cells), ["negatives", "absent"]) == found


@pytest.mark.parametrize("other", ["a text", "[a, b]", "[1, 2]", "['a', 'b"])
def test_a_column_with_lists_as_text_and_other_texts_is_an_error(other: str) -> None:
    message = "a.csv:3: negatives is a list that is written as text, and a.csv:4 has a text that is not such a list"
    with pytest.raises(InputError, match=message):
        find_forms(make_table([None, "['a']", other]), ["negatives"])


@pytest.mark.parametrize(
    ("cell", "known", "found"),
    [
        ("['a']", None, True),
        ("a", None, False),
        ("", True, None),
        (["a"], False, None),
        ("['a']", True, True),
        ("a", False, False),
    ],
)
def test_a_column_is_of_lists_or_of_texts_or_has_none(cell: Any, known: bool | None, found: bool | None) -> None:
    assert holds_written_lists(make_table([None, cell]), "negatives", known) is found


def test_a_text_that_is_not_as_those_of_training_is_an_error() -> None:
    with pytest.raises(
        InputError, match=r"a.csv:2: negatives is a list that is written as text, and those of training"
    ):
        holds_written_lists(make_table(["['a']"]), "negatives", known=False)
    with pytest.raises(InputError, match=r"a.csv:3: negatives is a text, and those of training are lists"):
        holds_written_lists(make_table(["['a']", "a"]), "negatives", known=True)


@pytest.mark.parametrize("blank", ["", "  "])
def test_only_a_csv_file_has_a_blank_text_for_nothing(blank: str) -> None:
    table = make_table([blank, None, "a"])
    assert [is_missing(table, row, "negatives", value) for row, value in enumerate(table.columns["negatives"])] == [
        True,
        True,
        False,
    ]
    other = Table(columns=table.columns, files=["a.jsonl"] * 3, lines=[1, 2, 3])
    with pytest.raises(InputError, match=r"a.jsonl:1: negatives is empty; write null if there is no text"):
        is_missing(other, 0, "negatives", blank)


@pytest.mark.parametrize(
    ("negatives", "positives", "separator"),
    [
        (["a cat|a dog", "a cow | a pig", "a fox", "a hen|a rat"], ["a bird"] * 4, "|"),
        (["a cat||a dog", "a cow||a pig", "a fox||a hen", "a rat"], ["a bird"] * 4, "|"),
        (["cat;dog", "cow;pig", "fox", "hen"], ["a bird"] * 4, ";"),
        (["cat[SEP]dog"] * 4, ["a bird"] * 4, "[SEP]"),
        (["cat, dog, hen"] * 4, ["a bird"] * 4, ","),
        (["cat, dog, hen"] * 4, ["bird, egg, nest", *["a bird"] * 3], ""),  # as sentences are written
        (["a dog, a cat"] * 4, ["a bird"] * 4, ""),  # so are these
        (["A dog, a cat, a hen."] * 4, ["a bird"] * 4, ""),
        (["A dog.\nA cat.\nA hen"] * 4, ["a bird"] * 4, ""),
        (["cat|dog"] * 3, ["a bird"] * 3, ""),  # few texts
        (["cat|dog", "cow", "pig", "hen"], ["a bird"] * 4, ""),
        (["|cat", "dog|", "a | ", "|"], ["a bird"] * 4, ""),  # no part before or after it
    ],
)
def test_texts_that_are_joined_with_a_separator_are_a_warning(
    negatives: list[str], positives: list[str], separator: str
) -> None:
    table = make_table(negatives)
    found = warn_of_joined_texts(table, lambda row: ([negatives[row]], [positives[row]]), "negatives")
    assert len(found) == bool(separator)
    if separator:
        count = sum(separator in text for text in negatives)
        start = f"{count} of 4 negatives hold {separator!r} between texts, such as a.csv:2 ({negatives[0]!r}): each"
        assert found[0].startswith(start)
