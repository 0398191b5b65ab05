"""Answers in the forms that files have them in, and the errors of rows that do not say what their answers are."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from support import tiny

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig
from hf_finetune.data.memory import read_memory
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.answer import Answering, Settings

CONTEXT = "the cat the red dog"
ROW = {"question": "this", "context": CONTEXT}
SQUAD = {"text": ["cat"], "answer_start": [4]}


def make_config(label: str = "answers") -> RunConfig:
    """Returns a config that is never run, with the recipe's columns."""
    data = DataConfig(train=("-",), text_columns=("question", "context"), label_column=label)
    return RunConfig(model=ModelConfig(backbone="-"), data=data, task=Settings(kind="answer"))


def read(path: Path, label: str = "answers", *, needs_labels: bool = True) -> Table:
    """Returns the table of a file."""
    config = make_config(label)
    spec = Answering.make_columns(config).spec
    return read_table([str(path)], config.data, "data.train", spec, needs_labels=needs_labels)


def read_rows(folder: Path, rows: list[dict[str, Any]], label: str = "answers") -> Table:
    """Returns the table of rows that were written as JSON lines."""
    return read(tiny.write_jsonl(folder / "a.jsonl", rows), label)


def list_answers(table: Table, label: str = "answers") -> list[list[tuple[str, int]]]:
    """Returns the answers of each row."""
    reader = Answering.make_columns(make_config(label)).reader
    return [reader.read(table, row) for row in range(len(table))]


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"answers": SQUAD},
        {"answers": [{"text": "cat", "answer_start": 4}]},
        {"answers": json.dumps(SQUAD)},
        {"answers": str(SQUAD)},
        {"answers": "{'text': array(['cat'], dtype=object), 'answer_start': array([4], dtype=int32)}"},
        {"answers": "[{'text': 'cat', 'answer_start': 4}]"},
        {"answers": "cat"},
        {"answers": "cat", "answer_start": 4},
        {"answers": ["cat"]},
        {"answers": ["cat"], "answer_start": [4]},
        {"answers": "['cat']", "answer_start": "[4]"},
        {"answers": {"text": ["cat"]}},
        {"answers": [{"text": "cat"}]},
        {"answer_text": "cat", "answer_start": 4},
        {"answer_text": "cat", "answer_start": "4"},
        {"answer_text": "cat", "answer_start": 4.0},
        {"answer_text": "cat"},
        {"answer": "cat", "answer_start": 4},
        {"answer": "cat"},
        {"answer": "cat", "is_impossible": False},
    ],
)
def test_every_form_is_the_same_answer(tmp_path: Path, more: dict[str, Any]) -> None:
    """As JSON lines, as CSV, in a frame, in a data set and as dicts."""
    rows = [{**ROW, **more}] * 2
    assert list_answers(read_rows(tmp_path, rows)) == [[("cat", 4)]] * 2
    config = make_config()
    spec = Answering.make_columns(config).spec
    for given in (rows, pandas.DataFrame(rows), datasets.Dataset.from_list(rows)):
        table = read_memory(given, "train", config.data, spec)
        assert list_answers(table) == [[("cat", 4)]] * 2
        assert tuple(table.columns) == ("question", "context", "answers", "id", "is_impossible")
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert list_answers(read(tmp_path / "a.csv")) == [[("cat", 4)]] * 2


def test_a_frame_with_arrays_that_was_written_as_csv_is_read(tmp_path: Path) -> None:
    answers = {"text": np.array(["cat", "red dog"], dtype=object), "answer_start": np.array([4, 12])}
    pandas.DataFrame([{**ROW, "answers": answers}]).to_csv(tmp_path / "a.csv", index=False)
    assert list_answers(read(tmp_path / "a.csv")) == [[("cat", 4), ("red dog", 12)]]


def test_a_column_of_another_name_is_read_in_the_same_forms(tmp_path: Path) -> None:
    rows = [{**ROW, "span": "red", "answer": "no such thing"}, {**ROW, "span": SQUAD, "answer": None}]
    assert list_answers(read_rows(tmp_path, rows, "span"), "span") == [[("red", 12)], [("cat", 4)]]
    with pytest.raises(InputError, match="no column 'span'"):
        read_rows(tmp_path, [{**ROW, "answer_text": "red"}], "span")


