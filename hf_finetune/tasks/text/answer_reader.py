"""Reads the answers of a table's questions: as SQuAD's files have them, or a text with its position in columns of their own.

Each error names file and line, and the id of the question if it has one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from hf_finetune.data.columns import has_values
from hf_finetune.data.features import Array
from hf_finetune.data.literals import read_literal
from hf_finetune.data.table import Conversion, Table, describe_value
from hf_finetune.system.errors import InputError

NONE_HINT = "if the question has no answer, give empty lists, or is_impossible true"

OPTIONAL_COLUMNS = ("id", "is_impossible")  # are read if the table has them
ANSWERS = "answers"  # the column of SQuAD's answers
TEXTS = ("answer_text", "answer")  # columns of the answer's text, which a table may have instead
START = "answer_start"  # the column of the text's position in the context

WHOLE_NUMBER = re.compile(r"-?\d+(\.0*)?", re.ASCII)

Answer = tuple[str, int]  # a text, and the position of its first character in the context


@dataclass(frozen=True, kw_only=True)
class AnswerReader:
    """Reads the answers of a row.

    Args:
        question, context, answers: The names of the three columns.
    """

    question: str
    context: str
    answers: str

    @property
    def alternatives(self) -> tuple[tuple[str, ...], ...]:
        """Sets of columns that a table may have instead of its own, if the column of the answers has its usual name."""
        if self.answers != ANSWERS:
            return ()
        return tuple((self.question, self.context, name) for name in TEXTS)

    def find_conversion(self, table: Table) -> Conversion | None:
        """Returns how all that a row says of its answers comes into the column of the answers; None if the table has no other
        columns of them."""
        others = [*(TEXTS if self.answers == ANSWERS else ()), START]
        names = [name for name in others if has_values(table.columns.get(name, ()))]
        if not names:
            return None
        texts = [name for name in (self.answers, *TEXTS) if name in (self.answers, *names)]
        used = [name for name in (*texts, START) if has_values(table.columns.get(name, ()))]

        def convert(columns: Mapping[str, Sequence[Any]]) -> dict[str, Iterable[Any]]:
            starts = columns[START] if START in columns else repeat(None)
            rows = zip(*(columns[name] for name in texts), strict=True)
            return {self.answers: map(self.join_cells, rows, starts)}

        return Conversion(convert=convert, notes=(f"answers are in the columns {', '.join(used)}",))

    def join_cells(self, values: Sequence[Any], start: Any) -> Any:
        """Returns the first of a row's values that is not null, with the value of answer_start if it is a text or a list of them.
        No value is checked."""
        value = next((value for value in values if value is not None), None)
        if start in (None, ""):
            return value
        starts = parse_list(start)
        if isinstance(value, str) and starts is None:
            return {"text": [value], "answer_start": [start]}
        texts = parse_list(value)
        if texts is None or not all(isinstance(text, str) for text in texts):
            return value
        return {"text": texts, "answer_start": [start] if starts is None else starts}

    def read_given(self, table: Table, row: int) -> list[tuple[Any, Any]]:
        """Returns pairs of a text and a position as the row gives them, unchecked. The position is None if it gives none."""
        value = table.columns[self.answers][row]
        literal = read_literal(value) if isinstance(value, str) else value
        if isinstance(literal, (Mapping, list, tuple)):
            value = literal
        elif isinstance(value, str) and value.strip():
            return [(value, None)]
        if isinstance(value, (list, tuple)) and all(isinstance(answer, Mapping) for answer in value):
            value = {key: [answer.get(key) for answer in value] for key in ("text", "answer_start")}
        if isinstance(value, (list, tuple)):
            value = {"text": value}
        texts, starts = (value.get(key) if isinstance(value, Mapping) else None for key in ("text", "answer_start"))
        if isinstance(texts, (list, tuple)) and starts is None:
            return [(text, None) for text in texts]
        if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)) or len(texts) != len(starts):
            where, takes = self.where(table, row), "{text: [...], answer_start: [...]}, two lists of the same length"
            if value is None or value == "":
                flat = (
                    "with the column answer_text or answer, give an empty text there, and -1 in a column answer_start"
                )
                raise InputError(f"{where} is {describe_value(value)} or missing; give {takes}; {NONE_HINT}; {flat}")
            raise InputError(f"{where} ({shorten(value)}) must be {takes}; {NONE_HINT}")
        if list(texts) == [""] and list(map(str, starts)) == ["-1"]:  # how flat tables write that there is none
            return []
        return list(zip(texts, starts, strict=True))

    def read(self, table: Table, row: int) -> list[Answer]:
        """Returns the answers of a row, each with its position. The list is empty if the question has no answer.

        An answer without a position is found if it occurs once in the context. InputError with file and line if the row does not
        say what its answers are, or if one is not in the context at its position.
        """
        if is_impossible(table, row):
            return []
        where, context = self.where(table, row), table.columns[self.context][row]
        answers = []
        for text, start in self.read_given(table, row):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: the text {text!r} is not an answer; {NONE_HINT}")
            position = find_position(context, text, where) if start is None else read_position(start, text, where)
            if position < 0 or context[position : position + len(text)] != text:
                raise InputError(f"{where}: {describe_misplaced_answer(context, text, position)}")
            answers.append((text, position))
        return answers

    def has_texts(self, table: Table, row: int) -> bool:
        """True if a row has the text of an answer, whatever is_impossible says."""
        return table.columns[self.answers][row] not in (None, "") and bool(self.read_given(table, row))

    def count_found(self, table: Table) -> int:
        """Returns the number of answers whose position the rows do not give."""
        rows = (row for row in range(len(table)) if not is_impossible(table, row))
        return sum(start is None for row in rows for _, start in self.read_given(table, row))

    def find_answered(self, table: Table) -> Array:
        """Returns for each row whether the question has an answer, bool [N]."""
        return np.array([bool(self.read(table, row)) for row in range(len(table))], dtype=bool)

    def describe_unanswered(self, table: Table, has_answer: Array) -> str:
        """Returns how many questions have no answer, and what says so."""
        num_unanswered = len(table) - int(has_answer.sum())
        if not num_unanswered:
            return f"each of the {len(table):,} questions has an answer"
        num_impossible = sum(is_impossible(table, row) for row in range(len(table)))
        counts = {"is_impossible": num_impossible, "empty lists": num_unanswered - num_impossible}
        reasons = [name for name, count in counts.items() if count]
        if len(reasons) > 1:
            reasons = [f"{count:,} {name}" for name, count in counts.items()]
        return f"{num_unanswered:,} of {len(table):,} questions have no answer ({', '.join(reasons)})"

    def find_warnings(self, table: Table, *, unanswerable: bool) -> list[str]:
        """Answers that is_impossible contradicts; questions without an answer where training has none. unanswerable: Training has
        questions without an answer."""
        warnings = []
        rows = [row for row in range(len(table)) if is_impossible(table, row)]
        if given := [row for row in rows if self.has_texts(table, row)]:
            warnings.append(
                f"{len(given):,} questions have answers although is_impossible is true, such as {table.where(given[0])}; they "
                "count as questions without an answer"
            )
        if not unanswerable and not self.find_answered(table).all():
            warnings.append(
                "has questions without an answer, and training has none: the model will answer every question"
            )
        return warnings

    def where(self, table: Table, row: int) -> str:
        """Returns `file:line` of a row, the id of its question if it has one, and the column of the answers. The lines of a SQuAD
        file are not questions."""
        value = table.columns["id"][row] if "id" in table.columns else None
        return f"{table.where(row)}{'' if value is None else f' (id {value})'}: {self.answers}"


def parse_list(value: Any) -> list[Any] | None:
    """Returns a list, or one that is written as text; None if the value is neither."""
    value = read_literal(value) if isinstance(value, str) else value
    return list(value) if isinstance(value, (list, tuple)) else None


def find_position(context: str, text: str, where: str) -> int:
    """Returns the position of a text in the context. InputError if it does not occur exactly once."""
    positions = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    if not positions:
        raise InputError(
            f"{where}: {shorten(text)!r} does not occur in the context; {describe_absent_answer(context, text)}"
        )
    if len(positions) > 1:
        raise InputError(
            f"{where}: {shorten(text)!r} occurs {len(positions)} times in the context; give its position as answer_start"
        )
    return positions[0]


def read_position(start: Any, text: str, where: str) -> int:
    """Returns a position as a whole number. InputError if it is not one."""
    if isinstance(start, bool) or not WHOLE_NUMBER.fullmatch(str(start).strip()):
        raise InputError(f"{where}: answer_start ({start}) of {shorten(text)!r} must be a whole number")
    return int(str(start).strip().partition(".")[0])


def is_impossible(table: Table, row: int) -> bool:
    """Returns whether the column is_impossible, if there is one, says that the question has no answer. InputError with file and
    line if it says neither that nor the opposite."""
    value = table.columns["is_impossible"][row] if "is_impossible" in table.columns else None
    text = "" if value is None else str(value).strip().lower()
    if text not in ("true", "1", "1.0", "false", "0", "0.0", ""):
        raise InputError(f"{table.where(row)}: is_impossible ({value}) must be true or false")
    return text in ("true", "1", "1.0")


def describe_misplaced_answer(context: str, text: str, start: int) -> str:
    """Returns the part of an error about an answer that is not at its position: what is there, and where the answer is."""
    positions = [match.start() for match in re.finditer(re.escape(text), context)]
    hint = f"the answer does not occur in the context; {describe_absent_answer(context, text)}"
    if positions:
        hint = f"the nearest occurrence begins at {min(positions, key=lambda position: abs(position - start))}"
    there = context[start : start + len(text)] if start >= 0 else ""
    return f"answer_start ({start}) of {shorten(text)!r}: the context has {shorten(there)!r} there; {hint}"


def describe_absent_answer(context: str, text: str) -> str:
    """Returns the end of an error about an answer that the context does not have: what to do."""
    words = map(re.escape, text.split())
    alike = re.search(r"\s+".join(words), context, re.IGNORECASE)
    if alike:
        return f"write it as the context does, {shorten(alike[0])!r}"
    return f"correct the answer or the context, or remove the row; {NONE_HINT}"


def shorten(value: Any, longest: int = 60) -> str:
    """Returns the first `longest` characters of a value, for an error."""
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def get_id(table: Table, row: int) -> str:
    """Returns the id of a question. If it has none, it is the number of the row, from 1."""
    value = table.columns["id"][row] if "id" in table.columns else None
    return str(row + 1) if value is None else str(value)
