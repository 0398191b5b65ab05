"""Reads the choices of a table's rows and their labels. Each error names file and line.

C choices of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

# How labels name the right choice. If several readings fit the same number of training rows, the first of them is taken
READINGS = {
    "name": "the choices' own names",
    "text": "the choices' texts",
    "letter": "letters, from A",
    "index": "indices, from 0",
}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The choices of a row.

    Args:
        texts: The choices [C].
        names: Their names [C], if the data give them: `{"text": [...], "label": ["A", "B", ...]}`. Else ().
    """

    texts: tuple[str, ...]
    names: tuple[str, ...] = ()

    def find_index(self, label: Any, reading: str) -> int | None:
        """Returns the choice, from 0, that a label stands for in a reading. None if it stands for none or for several."""
        if isinstance(label, bool) or label is None:
            return None
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if reading == "index":
            is_number = isinstance(label, int) or (isinstance(label, str) and label.strip().isdecimal())
            return int(label) if is_number and 0 <= int(label) < len(self.texts) else None
        if not isinstance(label, str):
            return None
        word = label.strip()
        if reading == "letter":
            number = ord(word.upper()) - ord("A") if len(word) == 1 else -1
            return number if 0 <= number < min(26, len(self.texts)) else None
        candidates = self.names if reading == "name" else self.texts
        indices = [index for index, candidate in enumerate(candidates) if candidate.strip() == word]
        return indices[0] if len(indices) == 1 else None


@dataclass(frozen=True, kw_only=True)
class ChoiceReader:
    """Reads the choices and the label of a row.

    Args:
        choice_columns: One column of lists of choices, or several columns of one choice each.
        label_column: The column of the label.
        reading: How labels name the right choice; a key of READINGS.
    """

    choice_columns: tuple[str, ...]
    label_column: str
    reading: str = "index"

    def read_choices(self, table: Table, row: int) -> Choices:
        """Returns the choices of a row. InputError with file and line if there are fewer than two, or if one is not a text."""
        where = f"{table.where(row)}: {', '.join(self.choice_columns)}"
        texts, names = self.read_list(table, row)
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: choice {number} ({text!r}) is not a text")
        if len(texts) < 2:
            raise InputError(f"{where}: needs at least two choices, has {len(texts)}")
        if names and len(names) != len(texts):
            raise InputError(f"{where}: {len(names)} labels for {len(texts)} choices")
        return Choices(texts=tuple(texts), names=tuple(map(str, names)))

    def read_list(self, table: Table, row: int) -> tuple[list[Any], Sequence[Any]]:
        """Returns the values of a row's choices, and their names if the data give them."""
        if len(self.choice_columns) > 1:
            texts = [table.columns[name][row] for name in self.choice_columns]
            while texts and texts[-1] in (None, ""):  # a row with fewer choices leaves the last ones empty
                texts.pop()
            return texts, ()
        (column,) = self.choice_columns
        value: Any = table.columns[column][row]
        names: Sequence[Any] = ()
        if isinstance(value, Mapping):  # as in ARC and CommonsenseQA on the Hub
            value, names = value.get("text"), value.get("label") or ()
        if not isinstance(value, (list, tuple)):
            raise InputError(
                f"{table.where(row)}: {column} ({value}) is not a list of choices; see task.choice_columns"
            )
        return list(value), names

    def guess_reading(self, table: Table) -> str:
        """Returns the reading in which the labels of the most rows name a choice; index if they do in none."""
        counts = dict.fromkeys(READINGS, 0)
        for row in range(len(table)):
            label, choices = table.columns[self.label_column][row], self.read_choices(table, row)
            for reading in READINGS:
                counts[reading] += choices.find_index(label, reading) is not None
        if not any(counts.values()):
            return "index"
        return max(READINGS, key=lambda reading: counts[reading])  # the first of equal ones

    def read_label(self, table: Table, row: int) -> int:
        """Returns the right choice of a row, from 0. InputError with file and line if the label names none."""
        label, choices = table.columns[self.label_column][row], self.read_choices(table, row)
        index = choices.find_index(label, self.reading)
        if index is None:
            raise InputError(
                f"{table.where(row)}: {self.label_column} ({label}) names none of the {len(choices.texts)} choices, or several; "
                f"labels are {READINGS[self.reading]}, as in most training rows"
            )
        return index
