"""CoNLL files: a word on each line with its tag, and blank lines between sentences."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.rows import Rows, Say, find_ending, is_table, say_nothing
from hf_finetune.data.text_files import find_text_file
from hf_finetune.system.errors import InputError

# Columns of CoNLL-U, https://universaldependencies.org/format.html
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
PARTS = re.compile(r"\d+[-.]\d+")  # 1-2: the parts of "don't" follow; 1.1: a word that was left out
BLANKS = " \t"  # what separates words and tags; other white space, as a no-break space, is a part of words


@dataclass(kw_only=True)
class Sentence:
    """The words of a sentence, with their tags if the file has any, and their lines."""

    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def make_row(self, config: DataConfig) -> dict[str, Any]:
        """Returns the sentence as a row."""
        row: dict[str, Any] = {config.text_columns[0]: self.words, "#lines": self.lines}
        return row | {str(config.label_column): self.tags} if self.tags else row


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The columns of a file.

    Args:
        width: Their number.
        word: That of the words, from 0.
        tag: That of the tags, from 0; None if there are none.
        is_numbered: The first column numbers the words of a sentence, so that no line of a word begins with #.
    """

    width: int
    word: int
    tag: int | None
    is_numbered: bool

    def describe(self) -> str:
        """Returns which columns are read, counted from 1."""
        tags = "there are no tags" if self.tag is None else f"tags from column {self.tag + 1} of {self.width}"
        return f"words are read from column {self.word + 1}, {tags}"


def read_conll(path: Path, config: DataConfig, say: Say = say_nothing) -> Rows:
    """Yields the sentences of a CoNLL file.

    A row has the words in the text column, the tags in the label column, and the lines of the words in "#lines". The word is
    in the first column of the file; in the second one if the first numbers the words of each sentence, as in CoNLL-U; or in the
    one whose number (from 1) is data.text_columns. The tag is in the last column, or in the one whose number is
    data.label_column; in CoNLL-U files (.conllu) in the one whose name it is, such as upos. A file with a single column has no
    tags.

    Comments (lines that begin with #, before the words of a sentence) are passed over.
    """
    is_conllu = find_ending(path) == ".conllu"
    file = find_text_file(path, config, say)
    with file.open() as lines:
        layout = find_layout(lines, config, is_conllu=is_conllu)
    if layout.is_numbered and not is_conllu:
        say(
            f"{path.name}: the first column numbers the words of each sentence; {layout.describe()} (data.text_columns and "
            "data.label_column take the number of another column)"
        )
    comments: Comments | None = None
    sentence = Sentence()
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            line = line.removesuffix("\n").rstrip("\r")
            if not line.strip(BLANKS):
                if sentence.words:
                    yield sentence.lines[0], sentence.make_row(config)
                    sentence = Sentence()
                continue
            if line.startswith("#") and (layout.is_numbered or not sentence.words):
                if comments is None and not layout.is_numbered:
                    with file.open() as again:
                        comments = find_comments(again, layout)
                if comments is None or comments.take(line):
                    continue
            fields = split_fields(line, is_conllu=is_conllu)
            if fields[0] == "-DOCSTART-":
                continue
            if layout.is_numbered and not fields[0].isdigit():  # PARTS
                continue
            if len(fields) != layout.width:
                hint = (
                    "; it begins with #, but comments are read only before a sentence" if line.startswith("#") else ""
                )
                raise InputError(f"{path}:{number}: {len(fields)} columns, expected {layout.width}{hint}")
            sentence.lines.append(number)
            sentence.words.append(fields[layout.word])
            if layout.tag is not None:
                sentence.tags.append(fields[layout.tag].strip(BLANKS))
    if sentence.words:
        yield sentence.lines[0], sentence.make_row(config)
    if comments is not None and comments.count:
        say(f"{path.name}: {comments.count:,} lines before sentences are comments, such as {comments.example!r}")


def describe_columns(path: Path, config: DataConfig) -> str:
    """Returns which columns of a CoNLL file are read, and how to choose others, for errors about its tags. "" if it is none."""
    if is_table(path) or not path.is_file():
        return ""
    is_conllu = find_ending(path) == ".conllu"
    with find_text_file(path, config).open() as lines:
        layout = find_layout(lines, config, is_conllu=is_conllu)
    return f"{path}: {layout.describe()}; data.label_column {'NAME' if is_conllu else 'NUMBER'} names another one"


