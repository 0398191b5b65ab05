"""Measures what it gains in bf16 that batches have few lengths: rounded up to a multiple of 8 tokens, against their own.

    python benchmarks/batch_lengths.py [--rounds 3] [--updates 120] [settings of the classify recipe]

Every run is a process of its own, which trains from cached activations: on a CPU, oneDNN generates code for matrix products of
each new size, and keeps it in the process. Both kinds of run take turns. Writes benchmarks/results/batch_lengths.json and the
table in docs/performance.md; --out FOLDER writes both into another folder.
"""

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import resource
import statistics
from pathlib import Path
from typing import Any

from pages import ROOT, describe_origin, describe_version, measure_load, write_results, write_table
from profile_update import open_job, take

STEPS = (1, 8)  # tokens


def report_updates(settings: list[str], num_updates: int, step: int, pipe: Any) -> None:
    """Trains from the first update on. Sends the milliseconds of each update, and the peak memory in MB."""
    with contextlib.redirect_stdout(io.StringIO()), open_job(["--train.precision", "bf16", *settings]) as run:
        padding = dataclasses.replace(run.train_state.padding, step=step)
        state = dataclasses.replace(run.train_state, padding=padding)
        run = dataclasses.replace(run, stage=dataclasses.replace(run.stage, train_state=state))
        updates = take(run, 0, num_updates)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    pipe.send({"milliseconds": [1e3 * update.seconds for update in updates], "peak_mb": peak})


def measure(settings: list[str], num_updates: int, step: int) -> dict[str, Any]:
    """Returns what report_updates() sends from a process of its own."""
    processes = multiprocessing.get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=report_updates, args=(settings, num_updates, step, sender))
    child.start()
    sender.close()
    try:
        sent: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit("the process that was measured ended with an error") from None
    child.join()
    return sent


def make_table(results: dict[str, Any]) -> str:
    """Returns the medians over the runs."""
    lines = [
        describe_version("batch lengths", [results]),
        "",
        "| length of a batch | ms an update | first quarter of the updates | last quarter | peak MB |",
        "|---|---|---|---|---|",
    ]
    quarter = results["updates"] // 4
    for step in STEPS:
        runs = [run for run in results["runs"] if run["step"] == step]
        parts = [slice(None), slice(quarter), slice(-quarter, None)]
        means = [statistics.median(statistics.fmean(run["milliseconds"][part]) for run in runs) for part in parts]
        name = "its longest text" if step == 1 else f"a multiple of {step} tokens"
        cells = [name, *(f"{mean:.1f}" for mean in means), f"{statistics.median(run['peak_mb'] for run in runs):,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="number of runs of each kind")
    parser.add_argument("--updates", type=int, default=120)
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options, settings = parser.parse_known_args()
    results: dict[str, Any] = {**describe_origin(), "load": [], "updates": options.updates, "runs": []}
    for number in range(options.rounds):
        for step in STEPS if number % 2 == 0 else reversed(STEPS):
            results["load"].append(measure_load())
            results["runs"].append({"step": step, **measure(settings, options.updates, step)})
    text = make_table(results)
    print(text)
    write_results("batch_lengths", results, options.out)
    write_table(text, "batch lengths", [ROOT / "docs" / "performance.md"], options.out)


if __name__ == "__main__":
    main()
