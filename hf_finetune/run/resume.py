"""Saving a run and going on with it: what a checkpoint holds, what it must agree with, and what is carried over."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_finetune.config.sections import RunConfig, to_dict, changed_keys, require, flatten
from hf_finetune.model import backbone
from hf_finetune.run import checkpoint
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import digest_tensors, write_atomically
from hf_finetune.system.processes import Runtime
from hf_finetune.tasks import metrics
from hf_finetune.training import optim
from hf_finetune.training.loop import make_micro_batch_limit
from hf_finetune.training.progress import Progress, load_progress

# --- what a checkpoint holds ----------------------------------------------------------------------------------------


def save_run(job: TrainingRun, progress: Progress) -> str:
    """Writes a checkpoint, then removes those that need not be kept; returns its file name. On all processes.

    Its metrics are those measured at this update, if any; without them `loss` is the training loss.
    """

    def write() -> str:
        content = collect_content(job, progress)
        saved = checkpoint.save_checkpoint(
            job.checkpoint_dir,
            content,
            metric=job.metric,
            value=content["metrics"].get(job.metric),
            best_update=progress.best_update,
        )
        checkpoint.remove_old_checkpoints(
            job.checkpoint_dir,
            saved,
            keep_best=job.config.checkpoint.keep_best,
            keep_last=job.config.checkpoint.keep_last,
            greater_is_better=metrics.greater_is_better(job.metric),
            best_update=progress.best_update,
        )
        return saved.file

    return job.runtime.on_main(write)


def collect_content(job: TrainingRun, progress: Progress) -> dict[str, Any]:
    """The dict of a checkpoint. Random states are not in it: all that is drawn is a function of seed, update and process."""
    scaler, optimizer = job.runtime.accelerator.scaler, job.train_state.optimizer.optimizer
    weights = job.train_state.model.state_dict()
    omitted = list_omitted_names(job) if job.config.checkpoint.content == "trainable" else []
    last = progress.history[-1] if progress.history else {}
    values = {key: value for key, value in last.items() if key not in ("update", "epoch")}
    values = values if last.get("update") == progress.update else {}
    return {
        "epoch": job.schedule.epoch(progress.update),
        "update": progress.update,
        "model_state_dict": {name: tensor for name, tensor in weights.items() if name not in set(omitted)},
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {
            "update": progress.update,
            "total_updates": job.schedule.total_updates,
            "learning_rates": {group["name"]: group["lr"] for group in optimizer.param_groups},
        },
        "loss": values.get("loss", progress.train_loss),
        "metrics": values,
        "run": {
            "progress": dataclasses.asdict(progress),
            "config": to_dict(job.config),
            "data": fingerprint_data(job),
            "task": job.config.task.kind,
            "task_state": job.task.state_dict(),
            "max_length": job.max_length,
            "metric": job.metric,
            "frozen": sorted(job.plan.frozen),
            "omitted": {"names": omitted, "digest": digest_tensors(weights, omitted)} if omitted else None,
            "sums": describe_summation_order(job),
            "scaler": scaler.state_dict() if scaler is not None else None,
        },
    }


def list_omitted_names(job: TrainingRun) -> list[str]:
    """Entries of the state_dict that the backbone's files give back: parameters that train in no stage of the run, and that
    are not new."""
    plan, model = job.plan, job.train_state.model
    ever = job.trainable_in_last_stage | job.backbone.new_parameters
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    return sorted(
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) in owners and owners[id(tensor)] in plan.frozen - ever
    )


def fingerprint_data(job: TrainingRun) -> dict[str, str]:
    """What the encoded data are recognised by."""
    return {split: features.fingerprint() for split, features in job.features.items()}


def describe_summation_order(job: TrainingRun) -> str:
    """What the order of floating-point sums depends on, and so whether a resumed run can be equal bit for bit."""
    run = job.runtime
    limit = make_micro_batch_limit(job.config, run.num_processes)
    return (
        f"{run.num_processes} x {torch.get_num_threads()} threads of {run.device.type}, {run.precision}, "
        f"micro-batches of {limit.num_examples}{f' and {limit.num_tokens} tokens' if limit.num_tokens else ''}"
    )


# --- going on -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The checkpoint that a run goes on from, with what was passed over on the way to it."""

    path: Path
    content: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def progress(self) -> Progress:
        """Where the run stood."""
        return load_progress(self.content["run"]["progress"])


