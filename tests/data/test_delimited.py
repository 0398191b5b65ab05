"""csv and tsv files as people have them: the delimiter and the quoting are found, what may be meant in two ways is refused."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest
from support.files import error_of, read, write

from hf_finetune.config.sections import DataConfig

TEXTS = ["a cat, small", "dogs; big", "one | two", "plain words", 'she said "no" twice', "so, so; what", "last one"]
LABELS = ["pos", "neg", "pos", "neg", "neg", "pos", "neg"]
COLUMNS = {"text": TEXTS, "label": LABELS}


def config(**settings: Any) -> DataConfig:
    """Returns the settings of a file to train on."""
    return DataConfig(**{"train": ("x",), **settings})


def write_csv(path: Path, rows: Sequence[Sequence[str]], **options: Any) -> Path:
    """Writes rows as Python's csv module does."""
    text = io.StringIO()
    csv.writer(text, **options).writerows(rows)
    return write(path, text.getvalue())


def rows_of(columns: dict[str, list[str]]) -> list[list[str]]:
    """Returns the header and the rows."""
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


# --- the delimiter ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_the_delimiter_is_found_and_said_if_the_ending_has_another(
    tmp_path: Path, ending: str, delimiter: str, line_end: str
) -> None:
    path = write_csv(tmp_path / f"a{ending}", rows_of(COLUMNS), delimiter=delimiter, lineterminator=line_end)
    table = read(path)
    assert table.columns == COLUMNS
    is_own = delimiter == ("\t" if ending == ".tsv" else ",")
    name = "a tab" if delimiter == "\t" else delimiter
    note = f"a{ending}: the delimiter is {name} (set data.delimiter to choose another)"
    assert (note in table.notes) is not is_own


def test_a_delimiter_that_is_set_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text;label,x\na;b,1\nc;d,2\n")
    assert read(path, config=config(delimiter=";", label_column="label,x")).columns["label,x"] == ["b,1", "d,2"]
    assert read(path, config=config(delimiter=",", text_columns=("text;label",), label_column="x")).columns["x"] == [
        "1",
        "2",
    ]


def test_the_delimiter_whose_header_has_the_columns_is_taken_of_two_that_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text;label;price, net\na;pos;1,5\nb;neg;2,5\n")
    assert read(path).columns == {"text": ["a", "b"], "label": ["pos", "neg"]}


def test_two_delimiters_that_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "0,5;1\n2,5;1\n")
    message = error_of(path, config=config(header=False, text_columns=("1",), label_column="2"))
    assert message == f"{path}: the delimiter may be ',' or ';'; set data.delimiter"


def test_commas_in_texts_of_a_file_with_one_column_are_not_delimiters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\nwell, yes\nno, never\n")
    assert read(path, needs_labels=False).columns["text"] == ["well, yes", "no, never"]


def test_the_hint_that_excel_writes_is_used(tmp_path: Path) -> None:
    table = read(write(tmp_path / "a.csv", "sep=;\r\ntext;label\r\na;x\r\nb;y\r\n"))
    assert (table.columns, list(table.lines)) == ({"text": ["a", "b"], "label": ["x", "y"]}, [3, 4])


def test_a_row_with_too_many_fields_is_named_whatever_the_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text;label\na;x\nb;y;z\n")
    assert error_of(path) == f"{path}:3: 3 fields, but the header has 2"


# --- quotes ----------------------------------------------------------------------------------------------------------

STRAY = {
    "words in quotes begin a text": '"What a film" they said',
    "a quote begins a text": '"What a film',
    "a quote ends a text": 'he said bye"',
    "quotes within a text": 'the "best" film',
    "a text in quotes": '"Great!"',
}


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("text", STRAY.values(), ids=STRAY)
def test_tsv_is_read_as_it_is_if_it_is_not_written_quoted(tmp_path: Path, text: str, zipped: str) -> None:
    texts = ["a film", text, "long film", *["more of it"] * 3]
    lines = [f"{line}\tpos" for line in texts]
    path = write(tmp_path / f"a.tsv{zipped}", "\n".join(["text\tlabel", *lines]) + "\n")
    table = read(path)
    assert table.columns["text"] == texts
    assert list(table.lines) == [2, 3, 4, 5, 6, 7]
    begins = text.startswith('"')
    said = f"a.tsv{zipped}: quotes are read as characters like any other (set data.quoting to choose)"
    assert list(table.notes) == ([said] if begins else [])


