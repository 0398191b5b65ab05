"""parquet, Arrow and Feather files: values of types that text does not have."""

import datetime
import decimal
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from support.files import error_of, read

from hf_finetune.config.sections import DataConfig, RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data.arrow_files import join_row_groups, read_class_names
from hf_finetune.data.formats import read_rows
from hf_finetune.data.shards import find_streamed_data
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import ColumnSpec, text_and_label_spec
from hf_finetune.system.errors import InputError

CONFIG = DataConfig(train=("x",))
DAY = datetime.datetime(2024, 2, 29, 12, 30)

# Values of a column, their type, and what is read
TYPES: dict[str, tuple[list[Any], pyarrow.DataType, list[Any]]] = {
    "binary": (["é".encode(), None], pyarrow.binary(), ["é", None]),
    "large binary": ([b"a"], pyarrow.large_binary(), ["a"]),
    "large string": (["a"], pyarrow.large_string(), ["a"]),
    "whole decimal": ([decimal.Decimal("11"), None], pyarrow.decimal128(5, 0), [11, None]),
    "decimal": ([decimal.Decimal("1.25")], pyarrow.decimal128(5, 2), [1.25]),
    "dictionary": (["a", "b", "a"], pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), ["a", "b", "a"]),
    "dictionary of bytes": ([b"a", b"b"], pyarrow.dictionary(pyarrow.int8(), pyarrow.binary()), ["a", "b"]),
    "day": ([DAY.date()], pyarrow.date32(), ["2024-02-29"]),
    "time": ([DAY], pyarrow.timestamp("us"), ["2024-02-29T12:30:00"]),
    "list": ([[b"a", None], []], pyarrow.large_list(pyarrow.binary()), [["a", None], []]),
    "struct": ([{"a": [decimal.Decimal(1)]}], pyarrow.struct([("a", pyarrow.list_(pyarrow.decimal128(3, 0)))]), [{"a": [1]}]),
    "boolean": ([True, None], pyarrow.bool_(), [True, None]),
    "nan": ([1.5], pyarrow.float32(), [1.5]),
}  # fmt: skip


def write_as(folder: Path, ending: str, table: pyarrow.Table) -> Path:
    """Writes a table as the ending says; ".stream" is an Arrow stream, as the datasets library writes it."""
    path = folder / f"a{ending.replace('.stream', '.arrow')}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif ending == ".feather":
        pyarrow.feather.write_feather(table, path)
    else:
        make = pyarrow.ipc.new_stream if ending == ".stream" else pyarrow.ipc.new_file
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("ending", [".parquet", ".feather", ".arrow", ".stream"])
@pytest.mark.parametrize(("values", "kind", "plain"), TYPES.values(), ids=TYPES)
def test_values_are_read_as_those_of_text_files(
    tmp_path: Path, values: list[Any], kind: pyarrow.DataType, plain: list[Any], ending: str
) -> None:
    table = pyarrow.table({"text": pyarrow.array(values, kind), "label": ["x"] * len(values)})
    rows = list(read_rows(write_as(tmp_path, ending, table), CONFIG))
    assert rows == [(number, {"text": value, "label": "x"}) for number, value in enumerate(plain, 1)]


def write_classes(
    path: Path,
    names: list[str] | None,
    *,
    ending: str = ".parquet",
    wrap: Callable[[Any], Any] = lambda classes: classes,
) -> Path:
    """Writes class numbers as the datasets library does. wrap: Makes the type of the column of that of the classes."""
    path.mkdir()
    table = pyarrow.table({"text": ["a", "b"], "label": [0, 1]})
    if names is not None:
        features = {"text": {"dtype": "string"}, "label": wrap({"names": names, "_type": "ClassLabel"})}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return write_as(path, ending, table)


@pytest.mark.parametrize("ending", [".parquet", ".feather", ".arrow", ".stream"])
@pytest.mark.parametrize(
    "wrap", [lambda kind: kind, lambda kind: {"feature": kind, "_type": "List"}, lambda kind: [kind]]
)
def test_the_names_of_classes_are_those_that_the_datasets_library_wrote(
    tmp_path: Path, ending: str, wrap: Callable[[Any], Any]
) -> None:
    path = write_classes(tmp_path / "a", ["neg", "pos"], ending=ending, wrap=wrap)
    for root in (None, tmp_path):
        assert read(path, root=root).class_names == ("neg", "pos")
    assert read(write_classes(tmp_path / "b", None, ending=ending)).class_names is None


