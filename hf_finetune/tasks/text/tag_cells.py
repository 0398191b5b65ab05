"""The cells of tables to tag: which columns hold texts, words, tags or spans, and what a cell holds."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hf_finetune.data.formats import get_value
from hf_finetune.data.literals import read_literal
from hf_finetune.data.numbers import is_missing
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.label_studio import ANNOTATIONS

# Columns that are found whatever their upper and lower case, the first one that a row has
TEXTS = ("text", "data")  # data is Label Studio's
SPANS = ("label", "labels", "entities", "spans", *ANNOTATIONS)
WORDS = ("word", "words", "token", "tokens")
TAGS = ("tag", "tags", "ner", "label", "labels")
SENTENCES = (
    "doc_id",
    "document_id",
    "sentence_id",
    "sentence #",
    "sent_id",
    "sentence_idx",
    "sentence",
)  # all that it has

Row = Mapping[str, Any]


def list_cells(row: Row, own: str, other: str, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Returns the columns that have a value in a row, and the values: the own one first, never the other one."""
    cells = [(name, row[name]) for name in find_columns(tuple(row), names) if name not in (own, other)]
    with contextlib.suppress(KeyError):
        cells.insert(0, (own, get_value(row, own)))
    return [(name, value) for name, value in cells if value is not None]


@lru_cache(maxsize=1000)
def find_columns(columns: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those of the columns that have these names but for upper and lower case, in the order of the names."""
    by_name = {str(column).lower(): column for column in reversed(columns)}
    return tuple(by_name[name] for name in dict.fromkeys(names) if name in by_name)


def list_sentence_columns(row: Row) -> tuple[str, ...]:
    """Returns the columns that say which sentence a word is in, as far as a row has a value in them."""
    return tuple(name for name in find_columns(tuple(row), SENTENCES) if not is_missing(row[name]))


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


def find_text(value: Any, where: str) -> Any:
    """Returns the text of Label Studio's data object: its entry text, or its only string; any other value as it is."""
    if not isinstance(value, Mapping):
        return value
    strings = [entry for entry in value.values() if isinstance(entry, str)]
    if isinstance(value.get("text"), str):
        return value["text"]
    if len(strings) != 1:
        raise InputError(
            f"{where}: data has {len(strings)} texts ({', '.join(map(str, value))}); call the one to tag text"
        )
    return strings[0]


def read_offsets(tokens: Sequence[Any], text: str, where: str) -> list[tuple[int, int]]:
    """Returns where Prodigy's tokens begin and end in their text. InputError if they do not stand there."""
    offsets = []
    for token in tokens:
        begin, end = (token.get("start"), token.get("end")) if isinstance(token, Mapping) else (None, None)
        if not isinstance(begin, int) or not isinstance(end, int) or text[begin:end] != token.get("text"):
            raise InputError(f"{where}: the token {token} does not stand in the text")
        offsets.append((begin, end))
    return offsets
