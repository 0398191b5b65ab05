"""Kills runs at random moments, counts what is lost, and times a resume. Writes the tables of docs/reliability.md.

    python benchmarks/reliability.py [--kills 100] [--seed 0] [--examples 100000]

A run of a small random model is killed with SIGKILL (its process group) again and again, at a random moment of a random phase:
loading, caching activations, training, evaluation, saving, export. The same command starts it again until it ends. Then every
tensor of its last checkpoint and its exported model is compared with those of a run that was never killed, and the next run
begins, until the number of kills is reached. After every kill, the newest intact checkpoint on disk is compared with the
checkpoints that the run had reported as saved.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pages import RESULTS, ROOT, describe_machine, rewrite

sys.path.insert(0, str(ROOT / "tests"))

from support import tiny

from hf_finetune.verify import compare, count_lost_updates, list_saved_checkpoints, make_command, run_and_kill

# Beginning of the line that a process prints when it enters a phase, and the most seconds from that line to the kill
PHASES = {
    "loading": ("", 4.0),
    "capture": ("cache ", 0.8),
    "training": ("update ", 0.4),
    "evaluation": ("update 200/", 0.15),
    "saving": ("epoch ", 0.08),
    "export": ("update 600/", 1.5),
}
SETTINGS = {
    "data.max_length": "32", "data.test_fraction": "0.1", "data.validation_fraction": "0.1", "train.batch_size": "8",
    "train.epochs": "3", "train.precision": "fp32", "train.learning_rate": "1e-3", "evaluation.every": "50",
    "checkpoint.every": "25", "tracking.log_every": "1", "tracking.trackers": "[]", "freeze.embeddings": "true",
    "freeze.layers": "1", "model.dropout": "0.1", "cache.activations": "on",
}  # fmt: skip


def make_words(settings: dict[str, str]) -> list[str]:
    """The settings as words of a command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def crash_test(folder: Path, num_kills: int, seed: int) -> dict[str, Any]:
    """Counts kills, resumes, saved updates that were lost, and tensors that differ."""
    chance = random.Random(seed)
    rows = tiny.make_rows(2000)
    settings = {
        **SETTINGS,
        "model.backbone": str(tiny.make_backbone(folder / "backbone", layers=2)),
        "data.train": str(tiny.write_jsonl(folder / "rows.jsonl", rows)),
        "output_dir": str(folder / "outputs"),
    }
    complete = run_and_kill(make_command("classify", make_words({**settings, "name": "complete"}), 1), lambda _: None)
    assert complete.returncode == 0, complete.lines[-5:]
    counts: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    while counts["kills"] < num_kills:
        name = f"killed-{counts['runs']}"
        counts["runs"] += 1
        # its own cache, so that its capture is killed too
        command = make_command("classify", make_words({**settings, "name": name, "cache.dir": str(folder / name)}), 1)
        run_dir, finished = folder / "outputs" / name, False
        while not finished:
            phase = chance.choice(list(PHASES)) if counts["kills"] < num_kills else "none"
            beginning, span = PHASES.get(phase, ("", 0.0))
            after = chance.uniform(0.0, span)
            if phase == "none":
                result = run_and_kill(command, lambda _: None)
            elif phase == "loading":
                result = run_and_kill(command, lambda _: None, seconds_from_start=after)
            else:
                result = run_and_kill(
                    command, lambda line, start=beginning, left=after: left if line.startswith(start) else None
                )
            counts["resumes"] += result.has_resumed
            if result.was_killed:
                counts["kills"] += 1
                counts["announced"] += len(list_saved_checkpoints(result))
                phases[phase] += 1
                counts["lost updates"] += count_lost_updates(run_dir, result)
            else:
                assert result.returncode == 0, result.lines[-8:]
                finished = True
        comparison = compare(run_dir, folder / "outputs" / "complete")
        counts["tensors"] += comparison.num_tensors
        counts["differing tensors"] += comparison.num_different
        print(f"{name}: {dict(counts)}", flush=True)
        shutil.rmtree(run_dir)
        shutil.rmtree(folder / name, ignore_errors=True)
    return {**counts, "kills by phase aimed at": dict(phases), "seed": seed}


def resume_test(folder: Path, num_examples: int) -> dict[str, Any]:
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
    for attempt in range(3):
        seconds, _ = first_update(f"many-{attempt}", half)
        fresh.append(seconds)
        seconds, number = first_update(f"many-{attempt}", half + 20)
        assert number == half + 1, number
        resumed.append(seconds)
        print(f"first update after {fresh[-1]:.1f} s; resumed at update {number} after {resumed[-1]:.1f} s", flush=True)
    return {
        "examples": num_examples,
        "resumed at update": half + 1,
        "fresh seconds": round(sorted(fresh)[1], 2),
        "resumed seconds": round(sorted(resumed)[1], 2),
    }


def main() -> None:
    """Runs both tests and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        crash = crash_test(Path(name), options.kills, options.seed)
        resume = resume_test(Path(name), options.examples)
    results = {"machine": describe_machine(), "crash": crash, "resume": resume}
    (RESULTS / "reliability.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs" / "reliability.md"
    aimed = ", ".join(f"{phase} {count}" for phase, count in sorted(crash["kills by phase aimed at"].items()))
    lines = ["| | |", "|---|---|", f"| kills (SIGKILL, process group) | {crash['kills']} |", f"| aimed at | {aimed} |"]
    lines += [f"| {key} | {crash.get(key, 0):,} |" for key in ("runs", "resumes")]
    lines += [f"| checkpoints announced as saved | {crash.get('announced', 0):,} |"]
    lines += [f"| saved updates lost | {crash.get('lost updates', 0)} |"]
    lines += [f"| tensors compared | {crash['tensors']:,} |"]
    lines += [f"| differing tensors | {crash.get('differing tensors', 0)} |"]
    rewrite(page, "\n".join(lines), "crash")
    rewrite(
        page,
        "| examples | first update of a fresh run | resumed at update | its first update |\n|---|---|---|---|\n"
        f"| {resume['examples']:,} | {resume['fresh seconds']:.1f} s | {resume['resumed at update']:,} | "
        f"{resume['resumed seconds']:.1f} s |",
        "resume",
    )
    if crash.get("lost updates", 0) or crash.get("differing tensors", 0):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
