"""Resumes a run: finds its checkpoint, checks that config and data agree with it, and loads it into the run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_finetune.config.changes import changed_keys, get_length, list_changes
from hf_finetune.config.sections import RunConfig, flatten, require, to_dict
from hf_finetune.model import backbone
from hf_finetune.run import checkpoint
from hf_finetune.run.folder import describe_new_run
from hf_finetune.run.inputs import find_changed_parts
from hf_finetune.run.saving import describe_summation_order, fingerprint_data
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import digest_tensors, write_atomically
from hf_finetune.system.processes import Runtime
from hf_finetune.tasks import metrics
from hf_finetune.training import optim
from hf_finetune.training.progress import Progress, apply_patience, load_progress
from hf_finetune.training.schedule import compute_learning_rate

STATE_KEYS = {
    "progress",
    "config",
    "data",
    "task",
    "task_state",
    "omitted",
}  # of a checkpoint's "run", which resume reads


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The checkpoint that a run resumes from, and the progress of the run when it was saved."""

    path: Path
    content: dict[str, Any]
    progress: Progress


def find_checkpoint(config: RunConfig, runtime: Runtime) -> tuple[SavedRun | None, tuple[str, ...]]:
    """Loads the checkpoint that checkpoint.resume asks for, if there is one. Returns it, and lines about damaged newer ones.

    Raises InputError if checkpoint.resume is a path without an intact checkpoint of this package. On all processes.
    """
    resume = config.checkpoint.resume
    notes: tuple[str, ...] = ()
    if resume == "never":
        return None, notes
    if resume == "auto":
        path, skipped = runtime.on_main(lambda: checkpoint.find_newest_intact(config.run_dir / "checkpoints"))
        notes = tuple(f"skipped: {line}" for line in skipped)
        if path is None:
            return None, notes
    elif Path(resume).is_file():
        path = Path(resume)
    else:
        raise InputError(
            f"checkpoint.resume ({resume}): no such file; must be auto, never, or the path of a checkpoint"
        )
    content = checkpoint.load_checkpoint(path)
    check_format(path, content)
    progress, length = load_progress(content["run"]["progress"]), get_length(to_dict(config))
    if length != get_length(content["run"]["config"]):  # a checkpoint of early stopping may train on with more patience
        metric, greater = content["run"]["metric"], config.evaluation.greater_is_better
        greater = metrics.greater_is_better(metric) if greater is None else greater
        progress = apply_patience(progress, metric=metric, config=config.train, greater_is_better=greater)
    return SavedRun(path=path, content=content, progress=progress), notes


def restore_run(run: TrainingRun, saved: SavedRun) -> tuple[Progress, list[str]]:
    """Loads weights, optimizer and scaler of a checkpoint into the run. Returns the progress, and lines about what differs.

    Raises InputError if the checkpoint was made with another config, other data or another backbone. On all processes.
    """
    path, content = saved.path, saved.content
    optimizer, scaler = run.train_state.optimizer.optimizer, run.runtime.accelerator.scaler
    check_config(run.config, path, content)
    check_data(run, path, content["run"])
    progress, notes = continue_schedule(run, saved)
    if run.augmented is not None:
        run.augmented.check_unchanged(content["run"].get("augmented"))
    if run.stream is not None:
        run.stream.restore(content["run"]["stream"])
    load_weights(run, content, path.name)
    run.train_state.restore_training_weights(content["run"].get("training_weights"))
    try:
        fresh, dropped = optim.restore_optimizer_state(optimizer, content["optimizer_state_dict"])
    except (RuntimeError, ValueError) as error:
        raise make_other_model_error(run.config.model.backbone, path.name, error) from None
    if scaler is not None and content["run"]["scaler"]:
        scaler.load_state_dict(content["run"]["scaler"])
    changed = run.runtime.on_main(lambda: find_changed_parts(run.config, run.parts))
    notes += [f"{line}; the updates so far were trained before this change" for line in changed]
    if fresh or dropped:
        notes.append(
            f"the freeze plan has changed: {len(fresh)} tensors start to train, {len(dropped)} no longer train; the others keep "
            "their optimizer state"
        )
        progress = dataclasses.replace(progress, cached=None)  # the boundary may have moved: decide again
    before, now = content["run"]["summation_order"], describe_summation_order(run)
    if before != now:
        notes.append(f"was on {before}, now on {now}: sums and dropout may differ")
    adopted = run.runtime.on_main(lambda: adopt_best_checkpoint(run, path, content, progress))
    if adopted.best_update != progress.best_update:
        notes.append("the best checkpoint is missing or damaged and is ignored")
    return adopted, [*notes, f"resuming after update {progress.update} from {path.name}"]


