"""Trains the recipes' configs on real data and rewrites the table in docs/results.md.

    make results DATA=FOLDER          or: python benchmarks/measure.py --data FOLDER [--only sst2 trec]

FOLDER holds what the configs under recipes/configs/ name under data/. The demo's job is measured too. What was measured is kept
in benchmarks/results.json; a run that is not repeated stays.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
BESIDE = ROOT / "benchmarks" / "results" / "beside.json"  # what benchmarks/beside/*.py printed, and our run of the same
PAGE = ROOT / "docs" / "results.md"
CONFIGS = {"bbc-news": None} | {path.stem: path for path in sorted((ROOT / "recipes/configs").glob("*/*.yaml"))}


def run(name: str, data: Path | None) -> dict[str, Any]:
    """Runs the recipe with one config in an empty folder; returns what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        if data is not None:
            (Path(folder) / "data").symlink_to(data.resolve())
        config = CONFIGS[name]
        recipe = config.parent.name if config else "classify"
        words = [sys.executable, str(ROOT / f"recipes/{recipe}.py")]
        if config is not None:
            words += ["--config", str(config)]
        subprocess.run(words, cwd=folder, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        run_dir = Path(folder) / "outputs" / name
        results = json.loads((run_dir / "results.json").read_text())
        environment = json.loads((run_dir / "environment.json").read_text())
    config_option = f" --config {config.relative_to(ROOT)}" if config else ""
    return {
        "command": f"python recipes/{recipe}.py{config_option}",
        "date": time.strftime("%Y-%m-%d"),
        **{key: results[key] for key in ("metric", "validation", "test", "examples", "parameters", "best", "seconds")},
        "threads": environment["num_threads"],
        "precision": results["precision"],
        "torch": environment["versions"]["torch"],
    }


def table(measured: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| run | command | metric | validation | test | trained parameters | training s | total s | measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in measured.items():
        share = row["parameters"]["trainable"] / row["parameters"]["total"]
        metric = row["metric"]
        lines.append(
            f"| {name} | `{row['command']}` | {metric} | {row['validation'][metric]:.4f} | {shown(row['test'], metric)} "
            f"| {row['parameters']['trainable']:,} ({share:.0%}) | {row['seconds']['train']:.0f} "
            f"| {row['seconds']['total']:.0f} | {row['date']}, {row['threads']} threads, {row['precision']} |"
        )
    return "\n".join(lines)


def beside_table(rows: list[dict[str, str]]) -> str:
    """The comparisons as a Markdown table."""
    lines = ["| data | metric | hf-finetune | the other | | command of the other |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = ("data", "metric", "ours", "theirs", "what")
        lines.append(f"| {' | '.join(row[cell] for cell in cells)} | `python benchmarks/beside/{row['command']}` |")
    return "\n".join(lines)


def shown(values: dict[str, float], metric: str) -> str:
    """A metric of a split; - where there is no such split."""
    return f"{values[metric]:.4f}" if metric in values else "-"


def rewrite(page: Path, text: str, marker: str) -> None:
    """Puts `text` between the markers `<!-- marker -->` and `<!-- end of marker -->` of a page."""
    start, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    options = parser.parse_args()
    measured = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rewrite(PAGE, beside_table(json.loads(BESIDE.read_text())), "beside")
    for name in options.only:
        if CONFIGS[name] is not None and options.data is None:
            parser.error(f"{name} needs --data FOLDER")
        measured[name] = run(name, options.data)
        RESULTS.write_text(json.dumps({key: measured[key] for key in CONFIGS if key in measured}, indent=2) + "\n")
        rewrite(PAGE, table({key: measured[key] for key in CONFIGS if key in measured}), "results")


if __name__ == "__main__":
    main()