def test_names_of_classes_in_objects_and_of_other_columns(tmp_path: Path) -> None:
    path = write_classes(tmp_path / "a", ["neg", "pos"], wrap=lambda classes: {"kind": classes})
    assert read_class_names(path, "label.kind") == ("neg", "pos")
    for column in ("label", "text", "other", "label.kind.more"):
        assert read_class_names(path, column) is None


def test_files_with_other_names_of_classes_are_refused(tmp_path: Path) -> None:
    a, b, c = (
        write_classes(tmp_path / name, names)
        for name, names in (("a", ["neg", "pos"]), ("b", ["pos", "neg"]), ("c", None))
    )
    assert read(a, a).class_names == ("neg", "pos")
    end = "the classes neg, pos; write the labels of both as names"
    assert error_of(a, b) == f"{b}: label has the classes pos, neg, and in {a} it has {end}"
    for files in ((a, c), (c, a)):
        assert error_of(*files) == f"{c}: label has no names of classes, and in {a} it has {end}"
    spec = text_and_label_spec(("text",), "label")
    assert find_streamed_data(DataConfig(train=(str(a),)), spec).class_names == ("neg", "pos")


PICTURES = pyarrow.array([{"bytes": b"\xff\xd8", "path": "1.jpg"}] * 2)


def test_pictures_in_a_column_that_is_not_used_do_no_harm(tmp_path: Path) -> None:
    path = write_as(tmp_path, ".parquet", pyarrow.table({"image": PICTURES, "text": ["a", "b"], "label": [1, 2]}))
    assert list(read_table([str(path)], CONFIG, "data.train").columns["text"]) == ["a", "b"]


LATE = pyarrow.array([10**9, 1], pyarrow.int32()).cast(pyarrow.date32())  # a day that Python does not have


@pytest.mark.parametrize("ending", [".parquet", ".feather", ".arrow", ".stream"])
def test_columns_that_are_not_used_are_not_read_and_errors_name_them(tmp_path: Path, ending: str) -> None:
    table = pyarrow.table({"image": PICTURES, "day": LATE, "text": ["a", "b"], "label": [1, 2]})
    path = write_as(tmp_path, ending, table)
    spec = text_and_label_spec(("text",), "label")
    rows = [row for _, row in read_rows(path, CONFIG, needs=spec.needs)]
    assert rows[1] == {"image": None, "day": None, "text": "b", "label": 2}
    assert read(path).columns == {"text": ["a", "b"], "label": [1, 2]}
    for column, message in (
        ("day", ":1: 'day' holds a value that cannot be read"),
        ("title", ":1: no column 'title' "),
    ):
        with pytest.raises(InputError) as caught:
            read_table([str(path)], CONFIG, "data.train", text_and_label_spec((column,), "label"))
        assert str(caught.value).startswith(f"{path}{message}")
    assert "(columns: image, day, text, label)" in str(caught.value)


@pytest.mark.parametrize("names", [{"text": "a.b"}, {}], ids=["a dot in a name", "no dot"])
def test_entries_of_objects_and_names_with_dots_are_read(tmp_path: Path, names: dict[str, str]) -> None:
    objects = pyarrow.array([{"title": "x", "kind": 1}, {"title": "y", "kind": 2}])
    table = pyarrow.table({"image": PICTURES, "a": objects, "text": ["a", "b"]})
    path = write_as(tmp_path, ".parquet", table.rename_columns([names.get(name, name) for name in table.column_names]))
    spec = text_and_label_spec((names.get("text", "text"), "a.title"), "a.kind")
    columns = read_table([str(path)], CONFIG, "data.train", spec).columns
    assert columns == {names.get("text", "text"): ["a", "b"], "a.title": ["x", "y"], "a.kind": [1, 2]}
    with pytest.raises(InputError, match=r"no column 'title' \(columns: image, a, .*set it to a.title for the entry"):
        read_table([str(path)], CONFIG, "data.train", text_and_label_spec(("title",), "a.kind"))


