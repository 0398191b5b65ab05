"""Predictions of files of any length: their formats, rows that cannot be predicted, and commands that are stopped."""

import csv
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from support import tiny
from support.script_server import ScriptServer

from hf_finetune.cli import main
from hf_finetune.data.table import Table
from hf_finetune.export import prediction_files
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_files import predict_file
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.system.errors import InputError, StoppedError
from hf_finetune.training.evaluation import ModelRunner

NUM_ROWS = 45  # with a batch size of 1: parts of 1, 16, 16 and 12 rows


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are random, but for the bias: it gives half of the texts either label."""
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = tiny.make_model("bert", num_labels=2).eval(), tiny.make_tokenizer()
    texts = [row["text"] for row in tiny.make_rows(NUM_ROWS, seed=3)]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        model.classifier.bias -= logits.median(0).values
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(model_dir: Path) -> Predictor:
    """The model."""
    return Predictor.from_pretrained(model_dir, device="cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of NUM_ROWS rows, of which the fourth and the last but one have no text."""
    rows = [{"text": row["text"], "id": number} for number, row in enumerate(tiny.make_rows(NUM_ROWS, seed=3))]
    rows[3]["text"], rows[-2]["text"] = " ", None  # type: ignore[assignment]
    return tiny.write_jsonl(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def written(predictor: Predictor, data: Path) -> list[Any]:
    """The entries of `data`."""
    return list(iterate_predictions(predictor, str(data), batch_size=1))


def read_names(folder: Path) -> set[str]:
    """Returns the names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


# --- formats --------------------------------------------------------------------------------------------------------


def write(predictor: Predictor, data: Path, name: str, **options: Any) -> Path:
    """Returns the file with this name of the predictions of `data`."""
    out = data.with_name(name)
    assert predict_file(predictor, str(data), str(out), **{"batch_size": 1, **options}) == NUM_ROWS
    assert read_names(data.parent) == {data.name, name}
    return out


def read_out(path: Path) -> str:
    """Returns the text of a file, which may be compressed."""
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_json_lines_have_null_for_a_row_that_cannot_be_predicted(
    predictor: Predictor, data: Path, written: list[Any], name: str
) -> None:
    out = write(predictor, data, name)
    entries = [json.loads(line) for line in read_out(out).splitlines()]
    assert entries == written
    assert [row for row, entry in enumerate(entries) if entry is None] == [3, NUM_ROWS - 2]


@pytest.mark.parametrize("name", ["out.json", "out.json.gz"])
def test_a_json_document_is_the_list_that_json_dumps_writes(
    predictor: Predictor, data: Path, written: list[Any], name: str
) -> None:
    assert read_out(write(predictor, data, name)) == json.dumps(written, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("name", "delimiter"), [("out.csv", ","), ("out.tsv", "\t"), ("out.csv.gz", ","), ("out.tsv.gz", "\t")]
)
def test_tables_have_the_columns_of_all_rows_and_empty_cells(
    predictor: Predictor, data: Path, written: list[Any], name: str, delimiter: str
) -> None:
    text = read_out(write(predictor, data, name, keep=("id",), top_k=1))
    cells = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    assert list(cells[0]) == ["id", "label", "probabilities.LABEL_0", "probabilities.LABEL_1"]
    assert [int(row["id"]) for row in cells] == list(range(NUM_ROWS))
    for row, entry in zip(cells, written, strict=True):
        assert row["label"] == (entry["label"] if entry else "")
        shown = {
            key: float(row[f"probabilities.{key}"]) for key in ("LABEL_0", "LABEL_1") if row[f"probabilities.{key}"]
        }
        assert shown == ({entry["label"]: entry["probabilities"][entry["label"]]} if entry else {})


def test_a_kept_column_with_the_name_of_a_predicted_one_is_called_input(predictor: Predictor, data: Path) -> None:
    rows = [{**json.loads(line), "label": "mine"} for line in data.read_text().splitlines()]
    tiny.write_jsonl(data, rows)
    text = read_out(write(predictor, data, "out.csv", keep=("label", "id")))
    assert text.splitlines()[0] == "input.label,id,label,probabilities.LABEL_0,probabilities.LABEL_1"
    assert text.splitlines()[1].startswith("mine,0,LABEL_")
    assert text.splitlines()[4] == "mine,3,,,"


def test_parquet_has_the_columns_of_csv_with_their_types(predictor: Predictor, data: Path, written: list[Any]) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"mixed": [number, "a", None, [1]][number % 4], "words": ["a"] * (number % 3), "half": number / 2 or 0}
    tiny.write_jsonl(data, rows)
    out = write(predictor, data, "out.parquet", keep=("id", "mixed", "words", "half"))
    table = pyarrow.parquet.read_table(out)
    assert table.column_names[:5] == ["id", "mixed", "words", "half", "label"]
    assert [str(kind) for kind in table.schema.types[:5]] == [
        "int64", "string", "list<element: string>", "double", "string",
    ]  # fmt: skip
    columns = table.to_pydict()
    assert columns["mixed"][:4] == ["0", "a", None, "[1]"]
    assert columns["words"] == [row["words"] for row in rows]
    assert columns["half"] == [row["half"] for row in rows]
    assert columns["label"] == [entry and entry["label"] for entry in written]
    assert columns["probabilities.LABEL_1"] == [entry and entry["probabilities"]["LABEL_1"] for entry in written]


def test_a_text_file_has_the_label_of_each_row(predictor: Predictor, data: Path, written: list[Any]) -> None:
    lines = read_out(write(predictor, data, "out.txt")).split("\n")
    assert lines == [*(entry["label"] if entry else "" for entry in written), ""]
    with pytest.raises(InputError, match=r"--keep \(id\): a .txt file has only the label of each row"):
        write(predictor, data, "kept.txt", keep=("id",))


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (None, ""),
        ({"input": {"id": 1}}, ""),
        ({"labels": ["a b", "c"], "probabilities": {}}, "a b\tc"),
        ({"tokens": ["x"], "tags": ["B-PER"]}, "B-PER"),
        ({"id": "7", "answer": "the\ncat", "score": 0.5}, "the cat"),
        ({"score": 0.25}, "0.25"),
        ({"text": "a summary"}, "a summary"),
        ({"text": "once", "continuation": "upon"}, "upon"),
        ({"choice": 2, "text": "cat", "probabilities": [0.5]}, "2"),
    ],
)
def test_what_a_line_of_text_has_of_a_prediction(entry: Any, line: str) -> None:
    from hf_finetune.export.prediction_formats import format_line

    assert format_line(entry) == line


@pytest.mark.parametrize("entry", [{"embedding": [0.5]}, {"query": "a", "ranking": []}, {"text": "a", "fills": []}])
def test_a_prediction_that_is_no_line_of_text_is_refused(entry: Any) -> None:
    from hf_finetune.export.prediction_formats import format_line

    with pytest.raises(InputError, match=r"--out: a prediction with .* is more than one line of text"):
        format_line(entry)


@pytest.mark.parametrize("name", ["out.xlsx", "out", "out.parquet.gz", "out.csv.zip"])
def test_an_ending_without_a_format_is_an_error_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"^--out \(.*\): the ending must be one of .jsonl, .json, .csv, .tsv"):
        predict_file(None, "no-such-data.csv", str(tmp_path / name))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^--out \(.*\): is a folder"):
        predict_file(None, "no-such-data.csv", str(tmp_path))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet", "out.json", "out.txt"])
def test_a_pipe_without_a_line_gives_a_file_without_rows(
    predictor: Predictor, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert predict_file(predictor, "-", str(tmp_path / name)) == 0
    assert read_names(tmp_path) == {name}
    if name == "out.json":
        assert json.loads((tmp_path / name).read_text()) == []


# --- rows that cannot be predicted ----------------------------------------------------------------------------------


def test_rows_that_cannot_be_predicted_are_named_and_counted(
    model_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(model_dir), "--data", str(data), "--batch-size", "4"]
    assert main(words) == 0
    output, errors = capsys.readouterr()
    assert len(output.splitlines()) == NUM_ROWS
    assert output.splitlines()[3] == "null"
    assert errors.splitlines() == [
        f"null: {data}:4: text is empty",
        f"null: {data}:{NUM_ROWS - 1}: text is null",
        f"2 of {NUM_ROWS} rows cannot be predicted and are null",
    ]
    assert main([*words, "--strict"]) == 2
    output, errors = capsys.readouterr()
    assert (len(output.splitlines()), errors) == (3, f"error: {data}:4: text is empty\n")


def test_of_many_such_rows_the_first_are_named(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "a cat"}] + [{"text": number} for number in range(40)]
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert main(["predict", str(model_dir), "--data", str(data), "--batch-size", "1"]) == 0
    output, errors = capsys.readouterr()
    assert output.splitlines()[1:] == ["null"] * 40
    assert [line for line in errors.splitlines() if line.startswith("null: ")] == [
        *(f"null: {data}:{line}: text is an int, not a string" for line in range(2, 12)),
        "null: more rows; they are counted at the end",
    ]
    assert errors.splitlines()[-1] == "40 of 41 rows cannot be predicted and are null"


def test_a_file_of_which_no_row_can_be_predicted_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": None}, {"text": ""}])
    with pytest.raises(InputError, match=r"none of the 2 rows can be predicted: .*rows\.jsonl:1: text is null"):
        predict_file(predictor, str(data), str(tmp_path / "out.csv"))
    assert read_names(tmp_path) == {"rows.jsonl"}


def test_other_rows_have_the_predictions_that_they_have_alone(
    predictor: Predictor, data: Path, written: list[Any]
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    usable = [row for row in rows if row["text"] and row["text"].strip()]
    assert [entry for entry in written if entry] == [predictor.predict(row["text"], batch_size=1) for row in usable]


def test_what_only_the_encoding_finds_is_a_null_too(
    predictor: Predictor, data: Path, written: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As words that are no list are found when a task tokenizes them."""
    encode = Predictor.encode

    def refuse(self: Predictor, table: Table, *, has_labels: bool) -> Any:
        if 20 in table.columns["id"]:
            raise InputError("row 20 is odd")
        return encode(self, table, has_labels=has_labels)

    monkeypatch.setattr(Predictor, "encode", refuse)
    entries = list(iterate_predictions(predictor, str(data), keep=("id",), batch_size=1))
    assert entries[20] == {"input": {"id": 20}}
    assert [entry["input"]["id"] for entry in entries if entry] == list(range(NUM_ROWS))
    assert [entry.get("label") for entry in entries if entry and entry["input"]["id"] != 20] == [
        entry and entry["label"] for row, entry in enumerate(written) if row != 20
    ]


def test_an_error_that_no_row_has_alone_is_raised(
    predictor: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Predictor.encode

    def refuse(self: Predictor, table: Table, *, has_labels: bool) -> Any:
        if len(table) > 1:
            raise InputError("rows do not fit together")
        return encode(self, table, has_labels=has_labels)

    monkeypatch.setattr(Predictor, "encode", refuse)
    with pytest.raises(InputError, match=r"^rows do not fit together$"):
        list(iterate_predictions(predictor, str(data), batch_size=1))


def test_predictions_from_python_still_raise(predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"^rows\[1\]: is empty$"):
        predictor.predict(["a cat", ""])


# --- memory and time ------------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_are_predicted(predictor: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a file is, no more than one part of it is in memory, and the first line comes after the first batch."""
    computed, run = [], ModelRunner.run

    def counting(self: ModelRunner, *arguments: Any) -> Any:
        computed.append(len(self.features))
        return run(self, *arguments)

    monkeypatch.setattr(ModelRunner, "run", counting)
    entries = iterate_predictions(predictor, str(data), batch_size=1)
    next(entries)
    assert computed == [1]
    assert len(list(entries)) == NUM_ROWS - 1
    assert computed == [1, 15, 16, 11]  # without the rows that cannot be predicted


# --- commands that are stopped --------------------------------------------------------------------------------------


class StopNowError(Exception):
    """What ends a command in these tests, as a signal would."""


@pytest.fixture
def saves_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is saved after each part."""
    monkeypatch.setattr(prediction_files, "SECONDS_BETWEEN_SAVES", -1.0)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`stop_after(2)`: the next command ends before it predicts its third part."""
    original = prediction_files.format_part

    def change(count: int) -> None:
        parts = iter(range(count))

        def stop(*arguments: Any) -> Any:
            if next(parts, None) is None:
                raise StopNowError
            return original(*arguments)

        monkeypatch.setattr(prediction_files, "format_part", stop)

    yield change
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.json.gz", "out.parquet"])
@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.usefixtures("saves_always")
def test_a_command_continues_after_what_it_has_and_the_file_is_that_of_an_undisturbed_one(
    predictor: Predictor,
    data: Path,
    stop_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    name: str,
    num_parts: int,
) -> None:
    undisturbed = write(predictor, data, name).read_bytes()
    out = data.with_name(name)
    out.write_text("old")
    stop_after(num_parts)
    with pytest.raises(StopNowError):
        predict_file(predictor, str(data), str(out), batch_size=1)
    assert out.read_text() == "old"
    assert read_names(data.parent) == {data.name, name, f"{name}.partial", f"{name}.partial.state"}
    with data.with_name(f"{name}.partial").open("a") as file:
        file.write('{"label": "LAB')  # what was written after the last state, and cut
    stop_after(4 - num_parts)
    capsys.readouterr()
    assert predict_file(predictor, str(data), str(out), batch_size=1) == NUM_ROWS
    num_rows = [1, 17, 33][num_parts - 1]
    assert f"continuing after {num_rows} rows of {name}.partial" in capsys.readouterr().err
    assert out.read_bytes() == undisturbed
    assert read_names(data.parent) == {data.name, name}


def change_rows(data: Path) -> None:
    data.write_text(data.read_text().replace('"id": 1}', '"id": 1, "label": "LABEL_0"}'))


def change_partial(data: Path) -> None:
    partial = data.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes().replace(b"LABEL_0", b"LABEL_1"))


def cut_partial(data: Path) -> None:
    partial = data.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-1])