def continue_schedule(run: TrainingRun, saved: SavedRun) -> tuple[Progress, list[str]]:
    """Returns the progress under the length that the run has now, and a line about how the schedule continues if it differs from
    the checkpoint's.

    Raises InputError if the run is shorter than what was trained, or if early stopping had ended it.
    """
    config, schedule, progress = run.config, run.schedule, saved.progress
    total_before = int(saved.content["scheduler_state_dict"]["total_updates"])
    if schedule.planned_updates == total_before:
        return progress, []
    key = "train.max_updates" if config.train.max_updates == schedule.planned_updates else "train.epochs"
    value, trained = dict(flatten(to_dict(config)))[key], f"{progress.update} updates"
    if progress.update > schedule.planned_updates:
        raise InputError(
            f"{key} ({value}): means {schedule.planned_updates} updates, and {saved.path.name} has trained {trained} (epoch "
            f"{schedule.epoch(progress.update)}); set it higher, or, to train from its weights with a schedule of its own, "
            f"{describe_new_run(config)}"
        )
    if progress.stopped and schedule.planned_updates > total_before:
        raise InputError(
            f"{key} ({value}): early stopping ended this run after {trained}: {run.metric} did not improve in "
            f"{progress.evaluations_without_gain} evaluations; to train on, set train.patience ({config.train.patience}) higher, "
            "or to null"
        )
    # The end of a run is evaluated, whether or not it was one when it was saved
    evaluated = bool(progress.history) and progress.history[-1]["update"] == progress.update
    if schedule.is_due(config.evaluation.every, progress.update) and not evaluated:
        progress = dataclasses.replace(progress, pending=True)
    total = schedule.planned_updates
    line = f"{config.train.schedule} schedule over {total} updates instead of {total_before}"
    if progress.update < total:
        share = compute_learning_rate(progress.update, total, config.train)
        line += f"; update {progress.update + 1} has {share:.0%} of the peak learning rate"
    return progress, [line]


# --- what must agree ------------------------------------------------------------------------------------------------


def check_format(path: Path, content: Mapping[str, Any]) -> None:
    """Raises InputError if a checkpoint was not made by this package."""
    state = content.get("run") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not isinstance(state.get("progress"), dict) or not state.keys() >= STATE_KEYS:
        raise InputError(f"{path}: is not a checkpoint of hf-finetune (it has no complete key 'run')")


def check_config(config: RunConfig, path: Path, content: Mapping[str, Any]) -> None:
    """Raises InputError if a checkpoint was made with another config."""
    changed = [row for row in changed_keys(content["run"]["config"], config) if row[0] != "name"]
    if changed:
        listed = ", ".join(f"{key} (was {old}, now {new})" for key, old, new in changed)
        raise InputError(
            f"checkpoint.resume ({path}): was made with another config: {listed}; to train on from its weights with the new "
            f"settings, {describe_new_run(config, path)}, and checkpoint.resume to auto"
        )
    layers = dict(flatten(content["run"]["config"])).get("freeze.layers")
    require(
        config.adapter.kind == "none" or layers == config.freeze.layers,
        "freeze.layers",
        config.freeze.layers,
        f"{path.name} has its adapters above {layers}; to train on from its weights, {describe_new_run(config, path)}",
    )


def check_data(run: TrainingRun, path: Path, state: Mapping[str, Any]) -> None:
    """Raises InputError if the data or the labels differ from those of a checkpoint. Their file names do not matter.

    state: the checkpoint's "run".
    """
    key, way_out = (
        f"checkpoint.resume ({path})",
        f"or, to train on from its weights, {describe_new_run(run.config, path)}",
    )
    if run.config.task.kind != state["task"]:
        raise InputError(f"{key}: was made by the task {state['task']}; {way_out}")
    ours, theirs = run.task.state_dict(), state["task_state"]
    # What a checkpoint lacks is newer than it: what it changes of the targets shows in the fingerprints
    differing = [name for name in sorted(theirs) if ours.get(name) != theirs[name]]
    if differing:
        changed = "; ".join(
            f"{name}: was {format_value(theirs.get(name))}, now {format_value(ours.get(name))}" for name in differing
        )
        raise InputError(f"{key}: was made with other labels ({changed}); restore the data; {way_out}")
    fingerprints = fingerprint_data(run)
    splits = sorted(fingerprints.keys() | state["data"].keys())
    differing = [split for split in splits if state["data"].get(split) != fingerprints.get(split)]
    if differing:
        reason = f"{', '.join(differing)} {'differ' if len(differing) > 1 else 'differs'}"
        if changes := [row for row in list_changes(state["config"], run.config) if row[0].startswith("data.")]:
            reason += "; changed: " + ", ".join(f"{name} (was {before}, now {now})" for name, before, now in changes)
        raise InputError(f"{key}: was made from other data ({reason}); restore the data; {way_out}")


