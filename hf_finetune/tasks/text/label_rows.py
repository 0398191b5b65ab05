"""Texts with choices as Label Studio exports them in full: a task with `data` and `annotations` becomes a row of text and label.

A label is {"choices": [...]}, as in Label Studio's smaller exports, which text.label_choices reads.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from hf_finetune.data.row_adapter import NumberedRow, Say, Where
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.label_choices import CHOICES

DATA = "data"
ANNOTATIONS = ("annotations", "completions")  # the second is that of old versions

CANCELLED = "were skipped by the annotator and are left out"
AGREE = "have several annotations, which agree"
TRUE = "have an annotation that is marked as ground truth, which is taken"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LabelRows:
    """Makes rows of texts and a label of the tasks of a full export. It is a RowAdapter.

    Args:
        texts: The text columns. One that `data` does not have is its only text.
        label: The label column: the name of the choices in the labelling setup, or any name if there is one kind of choices.
    """

    texts: tuple[str, ...]
    label: str

    def adapts(self, row: Row) -> bool:
        """True if a row is a task of Label Studio."""
        return isinstance(row.get(DATA), Mapping) and isinstance(get_annotations(row), (list, tuple))

    def adapt(
        self, rows: Iterator[NumberedRow], *, where: Where, say: Say, needs_labels: bool
    ) -> Iterator[NumberedRow]:
        """Yields rows of texts and a label: {"choices": [...]}, or None for a task without an annotation.

        InputError, with the row, if annotations of a task disagree, or if choices of several kinds may be the labels.
        """
        first = next(rows, None)
        if first is None:
            return
        rows = chain([first], rows)
        if not self.adapts(first[1]):
            yield from rows
            return
        reader = AnnotationReader(label=self.label)
        for number, row in rows:
            if not self.adapts(row):
                raise InputError(
                    f"{where(number)}: is not a task of Label Studio ({DATA}, annotations), as the rows before"
                )
            made = {**row, **row[DATA], **self.find_texts(row, where(number)), self.label: None}
            if needs_labels:
                choices, is_cancelled = reader.read(get_annotations(row), where(number))
                if is_cancelled:
                    continue
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
class AnnotationReader:
    """Reads the choices of tasks, and counts what is to be said about them.

    Args:
        label: As LabelRows.label.
        kind: The name of the choices that are read, once a task has any.
        counts: The number of tasks of each kind of note.
        other_types: Types of results that are no choices.
    """

    label: str
    kind: str | None = None
    counts: Counter[str] = field(default_factory=Counter)
    other_types: set[str] = field(default_factory=set)

    def read(self, annotations: Sequence[Any], where: str) -> tuple[list[str] | None, bool]:
        """Returns the choices of a task, None if it has no annotation; and whether all its annotations were cancelled.

        InputError if annotations disagree. One that is marked as ground truth overrides the others.
        """
        kept = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
        if annotations and not kept:
            self.counts[CANCELLED] += 1
            return None, True
        if not kept:
            return None, False
        if len(kept) > 1 and (true := [annotation for annotation in kept if annotation.get("ground_truth")]):
            self.counts[TRUE] += 1
            kept = true
        found = [self.read_annotation(annotation, where) for annotation in kept]
        different = {tuple(sorted(choices)): choices for choices in found}
        if len(different) > 1:
            shown = " and ".join(str(choices) for choices in different.values())
            raise InputError(
                f"{where}: its {len(kept)} annotations disagree ({shown}); keep one of them, mark it as ground truth, or remove "
                "the task"
            )
        self.counts[AGREE] += len(kept) > 1
        return found[0], False

    def read_annotation(self, annotation: Mapping[str, Any], where: str) -> list[str]:
        """Returns the choices of an annotation for the complete text; [] if it has none."""
        by_name: dict[str, list[str]] = {}
        for result in annotation.get("result") or ():
            value = result.get("value")
            if isinstance(value, Mapping) and isinstance(value.get(CHOICES), (list, tuple)) and "start" not in value:
                by_name.setdefault(str(result.get("from_name", self.label)), []).extend(map(str, value[CHOICES]))
            else:
                self.other_types.add(str(result.get("type")))
        if by_name:
            self.choose_kind(sorted(by_name), where)
        return list(dict.fromkeys(by_name.get(self.kind or "", ())))

    def choose_kind(self, names: Sequence[str], where: str) -> None:
        """Notes which choices are read: those that the label column names, or the only ones. InputError if there are others."""
        if self.kind is None and (self.label in names or len(names) == 1):
            self.kind = self.label if self.label in names else names[0]
        if self.kind != self.label and list(names) != [self.kind]:
            found = dict.fromkeys((*([self.kind] if self.kind else []), *names))
            raise InputError(f"{where}: there are choices called {' and '.join(found)}; name one in data.label_column")

    def finish(self, where: str, say: Say) -> None:
        """Says what was read. InputError if no task has choices, but other results. where: The first row."""
        if self.kind is None and self.other_types:
            found = ", ".join(sorted(self.other_types))
            raise InputError(f"{where}: no task has choices, only results of the type {found}; --task tag reads labels")
        say(f"tasks of Label Studio; the labels are the choices {self.kind or '(none)'}")
        for note, count in self.counts.items():
            if count:
                say(f"tasks that {note}: {count:,}")


def get_annotations(row: Row) -> Any:
    """Returns the annotations of a task; None if it has none under their names."""
    return next((row[name] for name in ANNOTATIONS if name in row), None)