def test_rows_between_two_quotes_are_not_swallowed(tmp_path: Path) -> None:
    lines = ["fine\tneg", '"What a film\tpos', "dull\tpos", 'He said bye"\tneg', "end\tneg"]
    path = write(tmp_path / "a.tsv", "\n".join(["text\tlabel", *lines]))
    assert read(path).columns["text"] == ["fine", '"What a film', "dull", 'He said bye"', "end"]
    assert read(path, config=config(quoting="none")).columns == read(path).columns


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_a_quote_that_swallows_rows_of_a_csv_file_is_refused_with_its_line(tmp_path: Path, delimiter: str) -> None:
    lines = ["fine,neg", '"What a film,pos', "dull,pos", 'He said bye",neg', "end,neg"]
    path = write(tmp_path / "a.csv", "\n".join(["text,label", *lines]).replace(",", delimiter))
    assert error_of(path) == (
        f"{path}:3: a quote begins a field of 3 lines, which look like rows; set data.quoting none if quotes are characters like "
        "any other, or quoted if this is one row"
    )
    texts = read(path, config=config(quoting="none")).columns["text"]
    assert texts == ["fine", '"What a film', "dull", 'He said bye"', "end"]
    assert read(path, config=config(quoting="quoted")).columns["text"][0] == "fine"


@pytest.mark.parametrize("label", ["0.5", "pos"])
def test_swallowed_rows_with_numbers_or_with_the_label_first_are_found(tmp_path: Path, label: str) -> None:
    other = "0.25" if label == "0.5" else "pos"
    lines = [f"{label},fine", f'{label},"what', f'{other},bye"', f"{label},end"]
    assert ":3: a quote begins a field of 2 lines" in error_of(
        write(tmp_path / "a.csv", "\n".join(["label,text", *lines]))
    )


def test_a_text_of_several_lines_with_commas_is_one_text(tmp_path: Path) -> None:
    texts = ["Hello, world\nbye, all", "One, two\nthree, four\nfive, six", "plain"]
    path = write_csv(tmp_path / "a.csv", rows_of({"text": texts, "label": ["x", "y", "x"]}))
    assert read(path).columns["text"] == texts


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_quote_that_no_writer_writes_names_the_way_out(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, 'text\tlabel\n"What" a film\tpos\n'.replace("\t", "\t" if name == "a.tsv" else ","))
    message = error_of(path, config=config(quoting="quoted"))
    assert message.startswith(f"{path}:2: broken row: ")
    assert message.endswith("; set data.quoting none if quotes are characters like any other")


NEVER_CLOSED = "a quote begins a field and is never closed"
STRAY_IN_QUOTED = {
    "a quote begins a text": (['"What a film{}pos', "dull{}neg"], NEVER_CLOSED),
    "a quote is a text": (['"{}pos', "dull{}neg"], NEVER_CLOSED),
    "a quote begins a label": (['What a film{}"pos', "dull{}neg"], NEVER_CLOSED),
    "three quotes begin a text": (['"""What a film{}pos', "dull{}neg"], NEVER_CLOSED),
    "words in quotes begin a text": (['"What" a film{}pos', "dull{}neg"], "a field goes past the quote that closes it"),
    "a blank after a quote": (['"What a film" {}pos'], "a field goes past the quote that closes it"),
    "two quotes begin a text": (['""What a film{}pos'], "a field goes past the quote that closes it"),
    "quotes in two rows": (
        ['"What a film{}pos', 'a "fine" film{}neg'],
        "a field goes past the quote that closes it in line 4",
    ),
    "quotes begin two texts": (
        ['"What a film{}pos', '"dull{}neg'],
        "a field goes past the quote that closes it in line 4",
    ),
}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize(("lines", "reason"), STRAY_IN_QUOTED.values(), ids=STRAY_IN_QUOTED)
def test_stray_quotes_in_a_file_that_is_said_to_be_quoted_are_errors_that_name_the_row(
    tmp_path: Path, lines: Sequence[str], reason: str, name: str
) -> None:
    text = "\n".join(["text{}label", "fine{}neg", *lines, "end{}neg"]).replace("{}", "," if name == "a.csv" else "\t")
    path = write(tmp_path / name, f"{text}\n")
    hint = "set data.quoting none if quotes are characters like any other"
    assert error_of(path, config=config(quoting="quoted")) == f"{path}:3: broken row: {reason}; {hint}"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_rows_that_may_be_swallowed_are_said_in_a_file_that_is_said_to_be_quoted(tmp_path: Path, name: str) -> None:
    swallowed = ['"What a film,pos', "dull,pos", 'He said bye",neg']
    lines = [
        "text,label",
        "fine,neg",
        *swallowed,
        '"two lines',
        'of one text",pos',
        *swallowed[1:],
        *swallowed,
        "end,neg",
    ]
    path = write(tmp_path / name, "\n".join(lines).replace(",", "," if name == "a.csv" else "\t"))
    table = read(path, config=config(quoting="quoted"))
    assert len(table) == 7
    assert table.notes == (
        f"{name}: 2 rows have several lines that look like rows themselves, the first one lines 3 to 5; set data.quoting none "
        "if a quote there is a character like any other",
    )


