"""Compares what --dry-run predicts with what the run then takes: seconds by phase, and peak memory, of ten configs.

    python benchmarks/dry_run.py --data FOLDER [--only NAME ...]

FOLDER has sst2_small, trec, stsb, wnut17, go_emotions and squad_val5pct. Each config is predicted and run as commands, with an
empty cache. Writes benchmarks/results/dry_run.json and the table in docs/performance.md; what is not measured keeps its earlier
figures. --out FOLDER writes both into another folder.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from competitors import make_words, measure_process
from pages import RESULTS, ROOT, describe_origin, describe_version, write_results, write_table

from hf_finetune.run.training_run import PHASES

UNFROZEN = {"freeze.embeddings": False, "freeze.layers": 0, "train.learning_rate": 5e-5}
PAIRS = {"data.text_columns": ["sentence1", "sentence2"], "data.label_column": "score"}
QUESTIONS = {"data.text_columns": ["question"], "data.label_column": "label"}

# Name -> task, data set, first rows of its training data (None: all), settings
CONFIGS: dict[str, tuple[str, str, int | None, dict[str, Any]]] = {
    "sst2, 4 of 6 blocks frozen": ("classify", "sst2_small", None, {"train.epochs": 3}),
    "sst2, not cached": ("classify", "sst2_small", None, {"train.epochs": 1, "cache.activations": "off"}),
    "sst2, nothing frozen": ("classify", "sst2_small", 4000, {"train.epochs": 1, **UNFROZEN}),
    "trec, all blocks frozen": ("classify", "trec", None, {"train.epochs": 5, "freeze.layers": 6, **QUESTIONS}),
    "trec, 9 evaluations": ("classify", "trec", None, {"train.epochs": 2, "evaluation.every": "1/9", **QUESTIONS}),
    "stsb, regression of pairs": ("classify", "stsb", None, {"train.epochs": 2, **PAIRS}),
    "stsb, pairs, nothing frozen": ("classify", "stsb", 3000, {"train.epochs": 1, **UNFROZEN, **PAIRS}),
    "go_emotions, several labels": (
        "classify",
        "go_emotions",
        8000,
        {"train.epochs": 2, "data.label_column": "labels"},
    ),
    "wnut17, tagging": ("tag", "wnut17", None, {"train.epochs": 2}),
    "squad, long texts": ("answer", "squad_val5pct", 1000, {"train.epochs": 1, "data.max_length": 256}),
}


def cut_rows(path: Path, count: int | None, folder: Path) -> Path:
    """Returns a file with the first rows of another one; that one itself if all are wanted."""
    if count is None:
        return path
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    made = folder / path.name
    made.write_text("".join(lines[:count]), encoding="utf-8")
    return made


def compare(name: str, data: Path, more: list[str]) -> dict[str, Any]:
    """Predicts and runs a config. Returns seconds by phase and peak memory of both. more: Further words of the command."""
    kind, source, count, settings = CONFIGS[name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        train = cut_rows(data / source / "train.jsonl", count, folder)
        where = {"name": "run", "output_dir": str(folder / "out"), "data.train": str(train), "tracking.trackers": []}
        words = [sys.executable, "-m", "hf_finetune", "train", kind, *make_words({**where, **settings}), *more]
        environment = {"HF_FINETUNE_CACHE": str(folder / "cache")}
        printed, planned = measure_process([*words, "--dry-run", "--json"], environment)
        _, measured = measure_process([*words, "--quiet"], environment)
        plan = json.loads(printed)
        results = json.loads((folder / "out" / "run" / "results.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "dry_run_seconds": round(planned["command_seconds"], 2),
        "predicted": plan["seconds"],
        "measured": results["seconds"],
        "predicted_peak_mb": round(plan["memory"]["peak"] / 2**20, 1),
        "measured_peak_mb": results["peak_memory_mb"],
        "cache": plan["cache"][0],
        "load": measured["load"],
    }


def make_table(content: dict[str, Any]) -> str:
    """Returns the table: a row for each config."""
    shown = [phase for phase in PHASES if phase not in ("start", "load", "encode", "check")]
    lines = [
        describe_version("dry run", [content]),
        f"| config | dry run | predicted | measured | off by | {' | '.join(shown)} | peak MB |",
        f"|---|---|---|---|---|{'---|' * len(shown)}---|",
    ]
    for row in content["rows"]:
        predicted, measured = row["predicted"], row["measured"]
        off = predicted["total"] / measured["total"] - 1
        phases = " | ".join(f"{predicted[phase]:.1f} / {measured[phase]:.1f}" for phase in shown)
        memory = f"{row['predicted_peak_mb']:,.0f} / {row['measured_peak_mb']:,.0f}"
        totals = f"{row['dry_run_seconds']:.1f} s | {predicted['total']:.1f} s | {measured['total']:.1f} s | {off:+.0%}"
        lines.append(f"| {row['name']} | {totals} | {phases} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the configs, and writes results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=tuple(CONFIGS), default=tuple(CONFIGS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options, more = parser.parse_known_args()
    path = (options.out or RESULTS) / "dry_run.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {row["name"]: row for row in earlier}
    for name in options.only:
        rows[name] = compare(name, options.data, more)
        print(json.dumps(rows[name]), flush=True)
    ordered = [rows[name] for name in CONFIGS if name in rows]
    content = {**describe_origin(), "load": [row["load"] for row in ordered], "rows": ordered}
    write_results("dry_run", content, options.out)
    write_table(make_table(content), "dry run", [ROOT / "docs" / "performance.md"], options.out)


if __name__ == "__main__":
    main()
