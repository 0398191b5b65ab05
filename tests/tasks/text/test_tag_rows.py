"""Tagging data of annotation tools and a word a row: rows of words and tags are made of them, with their own lines."""

from typing import Any

import pytest

from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.tag_rows import TagRows

ROWS = TagRows(text_column="tokens", label_column="tags")


def make_table(**columns: list[Any]) -> Table:
    """Returns a table of rows from lines 2, 3, ... of a.csv."""
    count = len(next(iter(columns.values())))
    empty = {name: [None] * count for name in ("tokens", "tags")}
    return Table(columns=empty | columns, files=["a.csv"] * count, lines=list(range(2, count + 2)))


def read(rows: TagRows = ROWS, **columns: list[Any]) -> Table:
    """Returns the table of the sentences of these columns."""
    return rows.read_examples(make_table(**columns))


# --- lists and texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"tokens": [["a", "b"]], "tags": [["O", "B-x"]]},
        {"tokens": [["a", "b"]]},
        {"tokens": ["a plain text"]},
        {"tokens": ["[1] a plain text", "['a']"]},
        {"tokens": [["a"]], "tags": ["O"]},  # an error of the reader of tags
        {"tokens": [None], "tags": [None]},
    ],
)
def test_lists_of_words_and_plain_texts_stay(columns: dict[str, list[Any]]) -> None:
    table = make_table(**columns)
    assert ROWS.read_examples(table) is table


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["Tom lives"], "label": [[[0, 3, "PER"]]]},
        {"text": ["Tom lives"], "entities": [[{"start": 0, "end": 3, "label": "PER"}]]},
        {"text": ["Tom lives"], "entities": ["[(0, 3, 'PER')]"]},  # as pandas writes it
        {"tokens": ["Tom lives"], "tags": [[[0, 3, "PER"]]]},  # with the names of the settings
        {"data": [{"id": 3, "text": "Tom lives"}],
         "annotations": [[{"result": [{"value": {"start": 0, "end": 3, "labels": ["PER"]}, "type": "labels"}]}]]},
        {"data": [{"ner": "Tom lives"}], "annotations": [[{"result": [{"value": {"start": 0, "end": 3, "labels": ["PER"]}}]}]]},
        {"tokens": [[{"text": "Tom", "start": 0, "end": 3}, {"text": "lives", "start": 4, "end": 9}]],
         "text": ["Tom lives"], "spans": [[{"start": 0, "end": 3, "label": "PER"}]], "answer": ["accept"]},
        {"tokens": [["Tom", "lives"]], "text": ["Tom lives"], "spans": [[{"start": 0, "end": 3, "label": "PER"}]]},
        {"tokens": ["['Tom', 'lives']"], "tags": ["['B-PER', 'O']"]},
        {"words": [["Tom", "lives"]], "labels": [["B-PER", "O"]]},
    ],
)  # fmt: skip
def test_all_forms_give_words_and_tags(columns: dict[str, list[Any]]) -> None:
    table = read(**columns)
    assert dict(table.columns) == {"tokens": [["Tom", "lives"]], "tags": [["B-PER", "O"]]}
    assert table.where(0) == "a.csv:2"
    assert len(table.notes) == 1


def test_numbers_in_lists_as_text_are_tags() -> None:
    assert read(tokens=["['a', 'b']"], tags=["[0, 1]"]).columns["tags"] == [[0, 1]]


def test_a_text_without_an_entity_is_outside_and_one_without_entities_has_no_tags() -> None:
    table = read(text=["Tom lives", "nobody here", "no annotation"], label=[[[0, 3, "PER"]], [], None])
    assert table.columns["tags"] == [["B-PER", "O"], ["O", "O"], None]
    assert table.columns["tokens"][2] == "no annotation"
    assert table.notes == ("a.csv: 1 entities are spans of characters in the column label: read as words with tags",)
    assert read(text=["a text to predict"]).columns["tokens"] == ["a text to predict"]


def test_the_scheme_of_the_settings_is_written() -> None:
    rows = TagRows(text_column="tokens", label_column="tags", scheme="BIOES")
    table = read(rows, text=["Tom Miller saw New York"], label=[[[0, 3, "PER"], [4, 10, "SUR"], [15, 23, "LOC"]]])
    assert table.columns["tags"] == [["S-PER", "S-SUR", "O", "B-LOC", "E-LOC"]]


def test_repairs_are_said() -> None:
    rows = TagRows(text_column="tokens", label_column="tags", repairs=True)
    table = read(rows, text=["Tom lives", "a b"], label=[[[0, 2, "PER"], [0, 1, "X"]], [[1, 2, "Y"]]])
    assert table.columns["tags"] == [["B-PER", "O"], ["O", "O"]]
    assert table.notes[1:] == (
        "a.csv: 1 entities cut a word and were widened",
        "a.csv: 2 entities overlapped another one, or covered no word, and were dropped",
    )
    with pytest.raises(InputError, match=r"a.csv:3: the entity 2-5 \(PER, 'bod'\) cuts the word 'nobody'"):
        read(text=["Tom lives", "nobody"], label=[[[0, 3, "PER"]], [[2, 5, "PER"]]])


