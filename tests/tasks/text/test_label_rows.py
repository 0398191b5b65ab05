"""Full exports of Label Studio: tasks with annotations become rows of texts and labels."""

import io
import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from hf_finetune.cli import main
from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig
from hf_finetune.data.memory import read_memory
from hf_finetune.data.parts import read_parts
from hf_finetune.data.shards import find_streamed_data
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import Classification
from hf_finetune.tasks.classify_columns import Settings
from hf_finetune.tasks.text.label_rows import LabelRows


def make_result(*choices: str, name: str = "label") -> dict[str, Any]:
    """Returns the result of a choice, as Label Studio writes it."""
    return {"from_name": name, "to_name": "text", "type": "choices", "value": {"choices": list(choices)}}


def make_annotation(*results: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """Returns an annotation."""
    return {
        "id": 1,
        "completed_by": 1,
        "was_cancelled": False,
        "ground_truth": False,
        "result": list(results),
    } | entries


def make_item(text: Any, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    """Returns a task of Label Studio. data: More of its data."""
    return {"id": 7, "data": {"text": text, **data}, "annotations": list(annotations), "predictions": []}


def label(text: str, *choices: str) -> dict[str, Any]:
    """Returns a task with one annotation."""
    return make_item(text, make_annotation(make_result(*choices)))


SPAN = {"from_name": "ner", "type": "labels", "value": {"start": 0, "end": 3, "text": "one", "labels": ["PER"]}}
CANCELLED = make_annotation(make_result("neg"), was_cancelled=True)


def adapt(
    *rows: dict[str, Any], texts: tuple[str, ...] = ("text",), column: str = "label", needs_labels: bool = True
) -> tuple[list[tuple[Any, ...]], list[str]]:
    """Returns line, texts and choices of the rows that are made of rows 1, 2, ... of a.json, and what is said."""
    notes: list[str] = []
    made = LabelRows(texts=texts, label=column).adapt(
        iter(enumerate(rows, 1)), where=lambda line: f"a.json:{line}", say=notes.append, needs_labels=needs_labels
    )
    read = [(line, *(row.get(name) for name in texts), row[column] and row[column]["choices"]) for line, row in made]
    return read, notes


def test_a_task_is_a_row_of_its_text_and_its_choices() -> None:
    rows, notes = adapt(
        label("one", "pos"), label("two", "a", "b"), make_item("three", make_annotation()), make_item("four")
    )
    assert rows == [(1, "one", ["pos"]), (2, "two", ["a", "b"]), (3, "three", []), (4, "four", None)]
    assert notes == ["tasks of Label Studio; the labels are the choices label"]
    old = {"data": {"review": "one", "id": 5}, "completions": [make_annotation(make_result("pos"))]}
    assert adapt(old)[0] == [(1, "one", ["pos"])]  # the only text


def test_texts_are_found_by_their_names() -> None:
    pair = make_item("x", make_annotation(make_result("pos")), premise="one", hypothesis="two")
    assert adapt(pair, texts=("premise", "hypothesis"))[0] == [(1, "one", "two", ["pos"])]
    with pytest.raises(
        InputError, match=r"a.json:1: data has 3 texts \(text, premise, hypothesis\); name one in data.text_"
    ):
        adapt(pair, texts=("review",))


def test_annotations_that_were_skipped_are_left_out_and_counted() -> None:
    rows, notes = adapt(make_item("one", CANCELLED), make_item("two", CANCELLED, make_annotation(make_result("pos"))))
    assert rows == [(2, "two", ["pos"])]
    assert notes[1:] == ["tasks that were skipped by the annotator and are left out: 1"]


def test_annotators_agree_or_one_is_right_or_it_is_an_error() -> None:
    first, same, other = (make_annotation(make_result(*choices)) for choices in ("ab", "ba", "c"))
    rows, notes = adapt(make_item("one", first, same), make_item("two", first, {**other, "ground_truth": True}))
    assert rows == [(1, "one", ["a", "b"]), (2, "two", ["c"])]
    assert notes[1:] == [
        "tasks that have several annotations, which agree: 1",
        "tasks that have an annotation that is marked as ground truth, which is taken: 1",
    ]
    with pytest.raises(InputError, match=r"a.json:2: its 2 annotations disagree on a, b, c; keep one of them, mark"):
        adapt(label("one", "a"), make_item("two", first, other))


def test_choices_of_several_kinds_are_named_by_the_label_column() -> None:
    both = make_annotation(make_result("pos", name="mood"), make_result("sport", name="topic"), SPAN)
    rows = (make_item("one", both), make_item("two", make_annotation(make_result("art", name="topic"))))
    assert adapt(*rows, column="mood")[0] == [(1, "one", ["pos"]), (2, "two", [])]
    assert adapt(*reversed(rows), column="mood")[0] == [(1, "two", []), (2, "one", ["pos"])]
    message = r"a.json:1: the choices of the tasks are called mood and topic, not label; name one in data.label_column"
    with pytest.raises(InputError, match=message):
        adapt(*rows)


def test_a_split_with_choices_of_another_name_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"{name}.json" for name in ("mood", "spam")]
    for path in paths:
        items = [make_item(text, make_annotation(make_result(text, name=path.stem))) for text in ("yes", "no")]
        path.write_text(json.dumps(items), encoding="utf-8")
    train, test = map(str, paths)
    assert main(["data", train, "--test", test, "--task", "classify", "--data.label_column", "mood"]) == 2
    shown = capsys.readouterr().err
    assert f"{test}:1: the choices of the tasks are called spam, not mood; name one in data.label_column" in shown


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([make_item("one", make_annotation(SPAN))], r"a.json:1: no task has choices, only results of the type labels; "),
        ([label("one", "a"), {"text": "b", "label": "c"}], r"a.json:2: is not a task of Label Studio"),
    ],
)  # fmt: skip
def test_what_has_no_choices_is_an_error(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapt(*rows)


def test_rows_to_predict_keep_all_tasks_and_other_tables_stay() -> None:
    rows = [make_item("one", CANCELLED), label("two", "a")]
    assert adapt(*rows, needs_labels=False)[0] == [(1, "one", None), (2, "two", None)]
    plain = {"text": "one", "label": {"choices": ["a"]}}
    assert adapt(plain) == ([(1, "one", ["a"])], [])


def test_tasks_without_annotations_are_rows_to_predict_but_none_to_train_on() -> None:
    bare = {"id": 1, "data": {"review": "one", "source": 5}}
    assert adapt(bare, label("two", "a"), needs_labels=False) == ([(1, "one", None), (2, "two", None)], [])
    made = LabelRows(texts=("data.review",), label="label")
    assert made.adapts(label("two", "a"))
    assert not made.adapts(bare)  # the setting names the entry of the object
    assert list(made.adapt(iter([(1, bare)]), where=str, say=print, needs_labels=False)) == [(1, bare)]
    with pytest.raises(InputError, match=r"a.json:2: is not a task of Label Studio \(data, annotations\)"):
        adapt(label("two", "a"), bare)
    message = r"a.json:1: data has 2 texts \(review, title\); name one in data.text_columns"
    with pytest.raises(InputError, match=message):
        adapt({"data": {"review": "one", "title": "two"}}, needs_labels=False)


@pytest.mark.parametrize("kind", ["file", "standard input", "rows", "frame"])
def test_tasks_to_predict_are_read_from_files_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rows, path = [{"data": {"review": "one"}}, {"data": {"review": "two"}}], tmp_path / "a.json"
    spec, data = Classification.make_columns(make_config()).spec, make_config().data
    path.write_text(json.dumps(rows), encoding="utf-8")
    if kind in ("file", "standard input"):
        lines = "\n".join(map(json.dumps, rows)).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
        name = str(path) if kind == "file" else "-"
        (part,) = read_parts((name,), data, spec, [5], lambda text, where: {"text": text})
        assert (part.table.columns["text"], part.problems) == (["one", "two"], {})
        return
    given = rows if kind == "rows" else pandas.DataFrame(rows)
    table = read_memory(given, "rows", data, spec, needs_labels=False)
    assert table.columns["text"] == ["one", "two"]
    with pytest.raises(InputError, match="no column 'text'"):
        read_memory(given, "train", data, spec)


# --- from end to end -------------------------------------------------------------------------------------------------


def read_targets(table: Table, **settings: Any) -> tuple[Classification, list[Any]]:
    """Returns the task for a training table, and its targets: names of labels."""
    task = Classification.from_table(make_config(**settings), table)
    targets: Any = task.encoding.labels(table, {})
    rows = range(len(table))
    if task.problem == "single_label":
        return task, [task.label_names[targets[row]] for row in rows]
    return task, [[task.label_names[number] for number in targets.get(row)] for row in rows]


def make_config(**settings: Any) -> RunConfig:
    """Returns a config that is never run. settings: those of the task."""
    task = Settings(kind="classify", **settings)
    return RunConfig(model=ModelConfig(backbone="unused"), data=DataConfig(train=("-",)), task=task)


SINGLE = [label("one", "pos"), label("two", "neg"), make_item("three", CANCELLED), label("four", "pos")]


@pytest.mark.parametrize("kind", ["file", "lines", "rows", "frame"])
def test_files_and_rows_in_memory_give_the_same(tmp_path: Path, kind: str) -> None:
    spec, path = (
        Classification.make_columns(make_config()).spec,
        tmp_path / f"a.{'json' if kind == 'file' else 'jsonl'}",
    )
    if kind in ("file", "lines"):
        path.write_text(json.dumps(SINGLE) if kind == "file" else "\n".join(map(json.dumps, SINGLE)), encoding="utf-8")
        table = read_table((str(path),), make_config().data, "data.train", spec)
    else:
        table = read_memory(SINGLE if kind == "rows" else pandas.DataFrame(SINGLE), "train", make_config().data, spec)
    task, targets = read_targets(table)
    assert (task.problem, list(task.label_names), targets) == ("single_label", ["neg", "pos"], ["pos", "neg", "pos"])
    assert table.columns["text"] == ["one", "two", "four"]
    assert any("tasks that were skipped" in note for note in table.notes)
    assert table.where(2) == ("train[3]" if kind in ("rows", "frame") else f"{path}:4")


def test_a_stream_of_tasks_is_read_the_same() -> None:
    config = make_config()
    spec = Classification.make_columns(config).spec
    data = find_streamed_data(config.data, spec, lambda: iter(SINGLE))
    (shard,) = data.shards
    table = data.make_table(list(shard.read()), spec)
    given = read_memory(SINGLE, "train", config.data, spec)
    assert (table.columns, list(table.lines)) == (given.columns, [0, 1, 3])


def test_the_data_command_reads_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(SINGLE), encoding="utf-8")
    assert main(["data", str(path), "--task", "classify"]) == 0
    shown = capsys.readouterr().out
    assert "tasks of Label Studio; the labels are the choices label" in shown
    assert "neg (1) and pos (2)" in shown
