"""Lists of texts that are written as text: which texts are lists, and columns that have both."""

from typing import Any

import pytest

from hf_finetune.data.table import Table
from hf_finetune.data.written_lists import find_written_lists, holds_written_lists, read_texts
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
        (["['a']", None, "", ["b"], "[]"], ["negatives"]),
        (["a", None, ["b"], "[1]"], []),
        ([None, ""], []),
    ],
)
def test_columns_with_lists_as_text_are_found(cells: list[Any], found: list[str]) -> None:
    assert find_written_lists(make_table(cells), ["negatives", "absent"]) == found


@pytest.mark.parametrize("other", ["a text", "[a, b]", "[1, 2]", "['a', 'b"])
def test_a_column_with_lists_as_text_and_other_texts_is_an_error(other: str) -> None:
    message = "a.csv:3: negatives is a list that is written as text, and a.csv:4 has a text that is not such a list"
    with pytest.raises(InputError, match=message):
        find_written_lists(make_table([None, "['a']", other]), ["negatives"])


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