def find_checkpoint(config: RunConfig, run: Runtime) -> tuple[SavedRun | None, tuple[str, ...]]:
    """The checkpoint that checkpoint.resume means, or None; and what was passed over. On all processes."""
    asked = config.checkpoint.resume
    if asked == "never":
        return None, ()
    if asked == "auto":
        path, skipped = run.on_main(lambda: checkpoint.find_newest_intact(config.run_dir / "checkpoints"))
        notes = tuple(f"passed over: {line}" for line in skipped)
        if path is None:
            return None, notes
    elif Path(asked).is_file():
        path, notes = Path(asked), ()
    else:
        raise InputError(f"checkpoint.resume ({asked}): no such file; takes auto, never, or the path of a checkpoint")
    content = checkpoint.load_checkpoint(path)
    check_format(path, content)
    return SavedRun(path=path, content=content), notes


def check_config(config: RunConfig, path: Path, content: Mapping[str, Any]) -> None:
    """Raises InputError where a checkpoint is not of this config."""
    changed = [row for row in changed_keys(content["run"]["config"], to_dict(config)) if row[0] != "name"]
    if changed:
        listed = ", ".join(f"{key} (was {old}, now {new})" for key, old, new in changed)
        raise InputError(f"checkpoint.resume ({path}): was made with another config: {listed}")
    layers = dict(flatten(content["run"]["config"])).get("freeze.layers")
    require(config.adapter.kind == "none" or layers == config.freeze.layers, "freeze.layers",
          config.freeze.layers, f"{path.name} has its adapters above {layers}; choose another name")  # fmt: skip


def check_format(path: Path, content: Mapping[str, Any]) -> None:
    """Raises InputError where a checkpoint is another program's."""
    state = content.get("run") if isinstance(content, dict) else None
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("progress"), dict)
        or not {"progress", "config", "data", "task", "facts", "omitted"} <= state.keys()
    ):
        raise InputError(f"{path}: is a checkpoint, but not one of hf-finetune's (no key 'run')")


def restore_run(job: TrainingRun, saved: SavedRun) -> tuple[Progress, list[str]]:
    """Loads weights, optimizer and scaler into the job, on every process; returns where it stands and what there is to say."""
    path, content, progress = saved.path, saved.content, saved.progress
    check_config(job.config, path, content)
    check_data(job, path, content["run"])
    load_weights(job, content, path.name)
    try:
        fresh, dropped = optim.restore_optimizer_state(
            job.train_state.optimizer.optimizer, content["optimizer_state_dict"]
        )
    except (RuntimeError, ValueError) as error:
        raise make_other_model_error(job.config.model.backbone, path.name, error) from None
    scaler = job.runtime.accelerator.scaler
    if scaler is not None and content["run"]["scaler"]:
        scaler.load_state_dict(content["run"]["scaler"])
    notes = []
    if fresh or dropped:
        notes.append(
            f"the freeze plan is another one: {len(fresh)} tensors train from here on, {len(dropped)} no more; "
            "the others' optimizer state is kept"
        )
        progress = dataclasses.replace(progress, cached=None)
    if content["run"]["sums"] != describe_summation_order(job):
        notes.append(
            f"was on {content['run']['sums']}, now on {describe_summation_order(job)}: sums and dropout may differ"
        )
    adopted = job.runtime.on_main(lambda: adopt_best_checkpoint(job, path, content, progress))
    if adopted.best_update != progress.best_update:
        notes.append("the best checkpoint so far is missing or damaged, and counts no more")
    return adopted, [*notes, f"resuming after update {progress.update} from {path.name}"]


