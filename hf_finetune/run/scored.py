"""Scored examples: what an evaluation knows of each example of a split, as a file that other commands read.

The first line of the file is an object about all examples, each other line one example in the order of the split. Each metric
among `metrics` can be computed from the lines again, also with a weight for each line, as the resamples of a bootstrap have.
docs/evaluation.md describes the fields.

N examples, R weightings, K numbers of an example, C labels.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_finetune.data.columns import hash_rows
from hf_finetune.data.features import Array
from hf_finetune.data.table import Table, describe_origin
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import explain_failures, replace_atomically
from hf_finetune.tasks.base import Task
from hf_finetune.tasks.example_scores import BestProbabilities, ExampleScores
from hf_finetune.tasks.weighted_metrics import compute_value, compute_weighted

FORMAT = 1
FOLDER = "scored"  # of a run
LABEL = "#label"  # the column of the labels, for the digests
MOST_DENSE = 20  # columns of numbers that are written as a list; of more, those that are not 0 by their names
SAME_VALUE = 1e-6  # relative or absolute difference up to which a metric of the examples is that of the evaluation
# Of a loss, which is a sum in single precision, and of probabilities, which a calibration takes from a pass of its own
SAME_ROUNDED = dict.fromkeys(("loss", "ece", "brier_score", "log_loss"), 1e-4)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredExamples:
    """N examples of a split with their scores and their origins.

    Args:
        task, problem: The task and its variant.
        metric: The metric that decided which checkpoint is best.
        scores: What is known of each example.
        files, lines: The origin of each example, as in data.table.Table.
        digests: Of each example's text and label: equal in two runs that evaluate the same example.
        inputs: The columns of the text that the digests are of.
        is_in_memory: As in data.table.Table.
    """

    task: str
    problem: str
    metric: str
    scores: ExampleScores
    files: Sequence[str]
    lines: Sequence[int]
    digests: Sequence[str]
    inputs: tuple[str, ...] = ()
    is_in_memory: bool = False

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that can be computed from the examples."""
        return tuple(self.scores.metrics)

    def compute(self, metric: str, weights: Array | None = None) -> Array:
        """Returns the values [R] of a metric for weights [R, N] (0, 1, 2, ...); [1] with each example once if there are none.

        InputError if it cannot be computed from the examples.
        """
        return compute_weighted(self.scores, metric, np.ones((1, len(self))) if weights is None else weights)

    def take(self, places: Array) -> "ScoredExamples":
        """Returns some examples, in this order."""
        files, lines, digests = ([each[place] for place in places] for each in (self.files, self.lines, self.digests))
        return replace(self, scores=self.scores.take(places), files=files, lines=lines, digests=digests)

    def where(self, place: int) -> str:
        """Returns the origin of an example, `file:line`; `test[17]` if a program gave the rows."""
        if self.is_in_memory:
            return f"{self.files[place]}[{self.lines[place]}]"
        return describe_origin(self.files[place], self.lines[place])


# --- from an evaluation ---------------------------------------------------------------------------------------------


def add_origins(
    scores: ExampleScores, task: Task, table: Table, values: Mapping[str, float], *, kind: str, metric: str
) -> ScoredExamples:
    """Returns the scored examples of an evaluation. A metric that does not follow from them, such as a loss with class weights,
    is not among their metrics.

    Args:
        table: The rows of the split.
        values: The metrics of the evaluation.
        kind: The name of the task.
        metric: The metric that decides which checkpoint is best.
    """
    rules = {name: rule for name, rule in scores.metrics.items() if follows(scores, name, values.get(name))}
    part = table.take(scores.rows)
    inputs = tuple(name for name in task.encoding.encoded_columns() if name in part.columns)
    return ScoredExamples(
        task=kind,
        problem=task.problem,
        metric=metric,
        scores=replace(scores, metrics=rules),
        files=part.files,
        lines=part.lines,
        digests=digest_rows(part, inputs, scores.labels),
        inputs=inputs,
        is_in_memory=table.is_in_memory,
    )


def follows(scores: ExampleScores, metric: str, value: float | None) -> bool:
    """True if a metric of the examples has the value of the evaluation, or if that did not compute it."""
    if value is None:
        return True
    tolerance = SAME_ROUNDED.get(metric, SAME_VALUE)
    ours = compute_value(scores, metric)
    return math.isclose(ours, value, rel_tol=tolerance, abs_tol=tolerance) or (math.isnan(ours) and math.isnan(value))


def digest_rows(table: Table, names: Sequence[str], labels: Sequence[Any] | None) -> list[str]:
    """Returns a digest of the values of these columns and of the label of each row."""
    known = [name for name in names if name in table.columns]
    if labels is not None:
        table, known = table.with_columns({**table.columns, LABEL: labels}), [*known, LABEL]
    return [f"{number:016x}" for number in hash_rows(table, known).tolist()]


# --- the file -------------------------------------------------------------------------------------------------------


