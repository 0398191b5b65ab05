"""Proof that a run which is killed ends as one that is not: real processes, real SIGKILLs, every tensor compared."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_finetune.recipe import recipe_path
from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError

# Where kernels sum in an order of their own (GPUs): largest difference of a tensor, relative to its largest value
TOLERANCE_ELSEWHERE = 1e-3

NEVER = 1e9  # seconds


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """One process of a run, from its start to its end or to the kill."""

    lines: tuple[str, ...]
    returncode: int
    was_killed: bool


def run_and_kill(
    command: Sequence[str], seconds_left: Callable[[str], float | None], *, at_first: float = NEVER
) -> ProcessResult:
    """Runs a command and kills its whole process group with SIGKILL `at_first` seconds after the start, or so many seconds
    after a line for which `seconds_left` says a number. Standard error is with the lines."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    killed = threading.Event()

    def kill() -> None:
        if process.poll() is None:
            killed.set()
            os.killpg(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    timers = [threading.Timer(at_first, kill)] if at_first < NEVER else []
    for timer in timers:
        timer.start()
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        left = None if len(timers) > 1 else seconds_left(line)
        if left is not None:
            timers.append(threading.Timer(left, kill))
            timers[-1].start()
    code = process.wait()
    for timer in timers:
        timer.cancel()
    return ProcessResult(lines=tuple(lines), returncode=code, was_killed=killed.is_set())


def list_saved_checkpoints(life: ProcessResult) -> list[str]:
    """Names of the checkpoints that a process said it had saved."""
    return [line.split()[1] for line in life.lines if line.startswith("saved ckpt_")]


def parse_update(name: str) -> int:
    """The update in a checkpoint's file name."""
    return int(name.partition("_update")[2].partition("_")[0])


def count_lost_updates(run_dir: Path, life: ProcessResult) -> int:
    """Updates between the newest checkpoint that was list_saved_checkpoints and the newest that is whole on disk; 0 where none is lost."""
    newest, _ = checkpoint.find_newest_intact(run_dir / "checkpoints")
    on_disk = parse_update(newest.name) if newest else 0
    return max([parse_update(name) - on_disk for name in list_saved_checkpoints(life)] + [0])


def find_last_checkpoint(run_dir: Path) -> dict[str, Any]:
    """The newest checkpoint of a finished run."""
    path, _ = checkpoint.find_newest_intact(run_dir / "checkpoints")
    if path is None:
        raise InputError(f"{run_dir}: has no checkpoint that verifies")
    return checkpoint.load_checkpoint(path)


def collect_tensors(content: Any, place: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested dicts and lists by their place."""
    if isinstance(content, torch.Tensor):
        return {place: content}
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return {name: tensor for key, value in items for name, tensor in collect_tensors(value, f"{place}/{key}").items()}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How many tensors two runs have, how many differ in a bit, and the largest difference relative to the largest value."""

    num_tensors: int
    num_different: int
    largest: float


def compare(ours: Path, theirs: Path) -> Comparison:
    """Compares the last checkpoints (weights, optimizer) and the exported weights of two finished runs."""
    from safetensors.torch import load_file

    found = []
    for run_dir in (ours, theirs):
        content = find_last_checkpoint(run_dir)
        content.pop("run")
        found.append(
            collect_tensors(content)
            | collect_tensors(load_file(next((run_dir / "model").glob("*model.safetensors"))), "model")
        )
    first, second = found
    if first.keys() != second.keys():
        return Comparison(num_tensors=len(first), num_different=len(first.keys() ^ second.keys()), largest=float("inf"))
    largest, different = 0.0, 0
    for name, tensor in first.items():
        other = second[name]
        if torch.equal(tensor, other):
            continue
        different += 1
        scale = max(float(tensor.abs().max()), 1e-12)
        largest = max(largest, float((tensor.double() - other.double()).abs().max()) / scale)
    return Comparison(num_tensors=len(first), num_different=different, largest=largest)


def make_command(recipe: str, words: Sequence[str], processes: int) -> list[str]:
    """The command that runs a recipe's file, on several processes under torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, str(recipe_path(recipe)), *words]


def verify_resume(recipe: str, words: Sequence[str], *, updates: int, kills: int, processes: int, seed: int) -> bool:
    """Trains `updates` updates without stopping, and again killed at random ones; prints what it finds, and returns whether
    all tensors are equal: bit for bit on a CPU, within TOLERANCE_ELSEWHERE elsewhere."""
    if not 0 < kills < updates:
        raise InputError(f"--kills ({kills}): must be above 0 and below --updates ({updates})")
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="hf-finetune-verify-") as folder:
        own = ["--output_dir", folder, "--train.max_updates", str(updates), "--tracking.trackers", "[]"]
        own += ["--tracking.log_every", "1", "--hub.push", "false", "--checkpoint.resume", "auto"]
        own += ["--checkpoint.every", str(max(1, updates // (2 * kills)))]
        print(f"training {updates} updates without stopping", flush=True)
        whole = run_and_kill(make_command(recipe, [*words, *own, "--name", "whole"], processes), lambda _: None)
        check_ended(whole)
        cached = find_last_checkpoint(Path(folder) / "whole")["run"]["progress"]["cached"]
        # auto measures anew in each run, and could decide otherwise
        own += ["--name", "killed", "--cache.activations", "on" if cached else "off"]
        run_dir, lost, resumes = Path(folder) / "killed", 0, 0
        for number in sorted(chance.sample(range(1, updates), kills)):
            after = chance.uniform(0.0, 0.2)

            def seconds_left(line: str, number: int = number, after: float = after) -> float | None:
                words_of_line = line.split()
                is_update = line.startswith("update ") and "/" in words_of_line[1]
                return after if is_update and int(words_of_line[1].partition("/")[0]) >= number else None

            life = run_and_kill(make_command(recipe, [*words, *own], processes), seconds_left)
            resumes += any("resuming after update" in line for line in life.lines)
            if not life.was_killed:
                check_ended(life)
            else:
                lost += count_lost_updates(run_dir, life)
                saved = list_saved_checkpoints(life)
                print(f"killed after update {number}; last saved: {saved[-1] if saved else 'none'}", flush=True)
        life = run_and_kill(make_command(recipe, [*words, *own], processes), lambda _: None)
        check_ended(life)
        resumes += any("resuming after update" in line for line in life.lines)
        device = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["device"]
        found = compare(run_dir, Path(folder) / "whole")
    allowed = 0.0 if device == "cpu" else TOLERANCE_ELSEWHERE
    is_equal = found.largest <= allowed and lost == 0
    print(
        f"\n{kills} kills, {resumes} resumes, {lost} saved updates lost\n"
        f"{found.num_tensors} tensors of weights and optimizer compared on {device}: {found.num_different} differ; largest "
        f"relative difference {found.largest:.1e}, allowed {allowed:.1e}\n"
        f"{'the killed run ended as the other' if is_equal else 'THE KILLED RUN ENDED OTHERWISE'}"
    )
    return is_equal


def check_ended(life: ProcessResult) -> None:
    """Raises InputError with the last lines where a run that was not killed did not end well."""
    if life.returncode != 0:
        error = next((line for line in reversed(life.lines) if line.startswith("error:")), " / ".join(life.lines[-5:]))
        raise InputError(f"verify-resume: the run failed with exit code {life.returncode}: {error}")
