"""Every format gives the same rows with their lines; a broken file is named with its line."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.files import error_of, read, write

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.table import Table
from hf_finetune.data.text_files import read_whole
from hf_finetune.system.errors import InputError

ROWS = [
    {"text": "a cat, small", "label": "animals"},
    {"text": 'a "big"\ndog', "label": "animals"},
    {"text": "über die Brücke\t€", "label": "food"},
]


def delimited(rows: Sequence[dict[str, str]], delimiter: str) -> str:
    """Returns rows as csv text with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes a parquet file of these rows. Returns its path."""
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


def test_json_lines_in_a_file_named_json_are_read_as_lines(tmp_path: Path) -> None:
    table = read(write(tmp_path / "rows.json", CONTENT[".jsonl"][0]))
    assert table.columns["label"] == ["animals", "animals", "food"]
    assert table.lines == [1, 2, 3]


def test_one_json_object_is_one_row(tmp_path: Path) -> None:
    assert read(write(tmp_path / "row.json", json.dumps(ROWS[0], indent=2))).columns["text"] == [ROWS[0]["text"]]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    text = '\n{"text": "a", "label": 1}\n\n  \n{"text": "b", "label": 2}\n'
    assert read(write(tmp_path / "rows.jsonl", text)).lines == [2, 5]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl"])
def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"rows{ending}", b"\xef\xbb\xbf" + CONTENT[ending][0].encode())
    assert read(path).columns["text"] == [row["text"] for row in ROWS]


def test_windows_line_ends_are_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,label\r\na,1\r\nb,2\r\n")
    assert (read(path).columns, read(path).lines) == ({"text": ["a", "b"], "label": ["1", "2"]}, [2, 3])


def test_a_quoted_newline_stays_in_its_text_and_counts_as_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'text,label\n"one\ntwo\n",1\nb,2\n')
    table = read(path)
    assert table.columns["text"] == ["one\ntwo\n", "b"]
    assert table.lines[0] in (2, 3, 4)  # a line of the row
    assert table.lines[1] == 5
    assert error_of(write(tmp_path / "short.csv", 'text,label\n"one\ntwo",1\nb\n')).startswith(
        f"{tmp_path}/short.csv:4: 1 fields, but the header has 2"
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


def test_only_the_named_columns_are_read(tmp_path: Path) -> None:
    config = DataConfig(train=("x",), text_columns=("premise", "hypothesis"), label_column="gold")
    path = write(tmp_path / "rows.jsonl", '{"gold": [1], "hypothesis": "b", "premise": "a", "extra": null}\n')
    assert read(path, config=config).columns == {"premise": ["a"], "hypothesis": ["b"], "gold": [[1]]}


def test_a_first_column_without_a_name_is_not_a_file_name(tmp_path: Path) -> None:
    path = write(tmp_path / "pandas.csv", ",text,label\n0,a cat,animals\n1,bread,food\n")
    assert read(path).files == [str(path)] * 2
    assert read(write(tmp_path / "rows.jsonl", '{"": "x", "text": "a", "label": 1}\n')).where(0).endswith("jsonl:1")


def test_labels_may_be_missing_if_they_are_not_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"text": "a"}\n{"text": "b", "label": "x"}\n')
    assert read(path, needs_labels=False).columns == {"text": ["a", "b"], "label": [None, "x"]}


def test_take_keeps_rows_and_origins_together(tmp_path: Path) -> None:
    taken = read(write(tmp_path / "rows.jsonl", CONTENT[".jsonl"][0])).take([2, 0])
    assert taken.columns["label"] == ["food", "animals"]
    assert [taken.where(0), taken.where(1)] == [f"{tmp_path}/rows.jsonl:3", f"{tmp_path}/rows.jsonl:1"]
    assert len(taken) == 2


# --- encodings ------------------------------------------------------------------------------------------------------


def test_encodings_are_tried_in_order_for_each_file(tmp_path: Path) -> None:
    write(tmp_path / "new.csv", "text,label\né,x\n".encode())
    write(tmp_path / "old.csv", "text,label\né,x\n".encode("latin-1"))
    both = DataConfig(train=("x",), encoding=("utf-8", "latin-1"))
    assert read(tmp_path / "new.csv", tmp_path / "old.csv", config=both).columns["text"] == ["é", "é"]
    reverse = DataConfig(train=("x",), encoding=("latin-1", "utf-8"))
    assert read(tmp_path / "new.csv", config=reverse).columns["text"] == ["Ã©"]
    assert (
        read_whole(tmp_path / "old.csv", DataConfig(train=("x",), encoding=("ascii", "cp1252"))) == "text,label\né,x\n"
    )


def test_utf_16_is_read_if_data_encoding_names_it(tmp_path: Path) -> None:
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
    ("rows.csv", HEADER + "a,x\nb\n", "rows.csv:3: 1 fields, but the header has 2"),
    ("rows.csv", HEADER + "a,x,y,z\n", "rows.csv:2: 4 fields, but the header has 2"),
    ("rows.tsv", "text\tlabel\na\tb\tc\n", "rows.tsv:2: 3 fields, but the header has 2"),
    ("rows.csv", HEADER + 'a,x\n"b,x\n', "rows.csv:3: broken row: "),
    ("rows.csv", HEADER + '"a"b,x\n', "rows.csv:2: broken row: "),
    ("rows.csv", '"text,label\n', "rows.csv:1: broken row: "),
    ("rows.csv", "a,b\n1,2\n", "rows.csv:2: no column 'text' (columns: a, b); see data.text_columns"),
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
    ("rows.jsonl", GOOD_LINE + "null\n", "rows.jsonl:2: must be a JSON object with named columns, not null"),
    ("rows.json", '[\n{"text": "a", "label": 1},\n{"text" "b"}\n]', "rows.json:3: broken JSON: "),
    ("rows.json", "[" * 100_000, "rows.json:1: broken JSON: "),
    ("rows.json", "[" + "1" * 5000 + "]", "rows.json:1: broken JSON: "),
    ("rows.json", '[{"text": "\\ud800"}]', "rows.json: broken JSON: half a surrogate pair"),
    ("rows.json", '[{"text": "a", "label": 1}, 5]', "rows.json: record 2 must be a JSON object, not an int"),
    ("rows.json", '"text"', "rows.json: record 1 must be a JSON object, not a str"),
    ("rows.json", GOOD_LINE + "x\n", "rows.json:2: broken JSON: "),
    ("rows.parquet", b"not parquet", "rows.parquet: not an intact parquet file: "),
    ("rows.parquet", b"", "rows.parquet: not an intact parquet file: "),
    ("rows.csv", "", "rows.csv: is empty"),
    ("rows.csv", HEADER, "rows.csv: is empty"),
    ("rows.tsv", "\n\n", "rows.tsv: is empty"),
    ("rows.jsonl", "", "rows.jsonl: is empty"),
    ("rows.jsonl", "\n \n", "rows.jsonl: is empty"),
    ("rows.json", "", "rows.json: is empty"),
    ("rows.json", " \n", "rows.json: is empty"),
    ("rows.json", "[]", "rows.json: is empty"),
    ("rows.csv.gz", "", "rows.csv.gz: is empty"),
    (
        "rows.text",
        "a",
        "rows.text: the ending must be one of .csv, .tsv, .json, .jsonl, .ndjson, .parquet, .arrow, .feather (.gz may follow)",
    ),
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
    assert error_of(path).startswith(f"{path}: not an intact parquet file: ")


INTACT_GZIP = gzip.compress(GOOD_LINE.encode() * 50, mtime=0)


@pytest.mark.parametrize(
    "content", [b"not gzip", INTACT_GZIP[:-9], INTACT_GZIP[:10] + b"\xff" * 20, INTACT_GZIP[:-8] + b"\0" * 8]
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    message = error_of(path)
    assert message.startswith(f"{path}: cannot be read: ")
    assert content != b"not gzip" or message.endswith("; if it is not compressed, remove .gz from its name")


@pytest.mark.parametrize("empty", ["", " ", "\n", "\t "])
def test_an_empty_text_is_named(tmp_path: Path, empty: str) -> None:
    bad = json.dumps({"text": empty, "label": "x"})
    path = write(tmp_path / "rows.jsonl", GOOD_LINE + bad)
    assert error_of(path) == f"{path}:2: text is empty; remove the row"
    write(path, f'{GOOD_LINE}{bad}\n{GOOD_LINE}{bad}\n{{"text": null, "label": "x"}}\n')
    assert error_of(path) == f"{path}:2: text is empty; remove the row, and 2 more without a text after it"
    write(path, f"{GOOD_LINE}{bad}\n{bad}\nno json")
    assert error_of(path) == f"{path}:2: text is empty; remove the row"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null; remove the row"),
        (5, "an int, not a string"),
        (float("nan"), "a float, not a string"),
        (["a"], "a list, not a string"),
        (True, "a bool, not a string"),
    ],
)
def test_a_text_that_is_not_a_string_is_named(tmp_path: Path, value: Any, kind: str) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD_LINE + json.dumps({"text": value, "label": "x"}))
    assert error_of(path) == f"{path}:2: text is {kind}"


def test_the_second_text_of_a_pair_is_checked_too(tmp_path: Path) -> None:
    config = DataConfig(train=("x",), text_columns=("text", "other"))
    path = write(tmp_path / "rows.csv", "text,other,label\na,b,x\na,,x\n")
    assert error_of(path, config=config) == f"{path}:3: other is empty; remove the row"


def test_the_first_wrong_file_of_several_is_named(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.csv", HEADER + "a,x\n"), write(tmp_path / "bad.csv", HEADER)
    assert error_of(good, bad) == f"{bad}: is empty"


def test_a_folder_without_class_folders_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "rows.csv", HEADER)
    assert error_of(tmp_path) == f"{tmp_path}: has no subfolders with .txt files, one subfolder for each class"


def test_a_class_folder_has_one_text_and_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "1.txt", "text")
    config = DataConfig(train=("x",), text_columns=("text", "other"))
    assert error_of(tmp_path, config=config).startswith("data.text_columns (['text', 'other']): ")


def test_an_empty_file_in_a_class_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "1.txt", "\n")
    assert error_of(tmp_path) == f"{tmp_path}/a/1.txt: text is empty; remove the file"


# --- fuzz: only InputError may be raised -----------------------------------------------------------------------------


def outcome(path: Path) -> Table | str:
    """Returns the table of a file, or the text of its InputError."""
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
@given(content=st.one_of(st.binary(max_size=40), st.integers(0, len(INTACT_GZIP) - 1).map(
    lambda index: INTACT_GZIP[:index] + bytes([INTACT_GZIP[index] ^ 255]) + INTACT_GZIP[index + 1 :])))  # fmt: skip
def test_any_damage_to_a_gzip_file_gives_rows_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl.gz"
    path.write_bytes(content)
    result = outcome(path)
    assert isinstance(result, Table) or str(path) in result
