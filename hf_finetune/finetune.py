"""A run, in the order of time. READ THIS FIRST."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune import (
    backbone,
    checkpoint,
    data,
    dropout,
    export,
    first_token,
    freezing,
    hub,
    metrics,
    optim,
    prefix,
    replay,
    report,
    runtime,
    tasks,
    tracking,
)
from hf_finetune.checkpoint import Progress
from hf_finetune.config import RunConfig
from hf_finetune.data import Features, Splits
from hf_finetune.errors import InputError
from hf_finetune.job import Clock, Job, judge, load_best, measure, rehearse, restore, save
from hf_finetune.loop import NotFiniteError, Trainee, schedule_of, train_steps
from hf_finetune.runtime import Runtime
from hf_finetune.tasks import Task


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind. `results` is what results.json holds."""

    run_dir: Path
    model_dir: Path
    results: dict[str, Any]


def finetune(config: RunConfig, *, task_name: str = "classification") -> RunResult:
    """Fine-tunes as the config says, goes on where an earlier run of it stopped, and exports the best model.

    Raises InputError for anything the user can mend.
    """
    clock = Clock()
    with runtime.start(config) as run:
        finished = run.on_main(lambda: finished_results(config))
        if finished is not None:
            run.say(f"{config.run_dir} is finished, there is nothing to train; {report.summary(finished)}")
            run.on_main(lambda: push_if_asked(config))
            return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=finished)
        check_services(config, run)
        job = set_up(config, task_name, run, clock)
        progress, notes = restore(job)
        with clock("cache"):
            choice = prefix.choose(job, progress)
            report.announce(job, notes, choice)
            job = prefix.attach(job, choice)
            if progress.cached not in (None, job.is_cached):
                run.say(f"The run was begun {'with' if progress.cached else 'without'} a cached prefix: sums differ\n")
        progress = dataclasses.replace(progress, cached=job.is_cached)
        rehearse(job)
        run.on_main(lambda: runtime.record(config, run))
        tracker = tracking.Tracking(config, run, start_update=progress.update)

        progress = train(job, progress, tracker, clock)

        best = load_best(job, progress)
        with clock("evaluate"):
            final = {split: measure(job, split, whole=True) for split in job.features if split != "train"}
        results = report.make_results(job, progress, final, clock)
        results = run.on_main(lambda: finish(job, results, clock))
        tracker.log_split(
            "test", final.get("test", {}), update=progress.update, epoch=job.schedule.epoch(progress.update)
        )
        tracker.finish(final)
        run.say(report.closing(job, results, best))
        run.on_main(lambda: push_if_asked(config))
        return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=results)


def train(job: Job, progress: Progress, tracker: tracking.Tracking, clock: Clock) -> Progress:
    """Trains to the end or to early stopping; returns where it ended. What others do in callbacks are ifs here."""
    if progress.stopped or progress.update >= job.schedule.total_updates:
        return progress
    config, schedule = job.config, job.schedule
    bar = tracking.ProgressBar(schedule.total_updates, progress.update, job.runtime)
    steps = train_steps(job.trainee, job.features["train"], job.task, config, job.runtime, start_update=progress.update)
    try:
        for update in clock.each(steps):
            progress = dataclasses.replace(progress, update=update.number)
            logs = schedule.is_due(config.tracking.log_every, update.number) or update.number == 1
            bar.advance(update, log=logs)
            if logs:
                tracker.log(tracking.training_row(update), update=update.number, epoch=update.epoch)
            if update.skipped:
                bar.say(f"update {update.number}: gradients overflowed fp16 and the weights were not changed")
            values: dict[str, float] = {}
            saves = schedule.is_due(config.checkpoint.every, update.number)
            if schedule.is_due(config.evaluation.every, update.number):
                with clock("evaluate"):
                    values = measure(job, "validation")
                tracker.log_split("validation", values, update=update.number, epoch=update.epoch)
                progress = judge(job, progress, values[job.metric])
                is_best = progress.best_update == update.number
                bar.say(f"epoch {update.epoch}  validation  {report.show(values)}{'  best' if is_best else ''}")
                saves = saves or is_best or progress.stopped
            if saves:
                with clock("save"):
                    file = save(job, progress, update, values)
                bar.say(f"saved {file}")
            if progress.stopped and update.number < schedule.total_updates:
                bar.say(f"no better {job.metric} in {progress.evaluations_without_gain} evaluations: stopping early")
                break
    except NotFiniteError as error:
        origins = ", ".join(job.where(row) for row in error.rows[:8]) + (", ..." if len(error.rows) > 8 else "")
        raise InputError(f"{error}; look at its examples ({origins}), or lower train.learning_rate") from None
    finally:
        bar.close()
    return progress


# --- before training ------------------------------------------------------------------------------------------------


def finished_results(config: RunConfig) -> dict[str, Any] | None:
    """results.json of a run that is finished and has its model, else None."""
    path = config.run_dir / "results.json"
    if (
        config.checkpoint.resume == "never"
        or not path.exists()
        or not (config.run_dir / "model" / "config.json").exists()
    ):
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


def set_up(config: RunConfig, task_name: str, run: Runtime, clock: Clock) -> Job:
    """Data, task, model, features, freeze plan, optimizer: all that is settled before update 0."""
    with clock("load"):
        splits = data.load_splits(config.data, config.seed, regression=config.task.problem == "regression")
        task = tasks.build(task_name, config, splits.train)
        metric = choose_metric(config, task)
        loaded = backbone.load(config.model, task, backbone.load_tokenizer(config.model))
        max_length = backbone.longest_input(loaded, config.data.max_length)
    with clock("encode"):
        features = encode(splits, task, loaded.tokenizer, max_length, run)
    backbone.check_ids(loaded, max(int(rows.inputs["input_ids"].max()) for rows in features.values()))
    loaded.model.to(run.device)
    with run.accelerator.autocast():  # some kinds of attention run in 16 bit on a GPU only
        plan = freezing.apply(loaded.model, config.freeze)
        constant = freezing.constant_modules(loaded.model)
        masks = dropout.choose_masks(config.train.dropout_masks, config.seed, loaded.model, constant)
    shortcuts, no_replay = find_shortcuts(loaded.model, plan)
    return Job(
        config=config,
        runtime=run,
        splits=splits,
        task=task,
        metric=metric,
        backbone=loaded,
        max_length=max_length,
        features=features,
        plan=plan,
        trainee=prepare(loaded, plan, config, run, constant=constant, masks=masks, shortcuts=shortcuts),
        schedule=schedule_of(len(features["train"]), config),
        no_replay=no_replay,
    )


def choose_metric(config: RunConfig, task: Task) -> str:
    """The name of the metric that decides what is best, checked to exist and to fit, before anything is trained."""
    name = config.evaluation.metric
    name = task.default_metric if name == "auto" else metrics.SHORT_NAMES.get(name, name)
    if name != "loss":
        metrics.load(name)
        metrics.check_fits(name, task.problem)
    return name


def encode(splits: Splits, task: Task, tokenizer: Any, max_length: int, run: Runtime) -> dict[str, Features]:
    """The features of every split; the main process encodes what the cache does not hold, the others read it."""
    tables = splits.tables()
    labels = {split: task.encode_labels(table) for split, table in tables.items()}

    def encode_all() -> dict[str, Features]:
        return {
            split: data.encode(splits.texts(table), tokenizer, max_length, labels[split])
            for split, table in tables.items()
        }

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
    checkpoint.write_atomically(
        job.config.run_dir / "results.json", json.dumps(tracking.without_nan(results), indent=2).encode()
    )
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
