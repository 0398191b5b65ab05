"""Reads the choices of a table's rows and their labels. Each error names file and line.

C choices of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_finetune.data.literals import read_literal
from hf_finetune.data.table import Table, is_text
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import canonical_label, clean_label

# How labels name the right choice. If several readings fit the same number of training rows, the first of them is taken
READINGS = {
    "name": "the choices' own names",
    "text": "the choices' texts",
    "letter": "letters, from A",
    "index": "indices, from 0",
    "number": "numbers, from 1",
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
        if isinstance(label, (bool, list, tuple, dict)):
            return None
        word = clean_label(label)
        if word is None:
            return None
        if reading in ("index", "number"):
            number = canonical_label(label) or ""
            index = int(number) - (reading == "number") if number.isdecimal() else -1
            return index if 0 <= index < len(self.texts) else None
        if reading == "letter":
            index = ord(word.upper()) - ord("A") if len(word) == 1 else -1
            return index if 0 <= index < min(26, len(self.texts)) else None
        candidates = self.names if reading == "name" else self.texts
        indices = [index for index, candidate in enumerate(candidates) if clean_label(candidate) == word]
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
        texts, names = self.read_list(table, row)
        fault = next(
            (f"choice {number} ({text!r}) is not a text" for number, text in enumerate(texts) if not is_text(text)), ""
        )
        if not fault and len(texts) < 2:
            fault = f"needs at least two choices, has {len(texts)}"
        if not fault and names and len(names) != len(texts):
            fault = f"{len(names)} labels for {len(texts)} choices"
        if fault:
            raise InputError(f"{table.where(row)}: {', '.join(self.choice_columns)}: {fault}")
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
        if isinstance(value, str):  # as pandas writes lists into a csv file
            value = read_literal(value) or value
        if isinstance(value, Mapping):
            return split_object(value)
        if value is None:
            raise InputError(
                f"{table.where(row)}: {column} is missing, and no other columns of choices, such as options, option1 and "
                f"option2, or A and B, were found; name those of the file in task.choice_columns{table.describe_unread()}"
            )
        if not isinstance(value, (list, tuple)):
            raise InputError(
                f"{table.where(row)}: {column} ({value}) is not a list of choices; see task.choice_columns"
            )
        if value and all(isinstance(choice, Mapping) for choice in value):  # as in ARC's own files
            names = [choice["label"] for choice in value if "label" in choice]
            return [choice.get("text") for choice in value], names
        return list(value), ()

    def find_readings(self, table: Table) -> dict[str, list[int | None]]:
        """Returns for each reading the choice that it gives for each row."""
        indices: dict[str, list[int | None]] = {reading: [] for reading in READINGS}
        for row in range(len(table)):
            label, choices = table.columns[self.label_column][row], self.read_choices(table, row)
            for reading, found in indices.items():
                found.append(choices.find_index(label, reading))
        return indices

    def fit(self, table: Table) -> "ChoiceReader":
        """Returns the reader with the reading in which the labels of the most rows name a choice; index if they do in none.

        InputError at the first row whose label names no choice in it.
        """
        indices = self.find_readings(table)
        counts = {reading: sum(index is not None for index in found) for reading, found in indices.items()}
        reading = "index"
        if any(counts.values()):
            reading = max(READINGS, key=lambda reading: counts[reading])  # the first of equal ones
        reader = replace(self, reading=reading)
        for row, index in enumerate(indices[reading]):
            if index is None:
                reader.read_label(table, row)  # raises the error
        return reader

    def find_other_readings(self, table: Table) -> list[str]:
        """Returns the readings in which every label names a choice, but not always the one that it names in this reading."""
        indices = self.find_readings(table)
        return [reading for reading, found in indices.items() if None not in found and found != indices[self.reading]]

    def read_label(self, table: Table, row: int) -> int:
        """Returns the right choice of a row, from 0. InputError with file and line if the label names none."""
        label, choices = table.columns[self.label_column][row], self.read_choices(table, row)
        index = choices.find_index(label, self.reading)
        if index is None:
            where = f"{table.where(row)}: {self.label_column}"
            if clean_label(label) is None:
                way_out = f"data.label_column names the column of the right choice{table.describe_unread()}"
                raise InputError(f"{where} is missing; {way_out}")
            count = len(choices.texts)
            named = f"choices {', '.join(choices.names)}" if self.reading == "name" else f"{count} choices"
            raise InputError(
                f"{where} ({label}) names none of the {named}, or several; labels are {READINGS[self.reading]}, "
                "as in most training rows"
            )
        return index


def split_object(value: Mapping[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Returns the texts and names of choices that are an object: `{"text": [...], "label": [...]}`, as ARC has them on the Hub,
    or `{"A": "...", "B": "..."}`, as MedQA."""
    if "text" in value:
        texts, names = value["text"], value.get("label")
        return list(texts) if isinstance(texts, (list, tuple)) else [texts], list(names) if names is not None else []
    entries = [
        (name, text) for name, text in value.items() if text is not None
    ]  # Arrow gives each row the names of all
    return [text for _, text in entries], [name for name, _ in entries]
