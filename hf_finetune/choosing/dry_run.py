"""hf-finetune train ... --dry-run: what a run will take of memory, disk and time, from a few real batches.

Everything is loaded, set up and decided as in a run, in a temporary folder that is removed at the end.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

from hf_finetune.cache import decision
from hf_finetune.cache.speeds import SPEEDS
from hf_finetune.cache.store import Entry, activations_dir
from hf_finetune.choosing.measurement import Measurement
from hf_finetune.choosing.plan import Plan, find_free_disk, suggest_for_disk, suggest_for_memory
from hf_finetune.config.sections import RunConfig
from hf_finetune.export.start import resolve_start
from hf_finetune.run import checkpoint
from hf_finetune.run.parts import NO_PARTS, Parts
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun, count_state_bytes
from hf_finetune.system import processes
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_root
from hf_finetune.training.progress import FRESH


def dry_run(config: RunConfig, parts: Parts = NO_PARTS, *, began: float | None = None) -> Plan:
    """Returns what the run will take, from its start to its end. Nothing is written but to a temporary folder, which is removed.

    began: When the command was given, by time.perf_counter().

    Raises InputError for anything that the user can fix, as a run does.
    """
    if config.data.streaming:
        raise InputError(
            "data.streaming (true): a dry run cannot tell how much there is; try it without, on a part of the data"
        )
    clock = Clock(began)
    with tempfile.TemporaryDirectory(prefix="hf-finetune-") as name:
        folder = Path(name)
        elsewhere = dataclasses.replace(
            config, output_dir=str(folder / "out"), cache=dataclasses.replace(config.cache, dir=str(folder / "cache"))
        )
        speeds = cache_root(config.cache.dir) / SPEEDS
        if speeds.exists():
            (folder / "cache").mkdir()
            shutil.copy(speeds, folder / "cache")
        patience = config.run.patience_minutes
        with processes.start(config.seed, config.train.precision, elsewhere.run_dir, patience) as runtime:
            with clock("load"):
                run = set_up(resolve_start(elsewhere, runtime), runtime, clock, FRESH, parts)
            with clock("cache"):
                cache, is_there = decide(run, config)
            return make_plan(run, config, cache, is_there, clock)


def decide(run: TrainingRun, config: RunConfig) -> tuple[decision.CacheDecision, bool]:
    """Returns the decision of a run with this config, and whether its cache has the activations."""

    def is_there(entry: Entry | None) -> bool:
        folder = activations_dir(config.cache.dir)
        return entry is not None and dataclasses.replace(entry, root=folder).is_complete()

    cache = decision.decide(run, FRESH)
    if config.cache.activations == "auto" and not cache.is_on and run.train_state.forward_plan.cached is not None:
        with_cache = dataclasses.replace(run.config.cache, activations="on")
        try:
            forced = decision.decide(
                dataclasses.replace(run, config=dataclasses.replace(run.config, cache=with_cache)), FRESH
            )
        except InputError:  # says why not
            return cache, False
        if is_there(forced.entry):
            lines = ("on: the activations are there", *forced.lines[1:])
            return dataclasses.replace(forced, lines=lines), True
    return cache, is_there(cache.entry)


def make_plan(run: TrainingRun, config: RunConfig, cache: decision.CacheDecision, is_there: bool, clock: Clock) -> Plan:
    """Measures some batches, and returns the plan. is_there: The cache has the activations."""
    with clock("train"):
        measured = Measurement(run, cache)
        memory, room = measured.measure_memory()
        training = measured.time_epoch() / run.schedule.updates_per_epoch * run.schedule.total_updates
        validation, test = measured.time_evaluation("validation"), measured.time_evaluation("test")
        memory = measured.finish_memory(memory)
        saving = measured.time_saving()
    model = checkpoint.count_tensor_bytes(run.train_state.model.state_dict())
    saved = round(count_state_bytes(config.train) * run.plan.num_trainable) + model
    updates = range(1, run.schedule.total_updates + 1)
    num_evaluations, num_saves = (
        sum(run.schedule.is_due(every, number) for number in updates)
        for every in (config.evaluation.every, config.checkpoint.every)
    )
    num_kept = min(num_saves, config.checkpoint.keep_best + config.checkpoint.keep_last)
    disk = {
        "checkpoints": num_kept * saved,
        "model": model,
        "activations": 0 if cache.entry is None or is_there else cache.entry.num_bytes,
        "encoded text": measured.count_encoded_bytes(),
    }
    before = clock.report()
    seconds = {
        **{phase: before[phase] for phase in ("start", "load", "encode")},
        "cache": before["cache"] + (0.0 if is_there else measured.capture_seconds),
        "check": measured.estimate_check(validation),
        "train": training,
        "evaluate": validation * num_evaluations + test,
        "save": saving * saved * num_saves,
        "export": 3 * saving * model,  # written, read, and compared
    }
    free = find_free_disk(config)
    return Plan(
        memory=memory,
        free_memory=room.free,
        disk=disk,
        free_disk=free,
        cache=tuple(line.replace(str(run.config.cache.dir), str(cache_root(config.cache.dir))) for line in cache.lines),
        seconds={**seconds, "total": sum(seconds.values())},
        updates=run.schedule.total_updates,
        evaluations=num_evaluations,
        saves=num_saves,
        advice=(*suggest_for_memory(memory, room, run.config.train), *suggest_for_disk(disk, free, saved, config)),
    )
