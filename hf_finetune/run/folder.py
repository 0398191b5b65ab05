"""The folder of a run: locked, checked to be of this config, and the record of the environment."""

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig, to_dict, changed_keys
from hf_finetune.run.checkpoint import read_manifests
from hf_finetune.system import processes
from hf_finetune.system.console import print_message
from hf_finetune.system.errors import InputError, redact
from hf_finetune.system.files import write_atomically
from hf_finetune.system.processes import Runtime

PACKAGES = (
    "hf-finetune",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "tensorboard",
    "numpy",
    "scikit-learn",
    "scipy",
)


@contextlib.contextmanager
def open_run(config: RunConfig) -> Iterator[Runtime]:
    """The processes of a run, with its folder locked until the block ends and checked to be of this config."""
    with processes.start(config.seed, config.train.precision, config.run_dir) as runtime, lock_folder(config, runtime):
        yield runtime


@contextlib.contextmanager
def lock_folder(config: RunConfig, runtime: Runtime) -> Iterator[None]:
    """Locks the run folder on the main process until the block ends; the other processes leave the block with it."""
    lock: list[RunLock] = []
    runtime.on_main(lambda: lock.append(claim_folder(config)))
    try:
        yield
    finally:
        for held in lock:
            held.release()
        if runtime.num_processes > 1 and sys.exc_info()[0] is None:
            runtime.accelerator.wait_for_everyone()


def claim_folder(config: RunConfig) -> "RunLock":
    """Locks the run folder; checks that what is there is this run, or makes it."""
    folder = config.run_dir
    recorded = folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
    except OSError as error:
        raise InputError(
            f"output_dir ({config.output_dir}): {folder} cannot be made or written: {error.strerror}"
        ) from None
    try:
        if recorded.exists():
            # A run that saved nothing has nothing to go on from, and may be begun again with other settings
            if config.checkpoint.resume != "never" and read_manifests(folder / "checkpoints"):
                check_same_run(config, recorded)
        elif any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(
                f"name ({config.name}): {folder} holds files, and they are not of a run (no config.yaml); "
                "choose another name"
            )
    except InputError:
        lock.release()
        raise
    return lock


def archive_run(folder: Path) -> None:
    """Moves an older run's files into NAME.1, NAME.2, ...; nothing of it is lost."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    target.mkdir()
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.yaml"):  # last: what makes it a run
        if not path.name.startswith("."):
            path.rename(target / path.name)
    print_message(f"checkpoint.resume never: the older run is kept in {target}")


def check_same_run(config: RunConfig, recorded: Path) -> None:
    """Raises InputError with the differing keys where the folder's run was made with another config."""
    try:
        old = yaml.safe_load(recorded.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{recorded}: cannot be read: {error}") from None
    changed = changed_keys(old if isinstance(old, dict) else {}, to_dict(config))
    if changed:
        listed = ", ".join(f"{key} (was {before}, now {after})" for key, before, after in changed)
        raise InputError(
            f"name ({config.name}): {recorded.parent} holds a run made with another config: {listed}; choose "
            "another name, or --checkpoint.resume never to start anew and keep the old run aside"
        )


def record_run(config: RunConfig, runtime: Runtime) -> None:
    """Writes config.yaml and environment.json, once the run is sure to begin; with checkpoint.resume never, an older run
    of the name is moved aside before."""
    if config.checkpoint.resume == "never" and (config.run_dir / "config.yaml").exists():
        archive_run(config.run_dir)
    write_atomically(config.run_dir / "config.yaml", to_yaml(config).encode())
    path = config.run_dir / "environment.json"
    write_atomically(path, json.dumps(describe_environment(runtime), indent=2).encode())


def describe_environment(runtime: Runtime) -> dict[str, Any]:
    """What a reader needs to know of the machine: versions, device, precision, git commit, command line."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        commit = git.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    device = (
        torch.cuda.get_device_name() if runtime.device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": runtime.device.type,
        "device_name": device,
        "num_threads": torch.get_num_threads(),
        "precision": runtime.precision,
        "processes": runtime.num_processes,
        "platform": platform.platform(),
        "git_commit": commit,
        "command": [redact(word) for word in sys.argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class RunLock:
    """One run a folder: a file lock that dies with its process, beside a file that says who holds it.

    A holder on this machine that is dead is taken over; one on another machine is not, because nobody here can tell.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.holder_path = folder / ".running"
        self.lock = FileLock(folder / ".lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise InputError(
                f"{folder}: another run is at work in this folder ({self.holder()}); wait for it, or choose another name"
            ) from None
        holder = self.holder()
        if holder and holder.split(" process ")[0] != socket.gethostname():
            (folder / ".lock").unlink(missing_ok=True)
            self.lock.release()
            raise InputError(
                f"{folder}: a run on another machine is at work in this folder ({holder}); if it is dead, remove "
                f"{self.holder_path}"
            )
        try:
            self.holder_path.write_text(f"{socket.gethostname()} process {os.getpid()}", encoding="utf-8")
        except OSError:
            self.release()
            raise

    def holder(self) -> str:
        """Host and process of the run at work, as far as they are known."""
        return self.holder_path.read_text(encoding="utf-8") if self.holder_path.exists() else ""

    def release(self) -> None:
        """Gives the folder free, and removes it where nothing was put into it."""
        with contextlib.suppress(OSError):
            self.holder_path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Windows does not remove an open file
            (self.folder / ".lock").unlink(missing_ok=True)
        self.lock.release()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