WRITTEN: dict[str, tuple[list[str], dict[str, Any]]] = {  # texts, and how they are written with tabs
    "as needed, with quotes doubled": (['a "big" dog', "x", "y"], {}),
    "as needed, with a tab": (["a\tb", "x", "y"], {}),
    "as needed, with a line end": (["a\nb", "x", "y"], {}),
    "all fields": (["a", "b, c", "d"], {"quoting": csv.QUOTE_ALL}),
    "all texts": (["a", "b", "d"], {"quoting": csv.QUOTE_NONNUMERIC}),
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(("texts", "options"), WRITTEN.values(), ids=WRITTEN)
def test_tsv_that_is_written_quoted_is_read_so(
    tmp_path: Path, texts: list[str], options: dict[str, Any], line_end: str
) -> None:
    columns = {"text": texts, "label": ["1", "2", "3"]}
    path = write_csv(tmp_path / "a.tsv", rows_of(columns), delimiter="\t", lineterminator=line_end, **options)
    assert read(path).columns == columns


def test_excel_quotes_fields_with_a_comma_in_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"good, bad"\tx\nplain\ty\n"one, two"\tx\n')
    assert read(path).columns["text"] == ["good, bad", "plain", "one, two"]
    assert (
        read(write(tmp_path / "b.tsv", 'text\tlabel\n"good, bad"\tx\nwell, no\ty\n')).columns["text"][0]
        == '"good, bad"'
    )


# --- the header ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["text,label,label", "text, label,label", "label,text,label,x"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, header: str) -> None:
    width = header.count(",") + 1
    path = write(tmp_path / "a.csv", f"{header}\n{','.join(['a'] * width)}\n")
    numbers = " and ".join(str(i + 1) for i, name in enumerate(header.split(",")) if name.strip() == "label")
    assert error_of(path).startswith(f"{path}:1: columns {numbers} are both called 'label'; ")


def test_columns_without_a_name_may_be_several(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "text,label,,\na,x,,\nb,y,,\n")).columns["label"] == ["x", "y"]


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_the_header_in_the_middle_is_named_with_its_line(tmp_path: Path, zipped: str) -> None:
    path = write(tmp_path / f"a.csv{zipped}", "text,label\na,x\n\ntext,label\nb,y\n")
    assert error_of(path) == (
        f"{path}:4: has the names of the columns again, as when files are put together; remove the line, "
        "or set data.header false if the first line is a row of the data"
    )


@pytest.mark.parametrize("header", [" text,label", "text , label ", "\ttext,label\xa0", "\u3000text,\ufefflabel"])
def test_blanks_around_names_of_columns_are_not_part_of_them(tmp_path: Path, header: str) -> None:
    table = read(write(tmp_path / "a.csv", f"{header}\na,x\n"))
    assert table.columns == {"text": ["a"], "label": ["x"]}
    (note,) = table.notes
    assert note.startswith("a.csv: blanks around the names of columns are not part of them: ")


def test_a_name_with_blanks_that_a_setting_has_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text, label\na,x\n")
    assert read(path, config=config(label_column=" label")).columns == {"text": ["a"], " label": ["x"]}


def test_a_file_without_header_has_columns_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '1,"very good"\n2,"so, so"\n1,fine\n')
    settings = {"text_columns": ("2",), "label_column": "1"}
    table = read(path, config=config(header=False, **settings))
    assert (table.columns, list(table.lines)) == (
        {"2": ["very good", "so, so", "fine"], "1": ["1", "2", "1"]},
        [1, 2, 3],
    )
    message = error_of(path)
    assert message == (
        f"{path}:2: no column 'text' (columns: 1, very good); see data.text_columns and data.label_column, or set data.header "
        "false if the file has no line with the names of columns"
    )


