"""Kills runs 1,000 times with SIGKILL, and counts what is lost. Writes the table of docs/reliability.md.

    python benchmarks/soak.py [--kills 1000] [--seed 0] [--fresh-every 50] [--out FOLDER]

Runs of a small random model are killed at random moments of each phase: loading, reading the rows, encoding, capturing
activations, training, evaluation, saving, export, push. The same command starts a run again until it ends. After every kill, the
newest intact checkpoint on disk is compared with all that the run has reported as saved. At its end, every tensor of the last
checkpoint and of the exported model, results.json, metrics.jsonl and the list of files are compared with those of a run of as
many processes that was never killed, and the Hub (a double on loopback) must have all files, in one commit.

Of three runs, one has two processes. Of its kills, two thirds hit one process only: the other has to end by itself.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import ROOT, describe_origin, write_results, write_table

sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from soak_phases import PHASES
from soak_processes import Nursery
from soak_runs import SETTINGS, TOKEN, Soak, make_reference, soak_run, write_data
from soak_table import FAILURES, PAGE, make_table, write_heading
from support.hub_server import HubServer

MOST_KILLS = 14  # of one run: about two for each phase


def run_soak(folder: Path, nursery: Nursery, options: argparse.Namespace) -> dict[str, Any]:
    """Kills runs until the number of kills is reached, or Ctrl-C. Returns what was counted."""
    began = time.monotonic()
    with HubServer(users={TOKEN: {"name": "ada", "role": "write"}}) as hub:
        soak = Soak(
            folder=folder,
            settings={**SETTINGS, **write_data(folder, options.rows)},
            hub=hub,
            nursery=nursery,
            chance=random.Random(options.seed),
            fresh_every=options.fresh_every,
        )
        references = {ranks: make_reference(soak, ranks) for ranks in (1, 2)}
        soak.counts.clear()
        try:
            while soak.counts["kills"] < options.kills:
                number = soak.counts["runs"]
                ranks = 2 if number % 3 == 2 or soak.counts["kills of 2"] < soak.counts["kills"] // 4 else 1
                left = min(MOST_KILLS, options.kills - soak.counts["kills"])
                soak_run(soak, f"killed-{number}", ranks, references[ranks], left)
                seconds = time.monotonic() - began
                print(f"{soak.counts['kills']} kills in {seconds:.0f} s: {dict(soak.counts)}", flush=True)
                write_results("soak-until-now", collect(soak, options, seconds), options.out or ROOT / "build")
        except KeyboardInterrupt:
            print("interrupted: the results are those of the kills until now", flush=True)
        return collect(soak, options, time.monotonic() - began)


def collect(soak: Soak, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Returns what was counted as plain values."""
    return {
        **describe_origin(),
        "seed": options.seed,
        "minutes": round(seconds / 60, 1),
        **{key: soak.counts[key] for key in sorted({*soak.counts} - {*FAILURES})},
        "seconds until the other process had ended": round(soak.longest_end, 1),
        "aimed": {phase: soak.aimed[phase] for phase in PHASES},
        "hit": {phase: soak.hit[phase] for phase in PHASES},
        "failures": {kind: soak.counts[kind] for kind in FAILURES},
        "messages": soak.failures,
    }


def main() -> None:
    """Kills runs, and writes the results and the table. Exit code 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=9000, help="training rows")
    parser.add_argument("--fresh-every", type=int, default=50, help="one kill of N hits a process that is not a fork")
    parser.add_argument("--out", type=Path, help="folder for the results; benchmarks/results/ and docs/ if not given")
    options = parser.parse_args()
    nursery = Nursery()  # before there are threads
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ends the soak as Ctrl-C does: what was counted is written
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        results = run_soak(Path(name), nursery, options)
    nursery.close()
    write_results("soak", results, options.out)
    write_table(make_table(results), "crash", [PAGE], options.out)
    write_heading(results["kills"], options.out)
    print(json.dumps(results["failures"], indent=1))
    if any(results["failures"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
