"""Shows which operators take the time of an update from cached activations, with torch's profiler, and which share of the
machine's peak of matrix products the update reaches.

    make profile            or: python benchmarks/profile_update.py [settings of the classify recipe]

The peak is that of large square products in the run's precision. Matrix products of an update are counted (backward included),
and timed alone, with their own shapes. Takes about two minutes on two cores. Writes benchmarks/results/profile.json and the table
in docs/performance.md; --out FOLDER writes both into another folder.
"""

import argparse
import contextlib
import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matrix_products import SIZE, ProductRecorder, count_flops, measure_peak, time_products
from pages import ROOT, describe_origin, describe_version, measure_load, write_results, write_table

from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import recipe_path
from hf_finetune.run import report
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.train import attach_cache, decide_on_cache
from hf_finetune.training.loop import Update, train_steps
from hf_finetune.training.progress import FRESH

NUM_SHOWN = 14  # operators in the table
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@contextlib.contextmanager
def open_job(settings: list[str]) -> Iterator[TrainingRun]:
    """Gives a run of the classify recipe that is ready to train from cached activations, until the block ends."""
    recipe = runpy.run_path(str(recipe_path("classify")))
    with tempfile.TemporaryDirectory() as folder:
        words = ["--cache.activations", "on", *settings, "--output_dir", folder, "--tracking.trackers", "[]"]
        config = load_config(recipe["DEFAULTS"], words, demo=recipe["DEMO"])
        with open_run(config) as runtime:
            clock = Clock()
            run = set_up(config, runtime, clock)
            cache = decide_on_cache(run, FRESH, clock)
            report.announce(run, cache.lines, [])
            yield attach_cache(run, FRESH, cache, clock)[0]


def profile_run(settings: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Trains some updates: timed, then the same again for their FLOPs, then with the profiler. Returns what was measured."""
    with open_job(settings) as run:
        needed = options.warmup + options.updates + options.profiled
        if run.schedule.total_updates < needed:
            raise SystemExit(f"the run has {run.schedule.total_updates} updates, and the profile needs {needed}")
        take(run, 0, options.warmup)
        load = measure_load()
        updates = take(run, options.warmup, options.updates)
        with count_flops() as get_flops:
            take(run, options.warmup, options.updates)
        with torch.profiler.profile() as profile:
            take(run, options.warmup, options.profiled)
        with ProductRecorder() as products:
            take(run, options.warmup, options.profiled)
        peaks = {name: measure_peak(dtype, options.size) / 1e9 for name, dtype in DTYPES.items()}
        alone, alone_flops = time_products(products.counts)
        precision = run.runtime.precision
    return {
        **describe_origin(),
        "load": [load],
        "threads": torch.get_num_threads(),
        "precision": precision,
        "updates": len(updates),
        "milliseconds": 1e3 * sum(update.seconds for update in updates) / len(updates),
        "tokens_per_second": sum(update.num_tokens for update in updates) / sum(update.seconds for update in updates),
        "gigaflop": get_flops() / 1e9 / len(updates),  # an update's
        "peak": peaks,  # in GFLOP/s
        "alone": alone_flops / 1e9 / alone,  # GFLOP/s of the products alone
        "operators": list_operators(profile, options.profiled),
    }


def take(run: Any, start: int, count: int) -> list[Update]:
    """Trains `count` updates from the update `start` on, and returns them."""
    steps = train_steps(
        run.train_state,
        run.make_source(),
        run.task,
        run.config,
        run.runtime,
        total_updates=run.schedule.planned_updates,
        start_update=start,
    )
    with contextlib.closing(steps):
        return [next(steps) for _ in range(count)]


def list_operators(profile: Any, num_profiled: int) -> list[dict[str, Any]]:
    """Returns the operators that take the most time, with their shares of the time of all."""
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return [
        {
            "name": row.key,
            "share": row.self_cpu_time_total / total,
            "milliseconds": row.self_cpu_time_total / 1e3 / num_profiled,
            "calls": row.count / num_profiled,
        }
        for row in rows[:NUM_SHOWN]
    ]


def make_table(result: dict[str, Any]) -> str:
    """Returns the mean time of an update, its share of the peak, and the table of the operators."""
    rate, peak = 1e3 * result["gigaflop"] / result["milliseconds"], result["peak"][result["precision"]]
    peaks = " and ".join(f"{value:,.0f} GFLOP/s in {name}" for name, value in result["peak"].items())
    lines = [
        describe_version("profile", [result]),
        f"{result['updates']} updates in {result['precision']}: {result['milliseconds']:.1f} ms each, "
        f"{result['tokens_per_second']:,.0f} tokens/s.",
        f"The matrix products of an update are {result['gigaflop']:.2f} GFLOP: {rate:,.0f} GFLOP/s over the entire update, "
        f"{rate / peak:.0%} of the peak.",
        f"Alone, with their own shapes, they run at {result['alone']:,.0f} GFLOP/s, {result['alone'] / peak:.0%} of the peak.",
        f"The peak, of square products with {result['threads']} threads, is {peaks}.",
        "",
        "| operator | share of the time | ms an update | calls an update |",
        "|---|---|---|---|",
    ]
    for row in result["operators"]:
        lines.append(f"| `{row['name']}` | {row['share']:.1%} | {row['milliseconds']:.2f} | {row['calls']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Profiles a run, and writes results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=10, help="updates before the first that is timed")
    parser.add_argument("--updates", type=int, default=40, help="updates that are timed, and counted")
    parser.add_argument(
        "--profiled", type=int, default=10, help="updates that are profiled, and whose products are timed"
    )
    parser.add_argument("--size", type=int, default=SIZE, help="rows and columns of the products that measure the peak")
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options, settings = parser.parse_known_args()
    result = profile_run(settings, options)
    write_results("profile", result, options.out)
    text = make_table(result)
    print(text)
    write_table(text, "profile", [ROOT / "docs" / "performance.md"], options.out)


if __name__ == "__main__":
    main()
