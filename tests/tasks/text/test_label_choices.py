"""Choices in a label column, as the smaller exports of Label Studio have them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tasks.text.test_label_reader import catch_error, make_table, make_task, read_targets

from hf_finetune.tasks.text.label_choices import count_most_choices, read_choices

SEVERAL = ["neg", {"choices": ["a", "neg"]}, {"choices": []}]


@pytest.mark.parametrize(
    ("value", "choices"),
    [
        ({"choices": ["a", "b"]}, ["a", "b"]),
        ('{"choices": ["a"]}', ["a"]),
        ({"choices": "a"}, None),
        ({"choices": ["a"], "start": 3}, None),
        (["a"], None),
        ("a", None),
        (None, None),
    ],
)
def test_an_object_of_choices_is_a_list_of_labels(value: Any, choices: list[str] | None) -> None:
    assert read_choices(value) == choices
    assert count_most_choices([value, "a"]) == (None if choices is None else len(choices))


@pytest.mark.parametrize(
    "write", [lambda value: value, lambda value: json.dumps(value) if isinstance(value, dict) else value]
)
def test_a_column_of_a_choice_and_of_several_has_several_labels(write: Callable[[Any], Any]) -> None:
    table = make_table(text=["one", "two", "three"], label=list(map(write, SEVERAL)))
    task = make_task(table)
    assert (task.problem, task.label_names) == ("multi_label", ("a", "neg"))
    assert task.encoding.reason.startswith("label holds several choices for some texts, as Label Studio writes them")
    assert read_targets(task, table) == [[0, 1], [1, 1], [0, 0]]


def test_a_test_file_with_single_choices_alone_is_read_as_training() -> None:
    task = make_task(make_table(text=["one", "two", "three"], label=SEVERAL))
    test = make_table(text=["four", "five"], label=["a", "neg"])
    assert read_targets(task, test) == [[1, 0], [0, 1]]
    with pytest.raises(Exception, match=r"made.csv:1: label \(neg,a\) is not a list"):
        read_targets(task, make_table(text=["four"], label=["neg,a"]))


def test_one_choice_for_each_text_is_a_single_label() -> None:
    table = make_table(text=["one", "two"], label=[{"choices": ["b"]}, "a"])
    assert make_task(table).problem == "single_label"
    assert read_targets(make_task(table), table) == [1, 0]
    assert read_targets(make_task(table, problem="multi_label"), table) == [[0, 1], [1, 0]]


def test_no_choice_is_a_missing_label_unless_texts_may_have_several() -> None:
    table = make_table(text=["one", "two", "three"], label=[{"choices": ["b"]}, {"choices": []}, "a"])
    assert catch_error(table).startswith("made.csv:2: label is an empty list; to leave out the rows without a label")
    columns = make_task(make_table(text=["one", "two"], label=["a", "b"]), ignore_labels=(None,)).columns
    assert columns.spec.keep_labelled is not None
    assert columns.spec.keep_labelled(table).columns["text"] == ["one", "three"]
    several = make_table(text=["one", "two"], label=[{"choices": ["b", "a"]}, {"choices": []}])
    assert columns.spec.keep_labelled(several).columns["text"] == ["one", "two"]
    assert "made.csv:1: label (['b', 'a']) is not a single label" in catch_error(several, problem="single_label")
