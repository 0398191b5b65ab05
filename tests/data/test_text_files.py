"""Text files are read from start to end: encodings, byte order marks, the limit of .gz files, and memory."""

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.files import error_of, read, write

from hf_finetune.config.sections import DataConfig
from hf_finetune.data import text_files
from hf_finetune.data.formats import read_rows
from hf_finetune.data.report import report_on_tables
from hf_finetune.data.table import text_and_label_spec

TEXT = "text,label\né,x\n"


def config(*encodings: str) -> DataConfig:
    """Returns settings with these encodings."""
    return DataConfig(train=("x",), encoding=encodings or ("utf-8",))


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding_and_is_said(tmp_path: Path, encoding: str, zipped: str) -> None:
    table = read(write(tmp_path / f"a.csv{zipped}", TEXT.encode(encoding)))
    assert table.columns["text"] == ["é"]
    assert table.notes == (f"a.csv{zipped}: the encoding is {encoding}, as its first bytes say",)
    assert read(tmp_path / f"a.csv{zipped}", config=config(encoding)).notes == ()


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize(
    ("encodings", "content", "read_as"),
    [
        (("cp1252",), "ü".encode(), "Ã¼"),
        (("latin-1", "utf-8"), "ü".encode(), "Ã¼"),
        (("cp1252",), "ü".encode("cp1252"), None),
        (("cp1252",), "ü".encode() + "ü".encode("cp1252"), None),
        (("cp1252",), b"u", None),
        (("utf-8", "cp1252"), "ü".encode(), None),
    ],
)
def test_utf_8_that_is_read_with_one_byte_a_character_is_warned_of(
    tmp_path: Path, encodings: tuple[str, ...], content: bytes, read_as: str | None, zipped: str
) -> None:
    path = write(tmp_path / f"a.csv{zipped}", b"text,label\na,b\n" + content + b",x\n")
    table = read(path, config=config(*encodings))
    warning = (
        f"a.csv{zipped}: is valid utf-8, and data.encoding says {encodings[0]}, so that ü is read as {read_as}; set "
    )
    expected = () if read_as is None else (f"{warning}data.encoding to [utf-8, {encodings[0]}]",)
    assert (table.warnings, table.notes) == (expected, ())
    if read_as is not None:
        spec = text_and_label_spec(("text",), "label")
        assert report_on_tables({"train": table}, spec, ("text",)).warnings[:1] == list(expected)


@pytest.mark.parametrize("encodings", [("latin-1",), ("cp1252", "utf-8")])
def test_the_byte_order_mark_of_utf_8_is_stronger_than_the_setting(tmp_path: Path, encodings: tuple[str, ...]) -> None:
    assert read(write(tmp_path / "a.csv", TEXT.encode("utf-8-sig")), config=config(*encodings)).columns["text"] == ["é"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_refused_with_the_setting(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,x\n".encode(encoding))
    assert error_of(path) == f"{path}: every other byte is zero; set data.encoding, to {encoding} for example"
    assert read(path, config=config(encoding)).columns["text"] == ["a"]


def test_the_first_encoding_that_fits_the_whole_file_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "CHUNK_SIZE", 7)
    path = write(tmp_path / "a.csv", ("text,label\n" + "a,x\n" * 50 + "é,x\n").encode("latin-1"))
    table = read(path, config=config("utf-8", "ascii", "latin-1", "cp1252"))
    assert table.columns["text"][-1] == "é"
    assert table.notes == ("a.csv: the encoding is latin-1, not utf-8",)


@pytest.mark.parametrize(
    ("encodings", "advised"),
    [(("utf-8",), "cp1252"), (("utf-8", "windows-1252"), "latin-1"), (("cp1252",), "latin-1"), (("ascii",), "cp1252")],
)
def test_the_advised_encoding_is_not_one_that_failed(tmp_path: Path, encodings: tuple[str, ...], advised: str) -> None:
    path = write(tmp_path / "a.csv", b"text,label\na\x81,x\n")
    assert error_of(path, config=config(*encodings)).endswith(f"data.encoding, such as [utf-8, {advised}]")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_characters_and_lines_are_whole_wherever_a_chunk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(text_files, "CHUNK_SIZE", size)
    path = write(tmp_path / "a.jsonl", '{"text": "é€😀", "label": 1}\n{"text": "b", "label": 2}\n'.encode() + b'"\xff"')
    assert error_of(path, config=config("utf-8", "ascii")).startswith(f"{path}:3: byte 0xff is not utf-8; ")


def test_the_encoding_of_files_in_a_folder_is_said_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "films" / name).mkdir(parents=True)
        for number in range(3):
            text = f"é{number}".encode("latin-1" if number else "utf-8")
            write(tmp_path / "films" / name / f"{number}.txt", text)
    table = read(tmp_path / "films", config=config("utf-8", "latin-1"))
    assert table.columns["text"] == ["é0", "é1", "é2"] * 2
    assert table.notes == ("films: 4 of 6 files have another encoding; 1.txt: the encoding is latin-1, not utf-8",)


