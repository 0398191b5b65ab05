"""Updates to a given accuracy with a random head and with one that is fitted in closed form (train.head_start).

    python benchmarks/head_start.py --data FOLDER [--only sst2 trec] [--seeds 0 1 2] [settings of the recipes]

Trains the recipes' configs on real data and rewrites the table in docs/training.md. FOLDER has the files that the configs name
under data/; the demo (bbc-news) needs no FOLDER. A run whose result is there is not repeated: the benchmark can be stopped and
continued. --out FOLDER writes results and table into another folder.

A target is a share of the best validation metric that the runs with a random head reach on average. Both kinds of runs have the
same seeds: the same order of examples and the same dropout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import CONFIGS
from pages import RESULTS, ROOT, describe_origin, describe_version, measure_load, write_results, write_table

PAGE = ROOT / "docs" / "training.md"
NAME = "head_start"
SETS = ("sst2", "trec", "go_emotions", "stsb", "bbc-news")
HEADS = ("none", "ridge")
SHARES = (0.9, 0.95, 0.98)
EVERY = 5  # updates between two evaluations


def run_config(name: str, data: Path | None, head: str, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """Runs the recipe with one config. Returns its metric, and the value on validation after each evaluated update."""
    config, load = CONFIGS[name], measure_load()
    recipe = config.parent.name if config else "classify"
    words = ["--config", str(config)] if config else []
    words += ["--train.head_start", head, "--seed", str(seed), "--evaluation.every", str(EVERY), *settings]
    with tempfile.TemporaryDirectory() as folder:
        if data is not None:
            (Path(folder) / "data").symlink_to(data.resolve())
        command = [sys.executable, str(ROOT / f"recipes/{recipe}.py"), *words]
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        run_dir = Path(folder) / "outputs" / name
        metric = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["metric"]
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    key = f"validation/{metric}"
    values = [(row["update"], row[key]) for row in rows if key in row]
    origin = {"date": time.strftime("%Y-%m-%d"), **describe_origin(), "load": [load]}
    return {
        "data": name,
        "head": head,
        "seed": seed,
        "metric": metric,
        "values": values,
        "settings": [*settings],
        **origin,
    }


def count_updates(values: Sequence[tuple[int, float]], target: float) -> int | None:
    """Returns the first evaluated update that reaches the target; None if none does."""
    return next((update for update, value in values if value >= target), None)


def compare(runs: Sequence[Mapping[str, Any]], share: float) -> tuple[float, dict[str, float | None]]:
    """Returns the target of a data set, and the mean number of updates to it by head; None if not all runs reach it.

    runs: Those of one data set.
    """
    random = [run for run in runs if run["head"] == "none"]
    target = share * statistics.mean(max(value for _, value in run["values"]) for run in random)
    means: dict[str, float | None] = {}
    for head in HEADS:
        counts = [count_updates(run["values"], target) for run in runs if run["head"] == head]
        known = [count for count in counts if count is not None]
        means[head] = statistics.mean(known) if known and len(known) == len(counts) else None
    return target, means


def make_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the updates to each target by data set as a Markdown table, with their ratio and its geometric mean."""
    titles = [f"to {share:.0%}" for share in SHARES]
    lines = [
        describe_version("head start", runs),
        f"| data | metric | best | seeds | {' | '.join(f'{title}: random, fitted' for title in titles)} |",
        f"|---|---|---|---|{'---|' * len(SHARES)}",
    ]
    ratios: dict[float, list[float]] = {share: [] for share in SHARES}
    for name in SETS:
        own = [run for run in runs if run["data"] == name]
        if {run["head"] for run in own} != {*HEADS}:
            continue
        best = {
            head: statistics.mean(max(value for _, value in run["values"]) for run in own if run["head"] == head)
            for head in HEADS
        }
        cells = [name, own[0]["metric"], f"{best['none']:.3f}, {best['ridge']:.3f}", str(len(own) // len(HEADS))]
        for share in SHARES:
            target, means = compare(own, share)
            random, fitted = means["none"], means["ridge"]
            cells.append(
                f"{target:.3f}: {', '.join('-' if mean is None else f'{mean:.0f}' for mean in means.values())}"
            )
            if random is not None and fitted is not None:
                ratios[share].append(random / fitted)
        lines.append(f"| {' | '.join(cells)} |")
    means = [f"{statistics.geometric_mean(values):.2f} x" if values else "-" for values in ratios.values()]
    lines.append(f"| all | geometric mean of random / fitted | | | {' | '.join(means)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains, and writes results and table after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options, settings = parser.parse_known_args()
    path = (options.out or RESULTS) / f"{NAME}.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {(run["data"], run["head"], run["seed"]) for run in runs}
    for name in options.only:
        if CONFIGS[name] is not None and options.data is None:
            parser.error(f"{name} needs --data FOLDER")
        for seed in options.seeds:
            for head in HEADS:
                if (name, head, seed) not in done:
                    runs.append(run_config(name, options.data, head, seed, settings))
                    write_results(NAME, runs, options.out)
    write_table(make_table(runs), "head start", [PAGE], options.out)


if __name__ == "__main__":
    main()
