"""What `hf-finetune evaluate` knows of a labelled file besides its metrics: everything that follows from its scored examples.

N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.data.table import Table
from hf_finetune.run.details import (
    describe_details,
    describe_slices,
    order_by_doubt,
    order_by_error,
    slice_by_length,
    slice_by_value,
)
from hf_finetune.run.scored import ScoredExamples, describe_lines
from hf_finetune.system.errors import InputError

BUILT_IN_SLICES = ("length", "file")  # what --slice takes besides columns
MOST_SLICES = 20  # values of a column; the others are one slice
LONGEST_TEXT = 100  # characters of an example that are shown
SHOWN = ("label", "prediction", "loss", "probabilities")  # of an example


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The metrics of labelled rows, and what is known of each.

    Args:
        values: The metrics.
        table: The rows.
        inputs: The columns that the task reads.
        scored: The examples; None if the task says nothing of single ones.
        lengths: Their tokens [N].
    """

    values: dict[str, float]
    table: Table
    inputs: tuple[str, ...] = ()
    scored: ScoredExamples | None = None
    lengths: Array | None = None

    def get_scored(self, option: str) -> ScoredExamples:
        """Returns the scored examples, which an option needs. InputError if there are none."""
        if self.scored is None:
            raise InputError(
                f"{option}: this task says nothing of single examples; see describe_examples() in docs/evaluation.md"
            )
        return self.scored


def describe_evaluation(evaluation: Evaluation, slices: Sequence[str] = (), num_shown: int = 5) -> dict[str, Any]:
    """Returns the `details` of results.json for these rows, the worst and the least certain examples, and the slices.

    {} if the task says nothing of single examples.

    Args:
        slices: Columns of the rows, `length` or `file`.
        num_shown: The number of worst and of least certain examples.
    """
    scored = evaluation.scored
    if scored is None or evaluation.lengths is None or not len(scored):
        return {}
    names, metric = tuple(evaluation.values), scored.metric
    details = describe_details(scored.scores, names, evaluation.lengths, metric)
    if num_shown:
        details["worst"] = show_examples(evaluation, scored, order_by_error(scored.scores, metric)[:num_shown])
        doubtful = order_by_doubt(scored.scores)
        if doubtful is not None:
            details["least_certain"] = show_examples(evaluation, scored, doubtful[:num_shown])
    shown = [name for name in dict.fromkeys((metric, *names)) if name in scored.metrics and "/" not in name][:3]
    if slices:
        details["slices"] = {
            name: describe_slices(scored.scores, join_rare(make_slices(evaluation, scored, name)), shown)
            for name in slices
        }
    return details


def make_slices(evaluation: Evaluation, scored: ScoredExamples, name: str) -> dict[str, Array]:
    """Returns the places of the examples in each slice."""
    if name == "length":
        assert evaluation.lengths is not None
        return slice_by_length(evaluation.lengths)
    if name == "file":
        return slice_by_value(list(scored.files))
    if name not in evaluation.table.columns:
        raise InputError(f"--slice ({name}): the task joins this column's rows; leave it out")
    column = evaluation.table.columns[name]
    return slice_by_value([column[row] for row in scored.scores.rows.tolist()])


def join_rare(slices: dict[str, Array]) -> dict[str, Array]:
    """Returns the slices with those after the first MOST_SLICES as one."""
    rest = list(slices)[MOST_SLICES:]
    if len(rest) < 2:
        return slices
    kept = {name: places for name, places in slices.items() if name not in rest}
    return kept | {f"{len(rest):,} others": np.sort(np.concatenate([slices[name] for name in rest]))}


def show_examples(evaluation: Evaluation, scored: ScoredExamples, places: Array) -> list[dict[str, Any]]:
    """Returns single examples with their origin, their text and what is known of them."""
    shown = []
    for place in places.tolist():
        (line,) = describe_lines(scored, [place])
        known = {name: line[name] for name in SHOWN if line.get(name) is not None}
        if "loss" not in known and "numbers" in line:
            known["numbers"] = dict(zip(scored.scores.columns, line["numbers"], strict=False))
        row = int(scored.scores.rows[place])
        columns = evaluation.table.columns
        texts = {name: shorten(columns[name][row]) for name in evaluation.inputs if name in columns}
        shown.append({"where": scored.where(place), **known, "text": texts})
    return shown


def shorten(value: Any) -> str:
    """Returns a value as text of one line, cut at LONGEST_TEXT."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    text = " ".join(" ".join(map(str, parts)).split())
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
