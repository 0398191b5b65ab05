"""Measures what a user waits for besides training and validation: seconds by phase of a warm run, from the command to its end.

    python benchmarks/fixed_costs.py [--rounds 3] [--train FILE --validation FILE]

One cold run fills the cache of activations; each round is two processes that find it, the second one with TensorBoard, as is the
default. The rest of a run is what its process takes before and after the phases of results.json, such as its end. Writes
benchmarks/results/fixed_costs.json and the table in docs/performance.md; --out FOLDER writes both into another folder.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from against_trainer import write_bbc_news
from competitors import MINILM, make_settings, make_words, measure_process
from pages import ROOT, describe_origin, describe_version, write_results, write_table

from hf_finetune.run.training_run import PHASES

USEFUL = ("train", "evaluate")  # phases that are not a fixed cost


def make_job(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the job: its data and settings."""
    train, validation = (options.train, options.validation) if options.train else write_bbc_news(folder)
    return {
        "train": str(train),
        "validation": str(validation),
        "backbone": options.backbone,
        "frozen": options.frozen,
        "epochs": options.epochs,
        "batch_size": 32,
        "learning_rate": 2e-4,
        "max_length": options.max_length,
        "text_columns": ["text"],
        "label_column": "label",
        "seed": 0,
        "competitor": "warm",
    }


def run_command(job: dict[str, Any], folder: Path, name: str, *trackers: str) -> dict[str, Any]:
    """Runs `hf-finetune train` in a process of its own. Returns seconds by phase, to the first update, and from the command to
    the end of its process."""
    where = {"name": name, "output_dir": str(folder)}
    settings = {**make_settings(job), **where, "cache.activations": "on", "tracking.trackers": list(trackers)}
    words = [sys.executable, "-m", "hf_finetune", "train", "classify", *make_words(settings)]
    _, measured = measure_process(words, {"HF_FINETUNE_CACHE": str(folder / "cache")})
    results = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))
    command, seconds = measured["command_seconds"], results["seconds"]
    return {
        **{phase: seconds[phase] for phase in PHASES},
        "rest": command - seconds["total"],
        "command": command,
        "fixed": command - sum(seconds[phase] for phase in USEFUL),
        "first_update": results["seconds_to_first_update"],
        "machine_load": measured["load"],
    }


def make_table(content: dict[str, Any]) -> str:
    """Returns the table of the medians."""
    medians = content["median_seconds"]
    rows = [
        *((phase, medians[phase]) for phase in (*PHASES, "rest")),
        ("**from command to end**", medians["command"]),
        ("**besides training and validation**", medians["fixed"]),
        ("to the first update", medians["first_update"]),
        ("from command to end, with TensorBoard", medians["tracked"]),
    ]
    lines = [describe_version("fixed costs", [content]), "| phase | seconds |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value:.1f} |" for name, value in rows)])


def main() -> None:
    """Measures the rounds, and writes results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=Path, help="JSON lines with text and label; BBC News if not given")
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--max-length", type=int, default=128, help="in tokens")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--backbone", default=MINILM, help="as model.backbone")
    parser.add_argument(
        "--frozen", type=int, default=4, help="number of frozen blocks; the embeddings are always frozen"
    )
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = make_job(options, folder)
        run_command({**job, "competitor": "cold"}, folder, "cold")
        rounds = []
        for number in range(options.rounds):
            rounds.append(run_command(job, folder, f"warm-{number}"))
            rounds[-1]["tracked"] = run_command(job, folder, f"tracked-{number}", "tensorboard")["command"]
            print(json.dumps(rounds[-1]), flush=True)
    content = {
        **describe_origin(),
        "load": [each.pop("machine_load") for each in rounds],
        "rounds": rounds,
        "median_seconds": {key: round(statistics.median(each[key] for each in rounds), 2) for key in rounds[0]},
    }
    write_results("fixed_costs", content, options.out)
    write_table(make_table(content), "fixed costs", [ROOT / "docs" / "performance.md"], options.out)


if __name__ == "__main__":
    main()
