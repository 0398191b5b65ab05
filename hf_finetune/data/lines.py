"""Text files with an example on each line, pairs of such files, and folders with a file for each example."""

import re
from itertools import zip_longest
from pathlib import Path

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.rows import Rows, Say, say_nothing
from hf_finetune.data.text_files import TextFile, find_text_file, read_whole
from hf_finetune.system.errors import InputError

FASTTEXT_LABEL = re.compile(r"[ \t]*__label__([^ \t]+)[ \t]*")


def read_lines(path: Path, config: DataConfig, say: Say = say_nothing) -> Rows:
    """Yields every line of a text file as a row, empty lines too."""
    with find_text_file(path, config, say).open() as file:
        for number, line in enumerate(file, 1):
            yield number, {config.text_columns[0]: line.removesuffix("\n").removesuffix("\r")}


def read_parallel(source: Path, target: Path, config: DataConfig, say: Say = say_nothing) -> Rows:
    """Yields the lines of two text files as pairs: source in the text column, target in the label column.

    Lines that are empty in both files are skipped. Raises InputError if one file has more lines than the other, or if a line is
    empty in one file only.
    """
    files = [find_text_file(path, config, say) for path in (source, target)]
    num_source, num_target = (count_lines(file) for file in files)
    if num_source != num_target:
        raise InputError(
            f"{target}: has {num_target:,} lines, but {source} has {num_source:,}; each line must be the target "
            "of the same line of the source file"
        )
    with files[0].open() as sources, files[1].open() as targets:
        for number, pair in enumerate(zip_longest(sources, targets, fillvalue=""), 1):
            source_text, target_text = (line.strip() for line in pair)
            if bool(source_text) != bool(target_text):
                empty, other = (target, source) if source_text else (source, target)
                raise InputError(f"{empty}:{number}: is empty, but line {number} of {other} is not")
            if source_text:
                yield number, {config.text_columns[0]: source_text, str(config.label_column): target_text}


def count_lines(file: TextFile) -> int:
    """Returns the number of lines of a file. A newline at its end does not begin another line."""
    with file.open() as lines:
        return sum(1 for _ in lines)


def read_classes(path: Path, config: DataConfig, say: Say = say_nothing) -> Rows:
    """Yields the rows of texts with a class: of a folder with one subfolder for each class, or of a file as fastText's."""
    if len(config.text_columns) == 2:
        kind = "a folder of .txt files" if path.is_dir() else "a .txt file"
        raise InputError(f"data.text_columns ({list(config.text_columns)}): {kind} has one text column")
    return read_class_folder(path, config, say) if path.is_dir() else read_fasttext(path, config, say)


def read_class_folder(folder: Path, config: DataConfig, say: Say) -> Rows:
    """Yields the rows of a folder with one subfolder of .txt files for each class. The line is 0.

    The path of the file is in the row's column "", which no table can have.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    files = [(path, subfolder.name) for subfolder in classes for path in sorted(subfolder.glob("*.txt"))]
    if not files:
        raise InputError(f"{folder}: has no subfolders with .txt files, one subfolder for each class")
    notes: list[str] = []
    for path, label in files:
        text = read_whole(path, config, notes.append)
        yield 0, {"": path, config.text_columns[0]: text, str(config.label_column): label}
    if notes:
        say(f"{folder.name}: {len(notes):,} of {len(files):,} files have another encoding; {notes[0]}")


def read_fasttext(path: Path, config: DataConfig, say: Say) -> Rows:
    """Yields the lines of a file as fastText reads them: labels, each as __label__NAME, and a text.

    A row's label is a string; if any line of the file has several, it is a list in all rows. If no line has a label, every line
    is a row that has only a text. Else blank lines are skipped.
    """
    text, label = config.text_columns[0], str(config.label_column)
    file = find_text_file(path, config, say)
    with file.open() as lines:
        most = max((len(split_fasttext(line)[0]) for line in lines), default=0)
    if most:
        say(f"{path.name}: lines are as fastText reads them, __label__NAME and a text")
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            labels, rest = split_fasttext(line)
            if not most:
                yield number, {text: rest}
            elif labels or rest.strip():
                value = labels if most > 1 else "".join(labels)
                yield number, {text: rest} | ({label: value} if labels else {})


def split_fasttext(line: str) -> tuple[list[str], str]:
    """Returns the labels at the beginning of a line, and its text."""
    labels, position = [], 0
    line = line.removesuffix("\n").removesuffix("\r")
    while match := FASTTEXT_LABEL.match(line, position):
        labels.append(match[1])
        position = match.end()
    return labels, line[position:]
