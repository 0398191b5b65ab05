"""Proves that a killed run ends like one that was never killed: real processes, real SIGKILLs, every tensor compared."""

import contextlib
import json
import math
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

from hf_finetune.config.recipes import recipe_path
from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError

# Largest allowed difference of a tensor on a GPU, whose kernels choose their own order of sums; relative to its largest value
GPU_TOLERANCE = 1e-3

NEVER = 1e9  # seconds


# --- processes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """One process of a run, from its start to its end. lines: its standard output and standard error."""

    lines: tuple[str, ...]
    returncode: int
    was_killed: bool

    @property
    def has_resumed(self) -> bool:
        """True if the process resumed from a checkpoint."""
        return any("resuming after update" in line for line in self.lines)


def run_and_kill(
    command: Sequence[str], seconds_left: Callable[[str], float | None], *, seconds_from_start: float = NEVER
) -> ProcessResult:
    """Runs a command, and kills it and all processes that it has started with SIGKILL.

    Args:
        command: The words of the command.
        seconds_left: Takes a line that the process printed. Returns the seconds until the kill, or None to wait for a later line.
        seconds_from_start: Seconds from the start of the process to the kill, whatever it prints.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    killed = threading.Event()

    def kill() -> None:
        if process.poll() is None:
            killed.set()
            kill_all(process.pid)

    timers: list[threading.Timer] = []

    def start_timer(seconds: float) -> None:
        timers.append(threading.Timer(seconds, kill))
        timers[-1].start()

    if seconds_from_start < NEVER:
        start_timer(seconds_from_start)
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        seconds = seconds_left(line) if len(timers) < 2 else None
        if seconds is not None:
            start_timer(seconds)
    code = process.wait()
    for timer in timers:
        timer.cancel()
    return ProcessResult(lines=tuple(lines), returncode=code, was_killed=killed.is_set())


def kill_all(pid: int) -> None:
    """Kills a process, its group and all that it has started: torchrun starts each process in a session of its own."""
    import psutil  # accelerate depends on it

    started = []
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()


def run_to_end(command: Sequence[str]) -> ProcessResult:
    """Runs a command without killing it. Raises InputError with its error if it fails."""
    result = run_and_kill(command, lambda _: None)
    check_success(result)
    return result


def check_success(result: ProcessResult) -> None:
    """Raises InputError with the last lines of a process that failed."""
    if result.returncode != 0:
        errors = [line for line in result.lines if line.startswith("error:")]
        reason = errors[-1] if errors else " / ".join(result.lines[-5:])
        raise InputError(f"verify-resume: the run failed with exit code {result.returncode}: {reason}")


def make_command(recipe: str, words: Sequence[str], processes: int) -> list[str]:
    """Returns the command that runs the file of a recipe; with several processes, under torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, str(recipe_path(recipe)), *words]


# --- checkpoints ----------------------------------------------------------------------------------------------------


def list_saved_checkpoints(result: ProcessResult) -> list[str]:
    """Returns the names of the checkpoints that a process reported as saved."""
    return [line.split()[1] for line in result.lines if line.startswith("saved ckpt_")]


def parse_update(name: str) -> int:
    """Returns the update in the file name of a checkpoint."""
    return int(name.partition("_update")[2].partition("_")[0])


def count_lost_updates(run_dir: Path, result: ProcessResult) -> int:
    """Returns the number of updates between the newest checkpoint that was reported as saved and the newest intact one on disk;
    0 if nothing was lost."""
    newest, _ = checkpoint.find_newest_intact(run_dir / "checkpoints")
    on_disk = parse_update(newest.name) if newest else 0
    return max([0, *(parse_update(name) - on_disk for name in list_saved_checkpoints(result))])


def load_last_checkpoint(run_dir: Path) -> dict[str, Any]:
    """Returns the content of the newest checkpoint of a run. Raises InputError if it has no intact one."""
    path, _ = checkpoint.find_newest_intact(run_dir / "checkpoints")
    if path is None:
        raise InputError(f"{run_dir}: has no intact checkpoint")
    return checkpoint.load_checkpoint(path)


# --- comparison -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The tensors of two runs. largest: the largest difference, relative to the largest value of its tensor."""

    num_tensors: int
    num_different: int
    largest: float


def compare(ours: Path, theirs: Path) -> Comparison:
    """Compares the last checkpoints (weights, optimizer) and the exported weights of two finished runs, bit for bit."""
    first, second = collect_run_tensors(ours), collect_run_tensors(theirs)
    if first.keys() != second.keys():
        return Comparison(num_tensors=len(first), num_different=len(first.keys() ^ second.keys()), largest=float("inf"))
    largest, num_different = 0.0, 0
    for name, tensor in first.items():
        other = second[name]
        if torch.equal(tensor, other):
            continue
        num_different += 1
        scale = max(float(tensor.abs().max()), 1e-12)
        difference = float((tensor.double() - other.double()).abs().max()) / scale
        largest = max(largest, float("inf") if math.isnan(difference) else difference)
    return Comparison(num_tensors=len(first), num_different=num_different, largest=largest)


