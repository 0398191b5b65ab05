"""The same settings several times: once for each fold of the training data, or for each seed.

The folds of all runs are drawn alike, so that each row is in the validation split of one run. What its model says of it is its
out-of-fold prediction: an estimate that uses every row, and the only one that can show wrong labels in training data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.choosing.label_errors import explain_unchecked, find_likely_errors, report_errors
from hf_finetune.choosing.out_of_fold import OUT_OF_FOLD, measure_interval, read_folds
from hf_finetune.choosing.trials import (
    Outcome,
    check_base,
    check_settings,
    make_trial,
    open_folder,
    read_journal,
    write_journal,
)
from hf_finetune.choosing.workers import choose_parallel, describe_parallel, open_runner
from hf_finetune.config.sections import RunConfig, to_dict
from hf_finetune.run.kept import MOST_KEPT
from hf_finetune.run.scored import FOLDER, ScoredExamples, write_scored
from hf_finetune.statistics.intervals import Interval
from hf_finetune.system.console import align_columns, configure_logging, print_message
from hf_finetune.system.errors import InputError

# Settings of all folds that are not given: each row is in one validation split, and no rows are taken for a test
FOLD_DEFAULTS = {"data.test_fraction": 0.0, "checkpoint.content": "trainable"}
SEED_DEFAULTS = {"checkpoint.content": "trainable"}
MIN_REPEATS = 2
MOST_REPEATS = 1_000


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Finished runs of the same settings.

    Attributes:
        run_dirs: Their folders by name.
        outcomes: What they have reached, by name.
        out_of_fold: The out-of-fold predictions; None of seeds.
    """

    run_dirs: Mapping[str, Path]
    outcomes: Mapping[str, Outcome]
    out_of_fold: ScoredExamples | None = None


def run_folds(base: RunConfig, count: int, parallel: int | None = None) -> Repeats:
    """Trains a run for each fold, and prints what they say together.

    parallel: How many run at the same time; one on each GPU if it is not given. Raises InputError if a setting does not go with
    folds.
    """
    check_count("--folds", count)
    at_once = choose_parallel(parallel)
    changes = {f"fold-{fold}": {"data.folds": count, "data.fold": fold} for fold in range(1, count + 1)}
    with open_folder(base.run_dir, "folds"):
        repeats = run_all(base, "folds", changes, at_once)
        scored = read_folds(list(repeats.run_dirs.values()))
        if scored is not None:
            write_scored(base.run_dir / OUT_OF_FOLD, scored)
        print_summary(repeats, "folds")
        if scored is None:
            print_message(
                f"out of fold none: not all runs have {FOLDER}/validation.jsonl, because nothing is known of single examples, or "
                f"because there are more than {MOST_KEPT:,}"
            )
        else:
            print_out_of_fold(base.run_dir, scored)
            if reason := explain_unchecked(scored):
                print_message(f"labels      are not checked: {reason}")
            else:
                report_errors(base.run_dir, scored, find_likely_errors(scored))
    return Repeats(run_dirs=repeats.run_dirs, outcomes=repeats.outcomes, out_of_fold=scored)


def run_seeds(base: RunConfig, count: int, parallel: int | None = None) -> Repeats:
    """Trains a run for each of as many seeds, from that of the settings on, and prints what they say together. parallel: as
    run_folds() takes it."""
    check_count("--seeds", count)
    at_once = choose_parallel(parallel)
    changes = {f"seed-{seed}": {"seed": seed} for seed in range(base.seed, base.seed + count)}
    with open_folder(base.run_dir, "seeds"):
        repeats = run_all(base, "seeds", changes, at_once)
        print_summary(repeats, "seeds")
        if not (base.data.validation or base.data.dataset):
            print_message(
                "Each seed draws its own validation rows, which is part of the deviation; data.validation would fix them"
            )
    return repeats


def check_count(option: str, count: int) -> None:
    """Raises InputError if there is nothing to repeat, or if nobody would wait for it."""
    if not MIN_REPEATS <= count <= MOST_REPEATS:
        raise InputError(f"{option} ({count}): must be from {MIN_REPEATS} to {MOST_REPEATS:,}")


