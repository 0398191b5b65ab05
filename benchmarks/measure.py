"""Trains the recipes' configs on real data, and rewrites the tables in docs/results.md.

    make results DATA=FOLDER    or: python benchmarks/measure.py --data FOLDER [--only sst2 trec] [settings of the recipes]

FOLDER has the files that the configs in recipes/configs/ name under data/. The demo (bbc-news) needs no FOLDER. Results are kept
in benchmarks/results.json; a run that is not repeated keeps its earlier ones. --out FOLDER writes results and tables into another
folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import RESULTS, ROOT, describe_origin, describe_version, measure_load, write_table

COMPARISONS = RESULTS / "comparisons.json"  # what benchmarks/comparisons/*.py printed, and the same runs of hf-finetune
PAGE = ROOT / "docs" / "results.md"
CONFIGS = {"bbc-news": None} | {path.stem: path for path in sorted((ROOT / "recipes/configs").glob("*/*.yaml"))}
RESULT_KEYS = ("metric", "validation", "test", "examples", "parameters", "best", "seconds")


def run_config(name: str, data: Path | None, settings: Sequence[str]) -> dict[str, Any]:
    """Runs the recipe with one config in an empty folder. Returns its results."""
    config = CONFIGS[name]
    load = measure_load()
    recipe = config.parent.name if config else "classify"
    words = ["--config", str(config)] if config else []
    with tempfile.TemporaryDirectory() as folder:
        if data is not None:
            (Path(folder) / "data").symlink_to(data.resolve())
        command = [sys.executable, str(ROOT / f"recipes/{recipe}.py"), *words, *settings]
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        run_dir = Path(folder) / "outputs" / name
        results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
        environment = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
    shown = [f"recipes/{recipe}.py", *(["--config", str(config.relative_to(ROOT))] if config else []), *settings]
    return {
        "command": f"python {' '.join(shown)}",
        "date": time.strftime("%Y-%m-%d"),
        **describe_origin(),
        "load": [load],
        **{key: results[key] for key in RESULT_KEYS},
        "threads": environment["num_threads"],
        "precision": results["precision"],
        "torch": environment["versions"]["torch"],
    }


def make_table(results: Mapping[str, dict[str, Any]]) -> str:
    """Returns the results as a Markdown table."""
    lines = [
        describe_version("results", results.values()),
        "| run | command | metric | validation | test | trained parameters | training s | total s | measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        metric, trainable = row["metric"], row["parameters"]["trainable"]
        values = [format_metric(row[split], metric) for split in ("validation", "test")]
        share = trainable / row["parameters"]["total"]
        seconds = [f"{row['seconds'][phase]:.0f}" for phase in ("train", "total")]
        measured = f"{row['date']}, {row['threads']} threads, {row['precision']}"
        cells = [name, f"`{row['command']}`", metric, *values, f"{trainable:,} ({share:.0%})", *seconds, measured]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def make_comparison_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the comparisons with other tools as a Markdown table."""
    lines = [
        describe_version("comparisons", rows),
        "| data | metric | hf-finetune | the other | | command of the other |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row[key] for key in ("data", "metric", "ours", "theirs", "what")]
        lines.append(f"| {' | '.join(cells)} | `python benchmarks/comparisons/{row['command']}` |")
    return "\n".join(lines)


def format_metric(values: Mapping[str, float], metric: str) -> str:
    """Returns a metric of a split with four digits, or "-" if there is no such split."""
    return f"{values[metric]:.4f}" if metric in values else "-"


def main() -> None:
    """Trains the configs, and writes results and tables after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--out", type=Path, help="folder of results and tables; those of the repository if not given")
    options, settings = parser.parse_known_args()
    path = (options.out or ROOT / "benchmarks") / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    comparisons = json.loads(COMPARISONS.read_text(encoding="utf-8"))
    write_table(make_comparison_table(comparisons), "comparisons", [PAGE], options.out)
    for name in options.only:
        if CONFIGS[name] is not None and options.data is None:
            parser.error(f"{name} needs --data FOLDER")
        results[name] = run_config(name, options.data, settings)
        results = {key: results[key] for key in CONFIGS if key in results}
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        write_table(make_table(results), "results", [PAGE], options.out)


if __name__ == "__main__":
    main()
