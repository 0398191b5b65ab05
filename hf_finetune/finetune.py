"""A run, in the order of time. READ THIS FIRST."""

import dataclasses
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hf_finetune import (
    adapter,
    backbone,
    checkpoint,
    data,
    dropout,
    export,
    first_token,
    freezing,
    hub,
    optim,
    prefix,
    replay,
    report,
    resume,
    runtime,
    tasks,
    tracking,
)
from hf_finetune.checkpoint import Progress
from hf_finetune.config import FreezeConfig, RunConfig
from hf_finetune.data import Features, Splits
from hf_finetune.errors import InputError, StoppedError
from hf_finetune.files import write_atomically
from hf_finetune.job import Clock, Job, judge, measure, rehearse
from hf_finetune.loop import NotFiniteError, Schedule, Trainee, schedule_of, train_steps
from hf_finetune.runtime import Runtime
from hf_finetune.tasks import Task


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind. `results` is what results.json holds."""

    run_dir: Path
    model_dir: Path
    results: dict[str, Any]


FRESH = Progress()


def finetune(config: RunConfig, *, task_name: str = "classification") -> RunResult:
    """Fine-tunes as the config says, goes on where an earlier run of it stopped, and exports the best model.

    Raises InputError for anything the user can mend, StoppedError where a signal ended the run for now.
    """
    clock = Clock()
    with runtime.start(config) as run:
        finished = run.on_main(lambda: finished_results(config))
        if finished is not None:
            run.say(f"{config.run_dir} is finished, there is nothing to train; {report.summary(finished)}")
            run.on_main(lambda: push_if_asked(config))
            return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=finished)
        check_services(config, run)
        saved, notes = resume.find(config, run)
        progress = saved.progress if saved else FRESH
        job = set_up(config, task_name, run, clock, progress)
        if saved:
            progress, found = resume.restore(job, saved)
            notes, saved = (*notes, *found), None
        job, progress = cache_prefix(job, progress, clock, lambda choice: report.announce(job, notes, choice))
        rehearse(job)
        run.on_main(lambda: runtime.record(config, run))
        tracker = tracking.Tracking(config, run, start_update=progress.update)

        progress = train(job, progress, tracker, clock)
        while not job.is_over(progress):
            job, progress = begin_stage(job, progress, clock)
            progress = train(job, progress, tracker, clock)

        best = resume.load_best(job, progress)
        with clock("evaluate"):
            final = {split: measure(job, split, whole=True) for split in job.features if split != "train"}
        results = report.make_results(job, progress, final, clock)
        results = run.on_main(lambda: finish(job, results, clock))
        tracker.log_split(
            "test", final.get("test", {}), update=progress.update, epoch=job.schedule.epoch(progress.update)
        )
        tracker.finish(final)
        run.say(report.closing(job, results, best))
        run.signals.ends_at_once = True
        run.on_main(lambda: push_if_asked(config))
        return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=results)


def train(job: Job, progress: Progress, tracker: tracking.Tracking, clock: Clock) -> Progress:
    """Trains to the end of the stage or to early stopping; what others do in callbacks are ifs here. Where a signal asks for
    it, saves and raises StoppedError."""
    config, schedule, run = job.config, job.schedule, job.runtime
    end = job.stage_end(progress.settled)
    bar = tracking.ProgressBar(schedule.total_updates, progress.update, run)
    steps = clock.each(
        train_steps(job.trainee, job.features["train"], job.task, config, run, start_update=progress.update)
    )
    last_save = time.monotonic()
    try:
        if progress.pending:  # what a signal left undone after the last update
            progress = after_update(job, progress, tracker, clock, bar)
        while progress.update < end and not progress.stopped:
            update = next(steps)
            progress = dataclasses.replace(
                progress,
                update=update.number,
                train_loss=update.loss,
                skipped_updates=progress.skipped_updates + update.skipped,
            )
            logs = schedule.is_due(config.tracking.log_every, update.number) or update.number == 1
            bar.advance(update, log=logs)
            if logs:
                tracker.log(tracking.training_row(update), update=update.number, epoch=update.epoch)
            if update.skipped:
                bar.say(f"update {update.number}: gradients overflowed fp16 and the weights were not changed")
            minutes = config.checkpoint.every_minutes
            is_time = minutes is not None and time.monotonic() - last_save >= 60 * minutes
            stops, saves = run.agree(run.is_asked_to_stop(), is_time)
            if stops:
                save_and_stop(job, progress, clock, bar)
            progress = after_update(job, progress, tracker, clock, bar, saves=saves)
            last_save = time.monotonic() if saves else last_save
    except NotFiniteError as error:
        origins = ", ".join(job.where(row) for row in error.rows[:8]) + (", ..." if len(error.rows) > 8 else "")
        kept = checkpoint.last_of(job.checkpoint_dir)
        raise InputError(
            f"{error}; look at its examples (rows {', '.join(map(str, error.rows[:8]))}: {origins}), or lower "
            f"train.learning_rate; {f'the last good checkpoint is {kept}' if kept else 'nothing has been saved yet'}"
        ) from None
    finally:
        steps.close()
        bar.close()
    return progress


def after_update(
    job: Job,
    progress: Progress,
    tracker: tracking.Tracking,
    clock: Clock,
    bar: tracking.ProgressBar,
    *,
    saves: bool = False,
) -> Progress:
    """Evaluates and saves where that is due after an update, or `saves` says so."""
    config, schedule, number = job.config, job.schedule, progress.update
    epoch = schedule.epoch(number)
    saves = saves or schedule.is_due(config.checkpoint.every, number)
    if schedule.is_due(config.evaluation.every, number):
        try:
            with clock("evaluate"):
                values = measure(job, "validation")
        except StoppedError:
            save_and_stop(job, progress, clock, bar)
        tracker.log_split("validation", values, update=number, epoch=epoch)
        progress = judge(job, progress, values)
        is_best = progress.best_update == number
        bar.say(f"epoch {epoch}  validation  {report.show(values)}{'  best' if is_best else ''}")
        saves = saves or is_best or progress.stopped
    progress = dataclasses.replace(progress, pending=False)
    if saves:
        with clock("save"):
            file = resume.save(job, progress)
        bar.say(f"saved {file}")
    if progress.stopped and number < schedule.total_updates:
        bar.say(f"no better {job.metric} in {progress.evaluations_without_gain} evaluations: stopping early")
    return progress


def save_and_stop(job: Job, progress: Progress, clock: Clock, bar: tracking.ProgressBar) -> NoReturn:
    """Saves at an update whose evaluation is still to come, and raises StoppedError. On all processes."""
    with clock("save"):
        file = resume.save(job, dataclasses.replace(progress, pending=True))
    bar.say(f"saved {file}")
    raise job.runtime.stop()


# --- before training ------------------------------------------------------------------------------------------------


def finished_results(config: RunConfig) -> dict[str, Any] | None:
    """results.json of a run that is finished and has its model, else None."""
    path = config.run_dir / "results.json"
    if config.checkpoint.resume == "never" or not path.exists() or not backbone.holds_model(config.run_dir / "model"):
        return None
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    asks_for_more = config.checkpoint.resume != "auto"
    return results if results.get("status") == "finished" and not asks_for_more else None


def check_services(config: RunConfig, run: Runtime) -> None:
    """Raises InputError where a tracker is not installed, or a push could not succeed."""
    tracking.check_trackers(config.tracking.trackers)
    if config.hub.push:
        run.on_main(lambda: hub.check_access(str(config.hub.repo_id)))


def set_up(config: RunConfig, task_name: str, run: Runtime, clock: Clock, progress: Progress = FRESH) -> Job:
    """Data, task, model, features, freeze plan, optimizer: all that is settled before the first update, which follows
    `progress`."""
    with clock("load"):
        splits = data.load_splits(config.data, config.seed, tasks.form_of(task_name, config))
        task = tasks.build(task_name, config, splits.train)
        metric = choose_metric(config, task)
        loaded = backbone.load(config.model, task, backbone.load_tokenizer(config.model))
        task.prepare_model(loaded.model, loaded.tokenizer)
        max_length = backbone.longest_input(loaded, config.data.max_length)
        loaded = adapter.attach(loaded, config.adapter, config.freeze, config.seed)
    with clock("encode"):
        features = encode(splits, task, loaded.tokenizer, max_length, run)
    backbone.check_ids(loaded, max(int(rows.inputs["input_ids"].max()) for rows in features.values()))
    loaded.model.to(run.device)
    schedule = schedule_of(len(features["train"]), config)
    anatomy = freezing.dissect(loaded.model)
    freezing.check_stages(config.freeze, anatomy)
    free_at_last = plan_of(loaded, config.freeze.at(config.train.epochs), anatomy).free
    stage = settle_stage(loaded, anatomy, config.freeze.at(next_epoch(schedule, progress)), config, run)
    return Job(
        config=config,
        runtime=run,
        splits=splits,
        task=task,
        metric=metric,
        backbone=loaded,
        max_length=max_length,
        features=features,
        schedule=schedule,
        free_at_last=free_at_last,
        **stage,
    )


def next_epoch(schedule: Schedule, progress: Progress) -> int:
    """The epoch, counted from 1, of the update that follows; of the last one where none does."""
    return schedule.epoch(progress.update if progress.stopped else min(progress.settled + 1, schedule.total_updates))


def plan_of(loaded: backbone.Backbone, freeze: FreezeConfig, anatomy: freezing.Anatomy) -> freezing.FreezePlan:
    """What a freeze config makes of the backbone, its adapters and its new head."""
    return freezing.apply(loaded.model, freeze, anatomy, adapters=loaded.adapter_parameters, new=loaded.new_parameters)


def settle_stage(
    loaded: backbone.Backbone, anatomy: freezing.Anatomy, freeze: FreezeConfig, config: RunConfig, run: Runtime
) -> dict[str, Any]:
    """What follows from a freeze config: plan, trainee, and why its prefix cannot be replayed, if so."""
    with run.accelerator.autocast():  # some kinds of attention run in 16 bit on a GPU only
        plan = plan_of(loaded, freeze, anatomy)
        constant = freezing.constant_modules(loaded.model, has_adapters=loaded.adapter is not None)
        masks = dropout.choose_masks(config.train.dropout_masks, config.seed, loaded.model, constant)
    with adapter.awake(loaded):
        shortcuts, no_replay = find_shortcuts(loaded.model, plan)
    trainee = prepare(loaded, plan, config, run, constant=constant, masks=masks, shortcuts=shortcuts)
    return {"plan": plan, "trainee": trainee, "no_replay": no_replay}


def begin_stage(job: Job, progress: Progress, clock: Clock) -> tuple[Job, Progress]:
    """The job of the next stage of freeze.unfreeze: more trains, what trained keeps its optimizer state, and the cached prefix
    ends at the new boundary."""
    run, old = job.runtime, job.trainee.optimizer.optimizer.state_dict()
    freeze = job.config.freeze.at(next_epoch(job.schedule, progress))
    anatomy, features = job.plan.anatomy, {
        split: dataclasses.replace(rows, states=None) for split, rows in job.features.items()
    }  # fmt: skip
    run.accelerator.free_memory()  # it keeps the optimizers it has prepared
    stage = settle_stage(job.backbone, anatomy, freeze, job.config, run)
    job = dataclasses.replace(job, features=features, **stage)
    gc.collect()  # the wrapper of the stage before exchanges gradients as long as it lives
    optim.restore(job.trainee.optimizer.optimizer, old)
    progress = dataclasses.replace(progress, cached=None)
    return cache_prefix(job, progress, clock, lambda choice: report.announce_stage(job, progress, choice))


def cache_prefix(
    job: Job, progress: Progress, clock: Clock, announce: Callable[[prefix.Choice], None]
) -> tuple[Job, Progress]:
    """The job with its frozen prefix cached, where that is chosen and possible."""
    job.runtime.signals.ends_at_once = False
    with clock("cache"):
        choice = prefix.choose(job, progress)
        announce(choice)
        job = prefix.attach(job, choice)
    if progress.cached not in (None, job.is_cached):
        begun = "with" if progress.cached else "without"
        job.runtime.say(f"The run was begun {begun} a cached prefix: sums differ\n")
    return job, dataclasses.replace(progress, cached=job.is_cached)


def choose_metric(config: RunConfig, task: Task) -> str:
    """The name of the metric that decides what is best, checked to exist and to fit, before anything is trained."""
    name = config.evaluation.metric
    return task.check_metric(task.default_metric if name == "auto" else name)


def encode(splits: Splits, task: Task, tokenizer: Any, max_length: int, run: Runtime) -> dict[str, Features]:
    """The features of every split; the main process encodes what the cache does not hold, the others read it."""

    def encode_all() -> dict[str, Features]:
        return {split: data.encode(task, table, tokenizer, max_length) for split, table in splits.tables().items()}

    run.on_main(lambda: encode_all() and None)
    return encode_all()


def find_shortcuts(model: Any, plan: freezing.FreezePlan) -> tuple[first_token.Shortcuts, str]:
    """What a forward of this model need not compute, each proven on a probe; and why its prefix cannot be replayed."""
    cuts = first_token.find_first_token_cuts(model, plan)
    try:
        return first_token.Shortcuts(replay=replay.find_replay(model, plan), first_token=cuts), ""
    except replay.CannotReplayError as error:
        return first_token.Shortcuts(first_token=cuts), str(error)


def prepare(
    loaded: backbone.Backbone, plan: freezing.FreezePlan, config: RunConfig, run: Runtime, **behaviour: Any
) -> Trainee:
    """Builds the optimizer over what trains, and has Accelerate prepare it and the model."""
    groups = optim.parameter_groups(loaded.model, plan, config.train, loaded.new_parameters)
    prepared, optimizer = run.accelerator.prepare(loaded.model, optim.build(groups, run.device))
    return Trainee(
        model=loaded.model, prepared=prepared, optimizer=optimizer, pad_token_id=loaded.pad_token_id, **behaviour
    )


# --- after training -------------------------------------------------------------------------------------------------


def finish(job: Job, results: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Exports the model, reloads and compares it, and only then writes results.json: a run that has one is finished."""
    with clock("export"):
        folder = export.export(job, results)
        difference = export.check_reload(folder, job)
    results = {**results, "reload_difference": difference, "seconds": clock.report()}
    write_atomically(job.config.run_dir / "results.json", json.dumps(tracking.without_nan(results), indent=2).encode())
    return results


def push_if_asked(config: RunConfig) -> None:
    """Pushes, with hub.push; a failure costs no training and is said with the command that does it later."""
    options = config.hub
    if not options.push:
        return
    try:
        address = hub.push(config.run_dir, str(options.repo_id), private=options.private, revision=options.revision)
        print(f"pushed to {address}")
    except InputError as error:
        command = f"hf-finetune push {config.run_dir} --repo-id {options.repo_id}"
        command += " --private" * options.private + (f" --revision {options.revision}" if options.revision else "")
        print(f"warning: {error}\nThe run is whole. Push it later with\n  {command}")