def find_layout(lines: Iterable[str], config: DataConfig, *, is_conllu: bool) -> Layout:
    """Returns the columns of the lines of a file. InputError if a setting names one that it does not have."""
    width, is_numbered = (len(CONLLU), True) if is_conllu else measure_columns(lines)
    if width < 2:
        return Layout(width=width, word=0, tag=None, is_numbered=False)
    column, word = config.text_columns[0], 1 if is_numbered else 0
    if column.isdecimal():
        if not 1 <= int(column) <= width:
            raise InputError(f"data.text_columns ({column}): the file has {width} columns")
        word = int(column) - 1
    tag = find_tag_column(config, width, word, is_conllu=is_conllu)
    return Layout(width=width, word=word, tag=tag, is_numbered=is_conllu or (is_numbered and word > 0))


def measure_columns(lines: Iterable[str]) -> tuple[int, bool]:
    """Returns the number of columns, and whether the first one counts the words: from 1 or 0, in each sentence or in the file."""
    width, first, last = 0, 0, -1
    is_new, has_counted = True, False
    for line in lines:
        if not line.strip(f"{BLANKS}\r\n"):
            is_new = True
        for fields in split_words([line]):
            width = width or len(fields)
            if PARTS.fullmatch(fields[0]):
                continue
            number = int(fields[0]) if fields[0].isdecimal() else -1
            if last < 0 and number in (0, 1):
                first = number
            elif last < 0 or (number != last + 1 and not (is_new and number == first)):
                return width, False
            has_counted = has_counted or (number == last + 1 and not is_new)
            last, is_new = number, False
    return width, has_counted


def split_fields(line: str, *, is_conllu: bool = False) -> list[str]:
    """Returns the fields of a line: separated by tabs if it has any, else by blanks."""
    return line.split("\t") if is_conllu or "\t" in line else [part for part in line.split(" ") if part]


def find_tag_column(config: DataConfig, width: int, word: int, *, is_conllu: bool) -> int | None:
    """Returns the index of the column of tags, from 0; None if the words are in the last one. width: Number of columns. word:
    That of the words, from 0."""
    column = str(config.label_column)
    if is_conllu:
        name = "upos" if column == "tags" else column.lower()
        if name not in CONLLU:
            raise InputError(f"data.label_column ({column}): for a CoNLL-U file must be one of {', '.join(CONLLU)}")
        return CONLLU.index(name)
    if not column.isdecimal():
        return width - 1 if word < width - 1 else None
    if not 1 <= int(column) <= width or int(column) == word + 1:
        raise InputError(
            f"data.label_column ({column}): the file has {width} columns, and words are in column {word + 1}; "
            "data.text_columns takes the number of another one"
        )
    return int(column) - 1


@dataclass(kw_only=True)
class Comments:
    """Tells comments from words that are written with #, and counts them.

    Args:
        layout: The columns of the other lines.
        tags: The tags of the other lines.
    """

    layout: Layout
    tags: set[str]
    count: int = 0
    example: str = ""

    def take(self, line: str) -> bool:
        """True if a line that begins with #, before the words of a sentence, is a comment.

        It is a word if it has as many columns as the other lines, and a blank follows the # only if a tag does.
        """
        fields = split_fields(line)
        is_word, tag = len(fields) == self.layout.width, self.layout.tag
        if is_word and line.startswith("# "):
            is_word = tag is not None and fields[0] == "#" and fields[tag].strip(BLANKS) in self.tags
        self.count += not is_word
        self.example = self.example or ("" if is_word else line)
        return not is_word


def find_comments(lines: Iterable[str], layout: Layout) -> Comments:
    """Returns what tells comments from words: the columns and the tags of the lines of a file that do not begin with #."""
    tag, rows = layout.tag, split_words(lines)
    tags = set() if tag is None else {fields[tag].strip(BLANKS) for fields in rows if len(fields) == layout.width}
    return Comments(layout=layout, tags=tags)


def split_words(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields the fields of the lines that are words and do not begin with #."""
    for line in lines:
        line = line.removesuffix("\n").rstrip("\r")
        if line.strip(BLANKS) and not line.startswith(("#", "-DOCSTART-")):
            yield split_fields(line)
