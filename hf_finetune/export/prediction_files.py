"""Predictions of files and of standard input, written as they come: as JSON lines, as one JSON document, or as csv."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import require
from hf_finetune.data.memory import read_memory
from hf_finetune.data.table import Table
from hf_finetune.export.predict import BATCH_SIZE, Predictor, keep_columns
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import write_atomically

STANDARD_INPUT = "-"


def predict_file(
    predictor: Predictor,
    data: str,
    out: str | None,
    *,
    keep: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    **options: Any,
) -> list[dict[str, Any]]:
    """Returns the prediction of every row of a file, in order, and writes them to `out` if it is given (write_predictions)."""
    if out is not None and not Path(out).parent.is_dir():
        raise InputError(f"--out ({out}): there is no folder {Path(out).parent}")
    predictions = list(iterate_predictions(predictor, data, keep=keep, batch_size=batch_size, **options))
    if out is not None:
        write_predictions(predictor, predictions, Path(out).resolve())
    return predictions


def iterate_predictions(
    predictor: Predictor, data: str, *, keep: Sequence[str] = (), batch_size: int = BATCH_SIZE, **options: Any
) -> Iterator[dict[str, Any]]:
    """Yields the prediction of every row of a file, or of standard input if it is called "-", as they are computed.

    Args:
        predictor: The model.
        data: The file.
        keep: Columns of the data that each prediction repeats, under the key `input`.
        batch_size: Examples a forward. This number of lines of standard input is read before the first is predicted.
        options: Those of Predictor.predict_table().
    """
    if data == STANDARD_INPUT:
        tables: Iterable[Table] = read_lines(predictor, sys.stdin, keep, batch_size)
    else:
        tables = [predictor.read(data, needs_labels=False, keep=keep)]
    for table in tables:
        if changed := [name for name in keep if name not in table.columns]:
            raise InputError(
                f"--keep ({changed[0]}): the task joins this column's rows and predicts from it; leave it out"
            )
        for row, prediction in enumerate(predictor.predict_table(table, batch_size=batch_size, **options)):
            kept = {"input": {name: table.columns[name][row] for name in keep}} if keep else {}
            yield {**kept, **prediction}


def read_lines(predictor: Predictor, lines: Iterable[str], keep: Sequence[str], batch_size: int) -> Iterator[Table]:
    """Yields tables of at most batch_size lines: JSON objects if the first line is one, else a text each. Yields one table of all
    lines if an example may be several of them.

    Says on standard error which. Raises InputError, with the number of the line from 0, for a line that cannot be used.
    """
    is_json: bool | None = None
    spec = predictor.task.columns.spec
    require(batch_size >= 1, "batch_size", batch_size, "must be 1 or more")
    numbered = ((number, line.rstrip("\n")) for number, line in enumerate(lines))
    while part := list(islice(numbered, batch_size if spec.join_rows is None else None)):
        if is_json is None:
            is_json = is_object(part[0][1])
            print(f"standard input: {'JSON lines' if is_json else 'plain lines, a text each'}", file=sys.stderr)
        rows: list[Any] = []
        for number, line in part:
            if is_json:
                rows.append(read_object(line, number))
            else:
                rows.append(predictor.make_row(line, f"stdin[{number}]"))
        kept = keep_columns(spec, keep)
        yield read_memory(rows, "stdin", predictor.config.data, kept, needs_labels=False, first=part[0][0])


def is_object(line: str) -> bool:
    """True if a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def read_object(line: str, number: int) -> dict[str, Any]:
    """Returns the JSON object of a line. InputError if it is none."""
    if not is_object(line):
        raise InputError(f"stdin[{number}]: is not a JSON object, and the first line is one")
    row: dict[str, Any] = json.loads(line)
    return row


def write_predictions(predictor: Predictor, predictions: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes predictions, completely or not at all: csv to a .csv file, the task's one document to a .json file, else JSON
    lines."""
    if path.suffix == ".csv":
        text = format_csv(predictions)
    else:
        is_document = path.suffix == ".json"
        entries = [predictor.task.scoring.make_document(predictions)] if is_document else predictions
        text = "".join(format_json(entry) + "\n" for entry in entries)
    if path.exists() and not path.is_file():  # a pipe, a terminal, /dev/null: written to, not replaced
        path.write_text(text, encoding="utf-8")
    else:
        write_atomically(path, text.encode())


def format_json(entry: Any) -> str:
    """Returns a prediction as a line of JSON. Values of kept columns that JSON does not have, such as dates, are strings."""
    return json.dumps(entry, ensure_ascii=False, default=str)


def format_csv(predictions: Sequence[Mapping[str, Any]]) -> str:
    """Returns predictions as csv. {"probabilities": {"good": 1}} gives a column probabilities.good; a list is a cell of JSON."""
    rows = [dict(flatten_entries(prediction)) for prediction in predictions]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flatten_entries(prediction: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the cells of a prediction with the names of their columns."""
    for name, value in prediction.items():
        if isinstance(value, Mapping):
            yield from flatten_entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", format_json(value) if isinstance(value, (list, tuple)) else value