def run_all(base: RunConfig, kind: str, changes: Mapping[str, Mapping[str, Any]], at_once: int = 1) -> Repeats:
    """Trains a run for each set of changes, or continues an earlier call: a finished run is not trained again.

    at_once: How many run at the same time.
    """
    configure_logging()
    at_once = min(at_once, len(changes))
    configs = {name: make_trial(base, name, change) for name, change in changes.items()}
    journal = read_journal(base.run_dir, kind)
    inputs = check_base(base, kind, journal)
    shared = [name for name in journal.get("runs", ()) if name in changes]
    before = {name: journal["runs"][name] for name in shared}
    check_settings(base.run_dir, kind, before, {name: changes[name] for name in shared})
    runs = {**journal.get("runs", {}), **changes}
    write_journal(base.run_dir, kind, {"settings": to_dict(base), "inputs": inputs, "runs": runs})
    print_message(f"{len(changes)} runs ({kind}){describe_parallel(at_once)} in {base.run_dir}")
    outcomes: dict[str, Outcome] = {}
    waiting = dict(configs)
    with open_runner(at_once) as runner:
        while waiting or runner.running:
            while waiting and runner.has_room:
                runner.start(name := next(iter(waiting)), waiting.pop(name))
            name, outcome = runner.wait()
            if isinstance(outcome, InputError):
                raise outcome
            outcomes[name] = outcome
            results = outcome.results or {}
            print_message(f"{name}  {results['metric']} on validation {results['validation'][results['metric']]:.4f}")
    return Repeats(
        run_dirs={name: config.run_dir for name, config in configs.items()},
        outcomes={name: outcomes[name] for name in configs},
    )


def print_summary(repeats: Repeats, kind: str) -> None:
    """Prints the metrics of each run, their mean, and their standard deviation over the runs; of those with a / in their name,
    such as f1/person, the mean and the deviation alone. A metric that a run lacks, such as one of an entity type, has neither."""
    outcomes = repeats.outcomes
    results = {name: outcome.results or {} for name, outcome in outcomes.items()}
    columns = [
        (split, metric)
        for split in ("validation", "test")
        for metric in dict.fromkeys(name for row in results.values() for name in row.get(split, {}))
    ]
    values = {
        f"{split} {metric}": np.array([row.get(split, {}).get(metric, math.nan) for row in results.values()])
        for split, metric in columns
    }
    summaries = {name: [format_number(each.mean()), format_number(each.std(ddof=1))] for name, each in values.items()}
    names = [name for name in values if "/" not in name]
    rows = [[kind.removesuffix("s"), *names]]
    rows += [[run, *(format_number(values[name][place]) for name in names)] for place, run in enumerate(results)]
    rows += [[label, *(summaries[name][place] for name in names)] for place, label in enumerate(("mean", "deviation"))]
    print_message("\n" + align_columns(rows) + "\n")
    if others := [[name, *summaries[name]] for name in values if name not in names]:
        print_message(align_columns([["", "mean", "deviation"], *others]) + "\n")


def print_out_of_fold(folder: Path, scored: ScoredExamples) -> None:
    """Prints the metric of all out-of-fold predictions with its interval."""
    print_message(
        f"out of fold {folder / OUT_OF_FOLD}: {len(scored):,} rows, each by the model that was not trained on it"
    )
    if (interval := measure_interval(scored)) is not None:
        print_message(f"            {scored.metric} {format_interval(interval)}")


def format_interval(interval: Interval) -> str:
    """Returns a value with its interval, if that is defined."""
    if math.isnan(interval.low):
        return f"{interval.value:.4f} (its interval is not defined)"
    return f"{interval.value:.4f} (95 %: {interval.low:.4f} to {interval.high:.4f})"


def format_number(value: float) -> str:
    """Returns a number of a table; - if there is none."""
    return "-" if math.isnan(value) else f"{value:.4f}"