def test_rows_that_the_annotator_rejected_are_left_out() -> None:
    spans = [[{"start": 0, "end": 1, "label": "x"}]] * 3
    table = read(text=["a b", "c d", "e f"], spans=spans, answer=["accept", "reject", "ignore"])
    assert table.columns["tokens"] == [["a", "b"]]
    assert table.notes[1] == "a.csv: 2 rows were rejected or ignored by the annotator and are left out"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a b", None], "label": [[[0, 1, "x"]], [[0, 1, "x"]]]}, r"a.csv:3: the text of the entities is null"),
        ({"text": [" "], "label": [[[0, 0, "x"]]]}, r"a.csv:2: the text of the entities is empty"),
        ({"tokens": [["a"]], "tags": [None], "spans": [[[0, 1, "x"]]]}, r"a.csv:2: the text of the entities is null"),
        ({"data": [{"a": "x", "b": "y"}], "annotations": [[{"result": []}]]}, r"a.csv:2: data has 2 texts \(a, b\)"),
        ({"tokens": [[{"text": "Tim", "start": 0, "end": 3}]], "text": ["Tom"], "spans": [[[0, 3, "x"]]]},
         r"a.csv:2: the token .* does not stand in the text"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_read_are_an_error(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**columns)


# --- a word a row ----------------------------------------------------------------------------------------------------

WORDS, TAGS = ["Tom", "lives", "in", "Bonn", "Anna", "saw"], ["B-PER", "O", "O", "B-LOC", "B-PER", "O"]


@pytest.mark.parametrize(
    "columns",
    [
        {"Sentence #": ["Sentence: 1", "", "", "", "Sentence: 2", ""], "Word": WORDS, "Tag": TAGS},
        {"Sentence #": ["Sentence: 1", None, None, None, "Sentence: 2", None], "Word": WORDS, "Tag": TAGS},
        {"sentence_id": [0, 0, 0, 0, 1, 1], "words": WORDS, "labels": TAGS},
        {"doc_id": ["a", "a", "a", "a", "b", "b"], "sent_id": [1, 1, 1, 1, 1, 1], "token": WORDS, "label": TAGS},
        {"sentence_id": ["0"] * 4 + ["1"] * 2, "tokens": WORDS, "tags": TAGS},
    ],
)
def test_a_word_a_row(columns: dict[str, list[Any]]) -> None:
    table = read(**columns)
    assert dict(table.columns) == {"tokens": [WORDS[:4], WORDS[4:]], "tags": [TAGS[:4], TAGS[4:]]}
    assert table.lines == [2, 6]
    assert table.word_lines == [[2, 3, 4, 5], [6, 7]]
    assert "has a word a row; 2 sentences by " in table.notes[0]


def test_empty_rows_divide_sentences() -> None:
    table = read(word=["", "Tom", "lives", None, "", "Anna"], tag=["", "B-PER", "O", None, "", "B-PER"])
    assert table.columns["tokens"] == [["Tom", "lives"], ["Anna"]]
    assert [lines[:1] for lines in table.word_lines or []] == [[3], [7]]
    assert table.notes == ("a.csv: has a word a row; 2 sentences by empty rows",)


def test_words_without_tags_can_be_predicted() -> None:
    table = read(**{"Sentence #": ["1", "1", "2"], "Word": ["a", "b", "c"]})
    assert dict(table.columns) == {"tokens": [["a", "b"], ["c"]], "tags": [None, None]}


def test_a_missing_tag_stays_missing() -> None:
    assert read(sent_id=[1, 1], word=["a", "b"], tag=["x", None]).columns["tags"] == [["x", None]]


def test_sentences_of_several_files_have_their_own_numbers() -> None:
    table = make_table(sent_id=[1, 1, 1], word=["a", "b", "c"], tag=["x", "y", "x"])
    table = Table(columns=table.columns, files=["a.csv", "a.csv", "b.csv"], lines=[2, 3, 2])
    joined = ROWS.read_examples(table)
    assert joined.columns["tokens"] == [["a", "b"], ["c"]]
    assert joined.files == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sent_id": [1, 2, 1], "word": ["a", "b", "c"], "tag": ["x"] * 3}, r"a.csv:4: sent_id 1 goes on after other sentences"),
        ({"word": ["a", "b"], "tag": ["x", "y"]}, r"a.csv:2: has one word and one tag, and nothing says which sentence"),
        ({"text": ["a fine film"], "label": ["pos"]}, r"a.csv:2: has one word and one tag"),
        ({"sent_id": [1, 1], "word": ["a", ""], "tag": ["x", "y"]}, r"a.csv:3: the word is empty"),
        ({"sent_id": [1, 1], "word": ["a", 3], "tag": ["x", "y"]}, r"a.csv:3: the word is an int, not a string"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_joined_are_an_error(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**columns)
