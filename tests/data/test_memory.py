"""Rows that a program gives become the tables of files; what cannot be read in one way is refused with the row."""

import datetime
import decimal
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pytest
from support import tiny

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.memory import read_memory
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import ColumnSpec, Table, text_and_label_spec
from hf_finetune.system.errors import InputError

CONFIG = DataConfig(train=("memory://train",))
SPEC = text_and_label_spec(("text",), "label")


def read(value: Any, spec: ColumnSpec = SPEC, name: str = "train", **options: Any) -> Table:
    """Reads rows as training data."""
    return read_memory(value, name, CONFIG, spec, **options)


def error_of(value: Any, name: str = "train") -> str:
    """Returns the message of the InputError, one line."""
    with pytest.raises(InputError) as caught:
        read(value, name=name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def make_forms(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same rows in every form that a program can give."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        "rows": rows,
        "generator": (row for row in rows),
        "columns": columns,
        "arrays": {name: np.array(values) for name, values in columns.items()} if "words" not in columns else columns,
        "pandas": pandas.DataFrame(rows),
        "polars": polars.DataFrame(rows),
        "datasets": datasets.Dataset.from_list(rows),
    }


TABLES: dict[str, tuple[list[dict[str, Any]], ColumnSpec]] = {
    "names": (tiny.make_rows(6), SPEC),
    "numbers": ([{"text": f"text {number}", "label": number % 3} for number in range(6)], SPEC),
    "fractions": (tiny.make_rows(6, problem="regression"), SPEC),
    "bools": ([{"text": f"text {number}", "label": number % 2 == 0} for number in range(6)], SPEC),
    "lists": (tiny.make_rows(6, problem="multi_label"), SPEC),
    "tags": ([{"words": ["a", "cat"], "tags": ["O", "B-x"]}] * 3, ColumnSpec(inputs=("words",), labels=("tags",))),
    "objects": (
        [{"answers": {"text": ["cat"], "start": [0]}, "text": "cat"}] * 3,
        ColumnSpec(inputs=("text", "answers.text")),
    ),
    "messages": ([{"messages": [{"role": "user", "content": "a"}]}] * 3, ColumnSpec(inputs=("messages",))),
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_form_gives_the_columns_of_a_file(kind: str, tmp_path: Path) -> None:
    rows, spec = TABLES[kind]
    file = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    expected = read_table([str(file)], CONFIG, "data.train", spec).columns
    forms = make_forms(rows)
    if kind == "lists":
        del forms["arrays"]  # lists of different lengths
    for form, value in forms.items():
        table = read(value, spec)
        assert table.columns == expected, form
        assert {type(cell) for cell in table.columns[spec.columns[0]]} <= {str, list}, form
        assert (table.where(0), table.where(2), table.is_tabular(0)) == ("train[0]", "train[2]", True)


def test_class_numbers_of_a_data_set_keep_their_names() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    table = read(datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features))
    assert (table.columns["label"], table.class_names) == ([1, 0], ("bad", "good"))


def test_a_missing_value_is_null_and_categories_are_their_values() -> None:
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": [1, np.nan, 2]})
    assert read(frame).columns["label"] == [1.0, None, 2.0]
    for missing in (pandas.NA, pandas.NaT, None, float("nan"), np.float32("nan")):
        assert read([{"text": "a", "label": missing}]).columns["label"] == [None]
    for cells in (pandas.Categorical(["x", "y", "x"], categories=["y", "x", "z"]), pandas.array([1, 2, 1], "Int64")):
        assert read(pandas.DataFrame({"text": ["a", "b", "c"], "label": cells})).columns["label"] == list(cells)
    frame = polars.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}, schema_overrides={"label": polars.Categorical})
    assert read(frame).columns["label"] == ["x", "y"]
    assert read([{"text": np.str_("a"), "label": np.int64(3)}]).columns == {"text": ["a"], "label": [3]}


def test_rows_of_a_frame_with_another_index_are_named_by_both() -> None:
    frame = pandas.DataFrame({"text": ["a", ""], "label": [1, 2]}, index=["first", "second"])
    assert error_of(frame) == "train[1] (index second): text is empty"
    table = read(frame.iloc[::-1].assign(text="a"))
    assert (table.where(0), table.take([1]).where(0)) == ("train[0] (index second)", "train[1] (index first)")
    assert read(frame.assign(text="a").reset_index(drop=True)).where(1) == "train[1]"


def test_a_frame_whose_columns_are_called_by_its_first_row_is_warned_of() -> None:
    rows = ["sports,a goal in the last minute", "tech,the phone has a new screen", "sports,they won the cup again"]
    spec = text_and_label_spec(("a goal in the last minute",), "sports")
    table = read(pandas.read_csv(io.StringIO("\n".join(rows))), spec)
    assert table.warnings == (
        "train: the names of the frame's columns may be a row of the data: 'sports' is a value of its column, too; if they are, "
        "read the file without names, as pandas.read_csv(FILE, header=None) does",
    )
    unnamed = pandas.read_csv(io.StringIO("\n".join(rows)), header=None)
    assert read(unnamed, text_and_label_spec(("1",), "0")).warnings == ()
    assert (
        read({name: list(column) for name, column in table.columns.items()}, spec).warnings == ()
    )  # a program that writes a dict has named its lists


