"""JSON in the forms that data sets, pandas and question answering have; each is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.files import error_of, read, write

from hf_finetune.config.sections import DataConfig
from hf_finetune.data import json_scanner
from hf_finetune.data.formats import CONLL, read_rows
from hf_finetune.data.table import ColumnSpec

ROWS = [{"text": f"text {number}", "label": "pos" if number % 2 else "neg"} for number in range(5)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("text", "label")}
BY_ROW = {name: {str(number): value for number, value in enumerate(values)} for name, values in COLUMNS.items()}
SPLIT = {"columns": ["text", "label"], "index": list(range(5)), "data": [list(row.values()) for row in ROWS]}
FIELDS = {"fields": [{"name": "text", "type": "string"}], "primaryKey": ["index"]}

FORMS: dict[str, tuple[Any, str]] = {
    "a key": ({"version": "1", "data": ROWS}, "the records are under the key 'data'"),
    "another key": ({"meta": {"size": 5}, "rows": ROWS}, "the records are under the key 'rows'"),
    "only a key": ({"examples": ROWS}, "the records are under the key 'examples'"),
    "a key next to other lists": ({"names": ["neg", "pos"], "train": ROWS}, "the records are under the key 'train'"),
    "columns": (BY_ROW, "a table as pandas writes it with orient='columns'"),
    "index": (
        {str(number): row for number, row in enumerate(ROWS)},
        "a table as pandas writes it with orient='index'",
    ),
    "names as index": (
        {f"row {n}": row for n, row in enumerate(ROWS)},
        "a table as pandas writes it with orient='index'",
    ),
    "split": (SPLIT, "a table as pandas writes it with orient='split'"),
    "table": (
        {"schema": FIELDS, "data": [{"index": number, **row} for number, row in enumerate(ROWS)]},
        "the records are under the key 'data' as pandas writes them with orient='table'",
    ),
    "lists": (COLUMNS, "a dict of lists, one for each column"),
}


@pytest.fixture(params=["small", "large"])
def _size_of_documents(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are read as if they were small, or large: their arrays are longer than what shows their form."""
    if request.param == "large":
        monkeypatch.setattr(json_scanner, "ITEMS_OF_OUTLINE", 1)
        monkeypatch.setattr(json_scanner, "CHUNK_SIZE", 7)


@pytest.mark.usefixtures("_size_of_documents")
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(("document", "note"), FORMS.values(), ids=FORMS)
def test_the_records_of_a_document_are_found_and_it_is_said_where(
    tmp_path: Path, document: Any, note: str, indent: int | None
) -> None:
    table = read(write(tmp_path / "a.json", json.dumps(document, indent=indent)))
    assert (table.columns, list(table.lines), table.notes) == (COLUMNS, [1, 2, 3, 4, 5], (f"a.json: {note}",))


@pytest.mark.parametrize(("document", "note"), FORMS.values(), ids=FORMS)
def test_records_under_a_key_are_not_held_and_what_would_be_is_refused_if_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: Any, note: str
) -> None:
    monkeypatch.setattr(json_scanner, "CHUNK_SIZE", 7)
    monkeypatch.setattr(json_scanner, "ITEMS_OF_OUTLINE", 1)
    monkeypatch.setattr(json_scanner, "LARGEST_DOCUMENT", 95)
    path = write(tmp_path / "a.json", json.dumps(document))
    if note.endswith(("orient='columns'", "orient='index'", "a dict of lists, one for each column")):
        assert error_of(path) == (
            f"{path}: has one JSON value of more than 0 million characters, which is held in memory; write a row on each line, "
            "as pandas does with frame.to_json(PATH, orient='records', lines=True)"
        )
        return
    assert read(path).columns == COLUMNS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_record_on_each_line_is_not_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(json_scanner, "LARGEST_DOCUMENT", 120)
    assert read(write(tmp_path / name, "".join(f"{json.dumps(row)}\n" for row in ROWS))).columns == COLUMNS


RECORDS = [
    {"text": "a", "label": "x"},
    {"text": "a", "label": "x", "meta": [{"a": 1}, {"a": 2}]},
    {"text": "a", "label": ["x", "y"]},
    {"text": "a", "label": "x", "scores": {"x": 1}},
]


@pytest.mark.usefixtures("_size_of_documents")
@pytest.mark.parametrize("record", RECORDS)
def test_one_record_is_one_row(tmp_path: Path, record: dict[str, Any]) -> None:
    table = read(write(tmp_path / "a.json", json.dumps(record, indent=1)))
    assert (table.columns["text"], table.columns["label"], table.notes) == (["a"], [record["label"]], ())