def test_squads_own_rows_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{**ROW, "answers": SQUAD, "id": "a"}, {**ROW, "answers": {"text": [], "answer_start": []}, "id": "b"}]
    table = read_rows(tmp_path, rows)
    assert list(table.columns["answers"]) == [row["answers"] for row in rows]
    assert list_answers(table) == [[("cat", 4)], []]


def test_rows_to_predict_need_no_answers_and_broken_ones_do_no_harm(tmp_path: Path) -> None:
    for more in ({}, {"answer_text": "nowhere"}, {"answers": 3}, {"answer": ["the", "a"], "answer_start": "x"}):
        path = tiny.write_jsonl(tmp_path / "a.jsonl", [{**ROW, **more}])
        assert len(read(path, needs_labels=False)) == 1


# --- no answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"answers": {"text": [], "answer_start": []}},
        {"answers": []},
        {"answers": "[]"},
        {"answers": None, "is_impossible": True},
        {"answers": SQUAD, "is_impossible": "True"},
        {"answer_text": "", "is_impossible": 1.0},
        {"answer_text": "", "answer_start": "-1"},
        {"answer_text": None, "answer": None, "is_impossible": "1"},
    ],
)
def test_a_question_without_an_answer(tmp_path: Path, more: dict[str, Any]) -> None:
    assert list_answers(read_rows(tmp_path, [{**ROW, **more}])) == [[]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"answers": None}, r"a.jsonl:1: answers is null or missing; give {text: \[...\], answer_start: \[...\]}, two"),
        ({"answers": ""}, r"a.jsonl:1: answers is empty or missing; .* empty lists, or is_impossible true"),
        ({"answer_text": "", "answer_start": ""}, "a.jsonl:1: answers is empty or missing"),
        ({"answers": None, "id": "b", "is_impossible": False}, r"a.jsonl:1 \(id b\): answers is null or missing"),
        ({"answers": None, "is_impossible": "perhaps"}, r"a.jsonl:1: is_impossible \(perhaps\) must be true or false"),
        ({"answers": 7}, r"answers \(7\) must be {text"),
        ({"answers": {"texts": ["the"]}}, "must be {text"),
        ({"answers": {"text": "the", "answer_start": 0}}, "must be {text"),
        ({"answers": {"text": ["the"], "answer_start": [0, 3]}}, "two lists of the same length"),
        ({"answers": ["the", "cat"], "answer_start": [0]}, "two lists of the same length"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "the text ' ' is not an answer; if the question has no answer, give"),
        ({"answers": {"text": [5], "answer_start": [3]}}, "the text 5 is not an answer"),
        ({"answers": {"text": ["the"], "answer_start": ["a"]}}, r"answer_start \(a\) of 'the' must be a whole number"),
        ({"answers": {"text": ["the"], "answer_start": [0.5]}}, r"answer_start \(0.5\) of 'the' must be a whole number"),
        ({"answers": {"text": ["the"], "answer_start": [True]}}, r"answer_start \(True\) of 'the' must be a whole number"),
        ({"answers": {"text": ["the"], "answer_start": [-3]}}, "the context has '' there; the nearest occurrence begins at 0"),
        ({"answers": {"text": ["the"], "answer_start": [7]}}, "the context has ' th' there; the nearest occurrence begins at 8"),
        ({"answer_text": "dog", "answer_start": 4}, "the context has 'cat' there; the nearest occurrence begins at 16"),
        ({"answer_text": "bird", "answer_start": 4}, "the context has 'cat ' there; the answer does not occur in the context"),
        ({"answer_text": "the"}, "a.jsonl:1: answers: 'the' occurs 2 times in the context; give its position as answer_start"),
        ({"answer": "The  CAT"}, "'The  CAT' does not occur in the context; write it as the context does, 'the cat'"),
        ({"answer": "bird"}, "a.jsonl:1: answers: 'bird' does not occur in the context; correct the answer or the"),
        ({"answers": {"text": ["b" * 99], "answer_start": [0]}}, "of 'b{60}...'"),
    ],
)  # fmt: skip
def test_rows_that_do_not_say_what_their_answers_are_are_refused(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    table = read_rows(tmp_path, [{**ROW, **more}])
    with pytest.raises(InputError, match=message):
        Answering.from_table(make_config(), table)


def test_a_squad_file_with_a_misspelt_key_is_refused_with_the_id_of_the_question(tmp_path: Path) -> None:
    good = {"id": "0a", "question": "Where?", "answers": [{"text": "cat", "answer_start": 4}]}
    bad = {"id": "0b", "question": "Who?", "answer": [{"text": "cat", "answer_start": 4}]}
    path = tmp_path / "squad.json"
    for rows, message in (([good, bad], r"squad.json:2 \(id 0b\): answers is null or missing"), ([good], "")):
        path.write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": rows}]}]}), encoding="utf-8")
        if not message:
            assert not Answering.from_table(make_config(), read(path)).unanswerable
            continue
        with pytest.raises(InputError, match=message):
            Answering.from_table(make_config(), read(path))


def test_a_list_of_contexts_with_their_questions_is_read_as_squad(tmp_path: Path) -> None:
    question = {"id": "0a", "question": "Where?", "answers": [{"text": "cat", "answer_start": 4}]}
    unanswered = {"id": "0b", "question": "Who?", "answers": [], "is_impossible": True}
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"context": CONTEXT, "qas": [question, unanswered]}] * 2), encoding="utf-8")
    table = read(path)
    assert list_answers(table) == [[("cat", 4)], []] * 2
    assert list(table.columns["context"]) == [CONTEXT] * 4


