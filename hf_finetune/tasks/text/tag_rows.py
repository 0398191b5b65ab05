"""Tagging data in other forms than lists of words and of tags: texts with entities as spans of characters, a word a row.

They become rows of words and tags while a file is read.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

from hf_finetune.data.numbers import is_missing
from hf_finetune.data.row_adapter import WORD_LINES, NumberedRow, Say, Where
from hf_finetune.data.rows import FileWarning
from hf_finetune.data.table import describe_value
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.label_studio import (
    find_annotations,
    read_annotations,
    say_counts,
    was_skipped,
)
from hf_finetune.tasks.text.span_shifts import SpanShifts
from hf_finetune.tasks.text.spans import place_spans, read_results, read_spans
from hf_finetune.tasks.text.tag_cells import (
    SENTENCES,
    SPANS,
    TAGS,
    TEXTS,
    WORDS,
    Row,
    find_columns,
    find_text,
    is_list_of_dicts,
    is_list_of_spans,
    list_cells,
    list_sentence_columns,
    read_list,
    read_offsets,
    read_words,
)
from hf_finetune.tasks.text.tags import write_tags
from hf_finetune.tasks.text.words import find_words

ANSWER = "answer"  # Prodigy's: accept, reject or ignore
ENTITIES = "entities"
ROWS_AFTER_CUT = 1000  # that are read after a span that cuts a word, to find out whether all are shifted


@dataclass(frozen=True, kw_only=True)
class TagRows:
    """Makes rows of words and tags of the rows of a table. It is a RowAdapter.

    Args:
        text_column: The column of words.
        label_column: The column of tags.
        scheme: How the tags of spans are written, a key of tags.PREFIXES.
        repairs: Spans that cut a word are widened, and those that overlap another one are dropped. If false, they are errors.
    """

    text_column: str
    label_column: str
    scheme: str = "IOB2"
    repairs: bool = False

    def list_texts(self, row: Row) -> list[tuple[str, Any]]:
        """Returns the columns of words and of texts that have a value in a row, and their values."""
        return list_cells(row, self.text_column, self.label_column, (*TEXTS, *WORDS))

    def find_label(self, row: Row) -> tuple[str, Any]:
        """Returns the column of tags or of entities of a row, and its value; "" and None if it has none."""
        name, label = next(iter(list_cells(row, self.label_column, self.text_column, (*SPANS, *TAGS))), ("", None))
        return name, read_list(label)

    def needs(self, name: str) -> bool:
        """True for a column with one of the names that are looked for."""
        return name.lower() in {*TEXTS, *SPANS, *WORDS, *TAGS, *SENTENCES, ANSWER}

    def adapts(self, row: Row) -> bool:
        """True if a row is not what the reader of tags takes: lists of words and of tags, or a text without tags."""
        name, text = next(iter(self.list_texts(row)), (self.text_column, None))
        label_name, label = self.find_label(row)
        if name != self.text_column or label_name not in (self.label_column, "") or self.is_word_row(row):
            return True
        is_list = isinstance(text, (list, tuple)) and not is_list_of_dicts(text)
        is_plain_text = label is None and read_words(text) is text
        return text is not None and not (is_list and not is_list_of_spans(label)) and not is_plain_text

    def is_word_row(self, row: Row) -> bool:
        """True if a row is one word: with a single tag, or alone in a column of words of a row that names its sentence."""
        name, text = next(iter(self.list_texts(row)), ("", None))
        label = self.find_label(row)[1]
        if not isinstance(text, str) or read_words(text) is not text or isinstance(label, (list, tuple, Mapping)):
            return False
        is_alone = len(text.split()) == 1 and name.lower() in WORDS and bool(list_sentence_columns(row))
        return label is not None or is_alone

    def adapt(
        self, rows: Iterator[NumberedRow], *, where: Where, say: Say, needs_labels: bool
    ) -> Iterator[NumberedRow]:
        """Yields the rows of words and tags. The form of the first row is that of all.

        InputError, with the row, if one has none of the forms.
        """
        first = next(rows, None)
        if first is None:
            return
        rows = chain([first], rows)
        label_columns = (self.label_column, *find_columns(tuple(first[1]), (*SPANS, *TAGS)))
        has_labels = needs_labels and any(name in first[1] and name != self.text_column for name in label_columns)
        if not self.adapts(first[1]) or (needs_labels and not has_labels):
            yield from rows
        elif self.is_word_row(first[1]):
            yield from self.join_words(rows, where, say, has_labels=has_labels)
        elif has_labels:
            yield from self.read_rows(rows, where, say)
        else:
            for number, row in rows:
                text = next(iter(self.list_texts(row)), ("", None))[1]
                words = find_text(read_words(text), where(number)) if isinstance(text, (str, Mapping)) else text
                yield number, {**row, self.text_column: words, self.label_column: None}

    # --- a text or a list a row ------------------------------------------------------------------------------------------

    def read_rows(self, rows: Iterator[NumberedRow], where: Where, say: Say) -> Iterator[NumberedRow]:
        """Yields the rows of texts with spans, or of lists that are written as text."""
        counts: Counter[str] = Counter()
        shifts = SpanShifts()
        task_counts: Counter[str] = Counter()
        names, num_rejected = {self.text_column: "", self.label_column: ""}, 0
        for number, row in rows:
            names[self.text_column] = names[self.text_column] or next(iter(self.list_texts(row)), ("",))[0]
            names[self.label_column] = names[self.label_column] or self.find_label(row)[0]
            annotations = find_annotations(row, self.find_label(row)[1])
            if row.get(ANSWER) in ("reject", "ignore") or was_skipped(annotations or (), where(number)):
                num_rejected += 1
                continue
            try:
                words, tags = self.read_row(row, where(number), counts, task_counts, shifts)
            except InputError as error:
                if shifts.num_cut and not self.repairs:
                    self.explain_cut(error, rows, where, shifts)
                raise
            yield number, {**row, self.text_column: words, self.label_column: tags}
        if entities := counts.pop(ENTITIES, 0):
            say(
                f"{entities:,} entities are spans of characters in the column {names[self.label_column]}: read as words with tags"
            )
        else:
            found = (f"{own} are read from the column {name}" for own, name in names.items() if name not in (own, ""))
            say("; ".join(found) or "lists are written as text")
        for problem, count in counts.items():
            say(f"{count:,} entities {problem}")
        if shifted := shifts.describe():
            say(FileWarning(f"{shifted}; correct the offsets"))
        if num_rejected:
            say(f"{num_rejected:,} rows were rejected, ignored or skipped by the annotator and are left out")
        say_counts(task_counts, say)

    def explain_cut(self, error: InputError, rows: Iterator[NumberedRow], where: Where, shifts: SpanShifts) -> None:
        """Raises the error about a span that cuts a word with more to it, if the rows after it show that offsets are shifted."""
        for number, row in islice(rows, ROWS_AFTER_CUT):
            with contextlib.suppress(InputError):
                self.read_row(row, where(number), Counter(), Counter(), shifts)
        if shifted := shifts.describe():
            raise InputError(f"{error}; {shifted}: correct the offsets") from None

    def read_row(
        self, row: Row, where: str, counts: Counter[str], task_counts: Counter[str], shifts: SpanShifts
    ) -> tuple[Any, Any]:
        """Returns words and tags of a row, or what it has in their place if the reader of tags takes it: for a task of Label
        Studio without an annotation no tags. Counts entities, and tasks with several annotations."""
        label = self.find_label(row)[1]
        annotations = find_annotations(row, label)
        label = None if annotations == [] else label
        cells = [read_words(cell) for _, cell in self.list_texts(row)]
        first = cells[0] if cells else None
        if not annotations and not is_list_of_spans(label) and not (label == [] and not isinstance(first, list)):
            return find_text(first, where) if isinstance(first, Mapping) else first, label
        texts = [cell for cell in cells if isinstance(cell, (str, Mapping))]
        text = find_text(texts[0], where) if texts else None
        tokens = next((cell for cell in cells if is_list_of_dicts(cell)), None)
        if text is None or not text.strip():
            raise InputError(f"{where}: the text of the entities is {describe_value(text)}")
        offsets = find_words(text) if tokens is None else read_offsets(tokens, text, where)
        repairs = counts if self.repairs else None
        if annotations:
            spans = (
                read_annotations(annotations, where, partial(read_results, text=text, where=where), task_counts) or []
            )
        else:
            spans = read_spans(label, text, where)
        shifts.add(spans, offsets)
        entities = place_spans(spans, offsets, text, where, repairs)
        counts[ENTITIES] += len(entities)
        return [text[begin:end] for begin, end in offsets], write_tags(entities, len(offsets), self.scheme)

    # --- a word a row ----------------------------------------------------------------------------------------------------

    def join_words(
        self, rows: Iterator[NumberedRow], where: Where, say: Say, *, has_labels: bool
    ) -> Iterator[NumberedRow]:
        """Yields the sentences of rows that are words.

        A sentence ends where its columns change (a blank cell repeats the one above), and at a row without word and tag.
        """
        boundaries = SentenceBoundaries()
        words: list[str] = []
        tags: list[Any] = []
        lines: list[int] = []
        begun: NumberedRow = (0, {})
        count = 0
        for number, row in rows:
            word, tag = next((cell for _, cell in self.list_texts(row)), None), self.find_label(row)[1]
            if is_missing(word) and is_missing(tag):
                boundaries.end_sentence()
                continue
            if not isinstance(word, str) or not word.strip():
                raise InputError(f"{where(number)}: the word is {describe_value(word)}")
            if boundaries.begins(row, where(number)):
                if words:
                    yield self.make_sentence(begun, words, tags if has_labels else None, lines)
                begun, count = (number, row), count + 1
                words, tags, lines = [], [], []
            words.append(word)
            tags.append(tag)
            lines.append(number)
        if not boundaries.columns and not boundaries.num_ends:
            raise InputError(
                f"{where(begun[0])}: has one word and one tag, and nothing says which sentence they are in; add a column "
                f"such as {', '.join(SENTENCES[2:4])}, or give lists of words and of tags; if empty lines divide the sentences, "
                "which are passed over in csv files, save the file as .conll, with a tab between word and tag"
            )
        yield self.make_sentence(begun, words, tags if has_labels else None, lines)
        say(f"has a word a row; {count:,} sentences by {' and '.join(boundaries.columns) or 'empty rows'}")

    def make_sentence(
        self, begun: NumberedRow, words: list[str], tags: list[Any] | None, lines: list[int]
    ) -> NumberedRow:
        """Returns the row of a sentence. begun: its first row."""
        number, row = begun
        return number, {**row, self.text_column: words, self.label_column: tags, WORD_LINES: lines}


@dataclass(kw_only=True)
class SentenceBoundaries:
    """Finds the rows that a sentence begins at. Its columns are those of the first row."""

    columns: tuple[str, ...] = ()
    key: tuple[Any, ...] | None = None
    seen: set[tuple[Any, ...]] = field(default_factory=set)
    has_ended: bool = False
    num_ends: int = 0

    def end_sentence(self) -> None:
        """Takes note of an empty row."""
        self.has_ended = True
        self.num_ends += 1

    def begins(self, row: Row, where: str) -> bool:
        """True if a sentence begins at a row. Called for each row with a word, in order.

        InputError if a sentence continues after another one.
        """
        if self.key is None:
            self.columns = list_sentence_columns(row)
        values = [row.get(name) for name in self.columns]
        before = values if self.key is None else self.key
        key = tuple(old if is_missing(new) else new for new, old in zip(values, before, strict=True))
        begins = self.has_ended or key != self.key
        if key != self.key and key in self.seen:
            shown = ", ".join(f"{name} {value}" for name, value in zip(self.columns, key, strict=True))
            raise InputError(f"{where}: {shown} continues after other sentences; sort the rows by sentence")
        self.seen.add(key)
        self.key, self.has_ended = key, False
        return begins
