"""Texts with choices as Label Studio exports them in full: a task with `data` and `annotations` becomes a row of text and label.

A label is {"choices": [...]}, as in Label Studio's smaller exports, which text.label_choices reads.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from hf_finetune.data.row_adapter import NumberedRow, Say, Where
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.label_choices import CHOICES
from hf_finetune.tasks.text.label_studio import (
    ANNOTATIONS,
    CANCELLED,
    DATA,
    get_annotations,
    is_task,
    read_annotations,
    say_counts,
    was_skipped,
)

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LabelRows:
    """Makes rows of texts and a label of the tasks of a full export. It is a RowAdapter.

    Args:
        texts: The text columns. One that `data` does not have is its only text.
        label: The label column: the name of the choices in the labelling setup. Others are not read, so that all files of a run,
            and those that its model is evaluated on, have the same choices as labels.
    """

    texts: tuple[str, ...]
    label: str

    def needs(self, name: str) -> bool:
        """True for the columns of a task of Label Studio."""
        return name in (DATA, *ANNOTATIONS)

    def adapts(self, row: Row) -> bool:
        """True if a row is a task of Label Studio, with annotations or not."""
        return self.reads(row, needs_labels=False)

    def reads(self, row: Row, *, needs_labels: bool) -> bool:
        """True if a row is a task of Label Studio. Without `needs_labels` it may lack annotations, as a task that is imported
        there does, if no other column has the texts."""
        if is_task(row) or needs_labels:
            return is_task(row)
        is_plain = all(name in row or "." in name for name in self.texts)
        return isinstance(row.get(DATA), Mapping) and get_annotations(row) is None and not is_plain

    def adapt(
        self, rows: Iterator[NumberedRow], *, where: Where, say: Say, needs_labels: bool
    ) -> Iterator[NumberedRow]:
        """Yields rows of texts and a label: {"choices": [...]}, or None for a task without an annotation.

        InputError, with the row, if annotations of a task disagree; with the first row, if no choices of the file have the label
        column's name.
        """
        first = next(rows, None)
        if first is None:
            return
        rows = chain([first], rows)
        if not self.reads(first[1], needs_labels=needs_labels):
            yield from rows
            return
        reader = ChoiceReader(label=self.label)
        for number, row in rows:
            if not self.reads(row, needs_labels=needs_labels):
                raise InputError(
                    f"{where(number)}: is not a task of Label Studio ({DATA}, annotations), as the rows before"
                )
            made = {**row, **row[DATA], **self.find_texts(row, where(number)), self.label: None}
            if needs_labels:
                annotations = get_annotations(row)
                if was_skipped(annotations, where(number)):
                    reader.counts[CANCELLED] += 1
                    continue
                choices = read_annotations(annotations, where(number), reader.read, reader.counts)
                made[self.label] = None if choices is None else {CHOICES: choices}
            yield number, made
        if needs_labels:
            reader.finish(where(first[0]), say)

    def find_texts(self, row: Row, where: str) -> dict[str, Any]:
        """Returns the text of a single text column that a task's data do not have under its name: their only text."""
        data = row[DATA]
        if len(self.texts) > 1 or self.texts[0] in data or "." in self.texts[0]:
            return {}
        texts = [value for value in data.values() if isinstance(value, str)]
        if len(texts) != 1:
            raise InputError(
                f"{where}: {DATA} has {len(texts)} texts ({', '.join(map(str, data))}); name one in data.text_columns"
            )
        return {self.texts[0]: texts[0]}


@dataclass(kw_only=True)
class ChoiceReader:
    """Reads the choices of tasks, and counts what is to be said about them.

    Args:
        label: As LabelRows.label.
        names: The names of all choices that tasks have.
        counts: The number of tasks of each kind of note.
        other_types: Types of results that are no choices.
    """

    label: str
    names: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    other_types: set[str] = field(default_factory=set)

    def read(self, results: Iterable[Mapping[str, Any]]) -> list[str]:
        """Returns the choices for the complete text that have the label column's name, each once."""
        found: dict[str, None] = {}
        for result in results:
            value = result.get("value")
            if not isinstance(value, Mapping) or not isinstance(value.get(CHOICES), (list, tuple)) or "start" in value:
                self.other_types.add(str(result.get("type")))
                continue
            name = str(result.get("from_name", self.label))
            self.names.add(name)
            if name == self.label:
                found.update(dict.fromkeys(map(str, value[CHOICES])))
        return list(found)

    def finish(self, where: str, say: Say) -> None:
        """Says what was read. InputError if no choices have the label column's name, but others, or if all results are of other
        types. where: The first row."""
        if self.names and self.label not in self.names:
            names = " and ".join(sorted(self.names))
            raise InputError(
                f"{where}: the choices of the tasks are called {names}, not {self.label}; name one in data.label_column"
            )
        if self.other_types and not self.names:
            found = ", ".join(sorted(self.other_types))
            raise InputError(f"{where}: no task has choices, only results of the type {found}; --task tag reads labels")
        say(f"tasks of Label Studio; the labels are the choices {self.label if self.names else '(none)'}")
        say_counts(self.counts, say)
