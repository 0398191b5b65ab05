"""The command hf-finetune data."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune import cli


def write_rows(folder: Path, **columns: str) -> Path:
    """60 rows with a copy of the first one. columns: New names of text and label."""
    rows = tiny.make_rows(60, seed=0)
    path = folder / "rows.jsonl"
    tiny.write_jsonl(path, [{columns.get(name, name): row[name] for name in row} for row in [*rows, rows[0]]])
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """The exit code, standard output and standard error."""
    code = cli.main(["data", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_without_a_task_columns_are_reported_and_tasks_suggested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path)
    code, out, _ = run(capsys, path)
    assert code == 0
    assert out.startswith("rows        61\n")
    assert "these columns are the default ones of classify, model_language" in out
    assert f"  hf-finetune data {path} --task classify\n" in out


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"conversations": [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "dog"}]}, "instruct"),
        ({"question": "the cat", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}, "choose"),
        ({"question": "who", "context": "the cat", "answer_text": "cat"}, "answer"),
        ({"question": "who", "context": "the cat", "answer_text": ""}, "answer"),  # whose error says what is wrong
    ],
)
def test_tasks_that_read_other_columns_are_suggested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], task: str
) -> None:
    path = tiny.write_jsonl(tmp_path / "a.jsonl", [row])
    code, out, _ = run(capsys, path)
    assert code == 0
    assert f"  hf-finetune data {path} --task {task}\n" in out


def test_only_tasks_that_read_the_rows_are_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"Anna lives in Oslo {row}", "label": [[0, 4, "PER"], [14, 18, "LOC"]]} for row in range(8)]
    path = tiny.write_jsonl(tmp_path / "spans.jsonl", rows)
    _, out, _ = run(capsys, path, "--format", "json")
    assert json.loads(out)["tasks"] == ["tag", "model_language"]


def test_columns_of_0_and_1_are_labels_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("review,good,long\n" + "".join(f"a text {row},{row % 2},{row // 4}\n" for row in range(8)))
    _, out, _ = run(capsys, path)
    assert out.endswith("--task classify --data.text_columns review --data.label_column good long\n")


DIALOGUE = [{"role": "assistant", "content": "hi"}]
REFUSED_IN_TRAINING = [
    ("instruct", [{"messages": DIALOGUE}], ":1: messages: message 1 is the assistant's"),
    ("embed", [{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": None}], ":2: positive is null"),
    ("summarize", [{"document": "a", "summary": "b"}, {"document": "a", "summary": None}], ":2: summary"),
    ("classify", [{"text": "a", "label": 0.5}, {"text": "b", "label": "1,250.5"}], ":2: label"),
]


@pytest.mark.parametrize(("task", "rows", "message"), REFUSED_IN_TRAINING)
def test_rows_that_training_refuses_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, rows: list[dict[str, Any]], message: str
) -> None:
    path = tiny.write_jsonl(tmp_path / "a.jsonl", rows)
    code, _, error = run(capsys, path, "--task", task)
    assert code == 2
    assert f"a.jsonl{message}" in error


def test_columns_with_other_names_are_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path, text="my review", label="stars")
    code, out, _ = run(capsys, path, "--format", "json")
    content = json.loads(out)
    assert code == 0
    assert content["rows"] == 61
    assert {column["name"] for column in content["columns"]} >= {"my review", "stars"}
    assert content["tasks"] == []
    (command,) = content["next"]
    assert command.endswith("--task classify --data.text_columns 'my review' --data.label_column stars")
    code, out, _ = run(
        capsys, path, "--task", "classify", "--data.text_columns", "my review", "--data.label_column", "stars"
    )
    assert code == 0
    assert "single-label text classification. 3 labels: animals, food, tools." in out


def test_columns_of_a_file_without_names_are_called_by_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that is proposed named columns by the cells of the first row, which was lost."""
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{row['label']};{row['text']}\n" for row in tiny.make_rows(60)), encoding="utf-8")
    code, out, _ = run(capsys, path, "--data.delimiter", ";")
    assert code == 0
    assert "rows        60\n" in out
    assert "warning: a.csv: the first line is read as the names of the columns, and may be a row of the data" in out
    command = f"hf-finetune data {path} --data.delimiter ';' --data.header false --task classify --data.text_columns 2 "
    assert f"  {command}--data.label_column 1\n" in out
    code, out, _ = run(capsys, *shlex.split(command)[2:], "--data.label_column", 1)
    assert (code, "rows        60 train" in out, "may be a row" in out) == (0, True, False)
    row = path.read_text(encoding="utf-8").splitlines()[0].split(";")
    settings = ["--data.delimiter", ";", "--data.label_column", row[0], "--data.text_columns", row[1]]
    code, out, error = run(capsys, path, "--task", "classify", *settings, "--strict")
    assert (code, "warning: a.csv: the first line is read as" in out) == (2, True)
    assert "data.strict: the data have" in error


