"""A run in the order of time. READ THIS FIRST.

finetune() is the entire run. train() iterates over training.loop.train_steps(), which yields after every optimizer update.
Where transformers.Trainer has callbacks, train() has an `if`.

prefix: the embeddings and lowest layers, all frozen. activations: the hidden states at its end, which a run may cache. stage:
the epochs between two changes of freeze.unfreeze; a run without it has one stage. pending: a signal stopped the run after an
update and before the evaluation and save that were due; they are made up for on resume.
"""

import dataclasses
import gc
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hf_finetune.cache import capture, decision
from hf_finetune.cache.check import Comparison, compare_evaluation, describe_evaluation
from hf_finetune.cache.speeds import forget_wrong_speed
from hf_finetune.config.sections import RunConfig
from hf_finetune.export import hub, model_folder
from hf_finetune.export.hub_requests import OutageError
from hf_finetune.export.pending_pushes import find_target, make_command, note_push, push_run
from hf_finetune.export.start import resolve_start
from hf_finetune.run import average, checkpoint, report, resume, saving, trackers, tracking
from hf_finetune.run.calibrating import calibrate, check_calibration
from hf_finetune.run.finished import check_finished_run, describe_finished_run, read_finished_results
from hf_finetune.run.folder import open_run, record_run
from hf_finetune.run.frozen_weights import settle_frozen_weights
from hf_finetune.run.head_start import start_head
from hf_finetune.run.inputs import describe_inputs
from hf_finetune.run.parts import NO_PARTS, Parts
from hf_finetune.run.progress_view import ProgressView
from hf_finetune.run.results import format_closing, format_metrics, make_results
from hf_finetune.run.scored_splits import write_scored_splits
from hf_finetune.run.seen_rows import write_seen_rows
from hf_finetune.run.setup import find_next_epoch, prepare_stage, set_up
from hf_finetune.run.streaming import StreamError
from hf_finetune.run.training_run import Clock, TrainingRun, evaluate_split, keeps_outputs, preflight_check
from hf_finetune.system.errors import AGAIN, DivergedError, InputError, PausedError, StoppedError
from hf_finetune.system.files import write_atomically
from hf_finetune.system.json_text import replace_nan
from hf_finetune.system.output import guard_output
from hf_finetune.system.processes import Runtime
from hf_finetune.training import optim
from hf_finetune.training.loop import NotFiniteError, Update, train_steps
from hf_finetune.training.part_norms import PartWatch
from hf_finetune.training.progress import FRESH, Progress, update_best_and_patience


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run. `results` is the content of its results.json."""

    run_dir: Path
    model_dir: Path
    results: dict[str, Any]


def finetune(config: RunConfig, parts: Parts = NO_PARTS, *, began: float | None = None) -> RunResult:
    """Fine-tunes the backbone on the data of the config, and exports the best model. Resumes an earlier run of the same config.

    parts: Rows and functions that a program gave; those that the config names by their import path are imported. began: When
    the command was given, by time.perf_counter(); the run's seconds count from there.

    Raises InputError for anything that the user can fix, StoppedError if a signal stopped the run after it was saved, and
    PausedError if Parts.pause did.
    """
    clock = Clock(began)
    try:
        with guard_output(is_run=True), open_run(config) as runtime:
            results = runtime.on_main(lambda: read_finished_results(config))
            if results is None:
                results = train_and_export(config, runtime, parts, clock)
            else:
                runtime.on_main(lambda: check_finished_run(config))
                runtime.say(runtime.on_main(lambda: describe_finished_run(config, results, parts)))
            results |= runtime.on_main(lambda: push_if_requested(config, runtime))
            report.announce_end(config, runtime, results)
    except StoppedError as error:
        raise explain_stop(config, error) from None
    return RunResult(run_dir=config.run_dir, model_dir=config.run_dir / "model", results=results)


def train_and_export(config: RunConfig, runtime: Runtime, parts: Parts, clock: Clock) -> dict[str, Any]:
    """Trains from the newest checkpoint or from the start, exports the best model, and returns the results."""
    # Load everything. What the user can get wrong fails here, within seconds
    progress, given = FRESH, config
    with clock("load"):
        check_services(config, runtime)
        config = resolve_start(config, runtime)
        saved, notes = resume.find_checkpoint(config, runtime)
        run = set_up(config, runtime, clock, saved.progress if saved else FRESH, parts)
        if saved:
            progress, resume_notes = resume.restore_run(run, saved)
            saving.complete_save(run, progress, saved.path)
            notes = (*notes, *resume_notes)
            saved = None  # frees the checkpoint's tensors

    # From here on, a signal saves before it stops the run, and what is in no other phase counts as training
    with clock("train"), runtime.signals.deferred():
        with clock("check"):
            cache = decide_on_cache(run, progress, clock)
            report.announce(run, cache.lines, notes, progress)
            run, progress = attach_cache(run, progress, cache, clock)
            check_calibration(run)
            preflight_check(run)  # after the cache, because it evaluates in the way that the run will
            inputs = runtime.on_main(lambda: describe_inputs(config, run.parts, run.splits.num_rows))
            runtime.on_main(lambda: record_run(given, runtime, inputs, run.data_report))
            tracker = tracking.Tracking(config, runtime, metric=run.metric, start_update=progress.update)

        if progress.update == 0:
            start_head(run)

        # Train: one stage, or several with freeze.unfreeze
        progress = train(run, progress, tracker, clock)
        while not run.is_over(progress):
            with clock("load"):
                run, progress = begin_stage(run, progress, clock)
                gc.collect()  # the distributed wrapper of the stage before exchanges gradients as long as it lives
            progress = train(run, progress, tracker, clock)
        runtime.on_main(lambda: forget_wrong_speed(run, clock))

        # The best weights, the final numbers, the exported model
        with clock("export"):
            best = resume.load_best_weights(run, progress)
            averaged = average.load_average(run, progress)  # export.average: their mean is exported instead
            with clock("evaluate"):
                run, fitted = calibrate(run)  # task.calibrate, on validation
                final, check = evaluate_exported(run, progress, averaged)
                final["validation"] = final["validation"] | fitted
            details = runtime.on_main(lambda: write_scored_splits(run, final, tracker))
            results = make_results(run, progress, final, clock, averaged)
            results["details"] = details
            results["validation_check"] = None if check is None else dataclasses.asdict(check)
            epoch = run.schedule.epoch(progress.update)
            tracker.write_test_row(final.get("test", {}), update=progress.update, epoch=epoch)
            results = runtime.on_main(lambda: finish_run(run, results, clock))
            tracker.finish(final, update=progress.update)
            runtime.say(format_closing(run, results, best))
    return results


# --- training -------------------------------------------------------------------------------------------------------


def train(run: TrainingRun, progress: Progress, tracker: tracking.Tracking, clock: Clock) -> Progress:
    """Trains to the end of the stage or to early stopping. If a signal asks for it, saves and raises StoppedError."""
    config, schedule, runtime = run.config, run.schedule, run.runtime
    end = run.find_stage_end(progress.num_settled)
    run.train_state.give_memory_back()  # the checks before training have read all weights
    view = ProgressView(run, progress)
    steps = train_steps(
        run.train_state,
        run.make_source(),
        run.task,
        config,
        runtime,
        total_updates=schedule.planned_updates,
        start_update=progress.update,
        part_watch=PartWatch(run.train_state.optimizer, run.plan.structure.parts()),
        is_watched=run.is_logged,
    )
    steps = clock.count_updates(steps)
    last_save = time.monotonic()
    try:
        if progress.pending:  # a signal stopped the run before the evaluation and save of its last update
            progress = finish_update(run, progress, tracker, clock, view)
        while progress.update < min(end, schedule.total_updates) and not (progress.stopped or run.is_paused(progress)):
            update = next(steps)
            progress = log_update(run, progress, update, tracker, view)
            if run.parts.on_update is not None:
                run.parts.on_update(update, run.train_state.model)
            minutes = config.checkpoint.every_minutes
            is_time_to_save = minutes is not None and time.monotonic() - last_save >= 60 * minutes
            # If any process received a signal, or its time to save has come, all processes do the same
            stops, saves = runtime.agree(runtime.is_asked_to_stop(), is_time_to_save)
            if stops:
                save_and_stop(run, progress, clock)
            progress = finish_update(run, progress, tracker, clock, view, saves=saves)
            last_save = time.monotonic() if saves else last_save
    except NotFiniteError as error:
        raise explain_not_finite(run, error) from None
    except StreamError as error:
        raise save_and_explain(run, progress, clock, error) from error.__cause__
    finally:
        steps.close()
        view.close()
    if run.is_paused(progress):
        tracker.close()
        raise PausedError
    return progress


def log_update(
    run: TrainingRun, progress: Progress, update: Update, tracker: tracking.Tracking, view: ProgressView
) -> Progress:
    """The progress after an update. Logs the update if that is due."""
    is_due = run.is_logged(update.number)
    view.advance(update, log=is_due)
    if is_due:
        tracker.log(tracking.make_training_row(update, run.runtime), update=update.number, epoch=update.epoch)
    if update.skipped:
        run.runtime.say(f"update {update.number}: gradients overflowed fp16; the weights were not changed")
    if not update.num_targets:
        run.runtime.say(
            f"update {update.number}: its batch has nothing to learn, such as no label; the weights were not changed"
        )
    return dataclasses.replace(
        progress,
        update=update.number,
        train_loss=update.loss if update.num_targets else progress.train_loss,
        skipped_updates=progress.skipped_updates + update.skipped,
    )


def finish_update(
    run: TrainingRun,
    progress: Progress,
    tracker: tracking.Tracking,
    clock: Clock,
    view: ProgressView,
    *,
    saves: bool = False,
) -> Progress:
    """Evaluates after an update if that is due; saves if that is due, if the model is the best so far, or if `saves`."""
    config, schedule, runtime, number = run.config, run.schedule, run.runtime, progress.update
    epoch = schedule.epoch(number)
    saves = saves or schedule.is_due(config.checkpoint.every, number)
    if schedule.is_due(config.evaluation.every, number):
        try:
            with clock("evaluate"), run.train_state.evaluated_weights():
                values = evaluate_split(run, "validation", keeps=True)
        except StoppedError:
            save_and_stop(run, progress, clock)
        tracker.log_split("validation", values, update=number, epoch=epoch)
        progress = update_best_and_patience(
            progress,
            values,
            metric=run.metric,
            epoch=epoch,
            config=config.train,
            greater_is_better=run.greater_is_better,
        )
        is_best = progress.best_update == number
        if is_best:
            progress = dataclasses.replace(progress, best_computed_from=describe_evaluation(run))
        run.kept.note_validation(number, is_best=is_best)
        line = f"epoch {epoch}  validation  {format_metrics(values)}{'  best' if is_best else ''}"
        view.show_evaluation(progress, values, line)
        if is_best and math.isnan(values[run.metric]):
            runtime.say(
                f"warning: {run.metric} is nan and cannot choose the best checkpoint: the last one counts as best until it is a "
                "number; the validation rows may not determine it (see data.validation), or the outputs are nan"
            )
        saves = saves or is_best or progress.stopped or config.export.count > 0 or run.is_paused(progress)
    progress = dataclasses.replace(progress, pending=False)
    if saves:
        with clock("save"):
            file = saving.save_run(run, progress)
            run.train_state.give_memory_back()
        report.announce_save(run, file, progress)
    if number == schedule.total_updates < schedule.planned_updates:
        runtime.say(
            f"train.epochs ({config.train.epochs}) ended the stream after {number} of {schedule.planned_updates} updates, so the "
            f"learning rate has not come to its end; set train.epochs higher, or train.max_updates to {number}"
        )
    if progress.stopped and number < schedule.total_updates:
        runtime.say(f"{run.metric} did not improve in {progress.evaluations_without_gain} evaluations: stopping early")
    return progress


def save_and_stop(run: TrainingRun, progress: Progress, clock: Clock) -> NoReturn:
    """Saves after an update that is not evaluated yet, and raises StoppedError. On all processes."""
    with clock("save"):
        file = saving.save_run(run, dataclasses.replace(progress, pending=True))
    report.announce_save(run, file, progress)
    raise run.runtime.stopped_error()


def save_and_explain(run: TrainingRun, progress: Progress, clock: Clock, error: StreamError) -> InputError:
    """Saves after the last update before an error in the stream, if there is one, and returns the error with what is saved."""
    if progress.update == 0:
        return error
    with clock("save"):
        file = saving.save_run(run, progress)
    return InputError(f"{error}; the run is saved up to {run.checkpoint_dir / file}; {AGAIN} to continue from it")


def explain_stop(config: RunConfig, error: StoppedError) -> StoppedError:
    """The error with what is saved, and how to continue. error: Names the signal."""
    last = checkpoint.find_last(config.run_dir / "checkpoints")
    if last is None:
        return StoppedError(f"{error}: there was nothing to save yet; {AGAIN} to start from the beginning")
    again = "set checkpoint.resume to auto" if config.checkpoint.resume == "never" else AGAIN
    return StoppedError(
        f"{error}: the run is saved up to {config.run_dir / 'checkpoints' / last}; {again} to continue from it"
    )


def explain_not_finite(run: TrainingRun, error: NotFiniteError) -> DivergedError:
    """The error with the examples of the batch, and the last checkpoint."""
    shown = error.indices[:8]
    rows = ", ".join(map(str, shown))
    origins = ", ".join(run.locate(index) for index in shown) + (", ..." if len(error.indices) > len(shown) else "")
    last = checkpoint.find_last(run.checkpoint_dir)
    kept = f"the last good checkpoint is {last}" if last else "nothing has been saved yet"
    return DivergedError(
        f"{error}; look at its examples (rows {rows}: {origins}), or lower train.learning_rate; {kept}"
    )


# --- before training and between stages -----------------------------------------------------------------------------


def check_services(config: RunConfig, runtime: Runtime) -> None:
    """Raises InputError if a tracker is not installed, or if a push cannot succeed. Training does not wait for the Hub: if it
    cannot be reached, only the push needs it, at the end."""
    trackers.check_trackers(config.tracking.trackers)
    if config.hub.push:
        try:
            runtime.on_main(lambda: hub.check_access(str(config.hub.repo_id), is_brief=True))
        except OutageError as error:
            runtime.say(f"warning: {error}\nThe run trains, and is pushed at its end if the Hub can be reached then\n")


def decide_on_cache(run: TrainingRun, progress: Progress, clock: Clock) -> decision.CacheDecision:
    """Decides whether the activations of the frozen prefix are cached, and returns the reasons."""
    with clock("cache"):
        return decision.decide(run, progress)


def attach_cache(
    run: TrainingRun, progress: Progress, cache: decision.CacheDecision, clock: Clock
) -> tuple[TrainingRun, Progress]:
    """The run with cached activations, if that was decided and is possible. Computes those that are missing."""
    with clock("cache"):
        run = capture.attach_activations(run, cache.entry, cache.cached_forward)
    if progress.cached not in (None, run.is_cached):
        before, now = ("with", "without") if progress.cached else ("without", "with")
        run.runtime.say(
            f"This run started {before} cached activations and continues {now} them: results may differ in the last digits "
            "(order of summation)\n"
        )
    return settle_frozen_weights(run), dataclasses.replace(progress, cached=run.is_cached)


def begin_stage(run: TrainingRun, progress: Progress, clock: Clock) -> tuple[TrainingRun, Progress]:
    """The run in the next stage of freeze.unfreeze: more parameters train, those that trained keep their optimizer state, and
    the cached prefix ends at the new boundary."""
    optimizer_state, moving_average = run.train_state.optimizer.optimizer.state_dict(), run.train_state.average
    freeze = run.config.freeze.at(find_next_epoch(run.schedule, progress))
    features = {split: dataclasses.replace(part, activations=None) for split, part in run.features.items()}
    run.runtime.accelerator.free_memory()  # it keeps the optimizers that it prepared
    run.backbone.model.to(run.runtime.device)  # frozen weights that had left it: the probes of a stage run all modules
    padding, build = run.train_state.padding, run.parts.optimizer
    stage = prepare_stage(run.backbone, run.plan.structure, freeze, run.config, run.runtime, run.task, padding, build)
    run = dataclasses.replace(run, features=features, stage=stage)
    optim.restore_optimizer_state(run.train_state.optimizer.optimizer, optimizer_state)
    if moving_average is not None and run.train_state.average is not None:
        run.train_state.average.weights |= moving_average.weights
    progress = dataclasses.replace(progress, cached=None)
    cache = decide_on_cache(run, progress, clock)
    report.announce_stage(run, cache.lines, progress)
    return attach_cache(run, progress, cache, clock)


# --- after training -------------------------------------------------------------------------------------------------


def evaluate_exported(
    run: TrainingRun, progress: Progress, averaged: average.AverageOfCheckpoints | None
) -> tuple[dict[str, dict[str, float]], Comparison | None]:
    """Returns the metrics by split of the model that is exported.

    Those of validation were computed after the best update, with the same weights. They stand if the trained model's outputs, as
    that evaluation took them, are those of the entire model on examples of all lengths; that comparison is returned too, or None
    if that evaluation ran the entire model. Else, and on the test split, the entire model runs: also if this start of the run, or
    its last stage, computes from something else than that evaluation.
    """
    final: dict[str, dict[str, float]] = {}
    check, has_outputs = None, run.kept.take_best(progress.best_update)
    has_same_weights = averaged is None and run.config.adapter.quantization == "none"
    if has_same_weights and progress.best_computed_from == describe_evaluation(run):
        check = compare_evaluation(run)
        if check is None or check.is_same:
            row = next(row for row in progress.history if row["update"] == progress.best_update)
            final["validation"] = {name: value for name, value in row.items() if name not in ("update", "epoch")}
            if not has_outputs and keeps_outputs(run, "validation"):
                evaluate_split(run, "validation", keeps=True)  # the run was resumed after it: its outputs once more
        else:
            run.runtime.say(
                f"outputs of the trained model differ from the entire model's by {check.difference:.1e}, above "
                f"{check.tolerance:.1e}: the entire model is evaluated again\n"
            )
            check = None
    for split in run.features:
        if split == "test" or (split == "validation" and split not in final):
            final[split] = evaluate_split(run, split, uses_cache=False, keeps=True)
    return final, check


def finish_run(run: TrainingRun, results: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Exports the model, reloads and compares it, and only then writes results.json: a run that has one is finished."""
    run.runtime.check_lock()
    write_seen_rows(run)
    folder = model_folder.export_model(run, results)
    difference = model_folder.check_reload(folder, run)
    results = {**results, "reload_difference": difference, "seconds": clock.report()}
    if run.config.hub.push:
        note_push(run.config.run_dir, find_target(run.config.hub))
    write_atomically(run.config.run_dir / "results.json", json.dumps(replace_nan(results), indent=2).encode())
    return results


def push_if_requested(config: RunConfig, runtime: Runtime) -> dict[str, Any]:
    """Pushes to the Hub with hub.push, and returns what results.json says of it.

    If that fails, training is not lost: prints the command that makes the push later, or raises InputError with
    hub.on_failure error.
    """
    options = config.hub
    if not options.push:
        return {}
    target = find_target(options)
    outcome = push_run(config.run_dir, target)
    command = make_command(config.run_dir, target)
    if outcome.reason is None:
        runtime.say(f"pushed to {outcome.commit}")
    elif options.on_failure == "error":
        raise InputError(f"{outcome.reason}; the run is complete; make the push later with: {command}")
    else:
        runtime.say(f"warning: {outcome.reason}\nThe run is complete. Make the push later with\n  {command}")
    return {"push": dataclasses.asdict(outcome)}
