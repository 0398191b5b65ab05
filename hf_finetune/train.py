"""A run, in the order of time. READ THIS FIRST."""

import dataclasses
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hf_finetune.cache import capture, decision
from hf_finetune.config.sections import RunConfig
from hf_finetune.export import hub, model_folder
from hf_finetune.run import checkpoint, report, resume, tracking
from hf_finetune.run.folder import open_run, record_run
from hf_finetune.run.setup import find_next_epoch, prepare_stage, read_finished_results, set_up
from hf_finetune.run.training_run import Clock, TrainingRun, evaluate_split, preflight_check
from hf_finetune.system.errors import InputError, StoppedError
from hf_finetune.system.files import write_atomically
from hf_finetune.system.processes import Runtime
from hf_finetune.training import optim
from hf_finetune.training.loop import NotFiniteError, train_steps
from hf_finetune.training.progress import FRESH, Progress, update_best_and_patience


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind. `results` is what results.json holds."""

    run_dir: Path
    model_dir: Path
    results: dict[str, Any]


def finetune(config: RunConfig, *, task_name: str = "classification") -> RunResult:
    """Fine-tunes as the config says, goes on where an earlier run of it stopped, and exports the best model.

    Raises InputError for anything the user can mend, StoppedError where a signal ended the run for now.
    """
    clock = Clock()
    with open_run(config) as run:
        finished = run.on_main(lambda: read_finished_results(config))
        if finished is not None:
            run.say(f"{config.run_dir} is finished, there is nothing to train; {report.summarize_results(finished)}")
            run.on_main(lambda: push_if_asked(config))
            return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=finished)
        check_services(config, run)
        saved, notes = resume.find_checkpoint(config, run)
        progress = saved.progress if saved else FRESH
        job = set_up(config, task_name, run, clock, progress)
        if saved:
            progress, found = resume.restore_run(job, saved)
            notes, saved = (*notes, *found), None
        job, progress = cache_activations(job, progress, clock, lambda lines: report.announce(job, lines, notes))
        preflight_check(job)
        run.on_main(lambda: record_run(config, run))
        tracker = tracking.Tracking(config, run, start_update=progress.update)

        progress = train(job, progress, tracker, clock)
        while not job.is_over(progress):
            job, progress = begin_stage(job, progress, clock)
            progress = train(job, progress, tracker, clock)

        best = resume.load_best_weights(job, progress)
        with clock("evaluate"):
            final = {split: evaluate_split(job, split, whole=True) for split in job.features if split != "train"}
        results = report.make_results(job, progress, final, clock)
        results = run.on_main(lambda: finish_run(job, results, clock))
        tracker.log_split(
            "test", final.get("test", {}), update=progress.update, epoch=job.schedule.epoch(progress.update)
        )
        tracker.finish(final)
        run.say(report.format_closing(job, results, best))
        run.signals.ends_at_once = True
        run.on_main(lambda: push_if_asked(config))
        return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=results)


def train(job: TrainingRun, progress: Progress, tracker: tracking.Tracking, clock: Clock) -> Progress:
    """Trains to the end of the stage or to early stopping; what others do in callbacks are ifs here. Where a signal asks for
    it, saves and raises StoppedError."""
    config, schedule, run = job.config, job.schedule, job.runtime
    end = job.find_stage_end(progress.num_settled)
    bar = tracking.ProgressBar(schedule.total_updates, progress.update, run)
    steps = clock.count_updates(
        train_steps(job.train_state, job.features["train"], job.task, config, run, start_update=progress.update)
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
                tracker.log(tracking.make_training_row(update), update=update.number, epoch=update.epoch)
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
        origins = ", ".join(job.locate(row) for row in error.rows[:8]) + (", ..." if len(error.rows) > 8 else "")
        kept = checkpoint.find_last(job.checkpoint_dir)
        raise InputError(
            f"{error}; look at its examples (rows {', '.join(map(str, error.rows[:8]))}: {origins}), or lower "
            f"train.learning_rate; {f'the last good checkpoint is {kept}' if kept else 'nothing has been saved yet'}"
        ) from None
    finally:
        steps.close()
        bar.close()
    return progress


def after_update(
    job: TrainingRun,
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
                values = evaluate_split(job, "validation")
        except StoppedError:
            save_and_stop(job, progress, clock, bar)
        tracker.log_split("validation", values, update=number, epoch=epoch)
        progress = update_best_and_patience(progress, values, metric=job.metric, epoch=epoch, config=config.train)
        is_best = progress.best_update == number
        bar.say(f"epoch {epoch}  validation  {report.format_metrics(values)}{'  best' if is_best else ''}")
        saves = saves or is_best or progress.stopped
    progress = dataclasses.replace(progress, pending=False)
    if saves:
        with clock("save"):
            file = resume.save_run(job, progress)
        bar.say(f"saved {file}")
    if progress.stopped and number < schedule.total_updates:
        bar.say(f"no better {job.metric} in {progress.evaluations_without_gain} evaluations: stopping early")
    return progress


def save_and_stop(job: TrainingRun, progress: Progress, clock: Clock, bar: tracking.ProgressBar) -> NoReturn:
    """Saves at an update whose evaluation is still to come, and raises StoppedError. On all processes."""
    with clock("save"):
        file = resume.save_run(job, dataclasses.replace(progress, pending=True))
    bar.say(f"saved {file}")
    raise job.runtime.stopped_error()


def check_services(config: RunConfig, run: Runtime) -> None:
    """Raises InputError where a tracker is not installed, or a push could not succeed."""
    tracking.check_trackers(config.tracking.trackers)
    if config.hub.push:
        run.on_main(lambda: hub.check_access(str(config.hub.repo_id)))


def begin_stage(job: TrainingRun, progress: Progress, clock: Clock) -> tuple[TrainingRun, Progress]:
    """The job of the next stage of freeze.unfreeze: more trains, what trained keeps its optimizer state, and the cached prefix
    ends at the new boundary."""
    run, old = job.runtime, job.train_state.optimizer.optimizer.state_dict()
    freeze = job.config.freeze.at(find_next_epoch(job.schedule, progress))
    anatomy, features = job.plan.structure, {
        split: dataclasses.replace(rows, activations=None) for split, rows in job.features.items()
    }  # fmt: skip
    run.accelerator.free_memory()  # it keeps the optimizers it has prepared
    stage = prepare_stage(job.backbone, anatomy, freeze, job.config, run)
    job = dataclasses.replace(job, features=features, **stage)
    gc.collect()  # the wrapper of the stage before exchanges gradients as long as it lives
    optim.restore_optimizer_state(job.train_state.optimizer.optimizer, old)
    progress = dataclasses.replace(progress, cached=None)
    return cache_activations(job, progress, clock, lambda lines: report.announce_stage(job, lines, progress))


def cache_activations(
    job: TrainingRun, progress: Progress, clock: Clock, announce: Callable[[Sequence[str]], None]
) -> tuple[TrainingRun, Progress]:
    """The job with its frozen prefix cached, where that is chosen and possible."""
    job.runtime.signals.ends_at_once = False
    with clock("cache"):
        choice = decision.decide(job, progress)
        announce(choice.lines)
        job = capture.attach_activations(job, choice.entry, choice.cached_forward)
    if progress.cached not in (None, job.is_cached):
        begun = "with" if progress.cached else "without"
        job.runtime.say(f"The run was begun {begun} a cached prefix: sums differ\n")
    return job, dataclasses.replace(progress, cached=job.is_cached)


# --- after training -------------------------------------------------------------------------------------------------


def finish_run(job: TrainingRun, results: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Exports the model, reloads and compares it, and only then writes results.json: a run that has one is finished."""
    with clock("export"):
        folder = model_folder.export_model(job, results)
        difference = model_folder.check_reload(folder, job)
    results = {**results, "reload_difference": difference, "seconds": clock.report()}
    write_atomically(job.config.run_dir / "results.json", json.dumps(tracking.replace_nan(results), indent=2).encode())
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