def test_with_a_task_the_data_are_reported_as_a_run_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path)
    test = tmp_path / "test.jsonl"
    tiny.write_jsonl(test, tiny.make_rows(8, seed=0))
    code, out, _ = run(capsys, path, "--task", "classify", "--test", test)
    assert code == 0
    assert "rows        61 train, 8 test" in out
    assert "warning: test: 8 of 8 rows (100.0 %) have the text of a row of train" in out
    assert "warning: train: " in out
    code, out, _ = run(capsys, path, "--task", "classify", "--data.test", test, "--format", "json")
    assert code == 0
    assert json.loads(out)["rows"] == {"train": 61, "test": 8}


@pytest.mark.parametrize("option", [["--strict"], ["--data.strict", "true"]])
def test_strict_makes_warnings_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    test = tmp_path / "test.jsonl"
    tiny.write_jsonl(test, tiny.make_rows(8, seed=0))
    code, out, error = run(capsys, write_rows(tmp_path), "--task", "classify", "--test", test, *option)
    assert code == 2
    assert "warning: test" in out
    assert error.startswith("error: data.strict: the data have ")
    assert len(error.splitlines()) == 1


def test_with_a_backbone_tokens_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backbones: Callable[..., Path]
) -> None:
    options = ["--task", "classify", "--model.backbone", backbones("bert"), "--data.max_length", 4]
    code, out, _ = run(capsys, write_rows(tmp_path), *options)
    assert code == 0
    assert "are longer than 4 tokens and were cut" in out
    assert "input       at most 4 tokens" in out


TASK_ROWS: dict[str, dict[str, Any]] = {
    "tag": {"tokens": ["a", "cat"], "tags": ["O", "B-X"]},
    "answer": {"question": "who?", "context": "a cat", "answers": {"text": ["cat"], "answer_start": [2]}},
    "choose": {"stem": "a cat", "choices": ["runs", "sleeps"], "label": 1},
    "model_language": {"text": "a cat runs"},
    "instruct": {"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "a cat"}]},
    "summarize": {"document": "a cat runs", "summary": "a cat"},
    "translate": {"source": "a cat", "target": "ein Kater"},
    "embed": {"anchor": "a cat", "positive": "the cat"},
    "rerank": {"query": "a cat", "positive": "the cat", "negative": "a dog"},
}


@pytest.mark.parametrize("kind", TASK_ROWS)
def test_every_task_can_be_asked_for(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = TASK_ROWS[kind]
    path, test = tmp_path / "a.jsonl", tmp_path / "test.jsonl"
    tiny.write_jsonl(path, [row, row])
    tiny.write_jsonl(test, [row])
    code, out, error = run(capsys, path, "--task", kind, "--test", test)
    assert (code, error) == (0, "")
    assert "rows        2 train, 1 test" in out or kind == "rerank"
    assert "warning: test: 1 of 1 rows (100.0 %)" in out
    code, out, _ = run(capsys, path)
    assert code == 0
    assert f"--task {kind}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "classify"], "data: name the files"),
        (["missing.csv"], "data.train (missing.csv): no such file"),
        (["rows.jsonl", "--task", "sort"], "task.kind (sort): must be one of"),
        (
            ["--task", "classify", "rows.jsonl", "--data.train", "rows.jsonl"],
            "--task (classify rows.jsonl): takes one name",
        ),
        (["rows.jsonl", "--format", "xml"], "--format (xml): must be table or json"),
        (["rows.jsonl", "--task", "classify", "--data.label_colum", "x"], "did you mean data.label_column?"),
        (["rows.jsonl", "--task", "classify", "--data.label_column", "x"], "rows.jsonl:1: no column 'x'"),
        (["--data.dataset", "x"], "data.dataset (x): name the task, as --task classify"),
    ],
)
def test_mistakes_are_errors_of_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, error = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1


def test_torch_is_not_imported(tmp_path: Path) -> None:
    path = write_rows(tmp_path)
    script = (
        "import sys\nfrom hf_finetune.cli import main\n"
        f"assert main(['data', {str(path)!r}]) == 0\nassert main(['data', {str(path)!r}, '--task', 'classify']) == 0\n"
        "assert not {'torch', 'transformers', 'datasets'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "usage: hf-finetune data FILE ..." in out
    assert "--strict" in out


def test_a_stream_is_not_reported_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path)
    streamed = ["--data.streaming", "true", "--train.max_updates", 5, "--data.validation", path]
    code, _, err = run(capsys, path, "--task", "classify", *streamed)
    assert code == 2
    assert "data.streaming (True): is for training" in err
