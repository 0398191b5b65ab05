"""Checkpoints: one dict of tensors and plain values that plain torch.load reads, written whole or not at all.

Order of a save: temporary file, sync, rename, manifest (temporary, sync, rename), sync of the folder, and only then
are older ones removed. A checkpoint counts when its manifest is there and its size and digest agree.
"""

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hf_finetune.errors import InputError
from hf_finetune.sources import sha256_of

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. All that decides what happens next is here or follows from the config."""

    update: int = 0
    best_value: float | None = None
    best_update: int | None = None
    best_epoch: int | None = None
    patience_value: float | None = None  # the last value that counted as better, by train.min_delta
    evaluations_without_gain: int = 0
    stopped: bool = False  # early stopping has ended the training
    cached: bool | None = None  # whether the frozen prefix is; not known before the first update


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a checkpoint without opening it."""

    file: str
    size: int
    sha256: str
    epoch: int
    update: int
    loss: float
    metric: str
    value: float | None


def write_atomically(path: Path, content: bytes) -> None:
    """The file has its old content or all of the new. InputError where the disk is full or read-only."""
    replace_with(path, lambda file: file.write(content), len(content))


def replace_with(path: Path, write: Callable[[BinaryIO], object], num_bytes: int) -> None:
    """Has `write` fill a temporary file, syncs and renames it to `path`. `num_bytes` are checked to be free."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        if shutil.disk_usage(path.parent).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        temporary.unlink(missing_ok=True)
        raise writing_error(path.parent, num_bytes, error) from None


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in a folder durable, where the system can sync a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def writing_error(folder: Path, num_bytes: int, error: Exception) -> InputError:
    """What a failed write means to the user."""
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, OSError) and cause.errno not in FULL_DISK:
        return InputError(f"{folder}: cannot be written: {cause.strerror}")
    free = shutil.disk_usage(folder).free
    return InputError(
        f"{folder}: the disk is full: {num_bytes / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free; make "
        "room and run the same command again, the run goes on from its last checkpoint"
    )


def tensor_bytes(content: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(tensor_bytes(value) for value in content.values())
    return sum(tensor_bytes(value) for value in content) if isinstance(content, (list, tuple)) else 0


def checkpoint_name(epoch: int, update: int, loss: float, metric: str, value: float | None) -> str:
    """`ckpt_epoch0002_update000434_loss0.2931_accuracy0.9128.pt`; without the metric where none was measured there."""
    shown = re.sub(r"[^\w.-]+", "-", metric)  # a metric of the Hub has a slash
    measured = f"_{shown}{value:.4f}" if value is not None and metric != "loss" else ""
    return f"ckpt_epoch{epoch:04d}_update{update:06d}_loss{loss:.4f}{measured}.pt"


def save(folder: Path, content: Mapping[str, Any], *, metric: str, value: float | None) -> Manifest:
    """Writes a checkpoint and its manifest. `content` has epoch, update and loss among its keys."""
    epoch, update, loss = content["epoch"], content["update"], content["loss"]
    path = folder / checkpoint_name(epoch, update, loss, metric, value)
    folder.mkdir(parents=True, exist_ok=True)
    replace_with(path, lambda file: torch.save(on_cpu(content), file), tensor_bytes(content))
    # The digest is of what the disk gives back, not of what was meant to be written
    manifest = Manifest(
        file=path.name,
        size=path.stat().st_size,
        sha256=sha256_of(path),
        epoch=epoch,
        update=update,
        loss=loss,
        metric=metric,
        value=value,
    )
    write_atomically(manifest_path(path), json.dumps(asdict(manifest), indent=2).encode())
    return manifest


def manifest_path(checkpoint: Path) -> Path:
    """The manifest beside a checkpoint."""
    return checkpoint.with_suffix(".json")


def find_whole(folder: Path, update: int) -> Path | None:
    """The checkpoint of an update that verifies, or None."""
    for manifest in manifests(folder):
        if manifest.update == update and fault(folder, manifest) is None:
            return folder / manifest.file
    return None


def on_cpu(content: Any) -> Any:
    """Nested dicts and lists with every tensor on the CPU, so that a machine without a GPU opens them."""
    if isinstance(content, torch.Tensor):
        return content.detach().cpu()
    if isinstance(content, Mapping):
        return {key: on_cpu(value) for key, value in content.items()}
    return type(content)(on_cpu(value) for value in content) if isinstance(content, (list, tuple)) else content


def manifests(folder: Path) -> list[Manifest]:
    """The manifests of a folder, oldest first; unreadable ones are left out."""
    found = []
    for path in folder.glob("ckpt_*.json"):
        try:
            found.append(Manifest(**json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda manifest: manifest.update)


def fault(folder: Path, manifest: Manifest) -> str | None:
    """Why a checkpoint is not whole, or None where it is."""
    path = folder / manifest.file
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != manifest.size:
        return f"has {path.stat().st_size} bytes instead of {manifest.size}"
    return None if sha256_of(path) == manifest.sha256 else "does not have the digest its manifest says"


def load(path: Path) -> dict[str, Any]:
    """The dict in a checkpoint, its tensors in memory. Never runs code: weights_only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: is no whole checkpoint: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that was passed over."""
    skipped: list[str] = []
    for manifest in reversed(manifests(folder)):
        reason = fault(folder, manifest)
        if reason is None:
            return folder / manifest.file, skipped
        skipped.append(f"{manifest.file} {reason}")
    return None, skipped


def ranked(found: Sequence[Manifest], *, greater_is_better: bool) -> list[Manifest]:
    """Those with a value, best first; the earlier of equals first."""
    sign = -1.0 if greater_is_better else 1.0
    valued = [manifest for manifest in found if manifest.value is not None and manifest.value == manifest.value]
    return sorted(valued, key=lambda manifest: (sign * (manifest.value or 0.0), manifest.update))


def retire(
    folder: Path, saved: Manifest, *, keep_best: int, keep_last: int, greater_is_better: bool, best_update: int | None
) -> None:
    """Removes all but the newest `keep_last`, the best `keep_best` and the best one of the run. Manifest first.

    Those of later updates than the one just saved, which the run has gone back behind, stay until it passes them.
    """
    found = [manifest for manifest in manifests(folder) if manifest.update <= saved.update]
    kept = {manifest.file for manifest in found[-keep_last:]}
    kept |= {manifest.file for manifest in ranked(found, greater_is_better=greater_is_better)[:keep_best]}
    kept |= {manifest.file for manifest in found if manifest.update == best_update}
    for manifest in found:
        if manifest.file not in kept:
            path = folder / manifest.file
            manifest_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    for path in folder.glob("ckpt_*.pt"):  # of a save that was killed before its manifest
        if not manifest_path(path).exists():
            path.unlink(missing_ok=True)
    for path in folder.glob(".ckpt_*.writing"):
        path.unlink(missing_ok=True)
