"""The plan of a run, as a dry run has found it: its table, and the settings that make the run fit."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from hf_finetune.config.sections import RunConfig, TrainConfig
from hf_finetune.system.console import align_columns, label_lines

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class MemoryRoom:
    """How large micro-batches of the longest examples can be.

    Attributes:
        free: Bytes that activations can take.
        per_example: Bytes of the activations of one example.
        asked: Examples of the largest micro-batch.
        fitting: As many fit.
    """

    free: int
    per_example: int
    asked: int
    fitting: int

    @property
    def fits(self) -> bool:
        """True if the micro-batches of the config fit."""
        return self.asked <= self.fitting


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory, disk and time that a run will take.

    Attributes:
        memory: Bytes by kind, and the peak.
        free_memory: Bytes that activations can take.
        disk: Bytes by kind.
        free_disk: Bytes.
        cache: The decision on cached activations, and its reasons.
        seconds: By phase, and the total.
        updates, evaluations, saves: How many there will be.
        advice: The settings that make the run fit; () if it does.
    """

    memory: dict[str, int]
    free_memory: int
    disk: dict[str, int]
    free_disk: int
    cache: tuple[str, ...]
    seconds: dict[str, float]
    updates: int
    evaluations: int
    saves: int
    advice: tuple[str, ...]

    def to_json(self) -> str:
        """Returns the plan as JSON."""
        seconds = {phase: round(value, 2) for phase, value in self.seconds.items()}
        return json.dumps({**asdict(self), "seconds": seconds, "fits": not self.advice})

    def describe(self) -> str:
        """Returns the plan as a table."""
        minutes = f"{self.seconds['total'] / 60:.1f} min"
        lines = [
            f"dry run: {self.updates:,} updates, {self.evaluations:,} evaluations, {self.saves:,} saves in {minutes}",
            "",
        ]
        columns = [
            [("memory", "MB"), *((name, format_megabytes(value)) for name, value in self.memory.items())],
            [("disk", "MB"), *((name, format_megabytes(value)) for name, value in self.disk.items())],
            [("time", "s"), *((phase, f"{value:,.1f}") for phase, value in self.seconds.items())],
        ]
        columns[0].append(("free now", format_megabytes(self.free_memory)))
        columns[1].append(("free", format_megabytes(self.free_disk)))
        for rows in columns:
            lines += [*pad_rows(rows), ""]
        lines += label_lines("cache", self.cache)
        lines += label_lines("it fits" if not self.advice else "change", self.advice or ("nothing was written",))
        return "\n".join(lines)


def pad_rows(rows: list[tuple[str, str]]) -> list[str]:
    """Returns lines with names on the left and numbers on the right."""
    return align_columns([(f"{name:<14}", value) for name, value in rows]).splitlines()


def format_megabytes(num_bytes: int) -> str:
    """Returns bytes in MB."""
    return f"{num_bytes / 1e6:,.0f}"


def find_free_memory(device: torch.device) -> int:
    """Returns the bytes of memory that are free on the device; on a CPU those that its control group leaves, too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text().strip()
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def find_free_disk(config: RunConfig) -> int:
    """Returns the bytes that are free where the run will be."""
    folder = Path(config.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def suggest_for_memory(memory: Mapping[str, int], room: MemoryRoom, config: TrainConfig) -> list[str]:
    """Returns the settings with which the run fits into memory; [] if it does."""
    if room.fits:
        return []
    need, free = (format_megabytes(value) for value in (room.per_example * room.asked, room.free))
    start = f"memory: the activations of {room.asked} examples take {need} MB, and {free} MB are free"
    if room.fitting:
        size = 2 ** (room.fitting.bit_length() - 1)
        key = "train.micro_batch_size"
        if config.micro_batch_tokens is not None:
            key = f"train.micro_batch_tokens to null, and {key}"
        return [f"{start}; set {key} to {size} ({format_megabytes(room.per_example * size)} MB)"]
    trained = format_megabytes(memory["gradients"] + memory["optimizer"])
    example = format_megabytes(room.per_example)
    return [
        f"{start}, not even for one ({example} MB); shorten data.max_length, freeze more layers (freeze.layers), or set "
        f"adapter.kind to lora: gradients and optimizer take {trained} MB now"
    ]


def suggest_for_disk(disk: Mapping[str, int], free: int, saved: int, config: RunConfig) -> list[str]:
    """Returns the settings with which the run fits on the disk; [] if it does. saved: Bytes of a checkpoint."""
    need = sum(disk.values()) + saved  # the newest is there before the oldest goes
    if need <= free:
        return []
    start = f"disk: {format_megabytes(need)} MB are needed, and {format_megabytes(free)} MB are free"
    ways = []
    if disk["activations"]:
        ways.append(f"cache.activations to off ({format_megabytes(disk['activations'])} MB less)")
    kept = config.checkpoint.keep_best + config.checkpoint.keep_last
    if kept > 2:
        less = format_megabytes((kept - 2) * saved)
        ways.append(f"checkpoint.keep_last and checkpoint.keep_best to 1 (up to {less} MB less)")
    if config.checkpoint.content == "full":
        less = format_megabytes(max(0, disk["checkpoints"]) and disk["model"])
        ways.append(f"checkpoint.content to trainable (up to {less} MB less a checkpoint)")
    return [f"{start}; set {', or '.join(ways)}" if ways else f"{start}; choose another output_dir"]
