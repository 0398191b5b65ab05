"""CoNLL files: comments, blanks that are not ASCII, and lines with #."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.files import write

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import CONLL, read_rows
from hf_finetune.system.errors import InputError

CONFIG = DataConfig(train=("x",), text_columns=("tokens",), label_column="tags")


def read(path: Path, **settings: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the sentences of a file without their lines, and what is said of it."""
    notes: list[str] = []
    rows = [row for _, row in read_rows(path, replace(CONFIG, **settings), CONLL, notes.append)]
    return [{name: value for name, value in row.items() if name != "#lines"} for row in rows], notes


COMMENTS = {
    "as MultiCoNER, with a tab": "# id 0\tdomain=en",
    "as many fields as a word": "# doc0",
    "more fields": "# sent_id = 4 of 9",
    "one field": "#doc",
    "several lines": "# doc0\n# text = Tom lives",
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("blank", [" ", "\t"])
@pytest.mark.parametrize("ending", ["conll", "txt", "bio"])
@pytest.mark.parametrize("comment", COMMENTS.values(), ids=COMMENTS)
def test_comments_before_a_sentence_are_passed_over_and_counted(
    tmp_path: Path, comment: str, ending: str, blank: str, line_end: str
) -> None:
    sentence = f"{comment}\nTom B-PER\nran O\n".replace(" B", f"{blank}B").replace(" O", f"{blank}O")
    path = write(tmp_path / f"a.{ending}", f"{sentence}\n{sentence}".replace("\n", line_end))
    rows, notes = read(path)
    assert rows == [{"tokens": ["Tom", "ran"], "tags": ["B-PER", "O"]}] * 2
    count, first = 2 * (comment.count("\n") + 1), comment.splitlines()[0]
    assert notes == [f"a.{ending}: {count} lines before sentences are comments, such as {first!r}"]


@pytest.mark.parametrize("first", ["# O", "#\tO", "#1 O", "#\tB-MISC", "#win B-MISC"])
def test_words_that_begin_with_a_hash_stay_words(tmp_path: Path, first: str) -> None:
    blank = "\t" if "\t" in first else " "
    others = ["in", "#", "sales"]
    lines = [first, *(f"{word}{blank}O" for word in others)]
    rows, notes = read(write(tmp_path / "a.conll", "\n".join(lines)))
    word, tag = first.split()
    assert (rows, notes) == ([{"tokens": [word, *others], "tags": [tag, "O", "O", "O"]}], [])


def test_hashes_in_a_file_without_tags(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "a.txt", "# doc 3\n#\n#win\nnow\n"))
    assert rows == [{"tokens": ["#", "#win", "now"]}]


def test_a_hash_line_within_a_sentence_is_never_a_comment(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "Tom O\n# a comment of five fields\n")
    with pytest.raises(InputError, match=r"a.conll:2: 6 columns, expected 2; it begins with #, but comments are"):
        read(path)


INVISIBLE = ["\xa0", "\u3000", "\u2009", "\x85", "\x1c", "\u2028", "\x0b", "\x0c"]


@pytest.mark.parametrize("blank", [" ", "\t"])
@pytest.mark.parametrize("character", INVISIBLE)
def test_only_ascii_blanks_and_tabs_separate(tmp_path: Path, character: str, blank: str) -> None:
    words = [f"new{character}york", character, f"{character}x", "end"]
    path = write(tmp_path / "a.conll", "".join(f"{word}{blank}O\n" for word in words))
    assert read(path)[0] == [{"tokens": words, "tags": ["O"] * 4}]
    without_tags = write(tmp_path / "b.conll", "".join(f"{word}\n" for word in words))
    assert read(without_tags)[0] == [{"tokens": words}]


def test_lines_of_blanks_and_tabs_end_sentences(tmp_path: Path) -> None:
    assert [row["tokens"] for row in read(write(tmp_path / "a.conll", "a O\n \t \nb O\r\n\r\nc O"))[0]] == [
        ["a"],
        ["b"],
        ["c"],
    ]


# --- numbered words ---------------------------------------------------------------------------------------------------

