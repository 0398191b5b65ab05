"""Checkpoints: one dict of tensors and plain values that plain torch.load reads, written whole or not at all.

Order of a save: temporary file, sync, rename, manifest (temporary, sync, rename), both read back, references to the best
and the last, and only then are older ones removed. A checkpoint counts when its manifest is there and its size and digest
agree.
"""

import json
import pickle
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_finetune.system.errors import InputError
from hf_finetune.system.files import hash_file, remove_quietly, replace_atomically, write_atomically, writing_error

# What torch.load and json raise for damaged bytes
DAMAGED = (*(OSError, RuntimeError, EOFError, ValueError, LookupError, AssertionError, TypeError, AttributeError),
           *(pickle.UnpicklingError, struct.error, MemoryError, RecursionError))  # fmt: skip

REFERENCES = "references.json"  # in the checkpoints' folder: file names of the best and the last


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


def count_tensor_bytes(content: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(count_tensor_bytes(value) for value in content.values())
    return sum(count_tensor_bytes(value) for value in content) if isinstance(content, (list, tuple)) else 0


def make_checkpoint_name(epoch: int, update: int, loss: float, metric: str, value: float | None) -> str:
    """`ckpt_epoch0002_update000434_loss0.2931_accuracy0.9128.pt`; without the metric where none was measured there."""
    shown = re.sub(r"[^\w.-]+", "-", metric)  # a metric of the Hub has a slash
    measured = f"_{shown}{value:.4f}" if value is not None and metric != "loss" else ""
    return f"ckpt_epoch{epoch:04d}_update{update:06d}_loss{loss:.4f}{measured}.pt"


def save_checkpoint(
    folder: Path, content: Mapping[str, Any], *, metric: str, value: float | None, best_update: int | None = None
) -> Manifest:
    """Writes a checkpoint, its manifest and the references to the best and the last, and reads them back: when this
    returns, the disk has it. `content` has epoch, update and loss among its keys."""
    epoch, update, loss = content["epoch"], content["update"], content["loss"]
    path = folder / make_checkpoint_name(epoch, update, loss, metric, value)
    num_bytes = count_tensor_bytes(content)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = replace_atomically(path, lambda file: torch.save(copy_to_cpu(content), file), num_bytes)
        manifest = Manifest(
            file=path.name,
            size=path.stat().st_size,
            sha256=written,
            epoch=epoch,
            update=update,
            loss=loss,
            metric=metric,
            value=value,
        )
        write_atomically(make_manifest_path(path), json.dumps(asdict(manifest), indent=2).encode())
        if (reason := find_damage(folder, manifest)) or manifest not in read_manifests(folder):
            raise InputError(f"{path}: {reason or 'has no manifest'} when it is read back; is the disk sound?")
        best = next((each.file for each in read_manifests(folder) if each.update == best_update), None)
        references = {"best": best, "last": manifest.file}
        write_atomically(folder / REFERENCES, json.dumps(references, indent=2).encode())
    except OSError as error:
        raise writing_error(folder, num_bytes, error) from None
    return manifest


def read_references(folder: Path) -> dict[str, str | None]:
    """File names of the `best` and the `last` checkpoint as they were noted; empty where they cannot be read."""
    try:
        noted = json.loads((folder / REFERENCES).read_bytes())
        return {key: noted[key] for key in ("best", "last")}
    except DAMAGED:
        return {}


def make_manifest_path(checkpoint: Path) -> Path:
    """The manifest beside a checkpoint."""
    return checkpoint.with_suffix(".json")


def find_last(folder: Path) -> str | None:
    """The file name of the newest checkpoint, unread."""
    return next((manifest.file for manifest in reversed(read_manifests(folder))), None)


def find_intact(folder: Path, update: int) -> Path | None:
    """The checkpoint of an update that verifies, or None."""
    for manifest in reversed(read_manifests(folder)):
        if manifest.update == update and find_damage(folder, manifest) is None:
            return folder / manifest.file
    return None


def copy_to_cpu(content: Any) -> Any:
    """Nested dicts and lists with every tensor on the CPU, so that a machine without a GPU opens them."""
    if isinstance(content, torch.Tensor):
        return content.detach().cpu()
    if isinstance(content, Mapping):
        return {key: copy_to_cpu(value) for key, value in content.items()}
    return type(content)(copy_to_cpu(value) for value in content) if isinstance(content, (list, tuple)) else content


def read_manifests(folder: Path) -> list[Manifest]:
    """The manifests of a folder, oldest first; unreadable ones are left out."""
    found = []
    for path in folder.glob("ckpt_*.json"):
        try:
            manifest = Manifest(**json.loads(path.read_bytes()))
            make_checkpoint_name(manifest.epoch, manifest.update, manifest.loss, manifest.metric, manifest.value)
            if isinstance(manifest.file, str) and Path(manifest.file).name == manifest.file:
                found.append(manifest)
        except DAMAGED:
            continue
    # A run that was stopped before an evaluation has two of one update: the one with the value is the later
    return sorted(found, key=lambda manifest: (manifest.update, manifest.value is not None))


def find_damage(folder: Path, manifest: Manifest) -> str | None:
    """Why a checkpoint is not whole, or None where it is."""
    path = folder / manifest.file
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != manifest.size:
        return f"has {path.stat().st_size} bytes instead of {manifest.size}"
    return None if hash_file(path) == manifest.sha256 else "does not have the digest its manifest says"


def find_damage_in_file(path: Path) -> str | None:
    """Why the checkpoint in a file is not whole by the manifest beside it, or None where it is."""
    manifest = next((each for each in read_manifests(path.parent) if each.file == path.name), None)
    return find_damage(path.parent, manifest) if manifest else "has no manifest that can be read"


@dataclass(frozen=True, kw_only=True)
class CheckpointListing:
    """A checkpoint as a folder shows it. state: what is wrong, "whole", or "not read" where only its size was looked at."""

    file: str
    size: int
    state: str
    manifest: Manifest | None
    is_best: bool
    is_last: bool


def list_checkpoints(folder: Path, *, verify: bool) -> list[CheckpointListing]:
    """All checkpoints of a folder, oldest first; read and compared with their digests if `verify`."""
    noted, found = read_references(folder), {manifest.file: manifest for manifest in read_manifests(folder)}
    names = [*found, *sorted({path.name for path in folder.glob("ckpt_*.pt")} - found.keys())]
    rows = []
    for name in names:
        path, manifest = folder / name, found.get(name)
        size = path.stat().st_size if path.is_file() else 0
        unread = manifest is not None and not verify and size == manifest.size
        state = "not read" if unread else find_damage_in_file(path) or "whole"
        rows.append(
            CheckpointListing(
                file=name,
                size=size,
                state=state,
                manifest=manifest,
                is_best=noted.get("best") == name,
                is_last=noted.get("last") == name,
            )
        )
    return rows


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The dict in a checkpoint, its tensors in memory. Never runs code: weights_only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise InputError(
            f"{path}: is no whole checkpoint: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None


def find_newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that was passed over."""
    skipped: list[str] = []
    for manifest in reversed(read_manifests(folder)):
        reason = find_damage(folder, manifest)
        if reason is None:
            return folder / manifest.file, skipped
        skipped.append(f"{manifest.file} {reason}")
    return None, skipped


def rank_checkpoints(found: Sequence[Manifest], *, greater_is_better: bool) -> list[Manifest]:
    """Those with a value, best first; the earlier of equals first."""
    sign = -1.0 if greater_is_better else 1.0
    valued = [manifest for manifest in found if manifest.value is not None and manifest.value == manifest.value]
    return sorted(valued, key=lambda manifest: (sign * (manifest.value or 0.0), manifest.update))


def remove_old_checkpoints(
    folder: Path, saved: Manifest, *, keep_best: int, keep_last: int, greater_is_better: bool, best_update: int | None
) -> None:
    """Removes all but the newest `keep_last`, the best `keep_best` and the best one of the run. Manifest first.

    Those of later updates than the one just saved, which the run has gone back behind, stay until it passes them.
    """
    found = [manifest for manifest in read_manifests(folder) if manifest.update <= saved.update]
    others = [manifest for manifest in found if manifest.update != saved.update]
    kept = {saved.file} | {manifest.file for manifest in others[max(0, len(others) - keep_last + 1) :]}
    kept |= {manifest.file for manifest in rank_checkpoints(found, greater_is_better=greater_is_better)[:keep_best]}
    kept |= {manifest.file for manifest in others if manifest.update == best_update}
    for manifest in found:
        if manifest.file not in kept:
            remove_quietly(make_manifest_path(folder / manifest.file))
            remove_quietly(folder / manifest.file)
    for path in folder.glob("ckpt_*.pt"):  # of a save that was killed before its manifest
        if not make_manifest_path(path).exists():
            remove_quietly(path)
    for path in folder.glob(".*.writing"):
        remove_quietly(path)
