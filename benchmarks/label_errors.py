"""Measures how many planted wrong labels are among those that are shown first.

    python benchmarks/label_errors.py --data FOLDER [--only sst2_small trec] [--examples 2000] [--runs RUNS]

A twentieth of the training labels of each set is replaced by another label at random, `hf-finetune train classify --folds 5` runs
on them, and of the likeliest wrong labels, those that were planted are counted: among the first 20, and among as many as were
planted. Labels that were wrong before count against it. A second row of a set is for `hf-finetune label-errors` with the folds of
two seeds; all numbers are means over two plantings.

FOLDER has a folder of each set, with train.jsonl. With --runs the folds stay in that folder, and the same command continues if it
is stopped. Writes benchmarks/results/label_errors.json and the table in docs/choosing.md; --out FOLDER writes both into another
folder.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from competitors import MINILM, make_words, measure_process
from pages import ROOT, describe_origin, describe_version, write_results, write_table

SETS = {"sst2_small": "text", "trec": "question"}  # the column of the texts
SHARE = 0.05


def plant(rows: list[dict[str, Any]], seed: int) -> set[int]:
    """Gives a share of the rows another label, in place. Returns their lines, from 1."""
    generator, labels = random.Random(seed), sorted({row["label"] for row in rows})
    places = generator.sample(range(len(rows)), max(1, round(SHARE * len(rows))))
    for place in places:
        rows[place]["label"] = generator.choice([label for label in labels if label != rows[place]["label"]])
    return {place + 1 for place in places}


def measure_planting(name: str, planting: int, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Plants wrong labels in a set, trains its folds with each seed, and returns how many of them are found by the folds of the
    first seed, of the first two, ..."""
    lines = (options.data / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if options.examples is not None:
        rows = random.Random(0).sample(rows, min(options.examples, len(rows)))
    planted = plant(rows, seed=planting)
    path = folder / f"{name}-{planting}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "output_dir": str(folder),
        "data.train": [str(path)],
        "data.text_columns": [SETS[name]],
        "model.backbone": options.backbone,
        "freeze.layers": options.frozen,
        "train.epochs": options.epochs,
        "data.max_length": options.max_length,
        "tracking.trackers": [],
    }
    results, run_dirs = [], []
    for seed in range(options.seeds):
        run = f"{name}-{planting}-seed-{seed}"
        words = ["--folds", str(options.folds), *make_words({**settings, "name": run, "seed": seed})]
        measured = run_command(["train", "classify", *words], folder)
        run_dirs.append(str(folder / run))
        if seed:
            run_command(["label-errors", *run_dirs], folder)
        found = [json.loads(line)["line"] for line in Path(run_dirs[0], "label_errors.jsonl").read_text().splitlines()]
        results.append(
            {
                "set": name,
                "planting": planting,
                "seeds": seed + 1,
                "rows": len(rows),
                "planted": len(planted),
                "found": len(found),
                "precision_of_20": measure_precision(found[:20], planted),
                "precision_of_planted": measure_precision(found[: len(planted)], planted),
                "share_found": len(planted.intersection(found)) / len(planted),
                "load": measured["load"],
            }
        )
    return results


def run_command(words: list[str], folder: Path) -> dict[str, Any]:
    """Runs a command of hf-finetune. Returns its seconds and memory."""
    command = [sys.executable, "-m", "hf_finetune", *words]
    return measure_process(command, {"HF_FINETUNE_CACHE": str(folder / "cache")})[1]


def measure_precision(found: list[int], planted: set[int]) -> float:
    """Returns the share of lines that were planted."""
    return len(planted.intersection(found)) / max(1, len(found))


def make_table(content: dict[str, Any]) -> str:
    """Returns the table of all sets: means over the plantings."""
    lines = [
        describe_version("wrong labels", [content]),
        "| set | rows | planted | seeds | of the first 20 | of as many as were planted | planted ones in the file |",
        "|---|---|---|---|---|---|---|",
    ]
    results = content["results"]
    for name, seeds in dict.fromkeys((row["set"], row["seeds"]) for row in results):
        own = [row for row in results if (row["set"], row["seeds"]) == (name, seeds)]
        shares = [
            f"{statistics.mean(row[key] for row in own):.0%}"
            for key in ("precision_of_20", "precision_of_planted", "share_found")
        ]
        lines.append(f"| {name} | {own[0]['rows']:,} | {own[0]['planted']} | {seeds} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the sets, and writes results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder of each set")
    parser.add_argument("--only", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--examples", type=int, help="number of training examples to draw; all if not given")
    parser.add_argument("--plantings", nargs="+", type=int, default=[1, 2], help="seeds of the planted labels")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds that folds are trained with")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128, help="in tokens")
    parser.add_argument("--frozen", type=int, default=4, help="number of frozen blocks")
    parser.add_argument("--backbone", default=MINILM, help="as model.backbone")
    parser.add_argument("--runs", type=Path, help="folder of the runs, which stay there; a temporary one if not given")
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = [
            row
            for name in options.only
            for planting in options.plantings
            for row in measure_planting(name, planting, options, folder)
        ]
    for row in results:
        print(json.dumps(row))
    content = {**describe_origin(), "load": [row["load"] for row in results], "results": results}
    write_results("label_errors", content, options.out)
    write_table(make_table(content), "wrong labels", [ROOT / "docs" / "choosing.md"], options.out)


if __name__ == "__main__":
    main()
