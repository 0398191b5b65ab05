"""The results of a run: the content of results.json, and the last lines, with what to run next."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

from hf_finetune.config.changes import get_length
from hf_finetune.config.sections import to_dict
from hf_finetune.data import splits
from hf_finetune.run.average import AverageOfCheckpoints
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system import processes
from hf_finetune.system.console import align_columns
from hf_finetune.training.progress import Progress


def make_results(
    run: TrainingRun,
    progress: Progress,
    final: Mapping[str, dict[str, float]],
    clock: Clock,
    averaged: AverageOfCheckpoints | None = None,
) -> dict[str, Any]:
    """Returns the content of results.json. final: the metrics by split of the model that is exported: the best one, or the mean
    of those that were `averaged`."""
    seconds, first = clock.measure("train"), clock.seconds_to_first_update
    average = None
    if averaged is not None:
        updates, missing = list(averaged.updates), list(averaged.missing)
        value = final["validation"][run.metric]
        average = {"export": run.config.export.average, "updates": updates, "missing": missing, "value": value}
    return {
        "task": run.config.task.kind,
        "problem": run.task.problem,
        "metric": run.metric,
        "greater_is_better": run.greater_is_better,
        "labels": list(run.task.label_names),
        "best": {"epoch": progress.best_epoch, "update": progress.best_update, "value": progress.best_value},
        "average": average,
        "calibration": None if run.task.scoring.calibrator is None else run.task.scoring.calibrator.to_record(),
        "validation": final["validation"],
        "test": final.get("test", {}),
        "examples": {split: count_examples(run, split) if split in run.features else 0 for split in splits.SPLITS},
        "parameters": {"total": run.plan.num_total, "trainable": run.plan.num_trainable},
        "freeze_plan": run.plan.count_by_part(),
        "updates": progress.update,
        "stopped_early": progress.stopped,
        "skipped_updates": progress.skipped_updates,
        "history": list(progress.history),
        "seconds": clock.report(),
        "seconds_to_first_update": first if first is None else round(first, 2),
        "tokens_per_second": round(clock.num_tokens / seconds, 1) if seconds else None,
        "peak_memory_mb": round(processes.peak_memory_mb(run.runtime.device), 1),
        "device": run.runtime.device.type,
        "precision": run.runtime.precision,
        "processes": run.runtime.num_processes,
        "length": get_length(to_dict(run.config)),
        "status": "finished",
    }


def count_examples(run: TrainingRun, split: str) -> int:
    """Returns the number of a split's examples; of its features if they do not know the examples they were made from."""
    if run.stream is not None and split == "train":
        return run.stream.position.examples
    features = run.features[split]
    return len(features) if features.example_indices is None else len(run.splits.tables()[split])


def summarize_results(results: Mapping[str, Any]) -> str:
    """Returns the best metric on validation, and the metrics of the test split if there is one."""
    summary = f"best {results['metric']} on validation {results['best']['value']:.4f}"
    if average := results.get("average"):
        summary += f", of the mean of {len(average['updates'])} checkpoints {average['value']:.4f}"
    if results["test"]:
        summary += f"; test: {format_metrics(results['test'])}"
    return summary


def describe_interval(results: Mapping[str, Any]) -> list[str]:
    """Returns the line about the interval of the run's metric on test, or on validation without a test split; [] if there is
    none."""
    split = "test" if results["test"] else "validation"
    details, metric = results["details"].get(split, {}), results["metric"]
    low, high = details.get("intervals", {}).get(metric, (math.nan, math.nan))
    if math.isnan(low) or math.isnan(high):
        return []
    return [
        f"{metric} on {split} {low:.4f} to {high:.4f} ({details['confidence']:.0%}, {details['examples']:,} examples)"
    ]


def describe_average(results: Mapping[str, Any]) -> list[str]:
    """Returns what model/ is the mean of, with the metric of that and of the best checkpoint; [] without export.average."""
    average, best, metric = results["average"], results["best"], results["metric"]
    if average is None:
        return []
    updates = ", ".join(map(str, average["updates"]))
    lines = [
        f"model/ is the mean of {len(average['updates'])} checkpoints (updates {updates}): {metric} on validation "
        f"{average['value']:.4f}; the best single one has {best['value']:.4f} (update {best['update']})"
    ]
    if average["missing"]:
        missing = ", ".join(map(str, average["missing"]))
        lines.append(f"left out, because their checkpoints are missing or damaged: updates {missing}")
    return lines


def format_metrics(values: Mapping[str, float]) -> str:
    """Returns metrics on one line, without those of a single type (f1/person)."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items() if "/" not in name)


def make_type_table(values: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Returns the metrics named metric/type as a table with a row for each type; [] if there are none."""
    pairs = [tuple(name.split("/", 1)) for name in values if "/" in name]
    if not pairs:
        return []
    names = list(dict.fromkeys(name for name, _ in pairs))
    types = list(dict.fromkeys(kind for _, kind in pairs))
    rows = [[values.get(f"{name}/{kind}") for name in names] for kind in types]
    cells = [["" if value is None else f"{value:.4f}" for value in row] for row in rows]
    return [("", *names), *((kind, *row) for kind, row in zip(types, cells, strict=True))]


def format_closing(run: TrainingRun, results: Mapping[str, Any], best: str) -> str:
    """Returns the last lines of a run: the metrics, where everything lies, and what to run next.

    best: the file name of the best checkpoint.
    """
    names = [name for name in results["validation"] if "/" not in name]
    rows = [("", *names)]
    for split in splits.SPLITS:
        if results.get(split):
            rows.append((split, *(f"{results[split][name]:.4f}" for name in names)))
    lines = ["", align_columns(rows), ""]
    if by_type := make_type_table(results["test"] or results["validation"]):
        lines += [f"  {'test' if results['test'] else 'validation'}, in detail", align_columns(by_type), ""]
    folder, seconds = run.config.run_dir, results["seconds"]
    way_to_load = "from_pretrained"
    if run.backbone.is_exported_as_adapter:
        way_to_load = "an adapter; its README.md shows how to load it"
    lines.append(f"  model        {folder}/model  ({way_to_load})")
    lines.append(f"  checkpoint   {folder}/checkpoints/{best}")
    lines += [f"  average      {line}" for line in describe_average(results)]
    if (calibrator := run.task.scoring.calibrator) is not None:
        lines += [f"  calibrated   {line}" for line in calibrator.describe()]
    lines += [f"  interval     {line}" for line in describe_interval(results)]
    lines.append(f"  numbers      {folder}/results.json, metrics.jsonl")
    if "tensorboard" in run.config.tracking.trackers:
        lines.append(f"  curves       tensorboard --logdir {run.config.output_dir}")
    memory = f"peak memory {results['peak_memory_mb']:,.0f} MB"
    lines.append(f"  time         {seconds['total']:.0f} s, of which {seconds['train']:.0f} s training; {memory}")
    texts = " ".join(['"..."'] * run.task.columns.num_example_texts)
    word = shlex.quote(str(folder))
    lines += ["", "next:", f"  hf-finetune predict {word} --text {texts}"]
    lines += [f"  hf-finetune evaluate {word} --data FILE", f"  hf-finetune push {word} --repo-id USER/NAME"]
    return "\n".join(lines)