def write_scored(path: Path, scored: ScoredExamples) -> int:
    """Writes scored examples, all or nothing, and returns the bytes of the file. InputError if it cannot be written."""

    def write(file: BinaryIO) -> None:
        file.write(encode_line(describe_header(scored)))
        for entry in describe_lines(scored):
            file.write(encode_line(entry))

    with explain_failures(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return replace_atomically(path, write, 0).size


def encode_line(entry: Mapping[str, Any]) -> bytes:
    """Returns the line of an object."""
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def describe_header(scored: ScoredExamples) -> dict[str, Any]:
    """Returns the object of the first line."""
    return {
        "format": FORMAT,
        "task": scored.task,
        "problem": scored.problem,
        "metric": scored.metric,
        "examples": len(scored),
        "inputs": list(scored.inputs),
        "labels": list(scored.scores.label_names),
        "columns": list(scored.scores.columns),
        "metrics": {name: list(rule) for name, rule in scored.scores.metrics.items()},
        "in_memory": scored.is_in_memory,
    }


def describe_lines(scored: ScoredExamples, places: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the object of each example, or of those at `places`."""
    scores = scored.scores
    get_numbers, get_probabilities = make_numbers_getter(scores), make_probabilities_getter(scores)
    for place in range(len(scored)) if places is None else places:
        line: dict[str, Any] = {
            "row": int(scores.rows[place]),
            "file": scored.files[place],
            "line": int(scored.lines[place]),
            "digest": scored.digests[place],
            "label": None if scores.labels is None else scores.labels[place],
            "prediction": None if scores.predictions is None else scores.predictions[place],
            "loss": None if scores.losses is None else plain_number(scores.losses[place]),
        }
        if get_probabilities is not None:
            line["probabilities"] = get_probabilities(place)
        if scores.columns:
            line["numbers"] = get_numbers(place)
        yield line


def make_numbers_getter(scores: ExampleScores) -> Callable[[int], Any]:
    """Returns the function that gives the numbers of an example as they are written."""
    if len(scores.columns) <= MOST_DENSE:
        return lambda place: [plain_number(value) for value in scores.numbers[place].tolist()]

    def get_some(place: int) -> dict[str, Any]:
        numbers = scores.numbers[place]
        return {scores.columns[number]: plain_number(numbers[number]) for number in np.flatnonzero(numbers)}

    return get_some


def make_probabilities_getter(scores: ExampleScores) -> Callable[[int], Any] | None:
    """Returns the function that gives the probabilities of an example as they are written; None if there are none."""
    if scores.probabilities is None:
        return None
    if isinstance(scores.probabilities, BestProbabilities):
        best = scores.probabilities
        return lambda place: {
            scores.label_names[number]: plain_number(value)
            for number, value in zip(best.numbers[place].tolist(), best.values[place].tolist(), strict=True)
        }
    every = scores.probabilities
    return lambda place: [plain_number(value) for value in every[place].tolist()]


def plain_number(value: float) -> float | int | None:
    """Returns a number with nine digits, without a fraction if it has none; None if it is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.9g}")


# --- reading --------------------------------------------------------------------------------------------------------


def read_scored(path: Path) -> ScoredExamples:
    """Returns the scored examples of a file. InputError if there is none, or if it is not one."""
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as file:
            header = json.loads(next(file))
            if header["format"] != FORMAT:
                raise InputError(
                    f"{path}: has format {header['format']}, and this version of hf-finetune reads {FORMAT}; write it again with "
                    "hf-finetune evaluate --scored"
                )
            lines = [json.loads(line) for line in file]
            if len(lines) != header["examples"]:
                raise InputError(f"{path}: has {len(lines):,} examples instead of {header['examples']:,}")
            return parse_lines(header, lines)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, StopIteration, AttributeError, IndexError) as error:
        raise InputError(f"{path}: is not a file of scored examples ({type(error).__name__}: {error})") from None


def parse_lines(header: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> ScoredExamples:
    """Returns the scored examples of the objects of a file."""
    columns, names = tuple(header["columns"]), tuple(header["labels"])
    losses = parse_numbers([line["loss"] for line in lines])
    labels, predictions = ([line[key] for line in lines] for key in ("label", "prediction"))
    return ScoredExamples(
        task=header["task"],
        problem=header["problem"],
        metric=header["metric"],
        scores=ExampleScores(
            rows=np.array([line["row"] for line in lines], dtype=np.int64),
            metrics={name: tuple(rule) for name, rule in header["metrics"].items()},
            columns=columns,
            numbers=parse_columns(columns, [line["numbers"] for line in lines] if columns else []),
            labels=None if all(label is None for label in labels) else labels,
            predictions=None if all(prediction is None for prediction in predictions) else predictions,
            losses=None if np.isnan(losses).all() else losses,
            probabilities=parse_probabilities(names, [line.get("probabilities") for line in lines]),
            label_names=names,
        ),
        files=[line["file"] for line in lines],
        lines=[line["line"] for line in lines],
        digests=[line["digest"] for line in lines],
        inputs=tuple(header["inputs"]),
        is_in_memory=header["in_memory"],
    )


def parse_numbers(values: Sequence[Any]) -> Array:
    """Returns numbers as an array, nan for null."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def parse_columns(columns: Sequence[str], rows: Sequence[Any]) -> Array:
    """Returns the numbers of all examples [N, K], as make_numbers_getter() writes them."""
    numbers = np.zeros((len(rows), len(columns)))
    places = {name: place for place, name in enumerate(columns)}
    for row, values in zip(numbers, rows, strict=True):
        if isinstance(values, list):
            row[:] = parse_numbers(values)
        else:
            row[[places[name] for name in values]] = parse_numbers(list(values.values()))
    return numbers


def parse_probabilities(names: Sequence[str], rows: Sequence[Any]) -> Any:
    """Returns the probabilities of all examples, as make_probabilities_getter() writes them."""
    if not rows or rows[0] is None:
        return None
    if isinstance(rows[0], dict):
        index = {name: number for number, name in enumerate(names)}
        return BestProbabilities(
            numbers=np.array([[index[name] for name in row] for row in rows]),
            values=np.array([[*row.values()] for row in rows]),
        )
    arrays = [parse_numbers(row) for row in rows]
    return np.stack(arrays) if names else arrays
