"""What a run says: before update 0 what was resolved and why, at the end what came out and what to type next."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_finetune.data import splits
from hf_finetune.model import lora
from hf_finetune.model.freezing import SHARED_BLOCK
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system import processes
from hf_finetune.tasks import metrics
from hf_finetune.training.loop import make_micro_batch_limit
from hf_finetune.training.progress import Progress


def announce(job: TrainingRun, cache_lines: Sequence[str], notes: Sequence[str]) -> None:
    """Prints what was resolved, and why, before update 0."""
    config, run, schedule = job.config, job.runtime, job.schedule
    counts = ", ".join(f"{count_examples(job, split):,} {split}" for split in job.features)
    plural = "es" if run.num_processes > 1 else ""
    described = job.task.encoding.describe(job.features["train"], job.splits.train, job.max_length)
    better = "higher" if metrics.greater_is_better(job.metric) else "lower"
    lines = [
        f"run         {config.run_dir}",
        f"backbone    {config.model.backbone.split('#')[0]}",
        f"examples    {counts}",
        *describe_windows(job),
        *(f"            {note}" for note in job.splits.notes),
        *(f"{name:<12}{line}" for name, line in described),
        f"metric      {job.metric} on validation, {better} is better",
        f"updates     {schedule.total_updates:,} of {config.train.batch_size} examples = {describe_micro_batches(job)} x "
        f"{run.num_processes} process{plural}; {schedule.updates_per_epoch:,} an epoch",
        f"device      {run.device.type}, {torch.get_num_threads()} threads a process; "
        f"{run.precision}: {run.precision_reason}",
        *(f"            {note}" for note in run.notes),
        f"freeze plan\n{job.plan.describe()}",
        *(f"adapters    {line}" for line in lora.describe_adapters(job.backbone)),
        *([f"  {SHARED_BLOCK}"] if job.plan.structure.shared else []),
        *(f"  {note}" for note in describe_vocabulary_head(job)),
        f"dropout     masks {job.train_state.dropout_masks.reason}",
        *([f"last block  {SHORTCUT}"] if job.train_state.forward_plan.first_token else []),
        *(f"{'prefix' if number == 0 else '':<12}{line}" for number, line in enumerate(cache_lines)),
        *(f"resume      {note}" for note in notes),
    ]
    run.say("\n".join(lines) + "\n")


def announce_stage(job: TrainingRun, cache_lines: Sequence[str], progress: Progress) -> None:
    """Prints what changes where freeze.unfreeze lets more train."""
    epoch = job.schedule.epoch(progress.update + 1)
    lines = [f"\nunfreezing from epoch {epoch} on", job.plan.describe()]
    lines += [f"{'prefix' if number == 0 else '':<12}{line}" for number, line in enumerate(cache_lines)]
    job.runtime.say("\n".join(lines) + "\n")


SHORTCUT = "behind its attention computed for the first token alone: nothing else feeds the head"


def describe_vocabulary_head(job: TrainingRun) -> list[str]:
    """What the freeze plan does not tell of a head over the vocabulary: that it is the embeddings, or new."""
    model = job.backbone.model
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        return []
    is_tied = getattr(head, "weight", None) is getattr(embeddings, "weight", None)
    notes = ["the head's matrix is that of the embeddings: with freeze.embeddings it is frozen too"] if is_tied else []
    new = sorted(job.backbone.new_parameters & dict(model.named_parameters()).keys())
    if new:
        notes.append(f"new, as the backbone's files do not hold it: {', '.join(new)}")
    return notes


def count_examples(job: TrainingRun, split: str) -> int:
    """Rows of a split's table, where features know them; else its features."""
    features = job.features[split]
    return len(features) if features.example_indices is None else len(job.splits.tables()[split])


def describe_windows(job: TrainingRun) -> list[str]:
    """What is said where rows of training gave several features: of these a batch takes so many."""
    windows, rows = len(job.features["train"]), count_examples(job, "train")
    return [f"            {windows:,} windows of the {rows:,} to train on"] if windows != rows else []