def format_value(value: Any) -> str:
    """Returns a value of the task's state as an error shows it."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- weights --------------------------------------------------------------------------------------------------------


def load_weights(run: TrainingRun, content: Mapping[str, Any], name: str) -> None:
    """Loads the weights of a checkpoint into the run's model.

    Weights that the checkpoint leaves out are read from the backbone again if the run may have trained them in the meantime.
    """
    model, omitted = run.train_state.model, (content["run"]["omitted"] or {}).get("names", [])
    if set(omitted) & run.trainable_in_last_stage:
        loaded = backbone.load_backbone(run.config.model, run.task.head, run.backbone.tokenizer, run.config.cache)
        pretrained = loaded.model.state_dict()
        model.load_state_dict({key: pretrained[key] for key in omitted if key in pretrained}, strict=False)
    add_pretrained_weights(model, content, name, run.config.model.backbone)


def add_pretrained_weights(model: torch.nn.Module, content: Mapping[str, Any], name: str, backbone_id: str) -> None:
    """Loads the weights of a checkpoint into a model that has the backbone's weights.

    Raises InputError if they are of another model, or if the backbone's weights differ from those that the checkpoint left out.
    """
    omitted = content["run"]["omitted"] or {"names": []}
    try:
        result = model.load_state_dict(content["model_state_dict"], strict=False)
    except RuntimeError as error:
        raise make_other_model_error(backbone_id, name, error) from None
    differing = sorted({*result.unexpected_keys} | ({*result.missing_keys} ^ {*omitted["names"]}))
    if differing:
        raise make_other_model_error(backbone_id, name, f"they differ in {differing[0]}")
    if omitted["names"] and digest_tensors(model.state_dict(), omitted["names"]) != omitted["digest"]:
        raise make_other_model_error(
            backbone_id, name, "its frozen weights are not those the checkpoint was trained on"
        )


def make_other_model_error(backbone_id: str, name: str, reason: object) -> InputError:
    """Returns the error for weights that do not fit the backbone."""
    return InputError(
        f"model.backbone ({backbone_id}): is not the model that {name} was trained from: {reason}; restore the backbone or "
        "choose another name"
    )


# --- the best checkpoint --------------------------------------------------------------------------------------------


def adopt_best_checkpoint(run: TrainingRun, path: Path, content: Mapping[str, Any], progress: Progress) -> Progress:
    """Makes sure that the best checkpoint is in this run's folder, and returns the progress.

    If the run resumes from a checkpoint in another folder, copies the best one from there, and those that export.average needs.
    If no intact best one is found, the checkpoint at `path` takes its place if it was evaluated; otherwise the run has no best
    checkpoint yet.
    """
    for update in run.list_averaged_updates(progress):
        if checkpoint.find_intact(run.checkpoint_dir, update) is None:
            copy_checkpoint(path.parent, update, run.checkpoint_dir)
    if progress.best_update is None or checkpoint.find_intact(run.checkpoint_dir, progress.best_update):
        return progress
    if copy_checkpoint(path.parent, progress.best_update, run.checkpoint_dir):
        return progress
    value = content["metrics"].get(run.metric)
    if value is None or checkpoint.find_intact(run.checkpoint_dir, progress.update) is None:
        return dataclasses.replace(progress, best_value=None, best_update=None, best_epoch=None)
    epoch = run.schedule.epoch(progress.update)
    return dataclasses.replace(progress, best_value=value, best_update=progress.update, best_epoch=epoch)


def copy_checkpoint(source_dir: Path, update: int, folder: Path) -> bool:
    """Copies the checkpoint of an update into a folder that has no intact one. Returns False if there is none to copy."""
    found = checkpoint.find_intact(source_dir, update)
    if found is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for source in (found, checkpoint.make_manifest_path(found)):
        write_atomically(folder / source.name, source.read_bytes())
    return True


def load_best_weights(run: TrainingRun, progress: Progress) -> str:
    """Loads the weights of the best checkpoint into the model, and returns its file name. On all processes.

    The model has them if the best update is the last one, unless it evaluates other weights than it trains. Raises InputError if
    the checkpoint is missing or damaged.
    """

    def find_best() -> str:
        path = checkpoint.find_intact(run.checkpoint_dir, progress.best_update or 0)
        if path is None:
            raise InputError(
                f"{run.checkpoint_dir}: the best checkpoint (update {progress.best_update}) is missing or damaged; "
                "set checkpoint.resume to never to start again"
            )
        return path.name

    name = run.runtime.on_main(find_best)
    if progress.best_update != progress.update or run.train_state.has_other_evaluated_weights:
        load_weights(run, checkpoint.load_checkpoint(run.checkpoint_dir / name), name)
    return name
