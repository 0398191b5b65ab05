"""Saves a run: collects the content of a checkpoint and writes it."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from hf_finetune.config.sections import to_dict
from hf_finetune.run import checkpoint
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.files import digest_tensors
from hf_finetune.training.averaging import Weights
from hf_finetune.training.loop import make_micro_batch_limit
from hf_finetune.training.optim import check_state
from hf_finetune.training.progress import Progress


def save_run(run: TrainingRun, progress: Progress) -> str:
    """Writes a checkpoint and then removes old ones. Returns its file name. On all processes.

    Raises InputError if the disk is full, cannot be written, or does not give back what was written, or if another run has taken
    the folder over.
    """

    def write() -> str:
        run.runtime.check_lock()
        with run.train_state.evaluated_weights() as training_weights:
            content = collect_content(run, progress, training_weights)
            saved = checkpoint.save_checkpoint(
                run.checkpoint_dir,
                content,
                metric=run.metric,
                value=content["metrics"].get(run.metric),
                best_update=progress.best_update,
            )
        remove_old_checkpoints(run, progress, saved)
        return saved.file

    return run.runtime.on_main(write)


def complete_save(run: TrainingRun, progress: Progress, path: Path) -> None:
    """Does what is left to do of the save that a run resumes from, if it was killed in it: the references, and the removal of
    older checkpoints. The last save of a run has no later one that does it. On all processes.

    path: The checkpoint. One that the config names is left as it is.
    """

    def complete() -> None:
        last = next((one for one in checkpoint.read_manifests(run.checkpoint_dir) if one.file == path.name), None)
        if run.config.checkpoint.resume == "auto" and last is not None:
            run.runtime.check_lock()
            checkpoint.write_references(run.checkpoint_dir, last, progress.best_update)
            remove_old_checkpoints(run, progress, last)

    run.runtime.on_main(complete)


def remove_old_checkpoints(run: TrainingRun, progress: Progress, saved: checkpoint.Manifest) -> None:
    """Removes the checkpoints that the config does not keep. saved: The one that was just written."""
    checkpoint.remove_old_checkpoints(
        run.checkpoint_dir,
        saved,
        keep_best=run.config.checkpoint.keep_best,
        keep_last=run.config.checkpoint.keep_last,
        greater_is_better=run.greater_is_better,
        updates={progress.best_update, *run.list_averaged_updates(progress)},
    )


def collect_content(run: TrainingRun, progress: Progress, training_weights: Weights | None = None) -> dict[str, Any]:
    """Returns the dict of a checkpoint. The model holds the weights that are evaluated. training_weights: those that train, if
    they differ.

    `metrics` are those of an evaluation after this update; empty if there was none, and then `loss` is the training loss.
    Random states are not saved: everything that is drawn depends on the seed, the update and the process alone.
    """
    scaler, optimizer = run.runtime.accelerator.scaler, run.train_state.optimizer.optimizer
    check_state(optimizer, run.config.train.optimizer)
    weights = run.train_state.model.state_dict()
    omitted = list_omitted_names(run) if run.config.checkpoint.content == "trainable" else []
    last = progress.history[-1] if progress.history else {}
    values = {}
    if last.get("update") == progress.update:
        values = {key: value for key, value in last.items() if key not in ("update", "epoch")}
    return {
        "epoch": run.schedule.epoch(progress.update),
        "update": progress.update,
        "model_state_dict": {name: tensor for name, tensor in weights.items() if name not in set(omitted)},
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {
            "update": progress.update,
            "total_updates": run.schedule.planned_updates,
            "learning_rates": {group["name"]: group["lr"] for group in optimizer.param_groups},
        },
        "loss": values.get("loss", progress.train_loss),
        "metrics": values,
        "run": {
            "progress": dataclasses.asdict(progress),
            "config": to_dict(run.config),
            "data": fingerprint_data(run),
            "augmented": run.augmented.describe() if run.augmented else None,
            "stream": run.stream.describe() if run.stream else None,
            "task": run.config.task.kind,
            "task_state": run.task.state_dict(),
            "max_length": run.max_length,
            "metric": run.metric,
            "frozen": sorted(run.plan.frozen),
            "omitted": {"names": omitted, "digest": digest_tensors(weights, omitted)} if omitted else None,
            "summation_order": describe_summation_order(run),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "training_weights": training_weights,
        },
    }


def list_omitted_names(run: TrainingRun) -> list[str]:
    """Returns the names that checkpoint.content trainable leaves out: parameters that are in the backbone's files and train in
    no stage of the run."""
    model = run.train_state.model
    not_in_backbone_files = run.trainable_in_last_stage | run.backbone.new_parameters
    owners = {id(parameter): name for name, parameter in model.named_parameters()}  # tied weights have one owner
    return sorted(
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) in owners and owners[id(tensor)] in run.plan.frozen - not_in_backbone_files
    )


def fingerprint_data(run: TrainingRun) -> dict[str, str]:
    """Returns the digest of the encoded data of each split. With data.streaming, that of the training data is one of the shards,
    of the buffer, and of the encoded sample."""
    digests = {split: features.fingerprint() for split, features in run.features.items()}
    if run.stream is not None:
        digests["train"] += f" {run.stream.digest} {run.config.data.shuffle_buffer}"
    return digests


def describe_summation_order(run: TrainingRun) -> str:
    """Returns what the order of floating-point sums depends on. If it is the same, a resumed run is equal bit for bit."""
    runtime = run.runtime
    limit = make_micro_batch_limit(run.config, runtime.num_processes)
    micro_batches = f"micro-batches of {limit.num_examples}"
    if limit.num_tokens:
        micro_batches += f" and {limit.num_tokens} tokens"
    if run.train_state.row_sharing is not None:
        micro_batches += " in shared rows"
    if run.train_state.padding.step > 1:
        micro_batches += f", lengths in multiples of {run.train_state.padding.step}"
    threads = f"{runtime.num_processes} x {torch.get_num_threads()} threads of {runtime.device.type}"
    return f"{threads}, {runtime.precision}, {micro_batches}"
