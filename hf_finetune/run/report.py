"""The lines that a run prints while it works: before update 0 what was resolved and why."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_finetune.config.optimizers import OPTIMIZERS
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.report import DATA_REPORT
from hf_finetune.model import lora
from hf_finetune.model.freezing import SHARED_BLOCK
from hf_finetune.run.results import count_examples, summarize_results
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system import processes
from hf_finetune.system.console import label_lines
from hf_finetune.training.loop import make_micro_batch_limit
from hf_finetune.training.progress import FRESH, Progress

LAST_BLOCK = "after attention, only the first token is computed: the head reads no other"


def announce(run: TrainingRun, cache_lines: Sequence[str], notes: Sequence[str], progress: Progress = FRESH) -> None:
    """Prints what was resolved, and why, before the first update.

    cache_lines: the decision on the activation cache. notes: lines about the checkpoint that the run resumes from. progress: of
    a run that resumes: its warnings about the data were printed before.
    """
    config, plan, state = run.config, run.plan, run.train_state
    counts = ", ".join(
        f"{count_examples(run, split):,} {split}" for split in run.features if run.stream is None or split != "train"
    )
    better = "higher" if run.greater_is_better else "lower"
    lines = label_lines("run", [str(config.run_dir)])
    lines += label_lines("backbone", [config.model.backbone.split("#")[0], *describe_start(run)])
    lines += label_lines("examples", [counts, *describe_windows(run), *run.splits.notes])
    for name, line in run.data_report.recognised:
        lines += label_lines(name, [line])
    lines += label_lines(
        "data", [f"{run.data_report.count_warnings()}; the report is in {config.run_dir / DATA_REPORT}"]
    )
    run.runtime.say("\n".join(lines), event="start", **describe_run(run, cache_lines, progress))
    if not progress.update:
        for sentence in run.data_report.warnings:
            run.runtime.say(*label_lines("", [f"warning: {sentence}"]))
    lines = label_lines("metric", [f"{run.metric} on validation, {better} is better"])
    lines += label_lines("own parts", describe_parts(run))
    lines += label_lines("updates", [describe_updates(run)])
    for label, line in describe_optimizer(config):
        lines += label_lines(label, [line])
    lines += label_lines("device", [describe_device(run), *run.runtime.notes])
    if run.backbone.head_line:
        lines += label_lines("head", [run.backbone.head_line])
    lines += ["freeze plan", plan.describe()]
    for line in lora.describe_adapters(run.backbone):
        lines += label_lines("adapters", [line])
    if plan.structure.shared:
        lines.append(f"  {SHARED_BLOCK}")
    lines += [f"  {note}" for note in describe_vocabulary_head(run)]
    lines += label_lines("dropout", [f"masks {state.dropout_masks.reason}"])
    lines += label_lines("rows", describe_rows(run))
    if state.forward_plan.first_token:
        lines += label_lines("last block", [LAST_BLOCK])
    if (cuts := state.forward_plan.token_cuts) is not None:
        label = "tokens" if cuts.choose is None else "last block"
        lines += label_lines(label, [cuts.describe(run.task.objective.read_tokens)])
    lines += label_lines("cache", cache_lines)
    for note in notes:
        lines += label_lines("resume", [note])
    run.runtime.say("\n".join(lines) + "\n")


def describe_start(run: TrainingRun) -> list[str]:
    """Returns the lines about start_from, and about the runs that trained the model before; none for a pretrained model."""
    lineage, lines = run.backbone.lineage, []
    if run.config.start_from is not None:
        lines.append(f"from start_from ({run.config.start_from}), which replaces model.backbone")
    if lineage.runs:
        lines.append(f"{lineage.base.split('#')[0]}, fine-tuned before: {lineage.describe()}")
    recorded = getattr(run.backbone.model.config, "hf_finetune", None)
    if isinstance(recorded, dict) and "calibration" in recorded:
        lines.append(
            "its calibration fits its own weights and is not taken over; task.calibrate fits one for the new ones"
        )
    return lines


def describe_run(run: TrainingRun, cache_lines: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Returns the values of the event start."""
    return {
        "run": str(run.config.run_dir),
        "task": run.config.task.kind,
        "metric": run.metric,
        "examples": {split: count_examples(run, split) for split in run.features},
        "parameters": {"total": run.plan.num_total, "trainable": run.plan.num_trainable},
        "updates_done": progress.update,
        "total_updates": run.schedule.total_updates,
        "device": run.runtime.device.type,
        "precision": run.runtime.precision,
        "processes": run.runtime.num_processes,
        "cache": cache_lines[0],
    }


def announce_save(run: TrainingRun, file: str, progress: Progress) -> None:
    """Prints that a checkpoint was saved."""
    path = str(run.checkpoint_dir / file)
    run.runtime.say(f"saved {file}", event="save", update=progress.update, checkpoint=path)


def announce_end(config: RunConfig, runtime: processes.Runtime, results: Mapping[str, Any]) -> None:
    """Says that a run is finished, for those that do not get its last lines."""
    summary = f"{summarize_results(results)}; the model is in {config.run_dir / 'model'}"
    runtime.say(summary, level=logging.DEBUG, event="end", results=dict(results))


def announce_stage(run: TrainingRun, cache_lines: Sequence[str], progress: Progress) -> None:
    """Prints the new freeze plan and the decision on the cache when freeze.unfreeze starts a stage."""
    epoch = run.schedule.epoch(progress.update + 1)
    lines = [f"\nunfreezing from epoch {epoch} on", run.plan.describe(), *label_lines("cache", cache_lines)]
    run.runtime.say("\n".join(lines) + "\n")


