"""The metric at an eighth, a quarter, half and all of the training rows, and what twice as many would bring.

The error (1 minus the metric, or the metric itself if smaller is better) falls with the number of rows n about as a power law,
a * n**-b. Its two parameters are fitted to the logarithms of the errors. Each bootstrap resample of the validation examples gives
another fit, and so the interval of the forecast. It covers the draw of the validation examples, not that of the training rows.

R resamples, P points of the curve.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.choosing.repeats import Repeats, format_interval, run_all
from hf_finetune.choosing.trials import open_folder
from hf_finetune.choosing.workers import choose_parallel
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.scored import FOLDER, ScoredExamples, read_scored
from hf_finetune.statistics.intervals import Interval, make_interval, resample
from hf_finetune.system.console import align_columns, print_message
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import write_atomically
from hf_finetune.system.json_text import replace_nan

KIND = "learning-curve"
SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8)  # the largest first: its activations tell soonest whether the cache is worth it
DEFAULTS = {"checkpoint.content": "trainable"}
CORRELATIONS = ("pearson", "spearman", "matthews_correlation")  # they may be below 0: no share of the examples is wrong
SMALLEST_ERROR = 1e-4  # a model without an error has no logarithm of it

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the curve: the number of training rows, and the metric on validation."""

    num_rows: int
    value: float


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """The points from the fewest rows to all, and the forecast for twice as many.

    Attributes:
        exponent: b of the power law; 0 if more rows bring nothing.
        doubled: The metric with twice all rows; None if the metric does not fit a power law.
    """

    metric: str
    points: tuple[Point, ...]
    exponent: float | None = None
    doubled: Interval | None = None


def run_learning_curve(base: RunConfig, parallel: int | None = None) -> LearningCurve:
    """Trains a run for each share of the training rows, on nested subsets, and prints the curve and the forecast.

    parallel: How many run at the same time; one on each GPU if it is not given.

    Raises InputError if a setting does not go with shares.
    """
    if base.data.train_fraction != 1:
        raise InputError(
            f"data.train_fraction ({base.data.train_fraction}): is what a learning curve changes; leave it out"
        )
    at_once = choose_parallel(parallel)
    changes = {f"share-1-{round(1 / share)}": {"data.train_fraction": share} for share in SHARES}
    with open_folder(base.run_dir, KIND):
        repeats = run_all(base, KIND, changes, at_once)
        curve = make_curve(repeats)
        path = base.run_dir / "curve.json"
        write_atomically(path, json.dumps(replace_nan(asdict(curve)), indent=2).encode())
        print_curve(curve, path)
    return curve


def make_curve(repeats: Repeats) -> LearningCurve:
    """Returns the curve of finished runs, with the forecast if the metric follows from what the runs know of each example."""
    results = {name: outcome.results or {} for name, outcome in repeats.outcomes.items()}
    metric = next(iter(results.values()))["metric"]
    order = sorted(results, key=lambda name: results[name]["examples"]["train"])
    points = tuple(
        Point(num_rows=results[name]["examples"]["train"], value=results[name]["validation"][metric]) for name in order
    )
    paths = [repeats.run_dirs[name] / FOLDER / "validation.jsonl" for name in order]
    if not all(path.exists() for path in paths):
        return LearningCurve(metric=metric, points=points)
    scored = [read_scored(path) for path in paths]
    is_share = all(0 <= point.value <= 1 for point in points)
    greater_is_better = next(iter(repeats.outcomes.values())).greater_is_better
    follows = all(metric in part.metrics for part in scored)
    if not follows or metric in CORRELATIONS or (greater_is_better and not is_share):
        return LearningCurve(metric=metric, points=points)
    return forecast(metric, points, scored, greater_is_better=greater_is_better)


def forecast(
    metric: str, points: tuple[Point, ...], scored: Sequence[ScoredExamples], *, greater_is_better: bool
) -> LearningCurve:
    """Returns the curve with the metric that twice as many rows should give. scored: the same examples, by each run."""
    sizes = np.array([point.num_rows for point in points], dtype=np.float64)

    def to_error(values: Array) -> Array:
        return 1 - values if greater_is_better else values

    def measure(weights: Array) -> Array:
        """The error of each run in each resample, [R, P]."""
        return np.stack([to_error(part.compute(metric, weights)) for part in scored], axis=1)

    exponents, doubled = fit_power_law(sizes, to_error(np.array([[point.value for point in points]])))
    _, resampled = fit_power_law(sizes, resample(measure, len(scored[0])))
    interval = make_interval(float(to_error(doubled)[0]), to_error(resampled))
    return LearningCurve(metric=metric, points=points, exponent=float(exponents[0]), doubled=interval)


def fit_power_law(sizes: Array, errors: Array) -> tuple[Array, Array]:
    """Returns the exponents b of the power laws [R], and their errors at twice the largest size [R].

    Least squares of the logarithms. More rows are taken to do no harm: b is at least 0. sizes: [P], the largest last. errors:
    [R, P].
    """
    x = np.log(sizes / sizes[-1])
    y = np.log(np.maximum(errors, SMALLEST_ERROR))
    centred = x - x.mean()
    slopes = np.minimum(y @ centred / (centred**2).sum(), 0.0)
    levels = y.mean(axis=1) - slopes * x.mean()
    return np.abs(slopes), np.exp(levels + slopes * np.log(2.0))


def print_curve(curve: LearningCurve, path: Path) -> None:
    """Prints the points and the forecast."""
    rows = [["training rows", f"{curve.metric} on validation"]]
    rows += [[f"{point.num_rows:,}", f"{point.value:.4f}"] for point in curve.points]
    print_message("\n" + align_columns(rows) + "\n")
    if curve.doubled is None:
        print_message(
            f"no forecast: {curve.metric} is not a share of the examples, or does not follow from single ones; {path}"
        )
        return
    gain = curve.doubled.value - curve.points[-1].value
    print_message(
        f"twice as many rows ({2 * curve.points[-1].num_rows:,}) should give {curve.metric} {format_interval(curve.doubled)}, "
        f"{gain:+.4f} against all of today's"
    )
    print_message(f"The error falls with the number of rows to the power of -{curve.exponent:.2f}; {path}")
