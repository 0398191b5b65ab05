"""The rows of files of JSON: a record on each line, an array of records, or a document that holds them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data import json_scanner
from hf_finetune.data.json_documents import find_records, read_records
from hf_finetune.data.json_scanner import JsonScanner, Outline, too_large_error
from hf_finetune.data.json_values import describe_json_error, parse_json
from hf_finetune.data.rows import Rows, Say, name_type, say_nothing
from hf_finetune.data.text_files import TextFile, find_text_file
from hf_finetune.system.errors import InputError

# --- lines -----------------------------------------------------------------------------------------------------------


def read_json_lines(path: Path, config: DataConfig, say: Say = say_nothing) -> Rows:
    """Yields the rows of a file with one JSON object on each line. Blank lines are skipped."""
    yield from read_lines_of(find_text_file(path, config, say))


def read_lines_of(file: TextFile) -> Rows:
    """Yields the rows of an opened file with one JSON object on each line."""
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except (ValueError, RecursionError) as error:
                is_array = number == 1 and line.lstrip().startswith("[")
                hint = "; end the file's name with .json if it holds one array" if is_array else ""
                raise InputError(f"{file.path}:{number}: broken JSON: {describe_json_error(error)}{hint}") from None
            if not isinstance(row, dict):
                raise InputError(
                    f"{file.path}:{number}: must be a JSON object with named columns, not {name_type(row)}"
                )
            yield number, row


# --- arrays and documents --------------------------------------------------------------------------------------------


def read_json(path: Path, config: DataConfig, say: Say = say_nothing, *, has_lists: bool = False) -> Rows:
    """Yields the rows of a JSON file, with the number of the record, from 1; with its line if the file has one on each line.

    An array, or one under a key, is read record by record. Any other document is loaded at once.

    has_lists: The columns of the task hold lists.
    """
    file = find_text_file(path, config, say)
    with file.open() as text:
        scanner = JsonScanner(path=path, file=text)
        first = scanner.peek()
        if first == "[":
            yield from read_records(path, scanner.scan(), say)
        if first in ("[", ""):
            return
        start = scanner.find_line()
        outline, end, is_last = scanner.read_outline(), scanner.find_line(), not scanner.peek()
        has_lines = not is_last and start == end < scanner.find_line()
        if not is_last and not has_lines:
            raise scanner.make_error("Extra data", scanner.position)
        is_large = scanner.num_characters > json_scanner.LARGEST_DOCUMENT
    if has_lines:
        say(f"{path.name}: a record on each line")
        yield from read_lines_of(file)
        return
    document = FileDocument(file=file, outline=outline, is_large=is_large)
    yield from find_records(path, document, config, say, has_lists=has_lists)


@dataclass(frozen=True, kw_only=True)
class FileDocument:
    """A JSON document in a file. It is a Document.

    Args:
        file: The file.
        outline: Its outline.
        is_large: It is too large to be held in memory.
    """

    file: TextFile
    outline: Outline
    is_large: bool

    @property
    def sample(self) -> Any:
        return self.outline.document

    def iterate(self, name: str) -> Iterator[Any]:
        if name not in self.outline.cut:
            yield from self.sample[name]
            return
        with self.file.open() as text:
            yield from JsonScanner(path=self.file.path, file=text).scan_entry(name)

    def load(self) -> Any:
        if not self.outline.cut:
            return self.sample
        if self.is_large:
            raise too_large_error(self.file.path)
        return load_document(self.file)


def load_document(file: TextFile) -> Any:
    """Returns the value of a file with one JSON document. InputError with the line if it is broken."""
    with file.open() as lines:
        text = lines.read()
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        where = f"{file.path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(file.path)
        raise InputError(f"{where}: broken JSON: {describe_json_error(error)}") from None
    return value
