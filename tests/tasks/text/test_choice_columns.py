"""Multiple choice in the columns and forms of public data sets; labels that can be read in two ways."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from support import tiny

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig
from hf_finetune.data.memory import read_memory
from hf_finetune.data.parts import read_parts
from hf_finetune.data.shards import find_streamed_data
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.choose import Choice, Settings

TEXTS = ["cat", "dog", "bird", "fish"]
STEM = "which one is it"


def make_config(
    prompts: tuple[str, ...] = ("stem",), choices: tuple[str, ...] = ("choices",), label: str = "label"
) -> RunConfig:
    """Returns a config that is never run, with the recipe's columns."""
    return RunConfig(
        model=ModelConfig(backbone="-"),
        data=DataConfig(train=("-",), text_columns=prompts, label_column=label),
        task=Settings(kind="choose", choice_columns=choices),
    )


def read(path: Path, config: RunConfig, *, needs_labels: bool = True) -> Table:
    """Returns the table of a file."""
    return read_table(
        [str(path)], config.data, "data.train", Choice.make_columns(config).spec, needs_labels=needs_labels
    )


def read_rows(folder: Path, rows: list[dict[str, Any]], config: RunConfig | None = None, **options: Any) -> Table:
    """Returns the table of rows that were written as JSON lines."""
    return read(tiny.write_jsonl(folder / "a.jsonl", rows), config or make_config(), **options)


def list_examples(table: Table, config: RunConfig | None = None) -> list[tuple[Any, tuple[str, ...], int]]:
    """Returns prompt, choices and the right choice of each row."""
    config = config or make_config()
    task = Choice.from_table(config, table)
    reader, prompt = task.encoding.reader, config.data.text_columns[0]
    rows = range(len(table))
    return [
        (table.columns[prompt][row], reader.read_choices(table, row).texts, reader.read_label(table, row))
        for row in rows
    ]


def make_objects() -> list[dict[str, str]]:
    return [{"label": name, "text": text} for name, text in zip("ABCD", TEXTS, strict=True)]


# --- columns and forms ----------------------------------------------------------------------------------------------

