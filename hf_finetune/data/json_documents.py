"""The records of a JSON document: an array, records under a key, what pandas writes, a dict of lists, SQuAD, or one record.

What a document is, is found by its form and by the columns that data.text_columns and data.label_column name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.rows import Rows, Say, get_value, name_type
from hf_finetune.system.errors import InputError

SQUAD_LAYOUT = (
    "SQuAD files hold data: [{paragraphs: [{context, qas: [{id, question, answers: [{text, answer_start}]}]}]}]"
)
MESSAGE_KEYS = ("role", "from")  # an object with one of these is a message of a dialogue, not a row


def read_records(path: Path, records: Iterable[Any], say: Say) -> Rows:
    """Yields the records of an array with their numbers, from 1. Those of SQuAD's layout give their questions.

    Raises InputError if one is not an object.
    """
    records = iter(records)
    start: list[Any] = list(islice(records, 1))
    first, records = (start or [None])[0], chain(start, records)
    if isinstance(first, Mapping) and "paragraphs" in first:
        say(f"{path.name}: articles with questions, as in SQuAD")
        yield from enumerate(read_squad(path, records), 1)
        return
    if isinstance(first, Mapping) and "qas" in first and "context" in first:
        say(f"{path.name}: contexts with questions (qas), as Simple Transformers reads them")
        yield from enumerate(read_squad(path, ({"paragraphs": [record]} for record in records), layer="record"), 1)
        return
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            hint = "; write tables of pandas with orient='records'" if isinstance(record, list) else ""
            raise InputError(f"{path}: record {number} must be a JSON object, not {name_type(record)}{hint}")
        yield number, record


class Document(Protocol):
    """A JSON document that is not an array, of which nothing needs to be held in memory but a sample."""

    @property
    def sample(self) -> Any:
        """The document. If it is an object, the arrays in it may have their first items alone."""
        ...

    def iterate(self, name: str) -> Iterator[Any]:
        """Yields all items of an array in the document."""
        ...

    def load(self) -> Any:
        """Returns the complete document. InputError if it is too large for the memory."""
        ...


def find_records(path: Path, document: Document, config: DataConfig, say: Say, *, has_lists: bool = False) -> Rows:
    """Yields the records of a document that is not an array, with their numbers, from 1. It is said where they were found.

    Raises InputError if they may be in several places.
    """
    sample = document.sample
    if not isinstance(sample, dict) or has_wanted_value(sample, config, has_lists=has_lists):
        yield from read_records(path, [document.load()], say)
        return
    articles = sample.get("data")
    if isinstance(articles, list) and is_squad(articles, config):
        say(f"{path.name}: articles with questions, as in SQuAD")
        yield from enumerate(read_squad(path, document.iterate("data")), 1)
        return
    records, note = find_table(path, document, config) or find_list(path, document) or ([document.load()], "")
    if note:
        say(f"{path.name}: {note}")
    yield from read_records(path, records, say)


def list_wanted(config: DataConfig) -> list[str]:
    """Returns the columns that the settings name."""
    return [*config.text_columns, *config.label_columns]


def has_wanted_value(document: Mapping[str, Any], config: DataConfig, *, has_lists: bool) -> bool:
    """True if the document is one record: a column of text that the settings name holds a value of a row, not one for each row.

    has_lists: A list may be the value of a row, such as the words of a sentence.
    """
    for name in config.text_columns:
        try:
            value = get_value(document, name)
        except KeyError:
            continue
        if isinstance(value, list):
            return bool(value) and (isinstance(value[0], Mapping) or (has_lists and not isinstance(value[0], list)))
        return not isinstance(value, Mapping)
    return False


# --- tables: what pandas and the datasets library write -------------------------------------------------------------


def find_table(path: Path, document: Document, config: DataConfig) -> tuple[Iterable[Any], str] | None:
    """Returns the records of a document that holds a table, and what kind of table it is; None if it holds none."""
    sample = document.sample
    values, columns, rows = list(sample.values()), sample.get("columns"), sample.get("data")
    if isinstance(columns, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows):
        names = [str(name) for name in document.iterate("columns")]
        return read_split(path, names, document.iterate("data")), "a table as pandas writes it with orient='split'"
    if values and all(isinstance(value, Mapping) and value for value in values):
        return find_nested(path, document.load(), config)
    if values and all(isinstance(value, list) for value in values):
        has_wanted_column = any(name in sample for name in config.text_columns)
        if has_wanted_column or not any(map(holds_objects, values)):
            return read_lists(path, document.load()), "a dict of lists, one for each column"
    return None


def read_split(path: Path, names: Sequence[str], rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table of lists. InputError if one is not a list with a value for each column."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list):
            raise InputError(f"{path}: row {number} of data must be a list, not {name_type(row)}")
        if len(row) != len(names):
            raise InputError(f"{path}: row {number} of data has {len(row)} values, but there are {len(names)} columns")
        yield dict(zip(names, row, strict=True))


def find_nested(
    path: Path, document: Mapping[str, Mapping[str, Any]], config: DataConfig
) -> tuple[Iterable[Any], str] | None:
    """Returns the records of a dict of dicts: a column's values by row, or a row's values by column. None if it is neither."""
    outer, inner = list(document), list(dict.fromkeys(chain.from_iterable(document.values())))
    wanted = set(list_wanted(config))
    is_by_column, is_by_row = bool(wanted & set(outer)), bool(wanted & set(inner))
    if is_by_column == is_by_row:
        is_by_column, is_by_row = are_numbers(inner), are_numbers(outer)
    if is_by_row and not is_by_column:
        return document.values(), "a table as pandas writes it with orient='index'"
    if not is_by_column or is_by_row:
        return None
    rows = list(document[outer[0]])
    for name, column in document.items():
        if list(column) != rows:
            raise InputError(f"{path}: the column {name!r} has other rows than {outer[0]!r}; all must have the same")
    records = ({name: column[row] for name, column in document.items()} for row in rows)
    return records, "a table as pandas writes it with orient='columns'"


def are_numbers(keys: Sequence[str]) -> bool:
    """True if all keys are whole numbers, as those of pandas' rows."""
    return all(key.isdecimal() for key in keys)


