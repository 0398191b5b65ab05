"""Shows which operators take the time of an update from cached activations, with torch's profiler.

    make profile            or: python benchmarks/profile_update.py [settings of the classify recipe]

Writes the operators that take the most time as the table in docs/performance.md; --out FOLDER writes it into another folder.
"""

import argparse
import runpy
import tempfile
from pathlib import Path
from typing import Any

import torch
from pages import ROOT, describe_origin, describe_version, write_table

from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import recipe_path
from hf_finetune.run import report
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock
from hf_finetune.train import attach_cache, decide_on_cache
from hf_finetune.training.loop import Update, train_steps
from hf_finetune.training.progress import FRESH

NUM_SHOWN = 14  # operators in the table


def profile_run(settings: list[str], options: argparse.Namespace) -> tuple[list[Update], Any, int]:
    """Trains some updates. Returns those that were timed without the profiler, the profile, and its number of updates."""
    recipe = runpy.run_path(str(recipe_path("classify")))
    with tempfile.TemporaryDirectory() as folder:
        words = ["--cache.activations", "on", *settings, "--output_dir", folder, "--tracking.trackers", "[]"]
        config = load_config(recipe["DEFAULTS"], words, demo=recipe["DEMO"])
        with open_run(config) as runtime:
            clock = Clock()
            run = set_up(config, runtime, clock)
            cache = decide_on_cache(run, FRESH, clock)
            report.announce(run, cache.lines, [])
            run, _ = attach_cache(run, FRESH, cache, clock)
            needed = options.warmup + options.updates + options.profiled
            if run.schedule.total_updates < needed:
                raise SystemExit(f"the run has {run.schedule.total_updates} updates, and the profile needs {needed}")
            steps = train_steps(
                run.train_state,
                run.make_source(),
                run.task,
                config,
                runtime,
                total_updates=run.schedule.planned_updates,
            )
            for _ in range(options.warmup):
                next(steps)
            updates = [next(steps) for _ in range(options.updates)]
            with torch.profiler.profile() as profile:
                for _ in range(options.profiled):
                    next(steps)
    return updates, profile, options.profiled


def make_table(updates: list[Update], profile: Any, num_profiled: int) -> str:
    """Returns the mean time of an update, and the table of the operators."""
    seconds, tokens = sum(update.seconds for update in updates), sum(update.num_tokens for update in updates)
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    lines = [
        describe_version("profile", [describe_origin()]),
        f"{len(updates)} updates: {1e3 * seconds / len(updates):.1f} ms each, {tokens / seconds:,.0f} tokens/s.",
        "",
        "| operator | share of the time | ms an update | calls an update |",
        "|---|---|---|---|",
    ]
    for row in rows[:NUM_SHOWN]:
        share, milliseconds = row.self_cpu_time_total / total, row.self_cpu_time_total / 1e3 / num_profiled
        lines.append(f"| `{row.key}` | {share:.1%} | {milliseconds:.2f} | {row.count / num_profiled:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Profiles a run, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=10, help="updates before the first that is timed")
    parser.add_argument("--updates", type=int, default=40, help="updates that are timed without the profiler")
    parser.add_argument("--profiled", type=int, default=10, help="updates that are profiled")
    parser.add_argument("--out", type=Path, help="folder of the table; docs/performance.md if not given")
    options, settings = parser.parse_known_args()
    text = make_table(*profile_run(settings, options))
    print(text)
    write_table(text, "profile", [ROOT / "docs" / "performance.md"], options.out)


if __name__ == "__main__":
    main()
