"""A sweep: many trials of a run's settings for the price of a few, and the best of them.

The file sweep.json in the sweep's folder has all trials with their settings and scores. It is written before a trial starts and
after each rung, so that a sweep that was killed continues where it was; the trial that ran resumes from its own checkpoint.
"""

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.choosing.halving import RUNGS, Standing, choose_next, rank
from hf_finetune.choosing.out_of_fold import measure_interval
from hf_finetune.choosing.proposals import describe_proposals, propose
from hf_finetune.choosing.search import Search, read_search
from hf_finetune.choosing.trials import (
    Outcome,
    check_base,
    check_settings,
    make_trial,
    open_folder,
    read_journal,
    write_journal,
)
from hf_finetune.choosing.workers import TrialRunner, choose_parallel, describe_parallel, open_runner
from hf_finetune.config.sections import RunConfig, to_dict
from hf_finetune.run.finished import restore_nan, restore_numbers
from hf_finetune.run.results import format_metrics
from hf_finetune.run.scored import FOLDER, read_scored
from hf_finetune.system.console import align_columns, configure_logging, print_message
from hf_finetune.system.errors import DivergedError, FolderInUseError, InputError

# Settings of all trials that are not given: evaluations at the rungs, and small checkpoints, of which most are never read again
DEFAULTS = {"evaluation.every": "1/9", "checkpoint.content": "trainable"}


@dataclass(kw_only=True)
class Trial:
    """One trial of a sweep, as sweep.json has it.

    Attributes:
        name: The name of its run.
        settings: Those that were drawn for it.
        rungs: What was reached at each rung: update, value of the metric, and validation loss, of the best evaluation so far.
        status: new, left, finished, diverged, or failed: with its settings no run is possible.
        seconds: Seconds of all its starts.
        error: Why it failed.
    """

    name: str
    settings: dict[str, Any]
    rungs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    status: str = "new"
    seconds: float = 0.0
    error: str = ""

    @property
    def has_failed(self) -> bool:
        """True if it has ended without a result."""
        return self.status in ("diverged", "failed")

    def add(self, outcome: Outcome) -> None:
        """Records what a start of the trial has reached."""
        best = outcome.best
        value, loss = best[outcome.metric], best.get("loss", 0.0)
        self.rungs.append(
            {
                "update": outcome.num_updates,
                "of": outcome.total_updates,
                "best": best["update"],
                "value": value,
                "loss": loss,
            }
        )
        self.status = "left" if outcome.results is None else "finished"
        self.seconds = round(self.seconds + outcome.seconds, 2)


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A finished sweep: its trials from the best to the worst, and the folder of the best one's run."""

    trials: tuple[Trial, ...]
    metric: str
    best_dir: Path


def sweep(base: RunConfig, search_path: str, parallel: int | None = None) -> SweepResult:
    """Runs the trials that the file asks for, or continues an earlier sweep.

    base: The settings of all trials. parallel: How many run at the same time; one on each GPU if it is not given.

    Raises InputError for a wrong file, and for anything that a run of these settings raises it for.
    """
    configure_logging()
    search = read_search(search_path, base)
    at_once = min(choose_parallel(parallel), search.trials)
    folder = base.run_dir
    with open_folder(folder, "sweep"):
        journal = read_journal(folder, "sweep")
        inputs = check_base(base, "sweep", journal)
        if journal:
            check_settings(folder, "sweep", journal["search"], search.to_dict())
        trials = [
            Trial(**{**each, "rungs": [restore_numbers(rung) for rung in each["rungs"]]})
            for each in journal.get("trials", [])
        ]
        print_message(
            f"{search.trials} trials{describe_parallel(at_once)} in {folder}; settings are chosen {describe_proposals()}"
        )
        state = SweepState(base=base, inputs=inputs, search=search, trials=trials, metric=journal.get("metric"))
        state.greater_is_better = journal.get("greater_is_better", True)
        with open_runner(at_once) as runner:
            while state.start_trials(runner):
                state.record(*runner.wait())
        return state.close()