def change_state(data: Path) -> None:
    data.with_name("out.jsonl.partial.state").write_text('{"made_up": 1}')


@pytest.mark.parametrize("change", [change_rows, change_partial, cut_partial, change_state])
@pytest.mark.usefixtures("saves_always")
def test_a_command_begins_again_if_anything_has_changed(
    predictor: Predictor, data: Path, stop_after: Callable[[int], None], change: Callable[[Path], None]
) -> None:
    out = data.with_name("out.jsonl")
    stop_after(2)
    with pytest.raises(StopNowError):
        predict_file(predictor, str(data), str(out), batch_size=1)
    change(data)
    stop_after(4)
    assert predict_file(predictor, str(data), str(out), batch_size=1) == NUM_ROWS
    expected = list(iterate_predictions(predictor, str(data), batch_size=1))
    assert [json.loads(line) for line in out.read_text().splitlines()] == expected
    assert read_names(data.parent) == {data.name, out.name}


@pytest.mark.usefixtures("saves_always")
def test_a_command_with_other_options_begins_again_but_rows_may_be_added(
    predictor: Predictor, data: Path, stop_after: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.with_name("out.jsonl")
    for options in ({"batch_size": 1}, {"batch_size": 1, "top_k": 1}, {"batch_size": 1, "keep": ("id",)}):
        stop_after(2)
        with pytest.raises(StopNowError):
            predict_file(predictor, str(data), str(out), **options)  # type: ignore[arg-type]
    shown = capsys.readouterr().err
    assert "continuing" not in shown
    begins = "out.jsonl.partial has 17 rows of a command with another model or other options: beginning again"
    assert shown.splitlines().count(begins) == 2
    with data.open("a") as file:
        file.write('{"text": "a new cat", "id": 45}\n')
    stop_after(2)
    assert predict_file(predictor, str(data), str(out), batch_size=1, keep=("id",)) == NUM_ROWS + 1
    assert "continuing after 17 rows" in capsys.readouterr().err
    ids = [json.loads(line)["input"]["id"] for line in out.read_text().splitlines()]
    assert ids == list(range(NUM_ROWS + 1))


def test_a_command_that_is_stopped_before_it_keeps_a_row_says_so(
    predictor: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> Any:
        raise StoppedError("stopped by SIGINT")

    monkeypatch.setattr(prediction_files, "format_part", stop)
    with pytest.raises(
        StoppedError, match=r"^stopped by SIGINT; no predictions are kept yet, and the same command begins"
    ):
        predict_file(predictor, str(data), str(data.with_name("out.jsonl")), batch_size=1)
    assert read_names(data.parent) == {data.name}


@pytest.mark.usefixtures("saves_always")
def test_a_pipe_continues_with_the_same_lines_and_refuses_others(
    predictor: Predictor, data: Path, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = data.read_text(), data.with_name("out.jsonl")
    for content, num_parts in ((text, 2), (text.replace("cat", "dog").replace("the", "a"), 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(content))
        stop_after(num_parts)
        error = StopNowError if num_parts else InputError
        with pytest.raises(error, match=None if num_parts else "has predictions of other rows .* remove the file"):
            predict_file(predictor, "-", str(out), batch_size=5)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    stop_after(7)
    assert predict_file(predictor, "-", str(out), batch_size=5) == NUM_ROWS


def test_two_commands_do_not_write_one_file(predictor: Predictor, data: Path) -> None:
    out = data.with_name("out.jsonl")
    partial = prediction_files.PartialFile(out, "")
    with partial.lock(), pytest.raises(InputError, match=r"out\.jsonl\.partial: another command is writing this file"):
        predict_file(predictor, str(data), str(out))
    assert predict_file(predictor, str(data), str(out)) == NUM_ROWS


COMMAND = """
import sys, time
from hf_finetune.export import prediction_files, prediction_rows
prediction_files.SECONDS_BETWEEN_SAVES = -1.0
original = prediction_files.predict_part
def slow(*arguments):
    time.sleep(0.2)
    return original(*arguments)
prediction_files.predict_part = slow
from hf_finetune.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_lose_nothing(
    model_dir: Path,
    data: Path,
    predictor: Predictor,
    tmp_path_factory: pytest.TempPathFactory,
    script_server: ScriptServer,
    number: signal.Signals,
) -> None:
    out, partial = data.with_name("out.csv"), data.with_name("out.csv.partial.state")
    predict_file(predictor, str(data), str(out), batch_size=1)
    digest = hashlib.sha256(out.read_bytes()).digest()
    out.unlink()
    words = ["predict", str(model_dir), "--data", str(data), "--out", str(out), "--batch-size", "1", "--device", "cpu"]
    folder = tmp_path_factory.mktemp("command")
    script = folder / "slow.py"
    script.write_text(COMMAND, encoding="utf-8")
    process = script_server.start(script, words, folder, {})
    deadline = time.monotonic() + 60
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.processes[0], number)
    code, errors = process.wait(60), process.read("stderr")
    assert not out.exists()
    if number is signal.SIGKILL:
        assert code == -number
    else:
        assert code == 75
        assert errors.splitlines()[-1].startswith(f"stopped by {number.name}; ")
        assert errors.rstrip().endswith("rows are in out.csv.partial, and the same command continues after them")
    again = script_server.start(script, words, folder, {})
    assert again.wait(60) == 0
    assert "continuing after" in again.read("stderr")
    assert hashlib.sha256(out.read_bytes()).digest() == digest
    assert {data.name, out.name} == read_names(data.parent)


# --- pipes, standard output, processes ------------------------------------------------------------------------------


def test_texts_a_line_and_several_files_are_read(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffthe old cat\r\n\r\na red saw\r\n".encode())
    entries = list(iterate_predictions(predictor, str(path), batch_size=1))
    assert entries == [*predictor.predict(["the old cat"]), None, *predictor.predict(["a red saw"])]
    labelled = tmp_path / "labelled.txt"  # as fastText reads it
    labelled.write_text("__label__x the old cat\n__label__y __label__x a red saw\n")
    assert list(iterate_predictions(predictor, str(labelled), batch_size=1)) == [entries[0], entries[2]]
    other = tiny.write_jsonl(tmp_path / "other.jsonl", [{"text": "this bread"}])
    both = list(iterate_predictions(predictor, [str(other), str(path)], batch_size=1))
    assert both == [*predictor.predict(["this bread"]), *entries]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_read_as_it_comes(predictor: Predictor, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"text": "a cat"}\n{"text": "a saw"}\n',))
    writer.start()
    entries = list(iterate_predictions(predictor, str(tmp_path / "pipe")))
    writer.join()
    assert entries == list(predictor.predict(["a cat", "a saw"]))
    blank = '\n{"text": "a cat"}\n  \n{"text": "a saw"}\n\n'  # as in files, blank lines are passed over
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(blank,))
    writer.start()
    assert list(iterate_predictions(predictor, str(tmp_path / "pipe"))) == entries
    writer.join()
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match=r"pipe\.csv\): is a pipe, which is read as JSON lines or as a text a line"):
        list(iterate_predictions(predictor, str(tmp_path / "pipe.csv")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a cat\n\xff\n", r"stdin\[1\]: byte 0xff is not utf-8"),
        (b'{"text": "a"}\nb\n', r"stdin\[1\]: is not a JSON object, and the first line is one"),
        (b'{"text": "a"}\n{"text": "\\ud800"}\n', r"stdin\[1\]: broken JSON: half a surrogate pair"),
    ],
)
def test_lines_of_standard_input_that_cannot_be_read(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(InputError, match=message):
        list(iterate_predictions(predictor, "-"))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match=r"--data \(-\): standard input is closed"):
        list(iterate_predictions(predictor, "-"))


def run_predict(model_dir: Path, *words: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """Runs the command in a process of its own."""
    command = [sys.executable, "-m", "hf_finetune", "predict", str(model_dir), "--device", "cpu", *words]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)


@pytest.mark.processes
def test_standard_output_that_is_full_or_not_utf_8(model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": "a cat", "name": "größe→日本"}])
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = run_predict(model_dir, "--data", str(data), stdout=full)
        assert done.stderr.decode() == "error: standard output: cannot be written: No space left on device\n"
        assert done.returncode == 2
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run_predict(model_dir, "--data", str(data), "--keep", "name", stdout=subprocess.PIPE, env=ascii_only)
    assert json.loads(done.stdout.decode("utf-8"))["input"] == {"name": "größe→日本"}
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.processes
def test_several_processes_write_the_same_bytes(
    model_dir: Path, predictor: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(predictor, data, "one.csv").read_bytes()
    data.with_name("one.csv").unlink()
    out = data.with_name("out.csv")
    single = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["--data", str(data), "--batch-size", "1", "--processes", "2"]
    done = run_predict(model_dir, *words, "--out", str(out), env=single, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
    assert out.read_bytes() == one
    assert done.stderr.decode().splitlines()[-1] == f"2 of {NUM_ROWS} rows cannot be predicted and are null"
    done = run_predict(model_dir, *words, "--strict", env=single, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr.decode()) == (2, f"error: {data}:4: text is empty\n")


@pytest.mark.parametrize("kind", ["itself", "link", "glob"])
def test_a_file_of_the_data_is_not_written_over(predictor: Predictor, data: Path, kind: str) -> None:
    before, out = data.read_bytes(), data
    if kind == "link":
        out = data.with_name("link.jsonl")
        out.symlink_to(data)
    location = str(data.parent / "*.jsonl") if kind == "glob" else str(data)
    with pytest.raises(InputError, match="is a file of --data, whose rows would be lost; name another file"):
        predict_file(predictor, location, str(out))
    assert data.read_bytes() == before