def describe_micro_batches(job: TrainingRun) -> str:
    """How a process takes its share of a batch."""
    config, limit = job.config, make_micro_batch_limit(job.config, job.runtime.num_processes)
    if limit.num_tokens is not None:
        return f"micro-batches of at most {limit.num_tokens:,} tokens"
    rounds = -(-config.train.batch_size // (limit.num_examples * job.runtime.num_processes))
    return f"{limit.num_examples} x {rounds} micro-batch{'es' if rounds > 1 else ''}"


def format_metrics(values: Mapping[str, float]) -> str:
    """Metrics on one line, without those of one type alone (f1/person)."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items() if "/" not in name)


def make_results(
    job: TrainingRun, progress: Progress, final: Mapping[str, dict[str, float]], clock: Clock
) -> dict[str, Any]:
    """What results.json holds."""
    seconds = clock.seconds["train"]
    return {
        "task": job.config.task.kind,
        "problem": job.task.problem,
        "metric": job.metric,
        "labels": list(job.task.label_names),
        "best": {"epoch": progress.best_epoch, "update": progress.best_update, "value": progress.best_value},
        "validation": final["validation"],
        "test": final.get("test", {}),
        "examples": {split: count_examples(job, split) if split in job.features else 0 for split in splits.SPLITS},
        "parameters": {"total": job.plan.num_total, "trainable": job.plan.num_trainable},
        "updates": progress.update,
        "stopped_early": progress.stopped,
        "skipped_updates": progress.skipped_updates,
        "history": list(progress.history),
        "seconds": clock.report(),
        "tokens_per_second": round(clock.num_tokens / seconds, 1) if seconds else None,
        "peak_memory_mb": round(processes.peak_memory_mb(job.runtime.device), 1),
        "device": job.runtime.device.type,
        "precision": job.runtime.precision,
        "processes": job.runtime.num_processes,
        "status": "finished",
    }


def summarize_results(results: Mapping[str, Any]) -> str:
    """The best and the test metrics in a few words."""
    test = f"; test: {format_metrics(results['test'])}" if results["test"] else ""
    return f"best {results['metric']} on validation {results['best']['value']:.4f}{test}"


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table as lines."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def make_type_table(values: Mapping[str, float]) -> list[tuple[str, ...]]:
    """A table of the metrics called metric/type, a row each type; [] where there are none."""
    split = [name.split("/", 1) for name in values if "/" in name]
    names, kinds = (list(dict.fromkeys(part[place] for part in split)) for place in (0, 1))
    rows = [(kind, *(f"{values[f'{name}/{kind}']:.4f}" for name in names)) for kind in kinds]
    return [("", *names), *rows] if rows else []


def format_closing(job: TrainingRun, results: Mapping[str, Any], best: str) -> str:
    """The last lines: a table of metrics, where everything lies, what to type next."""
    names = [name for name in results["validation"] if "/" not in name]
    rows = [("", *names)]
    rows += [
        (split, *(f"{results[split][name]:.4f}" for name in names)) for split in splits.SPLITS if results.get(split)
    ]
    table = align_columns(rows)
    if by_type := make_type_table(results["test"] or results["validation"]):
        table += f"\n\n  {'test' if results['test'] else 'validation'}, by type\n{align_columns(by_type)}"
    folder, seconds = job.config.run_dir, results["seconds"]
    loads = (
        "an adapter; README.md in it says how it loads" if job.backbone.is_exported_as_adapter else "from_pretrained"
    )
    text = " ".join(['"..."'] * job.task.columns.num_example_texts)
    curves = f"\n  curves       tensorboard --logdir {job.config.output_dir}" * (
        "tensorboard" in job.config.tracking.trackers
    )
    return f"""
{table}

  model        {folder}/model  ({loads})
  checkpoint   {folder}/checkpoints/{best}
  numbers      {folder}/results.json, metrics.jsonl{curves}
  time         {seconds["total"]:.0f} s, {seconds["train"]:.0f} s of it training; \
peak memory {results["peak_memory_mb"]:,.0f} MB

next:
  hf-finetune predict {folder} --text {text}
  hf-finetune evaluate {folder} --data FILE
  hf-finetune push {folder} --repo-id USER/NAME"""
