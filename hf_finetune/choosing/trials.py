"""Runs that belong together, one after the other in one process: the trials of a sweep, the folds and seeds of a run.

A trial is a normal run in a folder of its own, outputs/NAME/trials/TRIAL: its config.yaml repeats it, with the same numbers. What
trials have in common costs once:
- The imports, the largest fixed cost of a short run.
- The encoded text and the activations of the frozen prefix. A key of both caches is the content that they were made from, not
  the run: trials find what an earlier one has written. Folds have the same rows in other splits, so they share one entry.
- One model is in memory at a time. Its frozen weights are mapped from the backbone's file, so that loading it again takes tenths
  of a second.

A trial can be left at an evaluation (Parts.pause), and continued later: it resumes as a run that was stopped does, to the same
weights bit for bit. So no number depends on when a trial was left, and a process that is killed loses at most the updates since
the last save.
"""

import contextlib
import copy
import gc
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_finetune.config.changes import WITHOUT_EFFECT, list_changes
from hf_finetune.config.loading import make_config, merge_settings
from hf_finetune.config.sections import RunConfig, flatten, to_dict
from hf_finetune.run.finished import PLACES
from hf_finetune.run.folder import acquire_folder, release_folder
from hf_finetune.run.inputs import compare_inputs, describe_inputs
from hf_finetune.run.parts import NO_PARTS, Parts, load_parts
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.console import LOGGER, WARNING, configure_logging
from hf_finetune.system.errors import InputError, PausedError
from hf_finetune.system.files import write_atomically
from hf_finetune.system.json_text import replace_nan
from hf_finetune.train import finetune
from hf_finetune.training.progress import Progress

# Settings of the data that no number depends on: files are compared by their content
OF_FILES = (*PLACES, "data.workers")
FORMAT = 1  # of the file that a command keeps in its folder
TRIALS = "trials"  # the folder of the runs, in that of what they belong to


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial has reached.

    Attributes:
        metric: The metric that chooses the best checkpoint.
        greater_is_better: True if a larger value of it is better.
        history: A row for each evaluation: update, epoch, and the metrics.
        num_updates: The updates that the trial has made.
        total_updates: Those that it would make.
        results: The content of results.json; None if the trial was left before its end.
        seconds: Seconds of this start.
    """

    metric: str
    greater_is_better: bool
    history: tuple[Mapping[str, Any], ...]
    num_updates: int
    total_updates: int
    results: Mapping[str, Any] | None = None
    seconds: float = 0.0

    @property
    def best(self) -> Mapping[str, Any]:
        """The row of the best evaluation so far: of equal values the first. If all are nan, the last one, as in a run."""
        sign = 1.0 if self.greater_is_better else -1.0
        numbers = [row for row in self.history if math.isfinite(row[self.metric])] or self.history[-1:]
        return max(numbers, key=lambda row: (sign * row[self.metric], -row["update"]))


def run_trial(config: RunConfig, *, share: float = 1.0, parts: Parts = NO_PARTS) -> Outcome:
    """Trains a run up to the first evaluation at or after this share of its updates, and leaves it there; with 1, to its end.

    A run that is there already resumes. What it prints goes to a file next to its folder.
    """
    began = time.perf_counter()
    left: list[Outcome] = []

    def pause(run: TrainingRun, progress: Progress) -> bool:
        total = run.schedule.total_updates
        if progress.update < share * total:
            return False
        left[:] = [
            Outcome(
                metric=run.metric,
                greater_is_better=run.greater_is_better,
                history=progress.history,
                num_updates=progress.update,
                total_updates=total,
            )
        ]
        return True

    results: Mapping[str, Any] | None = None
    try:
        with write_log(config.run_dir.with_suffix(".log")):
            results = finetune(config, replace(parts, pause=pause) if share < 1.0 else parts).results
    except PausedError:
        pass
    gc.collect()  # the model and its optimizer: one at a time is in memory
    seconds = time.perf_counter() - began
    if results is not None:
        return Outcome(
            metric=results["metric"],
            greater_is_better=results["greater_is_better"],
            history=tuple(results["history"]),
            num_updates=results["updates"],
            total_updates=results["updates"],
            results=results,
            seconds=seconds,
        )
    return replace(left[0], seconds=seconds)


class WarningHandler(logging.Handler):
    """Passes the warnings of a trial on to other handlers, with its name."""

    def __init__(self, name: str, handlers: Sequence[logging.Handler]) -> None:
        super().__init__(logging.WARNING)
        self.trial, self.handlers = name, handlers

    def emit(self, record: logging.LogRecord) -> None:
        """Passes a record on. The own one stays unchanged for the file."""
        named = copy.copy(record)
        named.msg, named.args = f"{WARNING}{self.trial}: {record.getMessage().strip().removeprefix(WARNING)}", None
        for handler in self.handlers:
            handler.handle(named)


@contextlib.contextmanager
def write_log(path: Path) -> Iterator[None]:
    """Within the block, the lines of a run go to a file instead of the screen; its warnings to both."""
    configure_logging()
    before = LOGGER.handlers[:]
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    try:
        LOGGER.handlers[:] = [handler, WarningHandler(path.stem, before)]
        yield
    finally:
        LOGGER.handlers[:] = before
        handler.close()


def make_trial(base: RunConfig, name: str, changes: Mapping[str, Any]) -> RunConfig:
    """Returns the config of a trial: that of all, with these settings. Its folder lies in theirs. Raises InputError."""
    named = {"name": name, "output_dir": str(base.run_dir / TRIALS)}
    return make_config(merge_settings(dict(flatten(to_dict(base))), changes, named))


# --- the folder of all trials ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_folder(folder: Path, kind: str) -> Iterator[None]:
    """Makes the folder of all trials, and locks it until the block ends.

    kind: the name of the command. Raises InputError if the folder holds anything else, or if another process uses it.
    """
    lock = acquire_folder(folder)
    try:
        others = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if others and not (folder / f"{kind}.json").exists():
            raise InputError(
                f"name ({folder.name}): {folder} holds something else (there is no {kind}.json); choose another name"
            )
        yield
    finally:
        release_folder(lock)


def read_journal(folder: Path, kind: str) -> dict[str, Any]:
    """Returns the content of the file that a command keeps in its folder; {} if there is none, or if no run has begun: settings
    that were refused may be corrected. Raises InputError if it cannot be read."""
    path = folder / f"{kind}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; choose another name to start again") from None
    if not isinstance(content, dict) or not {"format", "settings", "inputs"} <= content.keys():
        raise InputError(f"{path}: is not the file of a {kind}; choose another name to start again")
    if content["format"] != FORMAT:
        raise InputError(
            f"{path}: has format {content['format']}, and this version of hf-finetune continues {FORMAT}; choose another name to "
            "start again"
        )
    return content if any((folder / TRIALS).glob("*/config.yaml")) else {}


def write_journal(folder: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Writes that file, at once or not at all."""
    content = {"format": FORMAT, **content}
    write_atomically(folder / f"{kind}.json", json.dumps(replace_nan(content), indent=2).encode())


