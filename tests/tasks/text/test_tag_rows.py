"""Tagging data of annotation tools and a word a row: rows of words and tags are made of them, with their own lines."""

from typing import Any

import pytest

from hf_finetune.data.row_adapter import WORD_LINES
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.tag_rows import TagRows

ROWS = TagRows(text_column="tokens", label_column="tags")


def adapt(
    columns: dict[str, list[Any]], rows: TagRows = ROWS, *, needs_labels: bool = True
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows that are made of the rows with these columns, in lines 2, 3, ... of a.csv, and what is said."""
    notes: list[str] = []
    given = enumerate((dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)), 2)
    read = rows.adapt(given, where=lambda line: f"a.csv:{line}", say=notes.append, needs_labels=needs_labels)
    return [{**row, "": line} for line, row in read], notes


def read(
    columns: dict[str, list[Any]], rows: TagRows = ROWS, *, needs_labels: bool = True
) -> tuple[list[Any], list[Any]]:
    """Returns words and tags of the rows."""
    made, _ = adapt(columns, rows, needs_labels=needs_labels)
    return [row["tokens"] for row in made], [row.get("tags") for row in made]


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
    rows, notes = adapt(columns)
    assert [{name: row[name] for name in columns} for row in rows] == [
        dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)
    ]
    assert notes == []


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
    assert read(columns) == ([["Tom", "lives"]], [["B-PER", "O"]])
    (row,), notes = adapt(columns)
    assert row[""] == 2
    assert len(notes) == 1
    (words,), (tags,) = read(columns, needs_labels=False)  # for predictions
    assert words in (["Tom", "lives"], "Tom lives", columns.get("tokens", [None])[0])
    assert tags is None


def test_what_is_read_is_said() -> None:
    (note,) = adapt({"words": [["a"]], "labels": [["O"]]})[1]
    assert note == "tokens are read from the column words; tags are read from the column labels"
    assert adapt({"tokens": ["['a']"], "tags": ["['O']"]})[1] == ["lists are written as text"]


def test_numbers_in_lists_as_text_are_tags() -> None:
    assert read({"tokens": ["['a', 'b']"], "tags": ["[0, 1]"]})[1] == [[0, 1]]


def test_a_text_without_an_entity_is_outside_and_one_without_entities_has_no_tags() -> None:
    columns = {"text": ["no annotation", "Tom lives", "nobody here"], "label": [None, [[0, 3, "PER"]], []]}
    assert read(columns) == (
        ["no annotation", ["Tom", "lives"], ["nobody", "here"]],
        [None, ["B-PER", "O"], ["O", "O"]],
    )
    assert adapt(columns)[1] == ["1 entities are spans of characters in the column label: read as words with tags"]
    assert read({"text": ["a text"]}, needs_labels=False) == (["a text"], [None])
    assert adapt({"text": ["a text"], "kind": ["x"]})[0] == [{"text": "a text", "kind": "x", "": 2}]  # it has no labels


def test_the_scheme_of_the_settings_is_written() -> None:
    rows = TagRows(text_column="tokens", label_column="tags", scheme="BIOES")
    columns = {"text": ["Tom Miller saw New York"], "label": [[[0, 3, "PER"], [4, 10, "SUR"], [15, 23, "LOC"]]]}
    assert read(columns, rows)[1] == [["S-PER", "S-SUR", "O", "B-LOC", "E-LOC"]]


def test_repairs_are_said() -> None:
    rows = TagRows(text_column="tokens", label_column="tags", repairs=True)
    columns = {"text": ["Tom lives", "a b"], "label": [[[0, 2, "PER"], [0, 1, "X"]], [[1, 2, "Y"]]]}
    assert read(columns, rows)[1] == [["B-PER", "O"], ["O", "O"]]
    assert adapt(columns, rows)[1][1:] == [
        "1 entities cut a word and were widened",
        "2 entities overlapped another one, or covered no word, and were dropped",
    ]
    with pytest.raises(InputError, match=r"a.csv:3: the entity 2-5 \(PER, 'bod'\) cuts the word 'nobody'"):
        read({"text": ["Tom lives", "nobody"], "label": [[[0, 3, "PER"]], [[2, 5, "PER"]]]})


def test_rows_that_the_annotator_rejected_are_left_out() -> None:
    spans = [[{"start": 0, "end": 1, "label": "x"}]] * 3
    columns = {"text": ["a b", "c d", "e f"], "spans": spans, "answer": ["accept", "reject", "ignore"]}
    assert read(columns)[0] == [["a", "b"]]
    assert adapt(columns)[1][1] == "2 rows were rejected, ignored or skipped by the annotator and are left out"


PERSON = {"value": {"start": 0, "end": 3, "labels": ["PER"]}, "type": "labels"}
PLACE = {"value": {"start": 4, "end": 9, "labels": ["LOC"]}, "type": "labels"}


def make_tasks(*annotations: list[Any]) -> dict[str, list[Any]]:
    """Returns tasks of Label Studio with these annotations."""
    return {"data": [{"text": "Tom Leeds"}] * len(annotations), "annotations": list(annotations)}


def test_completions_are_the_annotations_of_older_exports() -> None:
    columns = make_tasks([{"result": [PERSON]}], [{"result": [PLACE], "was_cancelled": True}], [{"result": []}])
    old = {"data": columns["data"], "completions": columns["annotations"]}
    assert read(old) == read(columns)
    assert read(old)[1] == [["B-PER", "O"], ["O", "O"]]


def test_annotations_of_label_studio_agree_or_one_is_right() -> None:
    both, turned, one = {"result": [PERSON, PLACE]}, {"result": [PLACE, PERSON]}, {"result": [PERSON]}
    columns = make_tasks([both, turned], [both, {**one, "ground_truth": True}], [{**both, "was_cancelled": True}, one])
    assert read(columns)[1] == [["B-PER", "B-LOC"], ["B-PER", "O"], ["B-PER", "O"]]
    assert adapt(columns)[1][1:] == [
        "tasks that have several annotations, which agree: 1",
        "tasks that have an annotation that is marked as ground truth, which is taken: 1",
    ]
    message = (
        r"a.csv:3: its 2 annotations disagree on 4-9 \(LOC\); keep one of them, mark it as ground truth, or remove"
    )
    with pytest.raises(InputError, match=message):
        read(make_tasks([one], [both, one]))


def test_tasks_that_were_skipped_are_left_out_and_those_without_an_annotation_have_no_tags() -> None:
    columns = make_tasks([], [{"result": [], "was_cancelled": True}], [{"result": []}], [{"result": [PERSON]}])
    assert read(columns)[1] == [None, ["O", "O"], ["B-PER", "O"]]
    assert adapt(columns)[1][1] == "1 rows were rejected, ignored or skipped by the annotator and are left out"


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([12, 13], "an annotation is an int, not an object with a result"),
        ([{"result": []}, None], "an annotation is null"),
        ([{"result": ["x"]}], "a result of an annotation is a str, not an object"),
    ],
)
def test_annotations_of_another_form_are_an_error(annotations: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=f"a.csv:3: {message}"):
        read(make_tasks([{"result": [PERSON]}], annotations))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a b", None], "label": [[[0, 1, "x"]], [[0, 1, "x"]]]}, r"a.csv:3: the text of the entities is null"),
        ({"text": [" "], "label": [[[0, 0, "x"]]]}, r"a.csv:2: the text of the entities is empty"),
        ({"tokens": [["a"]], "tags": [None], "spans": [[[0, 1, "x"]]]}, r"a.csv:2: the text of the entities is null"),
        ({"data": [{"a": "x", "b": "y"}], "annotations": [[{"result": []}]]}, r"a.csv:2: data has 2 texts \(a, b\)"),
        ({"tokens": [[{"text": "Tim", "start": 0, "end": 3}]], "text": ["Tom"], "spans": [[[0, 3, "x"]]]},
         r"a.csv:2: the token .* does not stand in the text"),
        ({"tokens": [[{"text": "Tom", "start": 0, "end": 3}, 5]], "text": ["Tom"], "spans": [[[0, 3, "x"]]]},
         r"a.csv:2: the token 5 does not stand in the text"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_read_are_an_error(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(columns)


# --- a word a row ----------------------------------------------------------------------------------------------------

WORDS, TAGS = ["Tom", "lives", "in", "Bonn", "Anna", "saw"], ["B-PER", "O", "O", "B-LOC", "B-PER", "O"]


@pytest.mark.parametrize(
    "columns",
    [
        {"Sentence #": ["Sentence: 1", "", "", "", "Sentence: 2", ""], "Word": WORDS, "POS": TAGS[::-1], "Tag": TAGS},
        {"Sentence #": ["Sentence: 1", None, None, None, "Sentence: 2", None], "Word": WORDS, "Tag": TAGS},
        {"sentence_id": [0, 0, 0, 0, 1, 1], "words": WORDS, "labels": TAGS},
        {"doc_id": ["a", "a", "a", "a", "b", "b"], "sent_id": [1, 1, 1, 1, 1, 1], "token": WORDS, "label": TAGS},
        {"sentence_id": ["0"] * 4 + ["1"] * 2, "tokens": WORDS, "tags": TAGS},
    ],
)
def test_a_word_a_row(columns: dict[str, list[Any]]) -> None:
    assert read(columns) == ([WORDS[:4], WORDS[4:]], [TAGS[:4], TAGS[4:]])
    rows, (note,) = adapt(columns)
    assert [(row[""], row[WORD_LINES]) for row in rows] == [(2, [2, 3, 4, 5]), (6, [6, 7])]
    assert "has a word a row; 2 sentences by " in note
    assert read(columns, needs_labels=False) == ([WORDS[:4], WORDS[4:]], [None, None])


def test_empty_rows_divide_sentences() -> None:
    columns = {"word": ["Tom", "lives", None, "", "Anna"], "tag": ["B-PER", "O", None, "", "B-PER"]}
    assert read(columns)[0] == [["Tom", "lives"], ["Anna"]]
    rows, notes = adapt(columns)
    assert [row[WORD_LINES] for row in rows] == [[2, 3], [6]]
    assert notes == ["has a word a row; 2 sentences by empty rows"]


def test_words_without_tags_can_be_predicted() -> None:
    columns = {"Sentence #": ["1", "1", "2"], "Word": ["a", "b", "c"]}
    assert read(columns, needs_labels=False) == ([["a", "b"], ["c"]], [None, None])
    assert [row.get("Word") for row in adapt(columns)[0]] == ["a", "b", "c"]  # in training they lack the column of tags


def test_a_missing_tag_stays_missing() -> None:
    assert read({"sent_id": [1, 1], "word": ["a", "b"], "tag": ["x", None]})[1] == [["x", None]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sent_id": [1, 2, 1], "word": ["a", "b", "c"], "tag": ["x"] * 3}, r"a.csv:4: sent_id 1 continues after other"),
        ({"word": ["a", "b"], "tag": ["x", "y"]},
         r"a.csv:2: has one word and one tag, and nothing says which sentence .* save the file as .conll, with a tab"),
        ({"text": ["a fine film"], "label": ["pos"]}, r"a.csv:2: has one word and one tag"),
        ({"sent_id": [1, 1], "word": ["a", ""], "tag": ["x", "y"]}, r"a.csv:3: the word is empty"),
        ({"sent_id": [1, 1], "word": ["a", 3], "tag": ["x", "y"]}, r"a.csv:3: the word is an int, not a string"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_joined_are_an_error(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(columns)