@dataclass(kw_only=True)
class SweepState:
    """A sweep at work."""

    base: RunConfig
    inputs: Mapping[str, Any]
    search: Search
    trials: list[Trial]
    metric: str | None = None
    greater_is_better: bool = True

    @property
    def rungs(self) -> tuple[float, ...]:
        """The shares of its updates after which a trial is compared."""
        return RUNGS if self.search.halving else RUNGS[-1:]

    @property
    def standings(self) -> list[Standing]:
        """The trials as they are compared: by the metric, then by the validation loss."""
        sign = 1.0 if self.greater_is_better else -1.0
        return [
            Standing(
                scores=tuple((sign * rung["value"], -rung["loss"]) for rung in trial.rungs),
                is_over=trial.status == "finished" or trial.has_failed,
                has_failed=trial.has_failed,
            )
            for trial in self.trials
        ]

    def start_trials(self, runner: TrialRunner[int]) -> bool:
        """Starts as many trials as there is room for. Returns False if none is left to wait for."""
        while runner.has_room:
            following = choose_next(self.standings, self.search.trials, self.rungs, runner.running)
            if following is None:
                break
            number, rung = following
            if number == len(self.trials):
                self.trials.append(self.propose_trial())
                self.write()
            trial = self.trials[number]
            try:
                config = make_trial(self.base, trial.name, trial.settings)
            except InputError as error:  # values that do not go with each other
                self.record(number, error)
            else:
                runner.start(number, config, share=self.rungs[rung])
        return bool(runner.running)

    def propose_trial(self) -> Trial:
        """Returns a new trial. Those that are at their first rung have no value yet."""
        seen = [
            (trial.settings, trial.rungs[0]["value"] if trial.rungs and not trial.has_failed else None)
            for trial in self.trials
        ]
        settings = propose(self.search, self.base.seed, seen, greater_is_better=self.greater_is_better)
        return Trial(name=f"trial-{len(self.trials) + 1:02d}", settings=settings)

    def record(self, number: int, outcome: Outcome | InputError) -> None:
        """Records what a trial has reached.

        Raises the InputError of the first trial, of one that has run before, and of a folder that another process uses: its
        settings are not the reason.
        """
        trial = self.trials[number]
        if isinstance(outcome, InputError):
            has_other_reason = number == 0 or trial.rungs or isinstance(outcome, FolderInUseError)
            if has_other_reason and not isinstance(outcome, DivergedError):
                raise outcome
            trial.status = "diverged" if isinstance(outcome, DivergedError) else "failed"
            trial.error = str(outcome)
            print_message(f"{trial.name}  {format_settings(trial.settings)}  {trial.status}: {trial.error}")
        else:
            self.metric, self.greater_is_better = outcome.metric, outcome.greater_is_better
            trial.add(outcome)
            print_message(f"{trial.name}  {format_settings(trial.settings)}  {self.describe(trial)}")
        self.write()

    def describe(self, trial: Trial) -> str:
        """Returns how far a trial has come, and its best value."""
        if not trial.rungs:
            return trial.status
        last = trial.rungs[-1]
        return f"update {last['update']}/{last['of']}  {self.metric} {last['value']:.4f}"

    def write(self) -> None:
        """Writes sweep.json."""
        content = {
            "settings": to_dict(self.base),
            "inputs": self.inputs,
            "search": self.search.to_dict(),
            "metric": self.metric,
            "greater_is_better": self.greater_is_better,
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }
        write_journal(self.base.run_dir, "sweep", content)

    def close(self) -> SweepResult:
        """Prints the table, the best trial, and the command that repeats it. Returns the result."""
        order = self.rank_trials()
        best = order[0]
        if best.status != "finished":
            raise InputError(
                f"{self.base.run_dir}: all trials diverged or failed; lower the range of train.learning_rate, or give "
                "the settings that failed other values"
            )
        if math.isnan(best.rungs[-1]["value"]):
            raise InputError(
                f"{self.base.run_dir}: {self.metric} is nan in all trials, so that none is the best; see data.validation, or "
                "choose another evaluation.metric"
            )
        config = make_trial(self.base, best.name, best.settings)
        results = restore_nan(json.loads((config.run_dir / "results.json").read_text(encoding="utf-8")))
        print_message("\n" + self.format_table(order) + "\n")
        print_message(f"best        {best.name}: {format_settings(best.settings)}; folder {config.run_dir}")
        for split in ("validation", "test"):
            if results.get(split):
                print_message(f"{split:<12}{format_metrics(results[split])}{describe_interval(config.run_dir, split)}")
        place = ["--output_dir", self.base.output_dir, "--name", f"{self.base.name}-best"]
        words = ["hf-finetune", "train", "--config", str(config.run_dir / "config.yaml"), *place]
        print_message(f"repeat      {shlex.join(words)}")
        return SweepResult(trials=tuple(order), metric=str(self.metric), best_dir=config.run_dir)

    def rank_trials(self) -> list[Trial]:
        """Returns the trials from the best to the worst: those that came further first."""
        standings, members = self.standings, range(len(self.trials))
        by_score = rank(standings, members, len(self.rungs))
        return [self.trials[number] for number in sorted(by_score, key=lambda number: -self.get_level(number))]

    def get_level(self, number: int) -> int:
        """Returns the number of rungs that a trial has reached; one that finished has reached all, one that failed none."""
        trial = self.trials[number]
        return {"finished": len(self.rungs), "diverged": 0, "failed": 0}.get(trial.status, len(trial.rungs))

    def format_table(self, order: Sequence[Trial]) -> str:
        """Returns the table of all trials."""
        keys = list(self.search.space)
        rows = [["trial", *(key.rpartition(".")[2] for key in keys), "updates", str(self.metric), "loss", "seconds"]]
        for trial in order:
            last = trial.rungs[-1] if trial.rungs else None
            reached = [trial.status, "", ""]
            if last is not None and not trial.has_failed:
                reached = [f"{last['update']}/{last['of']}", f"{last['value']:.4f}", f"{last['loss']:.4f}"]
            rows.append([trial.name, *(str(trial.settings[key]) for key in keys), *reached, f"{trial.seconds:.1f}"])
        return align_columns(rows)


def describe_interval(run_dir: Path, split: str) -> str:
    """Returns the interval of a run's metric on a split; "" if there is none."""
    path = run_dir / FOLDER / f"{split}.jsonl"
    if not path.exists():
        return ""
    scored = read_scored(path)
    interval = measure_interval(scored)
    if interval is None or math.isnan(interval.low):
        return ""
    return f"  ({scored.metric}, 95 %: {interval.low:.4f} to {interval.high:.4f})"


def format_settings(settings: Mapping[str, Any]) -> str:
    """Returns the settings of a trial as one prints them."""
    return "  ".join(f"{key} {value}" for key, value in settings.items())
