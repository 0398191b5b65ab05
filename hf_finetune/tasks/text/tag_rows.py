"""Tagging data in other forms than lists of words and of tags: texts with entities as spans of characters, a word a row.

They become rows of words and tags before tags are read.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Any

from hf_finetune.data.literals import read_literal
from hf_finetune.data.numbers import is_missing
from hf_finetune.data.table import Table, describe_value
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.spans import place_spans, read_spans
from hf_finetune.tasks.text.tags import write_tags
from hf_finetune.tasks.text.words import find_words

TEXTS = ("text", "data")  # columns of texts; data is Label Studio's
SPANS = ("label", "labels", "entities", "spans", "annotations")  # and of the entities in them
WORDS = ("word", "Word", "words", "token", "Token")  # columns with a word a row
TAGS = ("tag", "Tag", "tags", "label", "labels", "ner", "NER")  # and with its tag
SENTENCES = (
    "sentence_id",
    "Sentence #",
    "sent_id",
    "sentence_idx",
    "sentence",
    "Sentence",
    "doc_id",
    "document_id",
    "doc",
)
# and with the sentence or the document that it is in

ANSWER = "answer"  # Prodigy's, accept or reject
ENTITIES = "entities"

ALTERNATIVES = (*product(TEXTS, SPANS), *product(WORDS, TAGS))  # columns that rows may have instead

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class TagRows:
    """Makes rows of words and tags of a table.

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

    def read_examples(self, table: Table) -> Table:
        """Returns the table of sentences: the same one if its rows are lists of words, or texts without tags.

        The form of the first row is that of all. InputError, with file and line, if a row has none of the forms.
        """
        texts = self.list_columns(table, self.text_column, TEXTS, WORDS)
        labels = self.list_columns(table, self.label_column, SPANS, TAGS)
        name, text = find_cell(texts, 0)
        label_name, label = find_cell(labels, 0)
        is_own = name in (self.text_column, "") and label_name in (self.label_column, "")
        is_read = label is None or (isinstance(text, (list, tuple)) and not is_list_of_spans(label))
        if is_own and is_read and not is_list_of_dicts(text) and read_words(text) is text:
            return table
        if isinstance(text, str) and read_words(text) is text and is_scalar(read_list(label)):
            sentences = {column: table.columns[column] for column in SENTENCES if column in table.columns}
            if label is not None or (name in WORDS and any(not is_missing(ids[0]) for ids in sentences.values())):
                return self.join_words(table, texts, labels, sentences)
        return self.read_rows(table, texts, labels)

    def list_columns(self, table: Table, own: str, *names: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Returns the columns that may hold the texts, or the labels: that of the settings, then those with these names."""
        found = dict.fromkeys((own, *chain.from_iterable(names)))
        others = {self.text_column, self.label_column} - {own}
        return {name: table.columns[name] for name in found if name in table.columns and name not in others}

    # --- a text or a list a row ------------------------------------------------------------------------------------------

    def read_rows(self, table: Table, texts: Columns, labels: Columns) -> Table:
        """Returns the table of rows that are texts with spans, or lists that are written as text."""
        kept = range(len(table))
        if ANSWER in table.columns:
            kept = [row for row, answer in enumerate(table.columns[ANSWER]) if answer not in ("reject", "ignore")]
        words: list[Any] = []
        tags: list[Any] = []
        counts: Counter[str] = Counter()
        for row in kept:
            sentence = self.read_row(table, row, texts, labels, counts)
            words.append(sentence[0])
            tags.append(sentence[1])
        notes = [f"{find_cell(texts, 0)[0]} and {find_cell(labels, 0)[0] or 'no tags'}: read as words and tags"]
        if entities := counts.pop(ENTITIES, 0):
            label = find_cell(labels, 0)[0]
            notes = [f"{entities:,} entities are spans of characters in the column {label}: read as words with tags"]
        notes += [f"{count:,} entities {kind}" for kind, count in counts.items()]
        if len(kept) < len(table):
            notes.append(f"{len(table) - len(kept):,} rows were rejected or ignored by the annotator and are left out")
            table = table.take(kept)
        return self.finish(table, words, tags, notes)

    def read_row(
        self, table: Table, row: int, texts: Columns, labels: Columns, counts: Counter[str]
    ) -> tuple[Any, Any]:
        """Returns words and tags of a row, or what it has in their place if the reader of tags takes it. Counts entities."""
        where, label = table.where(row), read_list(find_cell(labels, row)[1])
        cells = [read_words(values[row]) for values in texts.values() if values[row] is not None]
        text = cells[0] if cells else None
        if not is_list_of_spans(label) and not (label == [] and not isinstance(text, list)):
            return find_text(text, where) if isinstance(text, Mapping) else text, label
        strings = [cell for cell in cells if isinstance(cell, (str, Mapping))]
        full = find_text(strings[0], where) if strings else None
        tokens = next((cell for cell in cells if is_list_of_dicts(cell)), None)
        if full is None or not full.strip():
            raise InputError(f"{where}: the text of the entities is {describe_value(full)}")
        offsets = find_words(full) if tokens is None else read_offsets(tokens, full, where)
        repairs = counts if self.repairs else None
        entities = place_spans(read_spans(label, full, where), offsets, full, where, repairs)
        counts[ENTITIES] += len(entities)
        return [full[begin:end] for begin, end in offsets], write_tags(entities, len(offsets), self.scheme)

    # --- a word a row ----------------------------------------------------------------------------------------------------

    def join_words(self, table: Table, texts: Columns, labels: Columns, sentences: Columns) -> Table:
        """Returns the table of sentences of a table that has a word a row.

        A sentence ends where its columns change (a blank cell repeats the one above), and at a row without word and tag.
        """
        words: list[Any] = []
        tags: list[Any] = []
        rows: list[int] = []
        boundaries = SentenceBoundaries(table=table, columns=sentences)
        for row in range(len(table)):
            word, tag = find_cell(texts, row)[1], find_cell(labels, row)[1]
            if is_missing(word) and is_missing(tag):
                boundaries.end_sentence()
                continue
            if not isinstance(word, str) or not word.strip():
                raise InputError(f"{table.where(row)}: the word is {describe_value(word)}")
            if boundaries.begins(row):
                rows.append(row)
                words.append([])
                tags.append([])
            words[-1].append(word)
            tags[-1].append(tag)
        boundaries.check()
        shown = " and ".join(boundaries.columns) or "empty rows"
        notes = [f"has a word a row; {len(rows):,} sentences by {shown}"]
        lines = [list(table.lines[first:last]) for first, last in zip(rows, [*rows[1:], len(table)], strict=True)]
        has_tags = any(tag is not None for row in tags for tag in row)
        joined = self.finish(table.take(rows), words, tags if has_tags else [None] * len(rows), notes)
        return joined if table.is_in_memory else replace(joined, word_lines=lines)

    def finish(self, table: Table, words: list[Any], tags: list[Any], notes: Sequence[str]) -> Table:
        """Returns a table with these words and tags. notes: Sentences about its files."""
        columns = {self.text_column: words, self.label_column: tags}
        return replace(table, columns=columns, notes=(*table.notes, *(f"{table.files[0]}: {note}" for note in notes)))


@dataclass(kw_only=True)
class SentenceBoundaries:
    """Finds the rows that a sentence begins at.

    Args:
        table: A table with a word a row.
        columns: The columns that may say which sentence a word is in; those with a value in the first row are taken.
    """

    table: Table
    columns: Columns
    key: tuple[Any, ...] = ()
    seen: set[tuple[Any, ...]] = field(default_factory=set)
    has_ended: bool = False
    num_ends: int = 0

    def __post_init__(self) -> None:
        self.columns = {name: values for name, values in self.columns.items() if not is_missing(values[0])}

    def end_sentence(self) -> None:
        """Takes note of an empty row."""
        self.has_ended = True
        self.num_ends += 1

    def begins(self, row: int) -> bool:
        """True if a sentence begins at a row. Called for each row with a word, in order.

        InputError if a sentence goes on after another one.
        """
        values = [values[row] for values in self.columns.values()]
        before = self.key[1:] or values
        filled = [old if is_missing(new) else new for new, old in zip(values, before, strict=True)]
        key = (self.table.files[row], *filled)
        begins = self.has_ended or key != self.key
        if key != self.key and key in self.seen:
            shown = ", ".join(f"{name} {value}" for name, value in zip(self.columns, filled, strict=True))
            raise InputError(
                f"{self.table.where(row)}: {shown} goes on after other sentences; sort the rows by sentence"
            )
        self.seen.add(key)
        self.key, self.has_ended = key, False
        return begins

    def check(self) -> None:
        """Raises InputError if nothing divides the rows into sentences."""
        if not self.columns and not self.num_ends:
            raise InputError(
                f"{self.table.where(0)}: has one word and one tag, and nothing says which sentence they are in; name a column "
                f"of sentences {', '.join(SENTENCES[:3])}, or give lists of words and of tags"
            )


# --- cells ----------------------------------------------------------------------------------------------------------


def find_cell(columns: Columns, row: int) -> tuple[str, Any]:
    """Returns the first of these columns that has a value in a row, and the value; "" and None if none has."""
    return next(((name, values[row]) for name, values in columns.items() if values[row] is not None), ("", None))


def is_scalar(value: Any) -> bool:
    """True if a value is one tag, or none."""
    return not isinstance(value, (list, tuple, Mapping))


def is_list_of_dicts(value: Any) -> bool:
    """True for a list of objects."""
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)


def is_list_of_spans(value: Any) -> bool:
    """True for a list of lists or of objects, and for spaCy's {"entities": [...]}."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (list, tuple, Mapping))


def read_list(value: Any) -> Any:
    """Returns the list or object that a text holds, as pandas writes lists into tables; any other value as it is."""
    literal = read_literal(value) if isinstance(value, str) else None
    return value if literal is None else literal


def read_words(value: Any) -> Any:
    """Returns the list of words that a text holds; any other value as it is."""
    literal = read_list(value)
    is_words = isinstance(literal, list) and all(isinstance(word, str) for word in literal)
    return literal if is_words and literal else value


def find_text(value: Any, where: str) -> str:
    """Returns a text, or the text of Label Studio's data object: its entry text, or its only string."""
    if isinstance(value, str):
        return value
    strings = [entry for entry in value.values() if isinstance(entry, str)]
    if isinstance(value.get("text"), str):
        return str(value["text"])
    if len(strings) != 1:
        raise InputError(
            f"{where}: data has {len(strings)} texts ({', '.join(map(str, value))}); call the one to tag text"
        )
    return strings[0]


def read_offsets(tokens: Sequence[Any], text: str, where: str) -> list[tuple[int, int]]:
    """Returns where Prodigy's tokens begin and end in their text. InputError if they do not stand there."""
    offsets = []
    for token in tokens:
        begin, end = token.get("start"), token.get("end")
        if not isinstance(begin, int) or not isinstance(end, int) or text[begin:end] != token.get("text"):
            raise InputError(f"{where}: the token {token} does not stand in the text")
        offsets.append((begin, end))
    return offsets
