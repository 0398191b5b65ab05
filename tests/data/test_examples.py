"""Rows with other columns than the task's own become examples on disk: once, part by part, with the values that memory gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from hf_finetune.config.recipes import read_defaults
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data import examples, sources
from hf_finetune.data.arrow_columns import Column
from hf_finetune.data.table import Table

ROWS: dict[str, list[dict[str, Any]]] = {
    "answer": [
        {"question": f"who {n}", "context": f"the cat {n}", "answer": "cat", "answer_start": 4} for n in range(9)
    ],
    "choose": [{"question": f"what {n}", "option1": "a", "option2": f"b {n}", "answer": "B"} for n in range(9)],
    "instruct": [
        {"instruction": f"say {n}", "input": "x" * (n % 2), "output": f"{n}", "system": "be"} for n in range(9)
    ],
}


def read(kind: str, path: Path, root: Path | None) -> Table:
    """Returns the examples of a file, with the defaults of a recipe."""
    settings = {**read_defaults(kind), "model.backbone": "none", "data.train": [str(path)]}
    config = RunConfig.from_settings(settings)
    spec = load_task(kind).make_columns(config).spec
    return sources.read_table(config.data.train, config.data, "data.train", spec, root=root)


@pytest.mark.parametrize("kind", ROWS)
def test_rows_on_disk_are_converted_once_and_in_parts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.write_jsonl(tmp_path / "a.jsonl", ROWS[kind])
    expected = read(kind, path, None)
    monkeypatch.setattr(sources, "SMALLEST_STORED", 1)
    monkeypatch.setattr(examples, "ROWS_AT_ONCE", 2)
    first = read(kind, path, tmp_path / "cache")

    def convert(*_: object) -> None:
        raise AssertionError("the rows were converted again")

    monkeypatch.setattr(examples, "add_converted", convert)
    for table in (first, read(kind, path, tmp_path / "cache")):
        assert {name: list(column) for name, column in table.columns.items()} == {
            name: list(column) for name, column in expected.columns.items()
        }
        assert table.digest(list(table.columns)) == expected.digest(list(expected.columns))
        assert (table.notes, table.where(8)) == (expected.notes, f"{path}:9")
        assert all(isinstance(column, Column) and column.file is not None for column in table.columns.values())
    assert len(expected.notes) == 1
    files = sorted(file.name for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert files == ["meta.json", "rows.arrow"]


def test_an_error_of_the_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SMALLEST_STORED", 1)
    rows = [{"question": "what", "options": ["a", "b"], "endings": ["c", "d"], "answer": "B"}]
    path = tiny.write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(sources.InputError, match=r"a.jsonl:1: both options and endings may be the choices"):
        read("choose", path, tmp_path / "cache")
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []
    path.write_text(json.dumps({**rows[0], "endings": None}) + "\n", encoding="utf-8")
    assert len(read("choose", path, tmp_path / "cache")) == 1