def check_base(base: RunConfig, kind: str, journal: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what all trials are made from, as describe_inputs() does.

    Raises InputError if those that the folder holds were made with other settings that numbers depend on, or from other data; and
    for settings that are for one run.

    A trial alone continues with other data or more epochs. Trials are compared with each other: all are made alike.
    """
    if base.hub.push:
        raise InputError(
            "hub.push (true): is for one run, and all of these would go to one repository; leave it out, and push the one that "
            "you choose: hf-finetune push FOLDER --repo-id USER/NAME"
        )
    if base.checkpoint.resume != "auto":
        raise InputError(
            f"checkpoint.resume ({base.checkpoint.resume}): must be auto, because a command of several runs continues those that "
            "it has begun; to start again, choose another name"
        )
    inputs = describe_inputs(base, load_parts(base, NO_PARTS))
    if journal:
        changed = [row for row in list_changes(journal["settings"], base) if not has_no_effect(row[0])]
        lines = [f"{key} (was {before}, now {now})" for key, before, now in changed]
        refuse_changes(base.run_dir, kind, "settings", lines)
        refuse_changes(base.run_dir, kind, "inputs", compare_inputs(journal["inputs"], inputs))
    return inputs


def has_no_effect(key: str) -> bool:
    """True if no number of a trial depends on a setting."""
    return key in OF_FILES or key.startswith(WITHOUT_EFFECT)


def check_settings(folder: Path, kind: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises InputError with the differing keys if the folder's trials were made with other settings."""
    old, new = dict(flatten(before)), dict(flatten(now))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    lines = [f"{key} (was {old.get(key)}, now {new.get(key)})" for key in changed]
    refuse_changes(folder, kind, "settings", lines)


def refuse_changes(folder: Path, kind: str, what: str, lines: Sequence[str]) -> None:
    """Raises InputError if there is a line about something that has changed since the folder's trials were made."""
    if lines:
        raise InputError(
            f"name ({folder.name}): {folder} holds the {kind} of other {what}: {', '.join(lines)}; choose another name"
        )