def test_columns_in_which_annotations_may_be_are_read(tmp_path: Path) -> None:
    """classify looks for tasks of Label Studio, tag for columns with other names than those of its settings."""
    annotations = [[{"result": [{"from_name": "label", "value": {"choices": [label]}}]}] for label in "ab"]
    table = pyarrow.table({"data": [{"text": "one"}, {"text": "two"}], "annotations": annotations, "image": PICTURES})
    path = write_as(tmp_path, ".parquet", table)
    classes = read_table([str(path)], CONFIG, "data.train", make_spec("classify"))
    assert classes.columns == {"text": ["one", "two"], "label": [{"choices": ["a"]}, {"choices": ["b"]}]}
    path = write_as(tmp_path, ".parquet", pyarrow.table({"Word": ["a", "b"], "NER": ["X", "O"], "doc_id": [1, 1]}))
    tags = read_table([str(path)], CONFIG, "data.train", make_spec("tag"))
    assert tags.columns == {"tokens": [["a", "b"]], "tags": [["X", "O"]]}


def make_spec(kind: str) -> ColumnSpec:
    """Returns the columns of a task."""
    config = RunConfig.from_settings({"model.backbone": "unused", "data.train": ["x"], "task.kind": kind})
    spec: ColumnSpec = load_task(kind).make_columns(config).spec
    return spec


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("column", "values", "what"),
    [
        ("text", pyarrow.array([b"a", b"\xff"]), "2: text holds bytes that are not UTF-8 text; store a string or"),
        ("label", pyarrow.array([b"a", b"\xff"]), "2: label holds bytes that are not UTF-8 text; store a string or"),
        ("label", PICTURES, "1: label holds bytes that are not UTF-8 text; store"),
    ],
)
def test_bytes_that_are_not_text_are_named_with_their_row(
    tmp_path: Path, ending: str, column: str, values: pyarrow.Array, what: str
) -> None:
    path = write_as(tmp_path, ending, pyarrow.table({"text": ["a", "b"], "label": [1, 2]} | {column: values}))
    with pytest.raises(InputError) as caught:
        read_table([str(path)], CONFIG, "data.train")
    assert str(caught.value).startswith(f"{path}:{what}")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["text", "label", "label"])
    path = write_as(tmp_path, ".parquet", table)
    assert error_of(path) == f"{path}: 2 columns are called 'label'"


def test_row_groups_are_read_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones at once. Rows keep their order and numbers. Memory does not grow with the groups."""
    monkeypatch.setattr("hf_finetune.data.arrow_files.ROWS_AT_ONCE", 1000)
    schema, generator = pyarrow.schema([("text", pyarrow.string())]), random.Random(0)

    def write(sizes: list[int]) -> Path:
        path, begin = tmp_path / f"{len(sizes)}.parquet", 0
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for size in sizes:
                rows = [f"{number} {generator.randbytes(100).hex()}" for number in range(begin, begin + size)]
                writer.write_table(pyarrow.table({"text": rows}, schema))
                begin += size
        return path

    def measure_held(path: Path) -> int:
        """The most bytes of Arrow's that reading the file holds."""
        before, held = pyarrow.total_allocated_bytes(), 0
        for number, row in read_rows(path, CONFIG):
            assert row["text"].startswith(f"{number - 1} ")
            held = max(held, pyarrow.total_allocated_bytes() - before)
        assert number == pyarrow.parquet.read_metadata(path).num_rows
        return held

    few = write([1, 2, 1500, 1, 2000, 0, 999, 1497])
    assert list(join_row_groups(pyarrow.parquet.read_metadata(few))) == [[0, 1, 2], [3, 4], [5, 6, 7]]
    measure_held(few)
    assert measure_held(write([1000] * 40)) < 2 * measure_held(write([1000] * 3))


def test_many_rows_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_finetune.data.arrow_files.ROWS_AT_ONCE", 7)
    table = pyarrow.table({"text": [f"t{number}" for number in range(50)], "label": [1] * 50})
    for ending in (".parquet", ".arrow"):
        assert list(read(write_as(tmp_path, ending, table)).lines) == list(range(1, 51))


@pytest.mark.parametrize("name", ["a.arrow", "a.feather"])
def test_a_damaged_arrow_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"ARROW1 no more")
    assert error_of(tmp_path / name).startswith(f"{tmp_path / name}: not an intact Arrow file: ")


@pytest.mark.parametrize("name", ["a.xlsx", "a.xls", "a.ods", "a.XLSX"])
def test_spreadsheets_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    assert error_of(tmp_path / name) == f"{tmp_path / name}: spreadsheets are not read; save the sheet as CSV (UTF-8)"
