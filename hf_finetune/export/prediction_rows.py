"""Predictions of the rows of files, pipes and standard input, part by part: any number of rows takes the same memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

from hf_finetune.data.examples import make_examples
from hf_finetune.data.features import Array
from hf_finetune.data.joined_rows import ALL_ROWS, cut_sizes, find_cuts
from hf_finetune.data.parts import Part, is_stream, read_parts
from hf_finetune.data.rows import say_nothing
from hf_finetune.data.table import ColumnSpec, Table, check_texts
from hf_finetune.export.predict import BATCH_SIZE, Predictor, part_sizes
from hf_finetune.system.errors import InputError

ROWS_AT_ONCE = 1000  # when only their keys are needed


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What is predicted for each row.

    Args:
        keep: Columns of the data that each prediction repeats, under the key `input`.
        top_k, threshold: As Predictor.predict() takes them.
        batch_size: Examples a forward.
        is_strict: A row that cannot be predicted is an error, instead of a null.
    """

    keep: tuple[str, ...] = ()
    top_k: int | None = None
    threshold: float | None = None
    batch_size: int = BATCH_SIZE
    is_strict: bool = False

    def prepare(self, predictor: Predictor) -> Predictor:
        """Returns the predictor with these options. InputError if the task does not have them."""
        return predictor.for_inference(top_k=self.top_k, threshold=self.threshold, batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class RowPrediction:
    """What the output has for a row.

    Attributes:
        entry: The prediction, with `input` if columns are kept. For a row that cannot be predicted only these; None without.
        problem: Why the row cannot be predicted, with its origin; "" if it was.
    """

    entry: Mapping[str, Any] | None
    problem: str = ""


def read_input(predictor: Predictor, locations: Sequence[str], options: PredictionOptions) -> Iterator[Part]:
    """Yields the rows to predict (data.parts.read_parts). An input that is read as it comes is predicted batch by batch.

    If an example may be several rows, files are read twice: first to find where they can be cut between examples. An input that
    can be read only once is one part then.
    """
    spec = keep_columns(predictor.task.columns.spec, options.keep)
    sizes: Iterable[int] = part_sizes(options.batch_size)
    if spec.join_keys is not None:
        sizes = [ALL_ROWS] if is_stream(locations) else cut_sizes(find_example_cuts(predictor, locations, spec), sizes)
    elif is_stream(locations):
        sizes = repeat(options.batch_size)
    return read_parts(locations, predictor.config.data, spec, sizes, predictor.make_row)


def keep_columns(spec: ColumnSpec, names: Sequence[str], option: str = "--keep") -> ColumnSpec:
    """Returns columns to read with further ones, which an option names."""
    settings = {**dict.fromkeys(names, option), **spec.settings}
    return replace(spec, kept=tuple(names), settings=settings)


def find_example_cuts(predictor: Predictor, locations: Sequence[str], spec: ColumnSpec) -> Array:
    """Returns where the rows of files can be cut between examples. InputError if a row cannot be used."""

    def read_tables() -> Iterator[Table]:
        sizes = repeat(ROWS_AT_ONCE)
        for part in read_parts(locations, predictor.config.data, spec, sizes, predictor.make_row, say_nothing):
            for problem in part.problems.values():
                raise InputError(problem)
            check_texts(part.table, spec)
            yield part.table

    assert spec.join_keys is not None
    return find_cuts(spec.join_keys(read_tables()))


def predict_part(predictor: Predictor, part: Part, options: PredictionOptions) -> Iterator[RowPrediction]:
    """Yields the predictions of a part, in order. predictor: As PredictionOptions.prepare() returned it."""
    spec = predictor.task.columns.spec
    if spec.join_rows is not None:
        yield from predict_joined(predictor, part, options)
        return
    table, problems = part.table, dict(part.problems)
    rows = [row for row in range(len(table)) if row not in problems]
    predictions = predict_usable(predictor, table, rows, problems, options.batch_size)
    for row in range(len(table)):
        kept = find_kept(table, row, options)
        if problem := problems.get(row):
            if options.is_strict:
                raise InputError(problem)
            yield RowPrediction(entry=kept or None, problem=problem)
        else:
            yield RowPrediction(entry={**kept, **next(predictions)})


def predict_usable(
    predictor: Predictor, table: Table, rows: list[int], problems: dict[int, str], batch_size: int
) -> Iterator[dict[str, Any]]:
    """Returns the predictions of those of the rows that can be predicted. Adds to `problems` what is wrong with the others."""
    if not rows:
        return iter(())
    try:
        features, usable = predictor.encode_rows(table, rows)
    except InputError:
        found = predictor.find_problems(table, rows)
        if not found:
            raise  # each row can be predicted alone
        problems |= found
        return predict_usable(predictor, table, [row for row in rows if row not in found], problems, batch_size)
    return predictor.predict_encoded(features, usable, batch_size)


def find_kept(table: Table, row: int, options: PredictionOptions) -> dict[str, Any]:
    """Returns what a prediction repeats of its row: `{"input": {...}}`, or nothing."""
    return {"input": {name: table.columns[name][row] for name in options.keep}} if options.keep else {}


def predict_joined(predictor: Predictor, part: Part, options: PredictionOptions) -> Iterator[RowPrediction]:
    """Yields the predictions of the examples that rows are joined to. InputError if a row cannot be used."""
    for problem in part.problems.values():
        raise InputError(problem)
    table = make_examples(part.table, keep_columns(predictor.task.columns.spec, options.keep))
    if changed := [name for name in options.keep if name not in table.columns]:
        raise InputError(f"--keep ({changed[0]}): the task joins this column's rows and predicts from it; leave it out")
    for row, prediction in enumerate(predictor.predict_parts(table, options.batch_size)):
        yield RowPrediction(entry={**find_kept(table, row, options), **prediction})


def iterate_predictions(
    predictor: Predictor, data: str | Sequence[str], **options: Any
) -> Iterator[Mapping[str, Any] | None]:
    """Yields the prediction of every row of a file, or of standard input if it is called "-", as they are computed.

    A row that cannot be predicted gives None, or only its kept columns. options: Those of PredictionOptions.
    """
    chosen = PredictionOptions(**options)
    inference = chosen.prepare(predictor)
    locations = [data] if isinstance(data, str) else list(data)
    for part in read_input(inference, locations, chosen):
        for row in predict_part(inference, part, chosen):
            yield row.entry
