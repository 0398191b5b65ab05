"""The first line of a csv or tsv file: names of columns, or a row."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import read_rows
from hf_finetune.data.headers import HeaderWarning, find_repeated_name

TEXTS = ["a goal in the last minute", "the phone has a new screen", "they won the cup again", "a faster chip was shown"]
WORDS = ["EU", "rejects", "German", "call", "to", "boycott", "British", "lamb"]

# A table without names, and the value that shows it
ROWS = {
    "label first": ([["sports", TEXTS[0]], ["tech", TEXTS[1]], ["sports", TEXTS[2]]], "sports"),
    "label last": ([[TEXTS[0], "pos"], [TEXTS[1], "neg"], [TEXTS[2], "pos"]], "pos"),
    "numbers of classes": ([["1", TEXTS[0]], ["0", TEXTS[1]], ["1", TEXTS[2]], ["0", TEXTS[3]]], "1"),
    "an id, a pair and a label": ([["17", *TEXTS[:2], "yes"], ["18", *TEXTS[1:3], "no"], ["19", *TEXTS[2:], "yes"]], "yes"),
    "a blank cell": ([["sports", "", TEXTS[0]], ["tech", "uk", TEXTS[1]], ["sports", "us", TEXTS[2]]], "sports"),
    "a word and a tag": ([[word, "O" if word.islower() else "B-MISC"] for word in WORDS], "B-MISC"),
    "Chinese": ([["\u4f53\u80b2", "\u8fdb\u7403\u4e86"], ["\u79d1\u6280", "\u65b0\u624b\u673a"]] * 2, "\u4f53\u80b2"),
}  # fmt: skip

# Tables with names, although a name is a value of its column
NAMED = {
    "a class has the name of the column": [["spam", "text"], ["spam", TEXTS[0]], ["ham", TEXTS[1]], ["spam", TEXTS[2]]],
    "a text is the name of the column": [["text", "label"], ["text", "a"], [TEXTS[0], "b"], [TEXTS[1], "a"], [TEXTS[2], "b"]],
    "a label is called label": [["text", "label"], [TEXTS[0], "label"], [TEXTS[1], "b"], [TEXTS[2], "b"]],
    "a token is called token": [["token", "tag"], *([word, "O" if word.islower() else "X"] for word in [*WORDS, "token"])],
    "one stray label": [["word", "label"], *([str(number), "ab"[number % 2]] for number in range(40)), ["x", "label"]],
    "a mark": [["text", "spam"], [TEXTS[0], "spam"], [TEXTS[1], ""], [TEXTS[2], "spam"]],
    "columns of 0 and 1": [["text", "1", "0"], [TEXTS[0], "1", "0"], [TEXTS[1], "0", "0"], [TEXTS[2], "0", "1"]],
    "names that pandas gives": [["0", "1"], ["1", TEXTS[0]], ["0", TEXTS[1]], ["1", TEXTS[2]], ["0", TEXTS[3]]],
    "one column": [["word"], ["word"], ["other"], ["word"]],
    "one row": [["sports", TEXTS[0]], ["sports", TEXTS[1]]],
}  # fmt: skip


def write(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Writes a csv file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize(("rows", "name"), ROWS.values(), ids=ROWS)
def test_a_first_line_that_is_a_row_is_found(rows: list[list[str]], name: str) -> None:
    assert find_repeated_name(rows[0], rows[1:]) == name


@pytest.mark.parametrize("rows", NAMED.values(), ids=NAMED)
def test_names_that_are_values_of_their_columns_stay_names(rows: list[list[str]]) -> None:
    assert find_repeated_name(rows[0], rows[1:]) is None


@pytest.mark.parametrize(("rows", "name"), ROWS.values(), ids=ROWS)
def test_with_names_none_of_these_tables_is_warned_of(rows: list[list[str]], name: str) -> None:
    assert find_repeated_name(["text", "label", "more", "other"][: len(rows[0])], rows) is None


def test_reading_warns_unless_the_settings_say_that_there_is_no_header(tmp_path: Path) -> None:
    """Broken rows after it, which a strict reader refuses, do not hide it."""
    path, notes = write(tmp_path / "a.csv", [*ROWS["label first"][0], ["tech"]]), []
    next(read_rows(path, DataConfig(train=("-",)), say=notes.append))
    (note,) = notes
    assert isinstance(note, HeaderWarning)
    assert note == (
        "a.csv: the first line is read as the names of the columns, and may be a row of the data: 'sports' is a value of its "
        "column, too; if it is a row, set data.header false, which calls the columns 1, 2, 3, ..."
    )
    notes.clear()
    next(read_rows(path, DataConfig(train=("-",), header=False), say=notes.append))
    assert notes == []
