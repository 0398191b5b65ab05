"""Errors about columns that a file lacks, as `hf-finetune data FILE --task NAME` gives them: the columns that there are, and the
settings that name others."""

from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune import cli
from hf_finetune.config.sections import DataConfig
from hf_finetune.data.missing_columns import missing_column_error
from hf_finetune.data.table import ColumnSpec

ANSWERS = {"text": ["Anna"], "answer_start": [0]}
QUESTION = {"Question": "Who?", "Context": "Anna met Bob."}
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def rename(*names: str) -> str:
    """Returns the advice to write these columns in small letters."""
    renamed = [f"'{name}' to '{name.lower()}'" for name in names]
    return f"rename {', '.join(renamed[:-1])} and {renamed[-1]}"


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("classify", {"Text": "a", "Label": "b"}, "set data.text_columns to Text and data.label_column to Label"),
        ("classify", {"TEXT": "a", "stars": "b"}, "set data.text_columns to TEXT; see data.label_column"),
        ("classify", {"review": "a", "stars": "b"}, "(columns: review, stars); see data.text_columns and data.label_column"),
        ("answer", {"Question": "a", "passage": "b", "answers": ANSWERS}, "see data.text_columns; 'question' is there as 'Ques"),
        ("embed", {"Anchor": "a", "positive": "b"}, "set data.text_columns to Anchor positive"),
        ("answer", {**QUESTION, "Answers": ANSWERS}, "set data.text_columns to Question Context and data.label_column to Ans"),
        ("answer", {**QUESTION, "Answer": "Anna", "ID": 1}, rename("Question", "Context", "Answer", "ID")),
        ("answer", {"q": "a", "passage": "b", "ans": "b"}, "'question' (columns: q, passage, ans); see data.text_columns and da"),
        ("answer", {"question": "a", "context": "b", "ans": "b"}, "(columns: question, context, ans); see data.label_column"),
        ("choose", {"Stem": "a", "Choices": ["b", "c"], "Label": 0},
         "set data.text_columns to Stem, task.choice_columns to Choices and data.label_column to Label"),
        ("choose", {"Question": "a", "Options": ["b", "c"], "Answer": "B"}, rename("Question", "Options", "Answer")),
        ("choose", {"q": "a", "opts": ["b", "c"], "right": 0},
         "(columns: q, opts, right); see data.text_columns, task.choice_columns and data.label_column"),
        ("choose", {"question": "a", "opts": ["b", "c"], "answer": "B"}, "task.choice_columns; columns that are not read: opts"),
        ("choose", {"question": "a", "option1": "b", "option2": "c", "Key": "B"}, "choice; columns that are not read: Key"),
        ("rerank", {"Query": "a", "Documents": ["b", "c"], "Labels": [0, 1]},
         "set data.text_columns to Query, task.document_columns to Documents and data.label_column to Labels"),
        ("rerank", {"query": "a", "Documents": ["b", "c"], "Rel": [0, 1]}, "columns that are not read: Documents, Rel"),
        ("rerank", {"query": "a", "documents": ["b", "c"], "Labels": [0, 1]}, "columns that are not read: Labels"),
        ("instruct", {"Messages": MESSAGES}, "set data.text_columns to Messages"),
        ("instruct", {"Instruction": "a", "Output": "b"}, rename("Instruction", "Output")),
        ("instruct", {"ask": "a", "reply": "b"}, "(columns: ask, reply); see data.text_columns"),
        ("instruct", {"instruction": "a", "Output": "b"}, "no answer to learn; columns that are not read: Output"),
    ],
)  # fmt: skip
def test_an_error_lists_the_columns_and_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, row: dict[str, Any], message: str
) -> None:
    path = tiny.write_jsonl(tmp_path / "a.jsonl", [row])
    assert cli.main(["data", str(path), "--task", kind]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}:1: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_advice_leads_to_columns_that_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The settings that the error names, and then no error."""
    path = tiny.write_jsonl(tmp_path / "a.jsonl", [{"Text": f"a text {row}", "Label": row % 2} for row in range(12)])
    assert cli.main(["data", str(path), "--task", "classify"]) == 2
    advice = capsys.readouterr().err.rstrip().partition("; set ")[2]
    words = [word for part in advice.split(" and ") for word in f"--{part}".split(" to ")]
    assert words == ["--data.text_columns", "Text", "--data.label_column", "Label"]
    assert cli.main(["data", str(path), "--task", "classify", *words]) == 0


def test_rows_to_predict_need_no_labels() -> None:
    spec = ColumnSpec(inputs=("text",), labels=("label",))
    config = DataConfig(train=("a",), text_columns=("text",), label_column="label")
    errors = [
        str(missing_column_error("a.jsonl:1", "text", {"Body": "a"}, config, spec, needs_labels=needs_labels))
        for needs_labels in (True, False)
    ]
    assert errors[0].endswith("(columns: Body); see data.text_columns and data.label_column")
    assert errors[1].endswith("(columns: Body); see data.text_columns")


def test_a_name_that_is_read_is_no_other_case_of_one() -> None:
    """Columns A and a are two."""
    spec = ColumnSpec(inputs=("a", "b"), optional=("A",), settings={"A": "task.x"})
    config = DataConfig(train=("a",), text_columns=("a", "b"), label_column="label")
    error = str(missing_column_error("a.jsonl:1", "a", {"A": 1, " B": 2}, config, spec))
    assert error == "a.jsonl:1: no column 'a' (columns: A,  B); see data.text_columns; 'b' is there as ' B'"