def test_what_is_counted_is_said(tmp_path: Path) -> None:
    empty = {"text": [], "answer_start": []}
    rows = [
        {**ROW, "answers": SQUAD},
        {**ROW, "answers": "red"},
        {**ROW, "answers": empty},
        {**ROW, "answers": None, "is_impossible": True},
        {**ROW, "answers": SQUAD, "is_impossible": True},
    ]
    reader = Answering.make_columns(make_config()).reader

    def describe(chosen: list[dict[str, Any]]) -> str:
        table = read_rows(tmp_path, chosen)
        return reader.describe_unanswered(table, reader.find_answered(table))

    assert describe(rows) == "3 of 5 questions have no answer (2 is_impossible, 1 empty lists)"
    assert describe(rows[:3]) == "1 of 3 questions have no answer (empty lists)"
    assert describe(rows[3:]) == "2 of 2 questions have no answer (is_impossible)"
    assert describe(rows[:2]) == "each of the 2 questions has an answer"
    assert reader.count_found(read_rows(tmp_path, rows)) == 1
    encoding = Answering.from_table(make_config(), read_rows(tmp_path, rows[:2])).encoding
    contradiction, unseen = encoding.find_row_warnings(read_rows(tmp_path, rows))
    assert contradiction.startswith("1 questions have answers although is_impossible is true, such as")
    assert "a.jsonl:5; they count as questions without an answer" in contradiction
    assert unseen == "has questions without an answer, and training has none: the model will answer every question"
    assert encoding.find_row_warnings(read_rows(tmp_path, rows[:2])) == []
    task = Answering.from_table(make_config(), read_rows(tmp_path, rows[:4]))
    for known in (task, Answering.from_state(make_config(), task.state_dict())):
        assert known.encoding.find_row_warnings(read_rows(tmp_path, rows[:4])) == []


def test_a_blank_answer_of_a_flat_table_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    header, row = "question,context,answer", "who,a cat,"
    (tmp_path / "a.csv").write_text(f"{header}\nwho,a cat,cat\n{row}\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"a.csv:3: answers is empty or missing.*answer_text or answer, give an empty text there"
    ):
        list_answers(read(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text(f"{header},answer_start\nwho,a cat,cat,2\n{row},-1\n", encoding="utf-8")
    assert list_answers(read(tmp_path / "a.csv")) == [[("cat", 2)], []]
