"""The folder of a run: its lock, the check that it belongs to this config, and the record of the environment."""

import contextlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_finetune.config.changes import changed_keys
from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.report import DATA_REPORT, DataReport
from hf_finetune.model.backbone import holds_model
from hf_finetune.run.checkpoint import find_last, read_manifests
from hf_finetune.run.inputs import INPUTS
from hf_finetune.system import processes
from hf_finetune.system.console import print_message
from hf_finetune.system.errors import FolderInUseError, InputError, redact
from hf_finetune.system.files import write_atomically
from hf_finetune.system.locks import HeldError, Lock
from hf_finetune.system.processes import Runtime

ENVIRONMENT = "environment.json"
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
    """Starts the processes of a run, and locks its folder until the block ends.

    Raises InputError if the folder belongs to a run of another config, or if another run uses it.
    """
    with (
        processes.start(config.seed, config.train.precision, config.run_dir, config.run.patience_minutes) as runtime,
        lock_folder(config, runtime) as lock,
    ):
        yield replace(runtime, lock=lock)


@contextlib.contextmanager
def lock_folder(config: RunConfig, runtime: Runtime) -> Iterator[Lock | None]:
    """Locks the run folder on the main process until the block ends, and gives the lock; None on the others, which leave the
    block with it."""
    locks: list[Lock] = []  # one on the main process, none on the others

    def claim() -> None:
        locks.append(claim_folder(config))

    runtime.on_main(claim)
    try:
        yield locks[0] if locks else None
    finally:
        for lock in locks:
            release_folder(lock)
        if runtime.num_processes > 1 and sys.exc_info()[0] is None:
            runtime.accelerator.wait_for_everyone()


def claim_folder(config: RunConfig) -> Lock:
    """Creates and locks the run folder. Raises InputError if another run uses it, or if it holds anything but a run of this
    config."""
    folder = config.run_dir
    config_path = folder / "config.yaml"
    lock = acquire_folder(folder)
    try:
        if config_path.exists():
            # A run without checkpoints has nothing to resume, and may start again with other settings
            if config.checkpoint.resume != "never" and read_manifests(folder / "checkpoints"):
                check_same_run(config)
        elif any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(
                f"name ({config.name}): {folder} holds files that do not belong to a run (there is no config.yaml); "
                "choose another name"
            )
    except BaseException:  # a signal, too: a notebook lives on
        release_folder(lock)
        raise
    return lock


def acquire_folder(folder: Path) -> Lock:
    """Creates and locks a folder in output_dir. Raises InputError if that is not possible, and FolderInUseError."""
    lock = Lock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(print_message)
    except HeldError as holder:
        raise FolderInUseError(
            f"{folder}: another run uses this folder ({holder}); wait for it, or choose another name"
        ) from None
    except OSError as error:
        with contextlib.suppress(OSError):  # an empty folder, which was made for this run
            folder.rmdir()
        raise InputError(
            f"output_dir ({folder.parent}): {folder} cannot be created or written: {error.strerror}"
        ) from None
    return lock


def release_folder(lock: Lock) -> None:
    """Releases a folder, and removes it if it is empty."""
    lock.release()
    with contextlib.suppress(OSError):
        lock.path.parent.rmdir()


def find_free_name(output_dir: Path, name: str) -> str:
    """Returns the first of NAME-2, NAME-3, ... for which output_dir holds no folder."""
    base, _, number = name.rpartition("-")
    if not base or not number.isdigit():
        base, number = name, "1"
    count = int(number) + 1
    while (output_dir / f"{base}-{count}").exists():
        count += 1
    return f"{base}-{count}"


def archive_run(folder: Path) -> None:
    """Moves the files of an earlier run to NAME.1, NAME.2, ..., so that none is lost."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    target.mkdir()
    # config.yaml goes last: as long as it is there, the folder is known as that of a run
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.yaml"):
        if not path.name.startswith("."):
            path.rename(target / path.name)
    print_message(f"checkpoint.resume never: the earlier run was moved to {target}")


def read_config_file(run_dir: Path) -> dict[str, Any]:
    """Returns the settings in a run's config.yaml as nested values. Raises InputError if it cannot be read."""
    path = run_dir / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return settings if isinstance(settings, dict) else {}


def read_environment(run_dir: Path) -> dict[str, Any]:
    """Returns the content of a run's environment.json, {} if there is none that can be read."""
    try:
        content = json.loads((run_dir / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_same_run(config: RunConfig) -> None:
    """Raises InputError with the differing keys if the run in the folder was made with another config."""
    changed = changed_keys(read_config_file(config.run_dir), config)
    if changed:
        listed = ", ".join(f"{key} (was {before}, now {after})" for key, before, after in changed)
        raise InputError(
            f"name ({config.name}): {config.run_dir} holds a run made with another config: {listed}; to train on from its "
            f"weights with the new settings, {describe_new_run(config)}; to start from the beginning, choose another name, or "
            "set checkpoint.resume to never, which moves the earlier run to another folder"
        )


def describe_new_run(config: RunConfig, source: Path | None = None) -> str:
    """Returns how to begin a new run from the weights of this run, or of the checkpoint `source`: what every refusal to resume
    names, so that no work is lost."""
    if source is None:
        source, last = config.run_dir, find_last(config.run_dir / "checkpoints")
        if last and not holds_model(config.run_dir / "model"):
            source = config.run_dir / "checkpoints" / last
    name = find_free_name(Path(config.output_dir), config.name)
    return f"begin a new run: set name to {name} and start_from to {source}"


def record_run(config: RunConfig, runtime: Runtime, inputs: Mapping[str, Any], data_report: DataReport) -> None:
    """Writes config.yaml, inputs.json, data.json and environment.json. Called when nothing can refuse the run any more.

    With checkpoint.resume never, first moves the files of an earlier run of this name to another folder.
    """
    runtime.check_lock()
    if config.checkpoint.resume == "never" and (config.run_dir / "config.yaml").exists():
        archive_run(config.run_dir)
    write_atomically(config.run_dir / "config.yaml", to_yaml(config).encode())
    write_atomically(config.run_dir / INPUTS, json.dumps(inputs, indent=2).encode())
    write_atomically(config.run_dir / DATA_REPORT, data_report.to_json().encode())
    environment = json.dumps(describe_environment(runtime), indent=2)
    write_atomically(config.run_dir / ENVIRONMENT, environment.encode())


def describe_environment(runtime: Runtime) -> dict[str, Any]:
    """Returns the content of environment.json: versions, device, precision, git commit, command line."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device_name = platform.processor() or platform.machine()
    if runtime.device.type == "cuda":
        device_name = torch.cuda.get_device_name()
    return {
        "versions": versions,
        "device": runtime.device.type,
        "device_name": device_name,
        "num_threads": torch.get_num_threads(),
        "precision": runtime.precision,
        "processes": runtime.num_processes,
        "platform": platform.platform(),
        "git_commit": find_git_commit(),
        "command": [redact(word) for word in sys.argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def find_git_commit() -> str | None:
    """Returns the commit of the git repository of the current folder, or None."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None