def make_stream() -> Any:
    """A data set that is read row by row."""
    return datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset()


WHAT = "give a pandas or polars frame"
REFUSED: dict[str, Callable[[], Any]] = {
    "train: has no rows": list,
    "train: has no rows ": lambda: pandas.DataFrame({"text": [], "label": []}),
    "train: has no rows  ": lambda: {"text": [], "label": []},
    "train: has no rows   ": lambda: datasets.Dataset.from_dict({"text": [], "label": []}),
    "train: no column 'label' (columns: text); see data.label_column": lambda: pandas.DataFrame({"text": ["a"]}),
    "train[1]: no column 'label' (columns: text); see data.label_column": lambda: [{"text": "a", "label": 1}, {"text": "a"}],
    "train[1]: is a str, not a dict; " + WHAT: lambda: [{"text": "a", "label": 1}, "b"],
    "train: is a str; " + WHAT: lambda: "abc",
    "train: is a set; " + WHAT: lambda: {"a", "b"},
    "train: is an int; " + WHAT: lambda: 7,
    "train[0]: is a str, not a dict; " + WHAT: lambda: pandas.Series(["a"]),
    "train: no column 'text' (columns: train, test); see": lambda: {"train": pandas.DataFrame(), "test": pandas.DataFrame()},
    "train: is a LazyFrame; " + WHAT: lambda: polars.LazyFrame({"text": ["a"]}),
    "train: is an IterableDataset; load it without streaming, or": make_stream,
    "train: has two columns of one name (text, text)": lambda: pandas.DataFrame([["a", "b"]], columns=["text", "text"]),
    "train: has two columns of one name (0, 0)": lambda: pandas.DataFrame([["a", "b"]], columns=[0, "0"]),
    "train: the columns have different lengths (text 2, label 1)": lambda: {"text": ["a", "b"], "label": [1]},
    "train: the column text is a str, not a list; give [row] for": lambda: {"text": "a", "label": 1},
    "train: the column label is an int, not a list; " + WHAT: lambda: {"text": ["a"], "label": 1},
    "train[1]: text is null": lambda: pandas.DataFrame({"text": ["a", None], "label": [1, 2]}),
    "train[0]: text is an int, not a string": lambda: [{"text": 5, "label": 1}],
    "train[0]: label holds a Timestamp; store a string or a number instead": lambda: pandas.DataFrame(
        {"text": ["a"], "label": pandas.to_datetime(["2026-01-01"])}
    ),
    "train[0]: label holds a date; store a string or a number instead, or name another column": lambda: [
        {"text": "a", "label": datetime.date(2026, 1, 1)}
    ],
    "train[0]: label holds bytes that are not UTF-8 text; store a string": lambda: [{"text": "a", "label": b"\xff"}],
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_rows_that_cannot_be_read_in_one_way_are_refused(message: str) -> None:
    assert error_of(REFUSED[message]()).startswith(message.strip())


def test_decimals_are_numbers_and_utf_8_bytes_are_text() -> None:
    rows = [{"text": "a", "label": value} for value in (decimal.Decimal(1), decimal.Decimal("1.50"), "ä".encode())]
    assert list(map(repr, read(rows).columns["label"])) == ["1", "1.5", "'ä'"]


def test_columns_without_names_are_called_by_their_numbers() -> None:
    spec = text_and_label_spec(("0",), "1")
    assert read(pandas.DataFrame([["a", 3]]), spec).columns == {"0": ["a"], "1": [3]}


def test_labels_may_be_missing_if_they_are_not_needed() -> None:
    for value in make_forms([{"text": "a"}, {"text": "b"}]).values():
        assert read(value, needs_labels=False).columns == {"text": ["a", "b"], "label": [None, None]}
    error = error_of(pandas.DataFrame({"text": ["a"]}), name="test")
    assert error.endswith("; rows without labels can be predicted after training, but not evaluated")


def test_a_test_split_that_hides_its_labels_is_left_out_and_that_is_said() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    texts = [f"text {number}" for number in range(40)]
    shown = datasets.Dataset.from_dict({"text": texts, "label": [0, 1] * 20}, features=features)
    hidden = datasets.Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    splits = load_splits(CONFIG, 0, SPEC, {"train": shown, "validation": shown, "test": hidden})
    hiding = "test: left out, because all its labels are -1, which means that they are hidden"
    assert [note for note in splits.notes if "left out" in note] == [hiding]
    assert splits.test is not None
    assert splits.test.files[0] == "train"