# --- .gz -------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_unpacked_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "FREE_SIZE", 10_000)
    row = b'{"text": "%s", "label": 1}\n' % (b"a" * 3_000_000)
    path = write(tmp_path / "a.jsonl.gz", row)
    limit = 100 * path.stat().st_size
    assert limit < len(row)
    assert error_of(path) == (
        f"{path}: is unpacked to more than {limit:,} bytes, 100 times its own size; if the file is right, raise "
        "data.max_expansion"
    )
    assert len(read(path, config=DataConfig(train=("x",), max_expansion=2000)).columns["text"][0]) == 3_000_000


@pytest.mark.parametrize("name", ["a.csv.gz", "a.json.gz", "a.tsv.gz"])
def test_the_limit_holds_for_all_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(text_files, "FREE_SIZE", 10_000)
    path = write(tmp_path / name, b" " * 1_000_000 if "json" in name else b"text,label\n" + b"a" * 1_000_000)
    assert f"{path}: is unpacked to more than " in error_of(path)


def test_a_small_file_may_be_packed_well(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", b'{"text": "%s", "label": 1}\n' % (b"a" * 2_000_000))
    assert path.stat().st_size * 100 < 2_000_000
    assert len(read(path)) == 1


def test_a_pipe_is_refused_and_not_read_halfway(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    assert error_of(tmp_path / "a.csv").startswith(f"{tmp_path}/a.csv: is not a file that can be read twice")


# --- memory ----------------------------------------------------------------------------------------------------------

ROW = {"text": "some words of a text " * 50, "label": "neg"}


def write_big(path: Path, last: str, write_rows: Callable[[Sequence[dict[str, str]]], str]) -> Path:
    """Writes about 10 MB of rows, the last of which has `last` in its text."""
    rows = [ROW] * 10_000 + [ROW | {"text": last}]
    return write(path, write_rows(rows))


def as_csv(rows: Sequence[dict[str, str]]) -> str:
    """Returns rows as csv."""
    return "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)


def as_lines(rows: Sequence[dict[str, str]]) -> str:
    """Returns rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "write_rows"),
    [("a.jsonl", as_lines), ("a.csv", as_csv), ("a.json", lambda rows: json.dumps(rows, ensure_ascii=False)),
     ("a.jsonl.gz", as_lines)],
)  # fmt: skip
def test_no_file_is_held_in_memory_and_an_emoji_costs_nothing(
    tmp_path: Path, name: str, write_rows: Callable[[Sequence[dict[str, str]]], str]
) -> None:
    path = write_big(tmp_path / name, "a smile \N{GRINNING FACE}", write_rows)
    for _ in read_rows(path, config()):  # what is imported on the way does not count
        break
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_rows(path, config()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = len(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path.stat().st_size
    assert (count, size > 9_000_000) == (10_001, True)
    assert peak < 4_000_000
