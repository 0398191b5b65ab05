"""Reads large JSON documents from start to end: an array value by value, an object of arrays without holding these."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hf_finetune.data.json_values import DECODER, check_unicode, describe_json_error, make_object
from hf_finetune.system.errors import InputError

CHUNK_SIZE = 1 << 18  # characters
BLANKS = re.compile(r"[ \t\n\r]*")
LONGEST_LITERAL = 16  # characters of a number's or a name's end that may be cut off where a chunk ends
ITEMS_OF_OUTLINE = 1000  # of each array; they show what an array holds
LARGEST_DOCUMENT = 200_000_000  # characters of a value that is held in memory, where it takes some ten times the bytes


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A JSON document with the first items of its arrays.

    Attributes:
        document: The value. If it is an object, the arrays in it have their first ITEMS_OF_OUTLINE items.
        cut: The names of the arrays that have more.
    """

    document: Any
    cut: frozenset[str] = frozenset()


def too_large_error(path: Path) -> InputError:
    """Returns the error for a document that would have to be held in memory."""
    return InputError(
        f"{path}: has one JSON value of more than {LARGEST_DOCUMENT // 1_000_000} million characters, which is held in memory; "
        "write a row on each line, as pandas does with frame.to_json(PATH, orient='records', lines=True)"
    )


@dataclass(kw_only=True)
class JsonScanner:
    """Reads a JSON array, or an object of arrays, value by value.

    Attributes:
        path: The file, for errors.
        file: The open file.
        buffer: Characters that were read and are not used yet.
        position: Of the next character in the buffer.
        is_at_end: The file has no more.
        num_lines, num_columns: Line ends before the buffer, and characters after the last of them.
        num_characters: Characters that were read from the file.
    """

    path: Path
    file: TextIO
    buffer: str = ""
    position: int = 0
    is_at_end: bool = False
    num_lines: int = 0
    num_columns: int = 0
    num_characters: int = 0

    def scan(self) -> Iterator[Any]:
        """Yields the values of the array. Raises InputError, with the line, if the file has anything but one array."""
        yield from self.scan_array()
        if self.peek():
            raise self.make_error("Extra data", self.position)

    def scan_array(self) -> Iterator[Any]:
        """Yields the values of the array that comes next, and passes it."""
        for _ in self.pass_items("[", "]"):
            yield self.read_value()

    def scan_names(self) -> Iterator[str]:
        """Yields the names of the object that comes next. The caller reads the value of each before the next one."""
        for _ in self.pass_items("{", "}"):
            if self.peek() != '"':
                raise self.make_error("Expecting property name enclosed in double quotes", self.position)
            name = str(self.read_value())
            self.expect(":", "Expecting ':' delimiter")
            yield name

    def pass_items(self, begin: str, end: str) -> Iterator[None]:
        """Passes the brackets and commas of the array or object that comes next. Yields before each item, which the caller
        reads."""
        self.expect(begin, "Expecting value")
        if self.peek() == end:
            self.position += 1
            return
        while True:
            yield
            if self.peek() != ",":
                break
            self.position += 1
        self.expect(end, "Expecting ',' delimiter")

    def read_outline(self) -> Outline:
        """Returns the outline of the document that comes next, and passes it. InputError if more than arrays of it is too large
        to be held in memory."""
        if self.peek() != "{":
            return Outline(document=self.read_value())
        entries: list[tuple[str, Any]] = []
        cut: set[str] = set()
        num_held = 0
        for name in self.scan_names():
            if self.peek() == "[":
                items = []
                for number, item in enumerate(self.scan_array()):
                    if number < ITEMS_OF_OUTLINE:
                        items.append(item)
                    else:
                        cut.add(name)
                entries.append((name, items))
                continue
            start = self.count_passed()
            entries.append((name, self.read_value()))
            num_held += self.count_passed() - start
            if num_held > LARGEST_DOCUMENT:
                raise too_large_error(self.path)
        try:
            return Outline(document=make_object(entries), cut=frozenset(cut))
        except ValueError as error:  # two values of one name
            raise self.make_error(str(error), self.position) from None

    def scan_entry(self, wanted: str) -> Iterator[Any]:
        """Yields the values of the array with this name in the object that comes next."""
        for name in self.scan_names():
            values = self.scan_array() if self.peek() == "[" else iter([self.read_value()])
            if name == wanted:
                yield from values
                return
            for _ in values:
                pass

    def count_passed(self) -> int:
        """Returns the number of characters that were passed."""
        return self.num_characters - len(self.buffer) + self.position

    def find_line(self) -> int:
        """Returns the line of the next character, from 1."""
        return self.num_lines + self.buffer.count("\n", 0, self.position) + 1

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
        if len(rest) > LARGEST_DOCUMENT:
            raise too_large_error(self.path)
        chunk = self.file.read(max(CHUNK_SIZE, len(rest)))
        self.buffer, self.position = rest + chunk, 0
        self.is_at_end = not chunk
        self.num_characters += len(chunk)
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
