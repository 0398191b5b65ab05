"""Runs compared: the settings that differ, and metrics with paired intervals.

Runs that differ in their seed only are one group. Each other group is compared with the first one on the test examples that all
runs have in common, which are recognised by the digests of their texts and labels. The intervals are those of a bootstrap in
which both groups see the same draws of these examples; with several seeds they cover the draw of the seeds too
(statistics.intervals.compare).

N common examples, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from numpy.typing import NDArray

from hf_finetune.analysis.mistakes import read_split
from hf_finetune.analysis.run_files import RunFiles
from hf_finetune.analysis.sections import get
from hf_finetune.analysis.settings import complete_settings, find_differences
from hf_finetune.run.scored import ScoredExamples
from hf_finetune.statistics import intervals
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics

MOST_METRICS = 8  # besides those of single types, which are not compared
COSTS = ("seconds", "peak_memory_mb", "trainable_parameters")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed only. settings: Those that differ from other groups'."""

    runs: tuple[RunFiles, ...]
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The name of its run, or those of all."""
        return ", ".join(run.label for run in self.runs)

    def get_cost(self, name: str) -> float | None:
        """Returns the mean of seconds, memory or trained parameters over its runs; None if a run has not recorded it."""
        keys = {"seconds": ("seconds", "total"), "trainable_parameters": ("parameters", "trainable")}
        values = [get(run.results, *keys.get(name, (name,))) for run in self.runs]
        return None if None in values else fmean(values)


@dataclass(frozen=True, kw_only=True)
class MetricOfGroup:
    """A metric of a group on the common examples.

    Attributes:
        value: The mean over its runs.
        difference: The value minus that of the group that it is compared with, with its interval; None for that group itself.
        verdict: better, worse or not to be told apart; "" for that group itself.
    """

    value: float
    difference: intervals.Interval | None = None
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """The comparison of groups of runs.

    Attributes:
        groups: The groups, the one that others are compared with first.
        split: The split of the examples.
        num_examples: The number of examples that all runs have in common.
        values: For each metric, that of each group; {} if the runs have no common metrics or examples.
        notes: Sentences about what the numbers do not say.
    """

    groups: Sequence[Group]
    split: str
    num_examples: int
    values: Mapping[str, Sequence[MetricOfGroup]]
    notes: Sequence[str]


def compare_runs(runs: Sequence[RunFiles], against: str | None = None) -> RunComparison:
    """Returns the comparison of runs.

    against: The label or the folder of the run whose group the others are compared with; the first one if not given.

    InputError if there is nothing to compare.
    """
    if len(runs) < 2:
        raise InputError("compare: name two runs or more")
    groups = move_first(make_groups(runs), against)
    kinds = list(dict.fromkeys(run.kind for run in runs))
    notes = [f"{run.label}: {sentence}" for run in runs for sentence in run.missing]
    if len(kinds) > 1:
        notes.append(f"The runs are of different tasks ({', '.join(kinds)}): their metrics cannot be compared.")
        return RunComparison(groups=groups, split="test", num_examples=0, values={}, notes=notes)
    split, scored = read_common_split(runs, notes)
    if not scored:
        return RunComparison(groups=groups, split=split, num_examples=0, values={}, notes=notes)
    places = find_common_examples(runs, scored, split, notes)
    num_examples = len(places[0])
    statistics = {
        id(run): partial(compute_common, examples, common)
        for run, examples, common in zip(runs, scored, places, strict=True)
    }
    names = choose_metrics(runs, scored, notes) if num_examples else []
    values = {name: compare_metric(name, groups, statistics, num_examples) for name in names}
    if len(groups) > 1 and max(len(group.runs) for group in groups) == 1 and values:
        notes.append(
            "Each side has one seed: the intervals say nothing of how far another seed would be. Train more seeds for that."
        )
    return RunComparison(groups=groups, split=split, num_examples=num_examples, values=values, notes=notes)


# --- groups ---------------------------------------------------------------------------------------------------------


def make_groups(runs: Sequence[RunFiles]) -> list[Group]:
    """Returns the runs by their settings without the seed, in the order of their first runs."""
    settings = [{key: value for key, value in complete_settings(run).items() if key != "seed"} for run in runs]
    differing = find_differences(settings)
    rows: list[tuple[dict[str, Any], list[RunFiles]]] = []
    for place, run in enumerate(runs):
        own = {key: values[place] for key, values in differing.items()}
        for known, members in rows:
            if known == own:
                members.append(run)
                break
        else:
            rows.append((own, [run]))
    return [Group(runs=tuple(members), settings=own) for own, members in rows]


def move_first(groups: Sequence[Group], against: str | None) -> list[Group]:
    """Returns the groups with the one of the run `against` first. InputError if no run has this label or folder."""
    if against is None:
        return list(groups)
    for group in groups:
        if any(against.rstrip("/") in (run.label, str(run.folder)) for run in group.runs):
            return [group, *(other for other in groups if other is not group)]
    labels = ", ".join(run.label for group in groups for run in group.runs)
    raise InputError(f"--against ({against}): must be one of the runs: {labels}")


# --- examples and metrics -------------------------------------------------------------------------------------------


def read_common_split(runs: Sequence[RunFiles], notes: list[str]) -> tuple[str, list[ScoredExamples]]:
    """Returns the test split with the scored examples of each run, or validation if a run has no test split; [] if a run has
    neither, and a note."""
    found: dict[str, list[ScoredExamples | None]] = {}
    for split in ("test", "validation"):
        found[split] = [read_split(run, split) for run in runs]
        scored = [examples for examples in found[split] if examples is not None]
        if len(scored) == len(runs):
            if split == "validation":
                notes.append(
                    "A run has no scored test examples: the metrics are those of validation, which chose the checkpoints."
                )
            return split, scored
    lacking = [run.label for run, examples in zip(runs, found["test"], strict=True) if examples is None]
    notes.append(
        f"No metrics are compared: without scored examples, because not finished or of an earlier version: {', '.join(lacking)}."
    )
    return "test", []


def find_common_examples(
    runs: Sequence[RunFiles], scored: Sequence[ScoredExamples], split: str, notes: list[str]
) -> list[list[int]]:
    """Returns the places [N] of the common examples in each run, in the same order. Of equal examples the first goes with the
    first, and so on. Adds a note if a run has others."""
    by_key = [index_examples(examples.digests) for examples in scored]
    common = [key for key in by_key[0] if all(key in other for other in by_key[1:])]
    sizes = [len(examples) for examples in scored]
    if any(size != len(common) for size in sizes):
        listed = ", ".join(f"{run.label} {size:,}" for run, size in zip(runs, sizes, strict=True))
        found = (
            f"the {len(common):,} that all have are compared"
            if common
            else "they have none in common, so no metric is compared"
        )
        notes.append(f"The {split} examples differ ({listed}): {found}.")
    return [[other[key] for key in common] for other in by_key]


def index_examples(digests: Sequence[str]) -> dict[tuple[str, int], int]:
    """Returns the place of each example by its digest and how many examples with the same digest come before it."""
    counts: dict[str, int] = {}
    places = {}
    for place, digest in enumerate(digests):
        number = counts.get(digest, 0)
        counts[digest] = number + 1
        places[digest, number] = place
    return places


def choose_metrics(runs: Sequence[RunFiles], scored: Sequence[ScoredExamples], notes: list[str]) -> list[str]:
    """Returns the metrics to compare: the one that chose the checkpoints first, then others that a run has evaluated and that
    follow from the examples of all."""
    evaluated = [{**(get(run.results, "test") or {}), **(get(run.results, "validation") or {})} for run in runs]
    names = [name for name in dict.fromkeys(name for values in evaluated for name in values) if "/" not in name]
    known = [name for name in names if all(name in examples.metrics for examples in scored)]
    if left_out := [name for name in names if name not in known]:
        notes.append(f"Without intervals, and so left out: {', '.join(left_out)}.")
    deciding = list(dict.fromkeys(str(run.metric) for run in runs))
    if len(deciding) > 1:
        notes.append(f"Different metrics chose the best checkpoints: {', '.join(deciding)}.")
    return sorted(known, key=lambda name: name not in deciding)[:MOST_METRICS]


def compute_common(scored: ScoredExamples, places: Sequence[int], name: str, weights: NDArray[Any]) -> NDArray[Any]:
    """Returns a metric [R] for weights [R, N] of the common examples. The other examples weigh nothing."""
    import numpy as np

    spread = np.zeros((len(weights), len(scored)))
    spread[:, places] = weights
    return scored.compute(name, spread)


def compare_metric(
    name: str, groups: Sequence[Group], statistics: Mapping[int, Callable[..., Any]], num_examples: int
) -> list[MetricOfGroup]:
    """Returns a metric of each group with its difference from the first one."""
    import numpy as np

    sides = [[partial(statistics[id(run)], name) for run in group.runs] for group in groups]
    once = np.ones((1, num_examples))
    values = [fmean(float(run(once)[0]) for run in side) for side in sides]
    higher = is_higher_better(name, [run for group in groups for run in group.runs])
    compared = [MetricOfGroup(value=values[0])]
    for side, value in zip(sides[1:], values[1:], strict=True):
        found = intervals.compare(side, sides[0], num_examples, greater_is_better=higher)
        compared.append(MetricOfGroup(value=value, difference=found.difference, verdict=found.verdict))
    return compared


def is_higher_better(name: str, runs: Sequence[RunFiles]) -> bool:
    """True if a larger value of a metric is better: as the runs that it chose a checkpoint of know, else by its name."""
    for run in runs:
        if run.metric == name and "greater_is_better" in run.results:
            return bool(run.results["greater_is_better"])
    return metrics.greater_is_better(name)
