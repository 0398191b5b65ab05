"""Which annotations of a task of Label Studio count, and what is none."""

from collections import Counter
from typing import Any

import pytest

from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.label_studio import (
    AGREE,
    TRUE,
    find_annotations,
    is_task,
    read_annotations,
    say_counts,
    was_skipped,
)


def make_annotation(*numbers: int, **entries: Any) -> dict[str, Any]:
    """Returns an annotation whose results hold numbers."""
    return {"result": [{"number": number} for number in numbers], **entries}


def read(*annotations: Any) -> tuple[list[int] | None, Counter[str]]:
    """Returns the numbers of a task with these annotations, and the counts."""
    counts: Counter[str] = Counter()
    found = read_annotations(annotations, "a.json:1", lambda results: [part["number"] for part in results], counts)
    return found, +counts


def test_what_is_a_task_and_which_entities_are_annotations() -> None:
    task = {"data": {"text": "a"}, "annotations": []}
    assert is_task(task)
    assert is_task({"data": {"text": "a"}, "completions": []})
    assert not is_task({"data": "a", "annotations": []})
    assert find_annotations(task, task["annotations"]) == []
    assert find_annotations({"text": "a"}, [{"result": []}]) == [{"result": []}]
    assert find_annotations({"text": "a"}, [[0, 1, "x"]]) is None
    assert find_annotations({"text": "a"}, []) is None


def test_annotations_that_were_cancelled_do_not_count() -> None:
    cancelled = make_annotation(1, was_cancelled=True)
    assert read(cancelled, make_annotation(2)) == ([2], Counter())
    assert read(cancelled) == read() == (None, Counter())
    assert was_skipped([cancelled], "a.json:1")
    assert not was_skipped([], "a.json:1")
    assert not was_skipped([cancelled, make_annotation()], "a.json:1")


def test_several_annotations_agree_or_are_marked_or_are_an_error() -> None:
    assert read(make_annotation(2, 1), make_annotation(1, 2)) == ([2, 1], Counter({AGREE: 1}))
    true = make_annotation(3, ground_truth=True)
    assert read(make_annotation(1), true) == ([3], Counter({TRUE: 1}))
    assert read(make_annotation(1), true, true) == ([3], Counter({TRUE: 1, AGREE: 1}))
    with pytest.raises(InputError, match=r"a.json:1: its 2 annotations disagree on 1, 3, 4, 5, 6, \.\.\.; keep one"):
        read(make_annotation(1, 2), make_annotation(2, 3, 4, 5, 6, 7))
    with pytest.raises(InputError, match=r"its 2 annotations disagree on 1; "):
        read(make_annotation(), make_annotation(1))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (12, "an annotation is an int, not an object with a result"),
        (None, "an annotation is null"),
        ({"result": ["x"]}, "a result of an annotation is a str, not an object"),
        ({"result": [None]}, "a result of an annotation is null"),
        ({"result": {"a": 1}}, "the result of an annotation is a dict, not a list"),
        ({"result": "abc"}, "the result of an annotation is a str, not a list"),
    ],
)
def test_what_is_no_annotation_is_an_error_with_its_task(annotation: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"a.json:1: {message}"):
        read(make_annotation(1), annotation)
    assert read({"result": None}) == read({}) == ([], Counter())


def test_counts_are_said() -> None:
    said: list[str] = []
    say_counts(Counter({AGREE: 1200, TRUE: 0}), said.append)
    assert said == ["tasks that have several annotations, which agree: 1,200"]
