"""CoNLL files: comments, blanks that are not ASCII, and lines with #."""

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
    rows = [row for _, row in read_rows(path, CONFIG, CONLL, notes.append)]
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