def test_rows_of_a_file_without_header_are_compared_with_the_first_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,x\na,x\nb\n")
    message = error_of(path, config=config(header=False, text_columns=("1",), label_column="2"))
    assert message == f"{path}:3: 1 fields, but the first row has 2"


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_blanks_before_quotes_are_not_part_of_the_field(tmp_path: Path, delimiter: str) -> None:
    """Else the quotes would be read as characters of the text."""
    rows = [("label", "text"), ("pos", f'"a fine{delimiter} ""old"" film"'), ("neg", '"dull"'), ("neg", "long")]
    content = "".join(f"{label}{delimiter} {text}\n" for label, text in rows)
    table = read(write(tmp_path / "a.csv", content))
    assert list(table.columns["text"]) == [f'a fine{delimiter} "old" film', "dull", "long"]
    assert "a.csv: blanks after a delimiter are not part of the field, because quotes follow them" in table.notes


@pytest.mark.parametrize("text", [' "so" she said "ah"', " plain", ' "open'])
def test_blanks_that_no_quoted_field_follows_are_kept(tmp_path: Path, text: str) -> None:
    table = read(write(tmp_path / "a.csv", f"label,text\npos,{text}\nneg,dull\n"))
    assert list(table.columns["text"]) == [text, "dull"]


def test_fields_in_single_quotes_are_warned_of(tmp_path: Path) -> None:
    def warn(*rows: str) -> tuple[str, ...]:
        return read(write(tmp_path / "a.csv", "\n".join(["text,label", *rows, ""]))).warnings

    way_out = 'write double quotes; pandas does it with read_csv(FILE, quotechar="\'").to_csv(FILE, index=False)'
    for rows, where in ((("'a','x'", "'b','y'"), ""), (("'a',x", "'b',y"), " of column 1")):
        shown = f"a.csv: all fields{where} stand in single quotes, which are read as part of them; {way_out}"
        assert warn(*rows) == (shown,)
    assert warn("'a','x'", "b,y") == ()


@pytest.mark.parametrize("quoting", ["auto", "quoted"])
def test_quotes_that_a_backslash_escapes_are_named(tmp_path: Path, quoting: str) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"he said \\"a film\\" twice",x\n')
    assert error_of(path, config=config(quoting=quoting)) == (
        f"{path}:2: broken row: a field goes past the quote that closes it; {NO_BACKSLASHES}"
    )


NO_BACKSLASHES = (
    'quotes in fields are escaped with a backslash (\\"): double them ("") instead; pandas does it with '
    "read_csv(FILE, escapechar='\\\\').to_csv(FILE, index=False)"
)
SINGLE, BACKSLASH = {"quotechar": "'"}, {"escapechar": "\\"}
QUOTE_SEEN = "fields seem to be quoted by ', which is read as a character like any other: write double quotes; pandas"
# How a program writes a text, and what the error says
OTHER_QUOTING: dict[str, tuple[dict[str, Any], str, str]] = {
    "single quotes": (SINGLE, "slow, but good", f"3 fields, but the header has 2; {QUOTE_SEEN}"),
    "a quote in single quotes": (SINGLE, 'it\'s "good", they say', QUOTE_SEEN),
    "escaped quotes": (BACKSLASH | {"doublequote": False}, 'the word ", he said', NO_BACKSLASHES),
    "quotes at the end": (BACKSLASH | {"doublequote": False, "quoting": csv.QUOTE_ALL}, 'it is "fine"', NO_BACKSLASHES),
    "escaped delimiters": (
        BACKSLASH | {"quoting": csv.QUOTE_NONE},
        "slow, but good",
        "a delimiter in a field is escaped with a backslash: put the field in double quotes instead; pandas does it",
    ),
}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(("options", "text", "message"), OTHER_QUOTING.values(), ids=OTHER_QUOTING)
def test_another_way_to_quote_is_named_with_a_way_out_that_works(
    tmp_path: Path, delimiter: str, options: dict[str, Any], text: str, message: str
) -> None:
    texts = [text.replace(",", delimiter), "dull", "long"] * 2
    rows = [["text", "label"], *([text, "ab"[number % 2]] for number, text in enumerate(texts))]
    path = write_csv(tmp_path / "a.csv", rows, delimiter=delimiter, **options)
    assert message in error_of(path, config=config(delimiter=delimiter, quoting="quoted"))
    way_out = {name: value for name, value in options.items() if name in ("quotechar", "escapechar")}
    pandas.read_csv(path, sep=delimiter, **way_out).to_csv(path, index=False)
    assert list(read(path).columns["text"]) == texts


def test_an_apostrophe_at_the_begin_of_a_field_is_no_quote(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n'tis fine,x\n'tis late, and dull,y\n")
    assert error_of(path) == f"{path}:3: 3 fields, but the header has 2"
