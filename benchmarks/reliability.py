"""Times the start of a run: from the start of the process to its first update, for a fresh run and for one that resumes in the
middle of an epoch. Writes the table of docs/reliability.md.

    python benchmarks/reliability.py [--examples 100000] [--rounds 3] [--out FOLDER]
"""

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import ROOT, describe_origin, describe_version, measure_load, write_results, write_table

sys.path.insert(0, str(ROOT / "tests"))

from support import tiny

from hf_finetune.verify import make_command

SETTINGS = {
    "data.max_length": "32", "data.test_fraction": "0.1", "data.validation_fraction": "0.1", "train.batch_size": "8",
    "train.epochs": "3", "train.precision": "fp32", "train.learning_rate": "1e-3", "evaluation.every": "50",
    "checkpoint.every": "25", "tracking.log_every": "1", "tracking.trackers": "[]", "freeze.embeddings": "true",
    "freeze.layers": "1", "model.dropout": "0.1", "cache.activations": "on",
}  # fmt: skip


def make_words(settings: dict[str, str]) -> list[str]:
    """The settings as words of a command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def resume_test(folder: Path, num_examples: int, rounds: int) -> dict[str, Any]:
    """Measures the seconds from the start of the process to its first update, for a fresh run and one resumed mid-epoch."""
    rows = tiny.make_rows(num_examples)
    settings = {
        **SETTINGS,
        "model.backbone": str(tiny.make_backbone(folder / "backbone2", layers=2)),
        "data.train": str(tiny.write_jsonl(folder / "many.jsonl", rows)),
        "output_dir": str(folder / "outputs"), "cache.activations": "off", "train.epochs": "1", "train.batch_size": "32",
        "evaluation.every": "epoch", "checkpoint.every": "epoch", "data.validation_fraction": "0.01",
        "data.test_fraction": "0.01",
    }  # fmt: skip

    def first_update(name: str, stop_at: int) -> tuple[float, int]:
        """Seconds to the first update, and its number. The run gets SIGTERM after the update `stop_at`."""
        began = time.perf_counter()
        process = subprocess.Popen(
            make_command("classify", make_words({**settings, "name": name}), 1),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        seconds, first = 0.0, 0
        for line in process.stdout:
            if line.startswith("update "):
                number = int(line.split()[1].partition("/")[0])
                if not first:
                    seconds, first = time.perf_counter() - began, number
                if number == stop_at:
                    process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
        return seconds, first

    half = num_examples // 64
    fresh, resumed = [], []
    first_update("warm", 2)  # encodes the texts for the runs that follow
    for attempt in range(rounds):
        seconds, _ = first_update(f"many-{attempt}", half)
        fresh.append(seconds)
        seconds, number = first_update(f"many-{attempt}", half + 20)
        assert number == half + 1, number
        resumed.append(seconds)
        print(f"first update after {fresh[-1]:.1f} s; resumed at update {number} after {resumed[-1]:.1f} s", flush=True)
    return {
        "examples": num_examples,
        "resumed at update": half + 1,
        "fresh seconds": round(statistics.median(fresh), 2),
        "resumed seconds": round(statistics.median(resumed), 2),
    }


def main() -> None:
    """Measures, and writes the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of results and table; those of the repository if not given")
    options = parser.parse_args()
    load = measure_load()
    with tempfile.TemporaryDirectory() as name:
        resume = resume_test(Path(name), options.examples, options.rounds)
    results = {**describe_origin(), "load": [load], "resume": resume}
    write_results("reliability", results, options.out)
    table = (
        "| examples | first update of a fresh run | resumed at update | its first update |\n|---|---|---|---|\n"
        f"| {resume['examples']:,} | {resume['fresh seconds']:.1f} s | {resume['resumed at update']:,} | "
        f"{resume['resumed seconds']:.1f} s |"
    )
    write_table(
        f"{describe_version('resume', [results])}\n{table}", "resume", [ROOT / "docs" / "reliability.md"], options.out
    )


if __name__ == "__main__":
    main()