def describe_parts(run: TrainingRun) -> list[str]:
    """Returns a line for each part of the user's own that the run has."""
    config = run.config
    parts = {
        "train.loss": config.train.loss,
        "train.augment": config.train.augment,
        "train.on_update": config.train.on_update,
    }
    lines = [f"{key}: {value}" for key, value in parts.items() if value is not None]
    own = [entry for entry in config.evaluation.metrics if ":" in entry]
    return lines + ([f"evaluation.metrics: {', '.join(own)}"] if own else [])


def describe_updates(run: TrainingRun) -> str:
    """Returns how many updates the run has, and what one of them takes."""
    schedule, num_processes = run.schedule, run.runtime.num_processes
    return (
        f"{schedule.total_updates:,} of {run.config.train.batch_size} examples = {describe_micro_batches(run)} x "
        f"{num_processes} process{'es' if num_processes > 1 else ''}; {describe_epoch(run)}"
    )


def describe_rows(run: TrainingRun) -> list[str]:
    """Returns the line about rows that examples share; none if they have their own, as train.shared_rows asks."""
    sharing = run.train_state.row_sharing
    if sharing is None:
        return [run.stage.not_shared] if run.stage.not_shared else []
    length = "all of a micro-batch one" if sharing.in_one_row else "none longer than the longest example of the batch"
    return [f"shared by examples, {length}; on a probe, logits and gradients are those of each example alone"]


def describe_epoch(run: TrainingRun) -> str:
    """Returns how long an epoch is; of a stream, what happens when one ends."""
    if run.stream is None:
        return f"{run.schedule.updates_per_epoch:,} an epoch"
    every = {"evaluation.every": run.config.evaluation.every, "checkpoint.every": run.config.checkpoint.every}
    rare = " and ".join(key for key, value in every.items() if value == "epoch")
    return f"at most {run.config.train.epochs} epochs, as long as the stream" + (
        f"; {rare} epoch: only where an epoch ends, and at the end" if rare else ""
    )


def describe_micro_batches(run: TrainingRun) -> str:
    """Returns how a process takes its share of a batch."""
    limit = make_micro_batch_limit(run.config, run.runtime.num_processes)
    if limit.num_tokens is not None:
        rows = "" if run.train_state.row_sharing is None else " in shared rows"
        return f"micro-batches of at most {limit.num_tokens:,} tokens{rows}"
    rounds = -(-run.config.train.batch_size // (limit.num_examples * run.runtime.num_processes))
    return f"{limit.num_examples} x {rounds} micro-batch{'es' if rounds > 1 else ''}"


def describe_device(run: TrainingRun) -> str:
    """Returns the device, the threads, and the precision with its reason."""
    runtime = run.runtime
    threads = f"{torch.get_num_threads()} threads a process"
    return f"{runtime.device.type}, {threads}; {runtime.precision}: {runtime.precision_reason}"


def describe_vocabulary_head(run: TrainingRun) -> list[str]:
    """Returns lines about an output layer over the vocabulary: if it shares the embeddings' weights, and if it is new."""
    model = run.backbone.model
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        return []
    notes = []
    if getattr(head, "weight", None) is getattr(embeddings, "weight", None):
        notes.append("the output layer shares the weights of the embeddings: freeze.embeddings freezes it too")
    new = sorted(run.backbone.new_parameters & dict(model.named_parameters()).keys())
    if new:
        notes.append(f"new, because the backbone's files do not contain it: {', '.join(new)}")
    return notes


def describe_windows(run: TrainingRun) -> list[str]:
    """Returns a line if long training examples were split into windows: batches count windows, not examples."""
    if run.stream is not None:
        return []
    num_windows, num_examples = len(run.features["train"]), count_examples(run, "train")
    if num_windows == num_examples:
        return []
    return [f"{num_windows:,} windows of the {num_examples:,} training examples; batches count windows"]


def describe_optimizer(config: RunConfig) -> list[tuple[str, str]]:
    """Returns a label and a line for the learning rates, and for optimizer, schedule and averages that are not the default."""
    train, lines = config.train, []
    head = "" if train.head_learning_rate is None else f"; {train.head_learning_rate:g} of the head"
    warmup = (
        f"warm-up in the first {train.warmup_fraction:.0%} of the updates" if train.warmup_fraction else "no warm-up"
    )
    lines.append(("rate", f"{train.learning_rate:g}{head}; {warmup}"))
    options = {name: join_options(getattr(train, f"{name}_options")) for name in ("optimizer", "schedule")}
    if train.optimizer != "adamw" or options["optimizer"]:
        lines.append(("optimizer", f"{train.optimizer}{options['optimizer']}"))
    if train.schedule != "linear" or options["schedule"]:
        lines.append(("schedule", f"{train.schedule}{options['schedule']}"))
    what = ""
    if train.ema_decay is not None:
        what = f"an exponential moving average of the weights (decay {train.ema_decay})"
    elif train.optimizer in OPTIMIZERS and OPTIMIZERS[train.optimizer].is_schedule_free:
        what = "the average of the weights that the optimizer keeps"
    if what:
        lines.append(("average", f"{what} is evaluated, saved and exported"))
    if config.export.count:
        lines.append(("export", f"the mean of the {config.export.order} {config.export.count} evaluated checkpoints"))
    return lines


def join_options(options: Mapping[str, Any]) -> str:
    """Returns `, name value` for each option."""
    return "".join(f", {name} {value}" for name, value in options.items())
