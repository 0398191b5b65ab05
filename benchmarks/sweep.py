"""Measures what a sweep and five folds cost, in seconds of one run: each from the command to its end, in a process of its own.

    python benchmarks/sweep.py --train FILE --validation FILE --test FILE [--examples 2000] [--rounds 3] [--full]

One cold run fills the cache of activations. A round then runs in turn: one run, a sweep of 8 trials, five folds of the training
rows, and one run of transformers.Trainer as an expert sets it, of which a search by hand needs 8. --full runs the sweep without
halving once, to compare the test score of what both choose. Writes benchmarks/results/sweep.json and the table in
docs/choosing.md; --out FOLDER writes both into another folder.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from against_trainer import draw_rows
from competitors import MINILM, launch, make_settings, make_words, measure_process
from pages import ROOT, describe_origin, describe_version, write_results, write_table

SPACE = "train.learning_rate: {log_uniform: [5e-5, 1e-3]}\ntrain.schedule: {choice: [linear, cosine]}\n"


def run_command(words: list[str], settings: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Runs a command of hf-finetune. Returns its seconds and the load of the machine before."""
    given = {**settings, "name": name, "output_dir": str(folder), "cache.activations": "on"}
    command = [sys.executable, "-m", "hf_finetune", *words, *make_words(given)]
    _, measured = measure_process(command, {"HF_FINETUNE_CACHE": str(folder / "cache")})
    return {"seconds": measured["command_seconds"], "load": measured["load"]}


def read_chosen(folder: Path) -> dict[str, float]:
    """Returns the score of the trial that a sweep has chosen, on validation and on the test split."""
    trials = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["trials"]
    finished = [trial["name"] for trial in trials if trial["status"] == "finished"]
    paths = [folder / "trials" / name / "results.json" for name in finished]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    best = max(results, key=lambda each: (each["validation"]["accuracy"], -each["validation"]["loss"]))
    return {split: best[split]["accuracy"] for split in ("validation", "test")}


def run_round(job: Mapping[str, Any], options: argparse.Namespace, folder: Path, number: int) -> dict[str, Any]:
    """Runs all commands once. Returns their seconds, and what the sweep has chosen."""
    settings = {**make_settings({**job, "seed": number}), "data.test": [str(options.test.resolve())]}
    in_folds = {key: value for key, value in settings.items() if key not in ("data.validation", "data.test")}
    search, name = write_search(folder, options.trials, halving=True), f"sweep-{number}"
    runs = {
        "run": run_command(["train", "classify"], settings, folder, f"run-{number}"),
        "sweep": run_command(["sweep", "classify", "--search", search], settings, folder, name),
        "folds": run_command(["train", "classify", "--folds", str(options.folds)], in_folds, folder, f"folds-{number}"),
    }
    trainer = launch({**job, "seed": number, "competitor": "tuned"}, folder / "cache")
    runs["trainer"] = {"seconds": trainer["command_seconds"], "load": trainer["load"]}
    return {"runs": runs, "chosen": read_chosen(folder / name)}


def write_search(folder: Path, trials: int, *, halving: bool) -> str:
    """Writes the file of a search, and returns its path."""
    path = folder / f"search-{halving}.yaml"
    path.write_text(f"trials: {trials}\nhalving: {str(halving).lower()}\n{SPACE}", encoding="utf-8")
    return str(path)


def make_table(content: dict[str, Any]) -> str:
    """Returns the table of the medians."""
    medians, trials, folds = content["median_seconds"], content["trials"], content["folds"]
    run, by_hand = medians["run"], trials * medians["trainer"]
    rows = [
        ("one run", run, ""),
        (f"sweep of {trials} trials", medians["sweep"], f"{medians['sweep'] / run:.1f} x one run"),
        (f"{folds} folds", medians["folds"], f"{medians['folds'] / run:.1f} x one run"),
        (f"{trials} runs of a tuned Trainer", by_hand, f"{by_hand / medians['sweep']:.1f} x the sweep"),
    ]
    lines = [describe_version("sweep", [content]), "| what | seconds | |", "|---|---|---|"]
    lines += [f"| {name} | {seconds:.0f} | {ratio} |" for name, seconds, ratio in rows]
    chosen = [each["chosen"]["test"] for each in content["rounds"]]
    text = f"Test accuracy of the chosen trial: {', '.join(f'{value:.3f}' for value in chosen)}"
    if (full := content.get("full")) is not None:
        text += f"; chosen by training all to their end (seed 0, {full['seconds']:.0f} s): {full['chosen']['test']:.3f}"
    return "\n".join([*lines, "", f"{text}."])


def main() -> None:
    """Measures the rounds, and writes results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="JSON lines with text and label")
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--examples", type=int, help="number of training examples to draw; all if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128, help="in tokens")
    parser.add_argument("--frozen", type=int, default=4, help="number of frozen blocks; the embeddings always are")
    parser.add_argument("--backbone", default=MINILM, help="as model.backbone")
    parser.add_argument("--full", action="store_true", help="run the sweep once without halving, too")
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = {
            "train": str(draw_rows(options.train, folder, options.examples).resolve()),
            "validation": str(options.validation.resolve()),
            "backbone": options.backbone,
            "frozen": options.frozen,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": 2e-4,
            "max_length": options.max_length,
            "text_columns": ["text"],
            "label_column": "label",
        }
        settings = {**make_settings({**job, "seed": 0}), "data.test": [str(options.test.resolve())]}
        run_command(["train", "classify"], settings, folder, "cold")
        full = None
        if options.full:
            search = write_search(folder, options.trials, halving=False)
            full = run_command(["sweep", "classify", "--search", search], settings, folder, "full")
            full["chosen"] = read_chosen(folder / "full")
        rounds = []
        for number in range(options.rounds):
            rounds.append(run_round(job, options, folder, number))
            print(json.dumps(rounds[-1]), flush=True)
    content = {
        **describe_origin(),
        "trials": options.trials,
        "folds": options.folds,
        "rounds": rounds,
        "full": full,
        "median_seconds": {
            key: round(statistics.median(each["runs"][key]["seconds"] for each in rounds), 2)
            for key in rounds[0]["runs"]
        },
        "load": [run["load"] for each in rounds for run in each["runs"].values()],
    }
    write_results("sweep", content, options.out)
    write_table(make_table(content), "sweep", [ROOT / "docs" / "choosing.md"], options.out)


if __name__ == "__main__":
    main()
