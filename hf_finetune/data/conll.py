"""CoNLL files: a word on each line with its tag, and blank lines between sentences."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.rows import Rows, Say, find_ending, say_nothing
from hf_finetune.data.text_files import find_text_file
from hf_finetune.system.errors import InputError

# Columns of CoNLL-U, https://universaldependencies.org/format.html
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
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


def read_conll(path: Path, config: DataConfig, say: Say = say_nothing) -> Rows:
    """Yields the sentences of a CoNLL file.

    A row has the words in the text column, the tags in the label column, and the lines of the words in "#lines". The word is
    in the first column of the file. The tag is in the last column, or in the one whose number (from 1) is data.label_column; in
    CoNLL-U files (.conllu) in the one whose name it is, such as upos. A file with a single column has no tags.

    Comments (lines that begin with #, before the words of a sentence) are passed over.
    """
    is_conllu = find_ending(path) == ".conllu"
    file = find_text_file(path, config, say)
    comments: Comments | None = None
    sentence, width = Sentence(), len(CONLLU) if is_conllu else 0
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            line = line.removesuffix("\n").rstrip("\r")
            if not line.strip(BLANKS):
                if sentence.words:
                    yield sentence.lines[0], sentence.make_row(config)
                    sentence = Sentence()
                continue
            if line.startswith("#") and (is_conllu or not sentence.words):
                if comments is None and not is_conllu:
                    with file.open() as again:
                        comments = find_comments(again, config)
                if comments is None or comments.take(line):
                    continue
            fields = split_fields(line, is_conllu=is_conllu)
            if fields[0] == "-DOCSTART-":
                continue
            if is_conllu and not fields[0].isdigit():  # 1-2: the parts of "don't" follow; 1.1: a word that was left out
                continue
            width = width or len(fields)
            if len(fields) != width:
                hint = (
                    "; it begins with #, but comments are read only before a sentence" if line.startswith("#") else ""
                )
                raise InputError(f"{path}:{number}: {len(fields)} columns, expected {width}{hint}")
            sentence.lines.append(number)
            sentence.words.append(fields[1] if is_conllu else fields[0])
            if width > 1:
                sentence.tags.append(fields[find_tag_column(config, width, is_conllu=is_conllu)].strip(BLANKS))
    if sentence.words:
        yield sentence.lines[0], sentence.make_row(config)
    if comments is not None and comments.count:
        say(f"{path.name}: {comments.count:,} lines before sentences are comments, such as {comments.example!r}")


def split_fields(line: str, *, is_conllu: bool = False) -> list[str]:
    """Returns the fields of a line: separated by tabs if it has any, else by blanks."""
    return line.split("\t") if is_conllu or "\t" in line else [part for part in line.split(" ") if part]


def find_tag_column(config: DataConfig, width: int, *, is_conllu: bool) -> int:
    """Returns the index of the column of tags, from 0. `width`: number of columns."""
    column = str(config.label_column)
    if is_conllu:
        name = "upos" if column == "tags" else column.lower()
        if name not in CONLLU:
            raise InputError(f"data.label_column ({column}): for a CoNLL-U file must be one of {', '.join(CONLLU)}")
        return CONLLU.index(name)
    if not column.isdigit():
        return width - 1
    if not 1 < int(column) <= width:
        raise InputError(f"data.label_column ({column}): the file has {width} columns, and words are in the first")
    return int(column) - 1


@dataclass(kw_only=True)
class Comments:
    """Tells comments from words that are written with #, and counts them.

    Args:
        width: The number of columns of the other lines.
        tag_column: The column of tags, from 0.
        tags: The tags of the other lines.
    """

    width: int
    tag_column: int
    tags: set[str]
    count: int = 0
    example: str = ""

    def take(self, line: str) -> bool:
        """True if a line that begins with #, before the words of a sentence, is a comment.

        It is a word if it has as many columns as the other lines, and a blank follows the # only if a tag does.
        """
        fields = split_fields(line)
        is_word = len(fields) == self.width
        if is_word and line.startswith("# "):
            is_word = self.width > 1 and fields[0] == "#" and fields[self.tag_column].strip(BLANKS) in self.tags
        self.count += not is_word
        self.example = self.example or ("" if is_word else line)
        return not is_word


def find_comments(lines: Iterable[str], config: DataConfig) -> Comments:
    """Returns what tells comments from words: the width and the tags of the lines of a file that do not begin with #."""
    width, tag_column, tags = 0, 0, set()
    for fields in split_words(lines):
        if not width:
            width = len(fields)
            tag_column = find_tag_column(config, width, is_conllu=False) if width > 1 else 0
        if len(fields) == width:
            tags.add(fields[tag_column].strip(BLANKS) if width > 1 else "")
    return Comments(width=width, tag_column=tag_column, tags=tags)


def split_words(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields the fields of the lines that are words and do not begin with #."""
    for line in lines:
        line = line.removesuffix("\n").rstrip("\r")
        if line.strip(BLANKS) and not line.startswith(("#", "-DOCSTART-")):
            yield split_fields(line)