def holds_objects(value: Any) -> bool:
    """True if a value is a list of objects."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def read_lists(path: Path, document: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yields the rows of columns. InputError if these are not of one length."""
    lengths = {name: len(values) for name, values in document.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"{path}: the lists are not of one length: {', '.join(f'{key} {n:,}' for key, n in lengths.items())}"
        )
    for values in zip(*document.values(), strict=True):
        yield dict(zip(document, values, strict=True))


# --- records under a key --------------------------------------------------------------------------------------------


def find_list(path: Path, document: Document) -> tuple[Iterable[Any], str] | None:
    """Returns the one list of objects that a document holds, and under which key. None if it holds none.

    Raises InputError if it holds several.
    """
    sample = document.sample
    keys = [key for key, value in sample.items() if holds_objects(value)]
    keys = [key for key in keys if not any(name in sample[key][0] for name in MESSAGE_KEYS)]
    if not keys:
        return None
    if len(keys) > 1:
        raise InputError(
            f"{path}: {' and '.join(map(repr, keys))} hold lists of objects; save the rows that are meant in a file"
        )
    table = " as pandas writes them with orient='table'" if isinstance(sample.get("schema"), Mapping) else ""
    return document.iterate(keys[0]), f"the records are under the key {keys[0]!r}{table}"


def is_squad(records: Sequence[Any], config: DataConfig) -> bool:
    """True if the records are the articles of a SQuAD file, complete or not."""
    objects = [record for record in records if isinstance(record, Mapping)]
    if any("paragraphs" in record for record in objects):
        return True
    wanted = set(list_wanted(config))
    return {"question", "context"} <= wanted and bool(objects) and not any(wanted & set(record) for record in objects)


def read_squad(path: Path, articles: Iterable[Any], *, layer: str = "article") -> Iterator[dict[str, Any]]:
    """Yields the questions of a SQuAD 1.1 or 2.0 file.

    A row has id, title, context, question, answers {text, answer_start}, or None if the question has no such key, and
    is_impossible.
    """
    for article_number, article in enumerate(articles, 1):
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = question.get("answers")
                    if answers is not None:
                        answers = {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
                    yield {
                        "id": str(question["id"]),
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": question["question"],
                        "answers": answers,
                        "is_impossible": question.get("is_impossible", False),
                    }
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else "does not have the layout of SQuAD"
            raise InputError(f"{path}: {layer} {article_number} {problem}; {SQUAD_LAYOUT}") from None
