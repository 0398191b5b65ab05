"""The files that predictions are written to: JSON lines, one JSON document, csv, tsv, parquet, or a text a line.

An entry is what a line of JSON has for a row: a prediction with the columns that are kept under `input`, or null.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hf_finetune.data.formats import find_ending
from hf_finetune.export.number_text import format_numbers
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Scoring

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
LINE_KEYS = (
    "label",
    "labels",
    "tags",
    "answer",
    "score",
    "choice",
    "continuation",
    "similarity",
)  # of .txt; the first there is
CELLS_AT_ONCE = 200_000  # of a row group of a parquet file
ROWS_AT_ONCE = 10_000

Entry = Mapping[str, Any] | None
Entries = Callable[[], Iterator[Entry]]  # begins from the first entry at each call


def choose_ending(path: Path) -> str:
    """Returns the ending that decides the format of a file. InputError if there is no format with this ending."""
    ending = find_ending(path)
    if ending not in ENDINGS or (ending == ".parquet" and path.suffix == ".gz"):
        raise InputError(
            f"--out ({path}): the ending must be one of {', '.join(ENDINGS)} (.gz may follow, but for .parquet)"
        )
    return ending


def format_json(entry: Any) -> str:
    """Returns an entry as a line of JSON. Values of kept columns that JSON does not have, such as dates, are strings."""
    long = {}
    if type(entry) is dict and all(type(name) is str for name in entry):
        long = {name: text for name, value in entry.items() if (text := format_numbers(value)) is not None}
    if not long:
        return json.dumps(entry, ensure_ascii=False, default=str)
    texts = (f"{json.dumps(name, ensure_ascii=False)}: {long.get(name) or format_json(entry[name])}" for name in entry)
    return f"{{{', '.join(texts)}}}"


def write_entries(file: BinaryIO, path: Path, entries: Entries, scoring: Scoring, *, has_kept: bool) -> None:
    """Writes entries to a file, in the format of the ending of `path`, compressed if it ends in .gz.

    scoring: Makes the document of a .json file. has_kept: The entries have kept columns under `input`.
    """
    ending = choose_ending(path)
    if ending == ".parquet":
        write_parquet(file, entries, has_kept=has_kept)
        return
    target: Any = file
    if path.suffix == ".gz":
        target = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0)
    if ending == ".json":
        for text in format_document(scoring.make_document(entries())):
            target.write(text.encode())
    elif ending in (".jsonl", ".txt"):
        format_entry = format_json if ending == ".jsonl" else format_line
        for entry in entries():
            target.write(f"{format_entry(entry)}\n".encode())
    else:
        write_delimited(target, entries, "," if ending == ".csv" else "\t", has_kept=has_kept)
    if target is not file:
        target.close()


def format_document(document: Any) -> Iterator[str]:
    """Yields the text of a JSON document, an iterator as a list."""
    if not isinstance(document, Iterator):
        yield f"{format_json(document)}\n"
        return
    separator = "["
    for entry in document:
        yield separator + format_json(entry)
        separator = ", "
    yield "[]\n" if separator == "[" else "]\n"


def format_line(entry: Entry) -> str:
    """Returns the label, the text or the number that a prediction is, on one line; an empty line for null.

    Several labels or tags are separated by tabs. InputError if a prediction is more than that.
    """
    prediction = {name: value for name, value in (entry or {}).items() if name != "input"}
    if not prediction:
        return ""
    key = next((key for key in LINE_KEYS if key in prediction), next(iter(prediction)))
    value = prediction[key]
    values = value if isinstance(value, (list, tuple)) and key in LINE_KEYS else [value]
    if (key not in LINE_KEYS and len(prediction) > 1) or not all(
        item is None or isinstance(item, (str, int, float)) for item in values
    ):
        raise InputError(
            f"--out: a prediction with {', '.join(prediction)} is more than one line of text; write a .jsonl file instead"
        )
    return "\t".join("" if item is None else " ".join(str(item).split()) for item in values)


# --- tables ---------------------------------------------------------------------------------------------------------


def flatten_entries(prediction: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the cells of a prediction with the names of their columns. {"probabilities": {"good": 1}} gives a column
    probabilities.good."""
    for name, value in prediction.items():
        if isinstance(value, Mapping):
            yield from flatten_entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def split_cells(entry: Entry, *, has_kept: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the cells of the kept columns and those of the prediction."""
    parts = dict(entry or {})
    kept = parts.pop("input", {}) if has_kept else {}
    return dict(flatten_entries(kept)), dict(flatten_entries(parts))


def find_columns(entries: Entries, *, has_kept: bool) -> tuple[dict[str, str], list[str]]:
    """Returns the columns of a table: the names of the kept ones in the table, by their own, and those of the predictions.

    A kept column keeps its name unless predictions have one of this name; it is called input.NAME then.
    """
    kept: dict[str, None] = {}
    predicted: dict[str, None] = {}
    for entry in entries():
        for names, cells in zip((kept, predicted), split_cells(entry, has_kept=has_kept), strict=True):
            names.update(dict.fromkeys(cells))
    return {name: f"input.{name}" if name in predicted else name for name in kept}, list(predicted)


def iterate_cells(entries: Entries, *, has_kept: bool) -> Iterator[dict[str, Any]]:
    """Yields first the names of all columns (each with None), then the cells of each row."""
    names, predicted = find_columns(entries, has_kept=has_kept)
    yield dict.fromkeys([*names.values(), *predicted])
    for entry in entries():
        kept, prediction = split_cells(entry, has_kept=has_kept)
        yield {names[name]: value for name, value in kept.items()} | prediction


def format_cell(value: Any) -> Any:
    """Returns a cell as csv has it: lists, true and false as JSON."""
    return format_json(value) if isinstance(value, (list, tuple, bool)) else value


def write_delimited(file: Any, entries: Entries, delimiter: str, *, has_kept: bool) -> None:
    """Writes entries as csv or tsv with a header line."""
    rows = iterate_cells(entries, has_kept=has_kept)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(next(rows)), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: format_cell(value) for name, value in row.items()})
        file.write(text.getvalue().encode())
        text.seek(0)
        text.truncate()
    file.write(text.getvalue().encode())  # the header, if there are no rows


# --- parquet --------------------------------------------------------------------------------------------------------


def write_parquet(file: BinaryIO, entries: Entries, *, has_kept: bool) -> None:
    """Writes entries as parquet with the columns of a csv file. Lists stay lists; a column of values of different types is
    text, with JSON for what is not a string."""
    import pyarrow
    import pyarrow.parquet

    types: dict[str, Any] = {}
    for block in iterate_blocks(entries, has_kept=has_kept):
        for name, values in block.items():
            types[name] = join_types(types.get(name, pyarrow.null()), values)
    schema = pyarrow.schema([(name, pyarrow.string() if kind is None else kind) for name, kind in types.items()])
    with pyarrow.parquet.ParquetWriter(pyarrow.PythonFile(file, mode="w"), schema) as writer:
        for block in iterate_blocks(entries, has_kept=has_kept):
            columns = {
                name: [value if value is None or isinstance(value, str) else format_json(value) for value in values]
                if types[name] is None
                else values
                for name, values in block.items()
            }
            writer.write_table(pyarrow.table(columns, schema=schema))


def iterate_blocks(entries: Entries, *, has_kept: bool) -> Iterator[dict[str, list[Any]]]:
    """Yields the cells of all columns, for some rows after the other."""
    rows = iterate_cells(entries, has_kept=has_kept)
    names = list(next(rows))
    size = max(1, min(ROWS_AT_ONCE, CELLS_AT_ONCE // max(1, len(names))))
    block: dict[str, list[Any]] = {name: [] for name in names}
    count = 0
    for row in rows:
        for name, values in block.items():
            values.append(row.get(name))
        count += 1
        if count % size == 0:
            yield block
            block = {name: [] for name in names}
    if count % size or not count:
        yield block


def join_types(kind: Any, values: Sequence[Any]) -> Any:
    """Returns the type of Arrow of a column: that of the values before and of these. None if they have no type in common."""
    import pyarrow

    if kind is None:
        return None
    try:
        schemas = [pyarrow.schema([("", one)]) for one in (kind, pyarrow.array(values).type)]
        return pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pyarrow.ArrowException, OverflowError):
        return None