ARC = {"text": TEXTS, "label": list("ABCD")}
NUMBERED = {"text": TEXTS, "label": list("1234")}
EXPECTED = {
    "arc": ({"question": STEM, "choices": ARC}, "answerKey", "ABCD"),
    "arc, numbered": ({"question": STEM, "choices": NUMBERED}, "answerKey", "1234"),
    "arc, numbered, with integers": ({"question": STEM, "choices": NUMBERED}, "answerKey", [1, 2, 3, 4]),
    "arc's files": ({"question": {"stem": STEM, "choices": make_objects()}}, "answerKey", "ABCD"),
    "openbookqa": ({"question_stem": STEM, "choices": ARC}, "answerKey", "ABCD"),
    "objects": ({"question": STEM, "choices": make_objects()}, "answerKey", "ABCD"),
    "mmlu": ({"question": STEM, "choices": TEXTS}, "answer", [0, 1, 2, 3]),
    "race": ({"article": "which one", "question": "is it", "options": TEXTS}, "answer", "ABCD"),
    "medqa": ({"question": STEM, "options": dict(zip("ABCD", TEXTS, strict=True))}, "answer", TEXTS),
    "hellaswag": ({"ctx": STEM, "endings": TEXTS}, "label", "0123"),
    "swag": ({"sent1": "which one", "sent2": "is it", **{f"ending{n}": t for n, t in enumerate(TEXTS)}}, "label", [0, 1, 2, 3]),
    "medmcqa": ({"question": STEM, **dict(zip(("opa", "opb", "opc", "opd"), TEXTS, strict=True))}, "cop", [0, 1, 2, 3]),
    "from 1": ({"question": STEM, "choices": TEXTS}, "answer", "1234"),
    "texts": ({"stem": STEM, "choices": TEXTS}, "correct_answer", TEXTS),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_public_data_sets_are_read_with_the_recipes_columns(tmp_path: Path, name: str) -> None:
    """From JSON lines, a frame, a data set, dicts; and from a csv file as pandas writes it."""
    row, label, values = EXPECTED[name]
    rows = [{**row, label: value} for value in values]
    expected = [(STEM, tuple(TEXTS), index) for index in range(4)]
    table = read_rows(tmp_path, rows)
    assert list_examples(table) == expected
    assert tuple(table.columns) == ("stem", "choices", "label")
    assert len(table.notes) == 1
    assert f"the right one is {label}" in table.notes[0]
    config = make_config()
    spec = Choice.make_columns(config).spec
    for given in (rows, pandas.DataFrame(rows), datasets.Dataset.from_list(rows)):
        assert list_examples(read_memory(given, "train", config.data, spec)) == expected
    if not isinstance(row.get("question"), dict):
        pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
        assert list_examples(read(tmp_path / "a.csv", config)) == expected


@pytest.mark.parametrize("name", [name for name in EXPECTED if "files" not in name])
def test_rows_to_predict_need_no_label(tmp_path: Path, name: str) -> None:
    table = read_rows(tmp_path, [EXPECTED[name][0]], needs_labels=False)
    reader = Choice.from_state(make_config(), {}).encoding.reader
    assert (table.columns["stem"][0], reader.read_choices(table, 0).texts) == (STEM, tuple(TEXTS))


@pytest.mark.parametrize(
    ("row", "choices", "right"),
    [
        ({"premise": "which one", "question": "is it", "choice1": "cat", "choice2": "dog", "label": 1}, ("cat", "dog"), 1),
        ({"goal": STEM, "sol1": "cat", "sol2": "dog", "label": 1}, ("cat", "dog"), 1),
        ({"sentence": STEM, "option1": "cat", "option2": "dog", "answer": "2"}, ("cat", "dog"), 1),
        ({"context": "which one", "question": "is it", "answerA": "cat", "answerB": "dog", "answerC": "ox", "label": "3"},
         ("cat", "dog", "ox"), 2),
    ],
)  # fmt: skip
def test_sets_with_fewer_choices(tmp_path: Path, row: dict[str, Any], choices: tuple[str, ...], right: int) -> None:
    assert list_examples(read_rows(tmp_path, [row])) == [(STEM, choices, right)]


@pytest.mark.parametrize(
    "names",
    [
        *[[f"{begin}{number}" for number in range(1, 5)] for begin in ("option", "choice_", "answer")],
        [f"ending{number}" for number in range(4)],
        [f"option{number}" for number in range(4)],
        list("ABCD"),
        [f"option_{letter}" for letter in "abcd"],
        [f"choice{letter}" for letter in "ABCD"],
    ],
)
def test_all_columns_of_a_series_are_choices(tmp_path: Path, names: list[str]) -> None:
    """Three, four, and a row with three of four."""
    for count in (3, 4):
        row = {"question": STEM, **dict(zip(names[:count], TEXTS, strict=False)), "label": TEXTS[count - 1]}
        expected = (STEM, tuple(TEXTS[:count]), count - 1)
        table = read_rows(tmp_path, [row, row])
        assert list_examples(table) == [expected] * 2
        assert f"the choices are {', '.join(names[:count])}, the" in table.notes[0]
        pandas.DataFrame([row]).to_csv(tmp_path / "a.csv", index=False)
        assert list_examples(read(tmp_path / "a.csv", make_config())) == [expected]
    shorter = {**row, names[3]: "", "label": "cat"}
    assert list_examples(read_rows(tmp_path, [row, shorter]))[1] == (STEM, tuple(TEXTS[:3]), 0)


def test_a_series_with_a_gap_or_too_many_columns_is_refused(tmp_path: Path) -> None:
    row = {"question": STEM, "option1": "cat", "option2": "dog", "option4": "ox", "label": "cat"}
    with pytest.raises(InputError, match=r"a.jsonl:1: choices: choice 2 \(None\) is not a text"):
        list_examples(read_rows(tmp_path, [row]))
    many = {"question": STEM, **{f"option{number}": f"a{number}" for number in range(1, 10)}, "label": "a1"}
    with pytest.raises(InputError, match="has more than 8 columns of choices, option1 to option9; name all of them in"):
        read_rows(tmp_path, [many])


def test_named_columns_are_read_in_the_same_forms(tmp_path: Path) -> None:
    rows = [{"q": STEM, "choices": ARC, "answerKey": key, "question": "another"} for key in "AD"]
    config = make_config(("q",), label="answerKey")
    assert list_examples(read_rows(tmp_path, rows, config), config) == [
        (STEM, tuple(TEXTS), 0),
        (STEM, tuple(TEXTS), 3),
    ]
    named = make_config(("question",), ("choices",), "answerKey")
    assert [stem for stem, _, _ in list_examples(read_rows(tmp_path, rows, named), named)] == ["another"] * 2
    by_key = [{"question": STEM, "choices": ARC, "answerKey": "B"}]  # the column of the prompt is the default's
    partly = make_config(label="answerKey")
    assert list_examples(read_rows(tmp_path, by_key, partly), partly) == [(STEM, tuple(TEXTS), 1)]
    assert len(read_rows(tmp_path, [{"question": STEM, "choices": ARC}], partly, needs_labels=False)) == 1


def test_the_recipes_own_columns_come_first_and_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"stem": STEM, "choices": TEXTS, "label": 2, "question": "no", "options": ["x", "y"], "answer": 0}]
    table = read_rows(tmp_path, rows)
    assert list_examples(table) == [(STEM, tuple(TEXTS), 2)]
    assert table.notes == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": STEM, "options": TEXTS, "answer": "cat", "answer_idx": "A"},
         "a.jsonl:1: both answer and answer_idx may be the label; name one in data.label_column"),
        ({"question": STEM, "options": TEXTS, "endings": TEXTS, "label": 0},
         "both options and endings may be the choices; name one in task.choice_columns"),
        ({"question": STEM, "choices": ARC}, "a.jsonl:1: label is missing; data.label_column names the column of the right"),
        ({"query": STEM, "choices": ARC, "label": 0}, r"no column 'stem' \(columns: query, choices, label\)"),
        ({"stem": STEM, "choices": ARC}, r"no column 'label' \(columns: stem, choices\)"),
        ({"question": {"stem": STEM}, "answerKey": "A"}, "choices is missing, and no other columns of choices"),
        ({"article": None, "question": STEM, "options": TEXTS, "answer": "A"}, None),
        ({"question": 5, "options": TEXTS, "answer": "A"}, "stem is an int, not a string"),
        ({"question": STEM, "choices": [{"label": "A", "body": "cat"}, {"label": "B", "text": "dog"}], "answerKey": "A"},
         "choice 0 .None. is not a text"),
        ({"question": STEM, "choices": {"text": TEXTS, "label": ["A"]}, "answerKey": "A"}, "1 labels for 4 choices"),
    ],
)  # fmt: skip
def test_columns_that_can_be_taken_for_two_things_or_for_none_are_refused(
    tmp_path: Path, row: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert list_examples(read_rows(tmp_path, [row]))[0][0] == STEM
        return
    with pytest.raises(InputError, match=message):
        list_examples(read_rows(tmp_path, [row]))


def test_a_key_that_no_choice_has_is_an_error_with_its_line_and_the_names(tmp_path: Path) -> None:
    rows = [{"question": STEM, "choices": ARC, "answerKey": key} for key in "ABCDE"]
    message = (
        r"a.jsonl:5: label \(E\) names none of the choices A, B, C, D, or several; labels are the choices' own names"
    )
    with pytest.raises(InputError, match=message):
        list_examples(read_rows(tmp_path, rows))


def test_the_words_of_labels_are_compared_in_one_form(tmp_path: Path) -> None:
    rows = [
        {"stem": STEM, "choices": ["cafe\u0301", "dog"], "label": " caf\u00e9 "},
        {"stem": STEM, "choices": ["a", "2.0"], "label": "2.0"},
    ]
    assert [right for _, _, right in list_examples(read_rows(tmp_path, rows))] == [0, 1]


# --- what may be wrong ----------------------------------------------------------------------------------------------


def find_warnings(folder: Path, labels: Any, choices: Any = TEXTS) -> list[str]:
    """Returns the warnings of rows with these labels."""
    table = read_rows(folder, [{"stem": STEM, "choices": choices, "label": label} for label in labels])
    return Choice.from_table(make_config(), table).encoding.find_warnings({"train": table})


def test_labels_that_can_be_read_in_two_ways_are_said(tmp_path: Path) -> None:
    (warning,) = find_warnings(tmp_path, [1, 2, 3, 3])
    assert warning.startswith(
        "train: labels can be indices, from 0, or numbers, from 1, which name other choices; they are"
    )
    assert "read as indices, from 0; letters (A, B, ...) or the choices' texts would be clear" in warning
    (warning,) = find_warnings(tmp_path, ["1", "2"], ["2", "1"])
    assert "labels can be the choices' texts, or numbers, from 1" in warning
    (warning,) = find_warnings(tmp_path, [1, 2], {"text": TEXTS, "label": list("1234")})
    assert "labels can be the choices' own names, or indices, from 0" in warning
    for clear in ([0, 1, 3], [1, 2, 4], list("ABD"), ["cat", "dog"]):
        assert find_warnings(tmp_path, clear) == []
    assert find_warnings(tmp_path, list("ABD"), ARC) == []  # names and letters are the same


def test_a_place_that_is_nearly_always_right_is_a_warning(tmp_path: Path) -> None:
    (warning,) = find_warnings(tmp_path, [0] * 39 + [3])
    assert warning.startswith("train: choice 0 (from 0) is the right one in 39 of 40 rows; look whether label is the")
    assert find_warnings(tmp_path, [0] * 19) == []
    assert find_warnings(tmp_path, [0] * 36 + [3] * 4) == []


def test_a_file_of_arcs_is_read_as_the_rows_of_the_task(tmp_path: Path) -> None:
    """The field's case: the same features as of rows in the recipe's own columns."""
    keys = "CBADCA"
    arc = [{"id": f"q{n}", "question": f"{STEM} {n}", "choices": ARC, "answerKey": key} for n, key in enumerate(keys)]
    own = [{"stem": f"{STEM} {n}", "choices": TEXTS, "label": "ABCD".index(key)} for n, key in enumerate(keys)]
    tokenizer, encoded = tiny.make_tokenizer(), []
    for rows in (arc, own):
        table = read_rows(tmp_path, json.loads(json.dumps(rows)))
        task = Choice.from_table(make_config(), table)
        arrays = task.encoding.tokenize(table, tokenizer, 32)
        encoded.append((arrays["input_ids"].tolist(), task.encoding.labels(table, arrays).tolist()))
    assert encoded[0] == encoded[1]


def test_of_the_columns_that_are_looked_for_a_table_has_those_of_its_rows(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "A": "a", "B": "b", "D": "d", "answer": "B"},
        {"question": "q", "A": "a", "B": "b", "answer": "A"},
    ]
    spec = replace(Choice.make_columns(make_config()).spec, find_conversion=None, texts=())
    frame = pandas.DataFrame(rows)
    path = tiny.write_jsonl(tmp_path / "a.jsonl", rows)
    part = next(read_parts([str(path)], make_config().data, spec, [2], lambda text, where: {}))
    for table in (
        read_table([str(path)], make_config().data, "data.train", spec),
        part.table,
        *(
            read_memory(given, "train", make_config().data, spec)
            for given in (rows, frame, datasets.Dataset.from_pandas(frame))
        ),
    ):
        assert set(table.columns) == {*spec.own_columns, *rows[0]}


def test_a_stream_of_such_rows_is_read_the_same(tmp_path: Path) -> None:
    row, label, values = EXPECTED["arc"]
    path = tiny.write_jsonl(tmp_path / "a.jsonl", [{**row, label: value} for value in values])
    config = make_config()
    spec = Choice.make_columns(config).spec
    data = find_streamed_data(replace(config.data, train=(str(path),)), spec)
    table = data.make_table([row for shard in data.shards for row in shard.read()], spec)
    assert list_examples(table) == [(STEM, tuple(TEXTS), index) for index in range(4)]
    tiny.write_jsonl(path, [{"query": STEM}])
    with pytest.raises(InputError, match=r"a\.jsonl:1: no column 'stem'"):
        list(data.shards[0].read())
