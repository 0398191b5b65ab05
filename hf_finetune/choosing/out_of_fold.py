"""The out-of-fold predictions: what the model of each fold says of the rows that it was not trained on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.run.details import choose_num_resamples
from hf_finetune.run.scored import FOLDER, ScoredExamples, read_scored
from hf_finetune.statistics.intervals import Interval, compute_interval
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.example_scores import BestProbabilities, ExampleScores, Rule

OUT_OF_FOLD = "out_of_fold.jsonl"  # in the folder of the folds


def read_folds(run_dirs: Sequence[Path]) -> ScoredExamples | None:
    """Returns the scored validation examples of all folds, in the order of files and lines; None if the task writes none."""
    paths = [run_dir / FOLDER / "validation.jsonl" for run_dir in run_dirs]
    if not all(path.exists() for path in paths):
        return None
    return join_scored([read_scored(path) for path in paths])


def join_scored(parts: Sequence[ScoredExamples]) -> ScoredExamples:
    """Returns the examples of several files as those of one, in the order of their files and lines.

    A fold without an entity type or a question without an answer has no numbers for it: the columns are those that all have, and
    the metrics those that follow from them. Raises InputError if they have other labels: they are not of one task then.
    """
    first = parts[0]
    if any(part.scores.label_names != first.scores.label_names for part in parts):
        raise InputError("the folds have different label_names: they were made from other data; choose another name")
    files = [file for part in parts for file in part.files]
    lines = [line for part in parts for line in part.lines]
    order = sorted(range(len(files)), key=lambda place: (files[place], lines[place]))
    digests = [digest for part in parts for digest in part.digests]
    scores = [part.scores for part in parts]
    columns = tuple(name for name in first.scores.columns if all(name in each.columns for each in scores))
    numbers = [each.numbers[:, [each.columns.index(name) for name in columns]] for each in scores]
    return replace(
        first,
        scores=replace(
            first.scores,
            rows=np.arange(len(order)),
            metrics=share_metrics(scores, columns),
            columns=columns,
            numbers=np.concatenate(numbers)[order] if columns else np.zeros((0, 0)),
            labels=join_lists([each.labels for each in scores], order),
            predictions=join_lists([each.predictions for each in scores], order),
            losses=join_arrays([each.losses for each in scores], order),
            probabilities=join_probabilities([each.probabilities for each in scores], order),
        ),
        files=[files[place] for place in order],
        lines=[lines[place] for place in order],
        digests=[digests[place] for place in order],
    )


def share_metrics(scores: Sequence[ExampleScores], columns: Sequence[str]) -> dict[str, Rule]:
    """Returns the metrics of all parts that follow from these columns.

    If some columns are left out, those are left out that find their columns themselves, such as f1 over all entity types.
    """
    is_whole = all(each.columns == tuple(columns) for each in scores)
    return {
        name: (kind, *arguments)
        for name, (kind, *arguments) in scores[0].metrics.items()
        if all(each.metrics.get(name) == (kind, *arguments) for each in scores)
        and (is_whole or all(isinstance(argument, int) or argument in columns for argument in arguments))
    }


def join_lists(parts: Sequence[Sequence[Any] | None], order: Sequence[int]) -> list[Any] | None:
    """Returns the values of all parts in this order; None if a part has none."""
    if any(part is None for part in parts):
        return None
    values = [value for part in parts if part is not None for value in part]
    return [values[place] for place in order]


def join_arrays(parts: Sequence[Any], order: Sequence[int]) -> Any:
    """Returns the rows of all parts in this order; None if a part has none."""
    return None if any(part is None for part in parts) else np.concatenate(parts)[list(order)]


def join_probabilities(parts: Sequence[Any], order: Sequence[int]) -> Any:
    """Returns the probabilities of all parts in this order, in the form that they have."""
    if isinstance(parts[0], BestProbabilities):
        numbers, values = (
            join_arrays([getattr(part, name) for part in parts], order) for name in ("numbers", "values")
        )
        return BestProbabilities(numbers=numbers, values=values)
    if isinstance(parts[0], np.ndarray):
        return join_arrays(parts, order)
    return join_lists(parts, order)


def measure_interval(scored: ScoredExamples) -> Interval | None:
    """Returns the metric that decided which checkpoint is best, with its bootstrap interval over the examples; None if it does
    not follow from them."""
    if scored.metric not in scored.metrics:
        return None
    return compute_interval(
        lambda weights: scored.compute(scored.metric, weights),
        len(scored),
        num_resamples=choose_num_resamples(len(scored)),
    )
