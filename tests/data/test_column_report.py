"""Summaries of columns, and the guess which of them are a text and its label."""

from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.column_report import guess_text_and_labels, read_all_columns, summarize_columns
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

CONFIG = DataConfig(train=("unused",))


def summarize(**columns: list[Any]) -> list[Any]:
    size = len(next(iter(columns.values())))
    return summarize_columns(Table(columns=columns, files=["a.csv"] * size, lines=list(range(size))))


def test_types_missing_and_distinct_values_are_counted() -> None:
    (summary,) = summarize(value=["a", None, "bcd", " ", 3, "a", float("nan"), ["x"], True])
    assert summary.types == {"text": 3, "integer": 1, "list": 1, "true/false": 1}
    assert summary.missing == 3
    assert summary.distinct == 5
    assert summary.example == "a"


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        (["ab", "abcd"], ("text", "0", "2", "2 to 4 characters", "'ab'")),
        (["ab", "ab"], ("text", "0", "1", "2 characters", "'ab'")),
        (["1", "12", None], ("number as text", "1", "2", "1 to 2 characters", "'1'")),
        ([5, 1, 3], ("integer", "0", "3", "1 to 5", "'5'")),
        ([5, 1.5], ("integer or number", "0", "2", "1.5 to 5", "'5'")),
        ([["a", "b"], []], ("list", "0", "2", "0 to 2 items", "\"['a', 'b']\"")),
        ([["a"], ["b"]], ("list", "0", "2", "1 item", "\"['a']\"")),
        ([None, None], ("empty", "2", "0", "", "'None'")),
    ],
)
def test_a_column_is_described(values: list[Any], cells: tuple[str, ...]) -> None:
    (summary,) = summarize(value=values)
    assert summary.describe() == ("value", *cells)
    assert summary.to_dict()["missing"] == int(cells[1].replace(",", ""))


def test_the_longest_texts_and_the_fewest_labels_are_guessed() -> None:
    rows = range(20)
    columns = {
        "id": list(rows),
        "title": [f"film {row}" for row in rows],
        "review": [f"a long text about the film {row}" for row in rows],
        "stars": [str(row % 5) for row in rows],
        "country": [f"land {row % 9}" for row in rows],
        "constant": ["x"] * 20,
    }
    assert guess_text_and_labels(summarize(**columns)) == ("review", ["stars"])
    assert guess_text_and_labels(summarize(id=list(rows), stars=[row % 5 for row in rows])) is None
    assert guess_text_and_labels(summarize(review=columns["review"], id=list(rows))) is None


def test_all_columns_of_files_are_read(tmp_path: Path) -> None:
    tiny.write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "x": 1}, {"text": "b", "y": [1]}])
    table = read_all_columns([str(tmp_path / "a.jsonl")], CONFIG)
    assert {name: list(values) for name, values in table.columns.items()} == {
        "text": ["a", "b"],
        "x": [1, None],
        "y": [None, [1]],
    }


def test_files_without_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("word O\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"a\.conll: is not a table \(.*\.csv.*\); if a task reads such files, name it: --task tag"
    ):
        read_all_columns([str(tmp_path / "a.conll")], CONFIG)
    (tmp_path / "b.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"b\.jsonl: has no rows"):
        read_all_columns([str(tmp_path / "b.jsonl")], CONFIG)