def read_json(path: Path, columns: tuple[str, ...], *, has_words: bool = False) -> list[dict[str, Any]]:
    """Returns the rows of a file with these columns of text."""
    config = DataConfig(train=("x",), text_columns=columns, label_column="tags")
    return [row for _, row in read_rows(path, config, CONLL if has_words else None)]


def test_a_dialogue_is_one_row(tmp_path: Path) -> None:
    for key in ("messages", "conversations"):
        document = {key: [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        path = write(tmp_path / f"{key}.json", json.dumps(document))
        assert read_json(path, ("messages",)) == [document]


def test_lists_of_words_are_one_row_of_tagging_and_columns_of_texts(tmp_path: Path) -> None:
    document = {"tokens": ["a", "b"], "tags": ["x", "y"]}
    path = write(tmp_path / "a.json", json.dumps(document))
    assert read_json(path, ("tokens",), has_words=True) == [document]
    assert read_json(path, ("tokens",)) == [{"tokens": "a", "tags": "x"}, {"tokens": "b", "tags": "y"}]
    rows = write(tmp_path / "b.json", json.dumps({name: [values, values] for name, values in document.items()}))
    assert read_json(rows, ("tokens",), has_words=True) == [document, document]


def test_a_column_of_objects_is_a_column(tmp_path: Path) -> None:
    document = {"question": ["a", "b"], "answers": [{"text": ["x"]}, {"text": []}]}
    rows = read_json(write(tmp_path / "a.json", json.dumps(document)), ("question",))
    assert rows == [{"question": "a", "answers": {"text": ["x"]}}, {"question": "b", "answers": {"text": []}}]


REFUSED: dict[str, tuple[Any, str]] = {
    "values": ([["a", "x"]], "record 1 must be a JSON object, not a list; write tables of pandas with orient='records'"),
    "two lists": (
        {"train": ROWS, "test": ROWS},
        "'train' and 'test' hold lists of objects; save the rows that are meant in a file",
    ),
    "lengths": ({"text": ["a", "b"], "label": ["x"]}, "the lists are not of one length: text 2, label 1"),
    "split": ({"columns": ["text", "label"], "data": [["a", "x"], ["b"]]}, "row 2 of data has 1 values, but there are 2 columns"),
    "columns": ({"text": {"0": "a"}, "label": {"1": 0}}, "the column 'label' has other rows than 'text'; all must have the same"),
}  # fmt: skip


@pytest.mark.usefixtures("_size_of_documents")
@pytest.mark.parametrize(("document", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, document: Any, message: str) -> None:
    path = write(tmp_path / "a.json", json.dumps(document))
    assert error_of(path) == f"{path}: {message}"


# --- SQuAD -----------------------------------------------------------------------------------------------------------

QUESTION = {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
PARAGRAPH = {
    "context": "Ada ran.",
    "qas": [QUESTION, {"id": "2", "question": "Why?", "answers": []}, {"id": 3, "question": "?"}],
}
SQUAD: dict[str, tuple[Any, str]] = {
    "published": ({"version": "2", "data": [{"title": "", "paragraphs": [PARAGRAPH]}]}, "articles with questions, as in SQuAD"),
    "a list of articles": ([{"paragraphs": [PARAGRAPH]}], "articles with questions, as in SQuAD"),
    "a list of contexts": ([PARAGRAPH], "contexts with questions (qas), as Simple Transformers reads them"),
}  # fmt: skip


@pytest.mark.usefixtures("_size_of_documents")
@pytest.mark.parametrize(("document", "note"), SQUAD.values(), ids=SQUAD)
def test_questions_are_read_and_missing_answers_are_not_empty_ones(tmp_path: Path, document: Any, note: str) -> None:
    path = write(tmp_path / "a.json", json.dumps(document))
    spec = ColumnSpec(inputs=("question", "context"), optional=("id", "answers"))
    config = DataConfig(train=("x",), text_columns=("question", "context"), label_column="answers")
    table = read(path, config=config, spec=spec)
    assert list(table.columns["id"]) == ["1", "2", "3"]
    answers = [{"text": ["Ada"], "answer_start": [0]}, {"text": [], "answer_start": []}, None]
    assert (list(table.columns["answers"]), table.notes) == (answers, (f"a.json: {note}",))


# --- arrays are read record by record --------------------------------------------------------------------------------

VALUES = [
    '"a\\"]}"',
    "[1, [2]]",
    "-1.5e10",
    "NaN",
    "true",
    "null",
    '{"x": {"y": []}}',
    '"é😀\\u20ac"',
    "12345678901234",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 1000])
def test_records_are_whole_wherever_a_chunk_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(json_scanner, "CHUNK_SIZE", size)
    text = (
        " [ "
        + " ,\n ".join(f'{{"text" : "{number}", "label":{value}}}' for number, value in enumerate(VALUES))
        + "\n] \n"
    )
    rows = [row for _, row in read_rows(write(tmp_path / "a.json", text), DataConfig(train=("x",)))]
    assert repr(rows) == repr(json.loads(text))


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "where"),
    [('[{"text": "a", "label": 1}\n{"text": 2}]', "2: broken JSON: Expecting ',' delimiter at column 1"),
     ('[{"text": "a", "label": 1},\n {"text" 2}]', "2: broken JSON: Expecting ':' delimiter at column 10"),
     ('[{"text": "a", "label": 1},\n]', "2: broken JSON: Expecting value at column 1"),
     ('[{"text": "a", "label": 1}', "1: broken JSON: Expecting ',' delimiter at column 27"),
     ('[{"text": "a", "label": 1}]\n\n x', "3: broken JSON: Extra data at column 2"),
     ('[{"text": "a', "1: broken JSON: Unterminated string starting at at column 11"),
     ('[{"text": "a", "label": 1}, {"text": "b', "1: broken JSON: Unterminated string starting at at column 38"),
     ('{"text": ["a"],\n "label": [1] "x"}', "2: broken JSON: Expecting ',' delimiter at column 15"),
     ('{"text": ["a"],\n label: [1]}', "2: broken JSON: Expecting property name enclosed in double quotes at column 2"),
     ('{"text": ["a"], "label"\n [1]}', "2: broken JSON: Expecting ':' delimiter at column 2"),
     ('{"text": ["a"],\n"label": [1]}\n x', "3: broken JSON: Extra data at column 2"),
     ('{"text": ["a"], "label": [1]} x', "1: broken JSON: Extra data at column 31"),
     ('{"text": ["a"], "label": [1', "1: broken JSON: Expecting ',' delimiter at column 28"),
     ('{"text": ["a"], "label": ', "1: broken JSON: Expecting value at column 26")],
)  # fmt: skip
def test_a_fault_in_a_document_is_named_with_line_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, text: str, where: str
) -> None:
    monkeypatch.setattr(json_scanner, "CHUNK_SIZE", size)
    path = write(tmp_path / "a.json", text)
    assert error_of(path) == f"{path}:{where}"


