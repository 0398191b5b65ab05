"""The rows of files of JSON: a record on each line, an array of records, or a document that holds them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.json_documents import find_records, read_records
from hf_finetune.data.rows import Rows, Say, name_type, say_nothing
from hf_finetune.data.text_files import TextFile, find_text_file
from hf_finetune.system.errors import InputError

CHUNK_SIZE = 1 << 18  # characters
BLANKS = re.compile(r"[ \t\n\r]*")
LONGEST_LITERAL = 16  # characters of a number's or a name's end that may be cut off where a chunk ends


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


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text. ValueError if it is broken, if an object has two values with one name, or if a string has
    half a surrogate pair."""
    value = DECODER.decode(text)
    check_unicode(text, value)
    return value


def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object. ValueError if two of its values have one name, of which only one would be read."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two values that are called {repeated!r}")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=make_object)


def check_unicode(text: str, value: Any) -> None:
    """Raises UnicodeEncodeError if the JSON `text` of `value` has half a surrogate pair, as in \\uD800."""
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()


def describe_json_error(error: Exception) -> str:
    """Returns the error's text with the column, and without the position in the text, which is not that in the file."""
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair"
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


# --- arrays and documents --------------------------------------------------------------------------------------------


def read_json(path: Path, config: DataConfig, say: Say = say_nothing, *, has_lists: bool = False) -> Rows:
    """Yields the rows of a JSON file, with the number of the record, from 1; with its line if the file has one on each line.

    An array is read record by record. Any other document is loaded at once.

    has_lists: The columns of the task hold lists.
    """
    file = find_text_file(path, config, say)
    with file.open() as text:
        scanner = ArrayScanner(path=path, file=text)
        first = scanner.peek()
        if first == "[":
            yield from read_records(path, scanner.scan(), say)
            return
    if has_record_on_first_line(file):
        say(f"{path.name}: a record on each line")
        yield from read_lines_of(file)
    elif first:
        yield from find_records(path, load_document(file), config, say, has_lists=has_lists)


def has_record_on_first_line(file: TextFile) -> bool:
    """True if the first line that is not blank is one JSON value, and another line follows."""
    with file.open() as lines:
        first = next((line for line in lines if line.strip()), "")
        return is_json(first) and any(line.strip() for line in lines)


def is_json(text: str) -> bool:
    """True if a text is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


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


@dataclass(kw_only=True)
class ArrayScanner:
    """Reads a JSON array value by value.

    Attributes:
        path: The file, for errors.
        file: The open file.
        buffer: Characters that were read and are not used yet.
        position: Of the next character in the buffer.
        is_at_end: The file has no more.
        num_lines, num_columns: Line ends before the buffer, and characters after the last of them.
    """

    path: Path
    file: TextIO
    buffer: str = ""
    position: int = 0
    is_at_end: bool = False
    num_lines: int = 0
    num_columns: int = 0

    def scan(self) -> Iterator[Any]:
        """Yields the values of the array. Raises InputError, with the line, if the file has anything but one array."""
        self.expect("[", "Expecting value")
        if self.peek() == "]":
            self.position += 1
        else:
            while True:
                yield self.read_value()
                if self.peek() != ",":
                    break
                self.position += 1
            self.expect("]", "Expecting ',' delimiter")
        if self.peek():
            raise self.make_error("Extra data", self.position)

    def peek(self) -> str:
        """Returns the next character that is not blank; "" at the end of the file."""
        while True:
            self.position = BLANKS.match(self.buffer, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self.read_more():
                return ""

    def expect(self, character: str, problem: str) -> None:
        """Passes a character. Raises InputError if the next one is another."""
        if self.peek() != character:
            raise self.make_error(problem, self.position)
        self.position += 1

    def read_more(self) -> bool:
        """Adds a chunk to the buffer, as long as what is left of it at least. Returns whether there was any."""
        used = self.buffer[: self.position]
        self.num_lines += used.count("\n")
        self.num_columns = len(used) - used.rfind("\n") - 1 if "\n" in used else self.num_columns + len(used)
        rest = self.buffer[self.position :]
        chunk = self.file.read(max(CHUNK_SIZE, len(rest)))
        self.buffer, self.position = rest + chunk, 0
        self.is_at_end = not chunk
        return bool(chunk)

    def read_value(self) -> Any:
        """Returns the next value, and passes it."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - LONGEST_LITERAL
                if is_cut and not self.is_at_end:
                    self.read_more()
                    continue
                raise self.make_error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.make_error(describe_json_error(error), self.position) from None
            if end == len(self.buffer) and not self.is_at_end:  # a number may continue
                self.read_more()
                continue
            self.check_unicode(end, value)
            self.position = end
            return value

    def check_unicode(self, end: int, value: Any) -> None:
        """Raises InputError if the value, which ends there, has half a surrogate pair."""
        try:
            check_unicode(self.buffer[self.position : end], value)
        except UnicodeEncodeError as error:
            raise InputError(f"{self.path}: broken JSON: {describe_json_error(error)}") from None

    def make_error(self, problem: str, position: int) -> InputError:
        """Returns the error about a character of the buffer, with its line and column."""
        line = self.num_lines + self.buffer.count("\n", 0, position) + 1
        newline = self.buffer.rfind("\n", 0, position)
        column = position - newline if newline >= 0 else self.num_columns + position + 1
        return InputError(f"{self.path}:{line}: broken JSON: {problem} at column {column}")