def collect_run_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a run's last checkpoint and of its exported model, by their position."""
    from safetensors.torch import load_file

    content = load_last_checkpoint(run_dir)
    content["training_weights"] = content.pop("run").get("training_weights")
    weights = load_file(next((run_dir / "model").glob("*model.safetensors")))
    return collect_tensors(content) | collect_tensors(weights, "model")


def collect_tensors(content: Any, position: str = "") -> dict[str, torch.Tensor]:
    """Returns all tensors in nested dicts and lists, by their position such as `/a/0`."""
    if isinstance(content, torch.Tensor):
        return {position: content}
    items: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list):
        items = list(enumerate(content))
    tensors: dict[str, torch.Tensor] = {}
    for key, value in items:
        tensors |= collect_tensors(value, f"{position}/{key}")
    return tensors


# --- hf-finetune verify-resume --------------------------------------------------------------------------------------


def verify_resume(recipe: str, words: Sequence[str], *, updates: int, kills: int, processes: int, seed: int) -> bool:
    """Trains once without a kill and once with kills at random updates, compares all tensors, and prints the result.

    Args:
        recipe: Name of the recipe.
        words: Its settings, as on the command line.
        updates: Number of updates to train.
        kills: Number of kills.
        processes: Number of processes, under torchrun.
        seed: Random seed for the moments of the kills.

    Returns:
        True if no saved update was lost and all tensors are equal: bit for bit on a CPU, within GPU_TOLERANCE elsewhere.
    """
    if not 0 < kills < updates:
        raise InputError(f"--kills ({kills}): must be above 0 and below --updates ({updates})")
    with tempfile.TemporaryDirectory(prefix="hf-finetune-verify-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        settings = {
            "output_dir": name,
            "train.max_updates": updates,
            "tracking.trackers": "[]",
            "tracking.log_every": 1,
            "hub.push": "false",
            "checkpoint.resume": "auto",
            "checkpoint.every": max(1, updates // (2 * kills)),
        }
        words = [*words, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]
        print(f"training {updates} updates without a kill", flush=True)
        run_to_end(make_command(recipe, [*words, "--name", "complete"], processes))
        # With auto, each run measures again whether to cache, and could decide differently
        is_cached = load_last_checkpoint(folder / "complete")["run"]["progress"]["cached"]
        words += ["--name", "killed", "--cache.activations", "on" if is_cached else "off"]
        run_dir = folder / "killed"
        num_lost, num_resumes = run_with_kills(
            make_command(recipe, words, processes), run_dir, updates=updates, kills=kills, seed=seed
        )
        device = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["device"]
        comparison = compare(run_dir, folder / "complete")
    allowed = 0.0 if device == "cpu" else GPU_TOLERANCE
    print(
        f"\n{kills} kills, {num_resumes} resumes, {num_lost} saved updates lost\n"
        f"{comparison.num_tensors} tensors of weights and optimizer compared on {device}: {comparison.num_different} differ; "
        f"largest relative difference {comparison.largest:.1e}, allowed {allowed:.1e}"
    )
    if comparison.largest > allowed:
        print("FAILED: the killed run ended with different weights")
    elif num_lost:
        print("FAILED: saved updates were lost")
    else:
        print("OK: the killed run ended with the same weights")
    return comparison.largest <= allowed and num_lost == 0


def run_with_kills(command: Sequence[str], run_dir: Path, *, updates: int, kills: int, seed: int) -> tuple[int, int]:
    """Runs a command, kills it at random updates and starts it again until it ends.

    Returns the number of saved updates that were lost, and the number of processes that resumed.
    """
    chance = random.Random(seed)
    num_lost, num_resumes = 0, 0
    for number in sorted(chance.sample(range(1, updates), kills)):
        result = run_and_kill(command, wait_for_update(number, chance.uniform(0.0, 0.2)))
        num_resumes += result.has_resumed
        if result.was_killed:
            num_lost += count_lost_updates(run_dir, result)
            names = list_saved_checkpoints(result)
            print(f"killed after update {number}; last saved: {names[-1] if names else 'none'}", flush=True)
        else:
            check_success(result)
    num_resumes += run_to_end(command).has_resumed
    return num_lost, num_resumes


def wait_for_update(number: int, seconds: float) -> Callable[[str], float | None]:
    """Returns a function for run_and_kill() that answers `seconds` once an update from `number` on is printed."""

    def seconds_left(line: str) -> float | None:
        words = line.split()
        is_update = line.startswith("update ") and "/" in words[1]
        return seconds if is_update and int(words[1].partition("/")[0]) >= number else None

    return seconds_left