def check_data(job: TrainingRun, path: Path, state: Mapping[str, Any]) -> None:
    """Raises InputError where the data or the labels are not those of a checkpoint, however they are named."""
    if job.config.task.kind != state["task"]:
        raise InputError(f"checkpoint.resume ({path}): was made by the task {state['task']}; choose another name")
    ours, theirs = job.task.state_dict(), state["task_state"]
    if ours != theirs:
        changed = "; ".join(
            f"{key}: now {format_value(ours.get(key))}, and had {format_value(theirs.get(key))}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        )
        raise InputError(
            f"checkpoint.resume ({path}): was made with other labels in data.label_column ({changed}); put the data back, or "
            "choose another name"
        )
    found = fingerprint_data(job)
    if different := sorted(
        split for split in found.keys() | state["data"] if state["data"].get(split) != found.get(split)
    ):
        before, now = dict(flatten(state["config"])), dict(flatten(to_dict(job.config)))
        keys = [key for key in now if key.startswith("data.") and before.get(key) != now[key]]
        changed = ", ".join(f"{key} (was {before.get(key)}, now {now[key]})" for key in keys)
        raise InputError(
            f"checkpoint.resume ({path}): the data are not those it was made with ({', '.join(different)} differ"
            f"{f'; changed: {changed}' if changed else ''}); put them back, or choose another name"
        )


def format_value(value: Any) -> str:
    """A fact in an error."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def load_weights(job: TrainingRun, content: Mapping[str, Any], name: str) -> None:
    """Loads a checkpoint's weights into the job's model; what it left out is read from the backbone again where the run may
    have changed it."""
    model, omitted = job.train_state.model, (content["run"]["omitted"] or {}).get("names", [])
    if set(omitted) & job.trainable_in_last_stage:
        pretrained = backbone.load_backbone(job.config.model, job.task.head, job.backbone.tokenizer).model.state_dict()
        model.load_state_dict({each: pretrained[each] for each in omitted if each in pretrained}, strict=False)
    add_pretrained_weights(model, content, name, job.config.model.backbone)


def add_pretrained_weights(model: torch.nn.Module, content: Mapping[str, Any], name: str, backbone_id: str) -> None:
    """Loads a checkpoint's weights into a model that has the backbone's. InputError where they are not of one model, or the
    weights that the checkpoint left out are others now."""
    omitted = content["run"]["omitted"] or {"names": []}
    try:
        result = model.load_state_dict(content["model_state_dict"], strict=False)
    except RuntimeError as error:
        raise make_other_model_error(backbone_id, name, error) from None
    if unknown := sorted({*result.unexpected_keys} | ({*result.missing_keys} ^ {*omitted["names"]})):
        raise make_other_model_error(backbone_id, name, f"they differ in {unknown[0]}")
    if omitted["names"] and digest_tensors(model.state_dict(), omitted["names"]) != omitted["digest"]:
        raise make_other_model_error(
            backbone_id, name, "its frozen weights are not those the checkpoint was trained on"
        )


def make_other_model_error(backbone_id: str, name: str, reason: object) -> InputError:
    """What it means that weights do not fit."""
    return InputError(f"model.backbone ({backbone_id}): is another model now than the one {name} is of: {reason}")


def adopt_best_checkpoint(job: TrainingRun, path: Path, content: Mapping[str, Any], progress: Progress) -> Progress:
    """The progress with its best checkpoint sure to be in this run's folder: copied from beside `path` where need be;
    where there is none, the restored one takes its place, if it was evaluated."""
    if progress.best_update is None or checkpoint.find_intact(job.checkpoint_dir, progress.best_update):
        return progress
    if best := checkpoint.find_intact(path.parent, progress.best_update):
        job.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        for source in (best, checkpoint.make_manifest_path(best)):
            write_atomically(job.checkpoint_dir / source.name, source.read_bytes())
        return progress
    value = content["metrics"].get(job.metric)
    evaluated = value is not None and checkpoint.find_intact(job.checkpoint_dir, progress.update) is not None
    epoch = job.schedule.epoch(progress.update)
    return dataclasses.replace(
        progress,
        best_value=value if evaluated else None,
        best_update=progress.update if evaluated else None,
        best_epoch=epoch if evaluated else None,
    )


def load_best_weights(job: TrainingRun, progress: Progress) -> str:
    """Loads the weights of the best checkpoint into the model, on every process; returns its file name."""

    def find_best() -> str:
        path = checkpoint.find_intact(job.checkpoint_dir, progress.best_update or 0)
        if path is None:
            raise InputError(
                f"{job.checkpoint_dir}: the best checkpoint (update {progress.best_update}) is missing or damaged; "
                "--checkpoint.resume never starts anew"
            )
        return path.name

    name = job.runtime.on_main(find_best)
    load_weights(job, checkpoint.load_checkpoint(job.checkpoint_dir / name), name)
    return name