def test_an_array_may_be_of_records_without_columns_of_the_task(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "[{}]")
    assert error_of(path).startswith(f"{path}:1: no column 'text' (columns: none)")


@pytest.mark.parametrize("name", ["a.ndjson", "a.ndjson.gz", "a.NDJSON"])
def test_ndjson_is_json_lines(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, '{"text": "a", "label": 1}\n')).columns == {"text": ["a"], "label": [1]}


REPEATED = '{"text": "c", "label": "x", "label": "y"}'


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", '{"text": "a", "label": "x"}\n' + REPEATED, "a.jsonl:2: broken JSON"),
        ("a.json", '[{"text": "a", "label": "x"},\n ' + REPEATED + "]", "a.json:2: broken JSON"),
        ("b.json", '{"rows": [' + REPEATED + "]}", "b.json:1: broken JSON"),
        ("c.json", '{"text": "a", "label": {"a": 1, "a": 1}}', "c.json:1: broken JSON"),
        ("d.json", '{"text": "a",\n "text": "b"}', "d.json:2: broken JSON"),
    ],
)
def test_two_values_with_one_name_are_refused(tmp_path: Path, name: str, content: str, where: str) -> None:
    """As two columns with one name are in csv: the last value would be taken for the only one."""
    message = error_of(write(tmp_path / name, content))
    assert where in message
    assert "an object has two values that are called " in message


def test_an_array_whose_file_is_called_jsonl_names_the_ending(tmp_path: Path) -> None:
    message = error_of(write(tmp_path / "a.jsonl", '[{"text": "a", "label": "x"},\n{"text": "b", "label": "y"}]'))
    assert message.endswith("; end the file's name with .json if it holds one array")