GERMEVAL = """# http://x [2009]
1\tTom\tB-PER\tO
2\tMiller\tI-PER\tO

#\tn-tv.de [2010]
1\tAnna\tB-PER\tB-LOC
2\t#\tO\tO
3\tworks\tO\tO
"""
WORDS = [["Tom", "Miller"], ["Anna", "#", "works"]]
INNER = [["O", "O"], ["B-LOC", "O", "O"]]
NOTE = (
    "a.conll: the first column numbers the words of each sentence; words are read from column 2, tags from column 4 of 4 "
    "(data.text_columns and data.label_column take the number of another column)"
)


def test_the_number_of_a_word_is_not_the_word(tmp_path: Path) -> None:
    """As in GermEval."""
    path = write(tmp_path / "a.conll", GERMEVAL)
    rows, notes = read(path)
    assert [(row["tokens"], row["tags"]) for row in rows] == list(zip(WORDS, INNER, strict=True))
    assert notes == [NOTE]
    rows, _ = read(path, label_column="3")
    assert [row["3"] for row in rows] == [["B-PER", "I-PER"], ["B-PER", "O", "O"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 a O\n1 b O\n\n0 c O\n", [["a", "b"], ["c"]]),  # from 0
        ("1 a O\n2 b O\n\n3 c O\n4 d O\n", [["a", "b"], ["c", "d"]]),  # counted in the file
        ("-DOCSTART- X O\n\n1 a O\n\n1 b O\n2 c O\n", [["a"], ["b", "c"]]),
        ("1-2\tdon't\t_\n1\tdo\tAUX\n2\tn't\tPART\n2.1\tx\t_\n", [["do", "n't"]]),  # CoNLL-U in another file
        ("1 a\n2 b\n", [["a", "b"]]),  # without tags
        ("1 O\n\n1 O\n", [["1"], ["1"]]),  # nothing is counted
        ("1 CD O\n2 CD O\n\n2 CD O\n", [["1", "2"], ["2"]]),
        ("1 CD O\n2 CD O\n\nx CD O\n", [["1", "2"], ["x"]]),
        ("2 CD O\n3 CD O\n", [["2", "3"]]),
        ("1\n2\n", [["1", "2"]]),
    ],
)
def test_a_column_that_counts_is_recognised(tmp_path: Path, text: str, words: list[list[str]]) -> None:
    rows, notes = read(write(tmp_path / "a.conll", text))
    assert [row["tokens"] for row in rows] == words
    is_counted = all(word.isalpha() or "'" in word for row in words for word in row) and "x CD" not in text
    assert len(notes) == is_counted


@pytest.mark.parametrize(("column", "words"), [("1", [["1", "2"], ["1", "2", "3"]]), ("2", WORDS), ("4", INNER)])
def test_the_column_of_words_by_its_number(tmp_path: Path, column: str, words: list[list[str]]) -> None:
    rows, _ = read(write(tmp_path / "a.conll", GERMEVAL), text_columns=(column,), label_column="3")
    assert [row[column] for row in rows] == words
    plain = "#begin document\nx 0 Tom B-PER\nx 1 ran O\n"  # CoNLL-2012
    assert read(write(tmp_path / "b.conll", plain), text_columns=("3",))[0] == [
        {"3": ["Tom", "ran"], "tags": ["B-PER", "O"]}
    ]
    assert read(write(tmp_path / "c.txt", "Tom\nran\n"), text_columns=("3",))[0] == [{"3": ["Tom", "ran"]}]


@pytest.mark.parametrize("column", ["0", "5"])
def test_a_column_of_words_that_the_file_lacks_is_an_error(tmp_path: Path, column: str) -> None:
    with pytest.raises(InputError, match=rf"data.text_columns \({column}\): the file has 4 columns"):
        read(write(tmp_path / "a.conll", GERMEVAL), text_columns=(column,))


def test_words_and_tags_in_one_column_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.label_column \(2\): .* words are in column 2; data.text_columns takes"):
        read(write(tmp_path / "a.conll", GERMEVAL), label_column="2")
