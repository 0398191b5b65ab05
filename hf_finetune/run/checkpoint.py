"""Checkpoints: one dict of tensors and plain values that torch.load reads, written completely or not at all.

A save goes in this order: temporary file, sync, rename; the same for the manifest; both are read back; the references to the
best and the last checkpoint are written; only then are older checkpoints removed. A checkpoint counts if its manifest exists
and its size and digest agree with it.
"""

import contextlib
import json
import os
import pickle
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_finetune.system.errors import InputError, first_line
from hf_finetune.system.files import (
    find_difference,
    hash_file,
    is_missing,
    remove_quietly,
    replace_atomically,
    write_atomically,
    writing_error,
)

# What torch.load and json raise for damaged bytes
DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AssertionError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    struct.error,
    MemoryError,
    RecursionError,
    OverflowError,  # an integer that is too large for a float
)
LONGEST_NAME = 255  # bytes of a file's name, on the usual file systems

REFERENCES = "references.json"  # in the folder of the checkpoints: the file names of the best and the last

# The state of a file without a manifest, of a save that was stopped before it was reported with `saved ...`
NOT_COMPLETED = "is left of a save that was not completed"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checkpoint's properties, known without opening it. value: of `metric`; None if it was not evaluated there."""

    file: str
    size: int
    sha256: str
    epoch: int
    update: int
    loss: float
    metric: str
    value: float | None


def make_manifest_path(checkpoint: Path) -> Path:
    """Returns the path of the manifest next to a checkpoint."""
    return checkpoint.with_suffix(".json")


# --- writing --------------------------------------------------------------------------------------------------------


def make_checkpoint_name(epoch: int, update: int, loss: float, metric: str, value: float | None) -> str:
    """Returns `ckpt_epoch0002_update000434_loss0.2931_accuracy0.9128.pt`; without the metric if `value` is None."""
    name = f"ckpt_epoch{epoch:04d}_update{update:06d}_loss{loss:.4f}"
    if value is not None and metric != "loss":
        metric = re.sub(r"[^\w.-]+", "-", metric)  # a metric of the Hub has a slash
        name += f"_{metric}{value:.4f}"
    return f"{name}.pt"


def save_checkpoint(
    folder: Path, content: Mapping[str, Any], *, metric: str, value: float | None, best_update: int | None = None
) -> Manifest:
    """Writes a checkpoint, its manifest, and the references to the best and the last one, and reads them back.

    content: has the keys epoch, update and loss. best_update: the update of the best checkpoint. Raises InputError if the disk
    is full, cannot be written, or does not give back what was written.
    """
    epoch, update, loss = content["epoch"], content["update"], content["loss"]
    path = folder / make_checkpoint_name(epoch, update, loss, metric, value)
    num_bytes = count_tensor_bytes(content)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = replace_atomically(path, lambda file: torch.save(copy_to_cpu(content), file), num_bytes)
        manifest = Manifest(
            file=path.name,
            size=written.size,
            sha256=written.sha256,
            epoch=epoch,
            update=update,
            loss=loss,
            metric=metric,
            value=value,
        )
        write_atomically(make_manifest_path(path), json.dumps(asdict(manifest), indent=2).encode())
        manifests = read_manifests(folder)
        is_listed = repr(manifest) in map(repr, manifests)  # a value that is nan is not equal to itself
        if (reason := find_difference(path, written)) or not is_listed:
            raise InputError(f"{path}: {reason or 'has no manifest'} when it is read back; check the disk")
        write_references(folder, manifest, best_update)
    except OSError as error:
        raise writing_error(folder, num_bytes, error) from None
    finally:
        if is_missing(make_manifest_path(path)):  # the disk has no room for that either
            remove_quietly(path)
    return manifest


def write_references(folder: Path, last: Manifest, best_update: int | None) -> None:
    """Writes which checkpoint is the best, by its update, and which is the last. Of two of one update, the one that was evaluated
    is the later one, and the other is removed."""
    manifests = reversed(read_manifests(folder))
    best = next((other.file for other in manifests if other.update == best_update), None)
    write_atomically(folder / REFERENCES, json.dumps({"best": best, "last": last.file}, indent=2).encode())


def count_tensor_bytes(content: Any) -> int:
    """Returns the bytes of all tensors in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(count_tensor_bytes(value) for value in content.values())
    if isinstance(content, (list, tuple)):
        return sum(count_tensor_bytes(value) for value in content)
    return 0


def copy_to_cpu(content: Any) -> Any:
    """Returns nested dicts and lists with every tensor on the CPU, so that a machine without a GPU can open them."""
    if isinstance(content, torch.Tensor):
        return content.detach().cpu()
    if isinstance(content, Mapping):
        return {key: copy_to_cpu(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(copy_to_cpu(value) for value in content)
    return content


# --- reading --------------------------------------------------------------------------------------------------------


def read_manifests(folder: Path) -> list[Manifest]:
    """Returns the manifests in a folder, the oldest first. Leaves out those that cannot be read."""
    manifests = []
    for path in folder.glob("ckpt_*.json"):
        try:
            manifest = Manifest(**json.loads(path.read_bytes()))
            if is_usable(manifest):
                manifests.append(manifest)
        except DAMAGED:
            continue
    # A run that was stopped before an evaluation has two of one update: the one with a value is the later
    return sorted(manifests, key=lambda manifest: (manifest.update, manifest.value is not None))


def is_usable(manifest: Manifest) -> bool:
    """True if the values of a manifest have the right types, and its file is one of the same folder. Raises one of DAMAGED, or
    returns False, if not."""
    path, value = Path(manifest.file), 0.0 if manifest.value is None else manifest.value
    make_checkpoint_name(manifest.epoch, manifest.update, float(manifest.loss), manifest.metric, float(value))
    is_typed = isinstance(manifest.metric, str) and all(
        isinstance(part, int | float) for part in (manifest.loss, value)
    )
    return is_typed and path.name == manifest.file and len(os.fsencode(path)) <= LONGEST_NAME


def read_references(folder: Path) -> dict[str, str | None]:
    """Returns the file names of the `best` and the `last` checkpoint; empty if they cannot be read."""
    try:
        references = json.loads((folder / REFERENCES).read_bytes())
        return {key: references[key] for key in ("best", "last")}
    except DAMAGED:
        return {}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the dict in a checkpoint, with its tensors on the CPU. Never runs code (weights_only).

    Raises InputError if the file is damaged or holds anything but tensors and plain values.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except DAMAGED as error:
        reason = first_line(error)
        raise InputError(f"{path}: is not an intact checkpoint: {reason}") from None


def find_last(folder: Path) -> str | None:
    """Returns the file name of the newest checkpoint, without reading it."""
    manifests = read_manifests(folder)
    return manifests[-1].file if manifests else None


def find_intact(folder: Path, update: int) -> Path | None:
    """Returns the path of an intact checkpoint of this update, or None."""
    for manifest in reversed(read_manifests(folder)):
        if manifest.update == update and find_damage(folder, manifest) is None:
            return folder / manifest.file
    return None


def find_newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """Returns the path of the newest intact checkpoint, and a line about each newer one that is damaged."""
    skipped: list[str] = []
    for manifest in reversed(read_manifests(folder)):
        reason = find_damage(folder, manifest)
        if reason is None:
            return folder / manifest.file, skipped
        skipped.append(f"{manifest.file} {reason}")
    return None, skipped


def find_damage(folder: Path, manifest: Manifest) -> str | None:
    """Returns what is wrong with a checkpoint, or None if it is intact."""
    path = folder / manifest.file
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != manifest.size:
        return f"has {path.stat().st_size} bytes instead of {manifest.size}"
    return None if hash_file(path) == manifest.sha256 else "does not match the digest in its manifest"


def find_damage_in_file(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint by the manifest next to it, or None if it is intact."""
    for manifest in read_manifests(path.parent):
        if manifest.file == path.name:
            return find_damage(path.parent, manifest)
    return "has no readable manifest"


# --- listing and removing -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CheckpointListing:
    """A checkpoint as it lies in its folder.

    state: "intact", what is wrong, "not read" if only its size was checked, or NOT_COMPLETED.
    """

    file: str
    size: int
    state: str
    manifest: Manifest | None
    is_best: bool
    is_last: bool


def list_checkpoints(folder: Path, *, verify: bool) -> list[CheckpointListing]:
    """Returns all checkpoints in a folder, the oldest first. With `verify`, reads them and compares their digests."""
    references = read_references(folder)
    manifests = {manifest.file: manifest for manifest in read_manifests(folder)}
    without_manifest = sorted({path.name for path in folder.glob("ckpt_*.pt")} - manifests.keys())
    listings = []
    for name in [*manifests, *without_manifest]:
        path, manifest = folder / name, manifests.get(name)
        size = path.stat().st_size if path.is_file() else 0
        if manifest is not None and not verify and size == manifest.size:
            state = "not read"
        elif not make_manifest_path(path).exists() and name not in references.values():
            state = NOT_COMPLETED
        else:
            state = find_damage_in_file(path) or "intact"
        listings.append(
            CheckpointListing(
                file=name,
                size=size,
                state=state,
                manifest=manifest,
                is_best=references.get("best") == name,
                is_last=references.get("last") == name,
            )
        )
    return listings


def rank_checkpoints(manifests: Sequence[Manifest], *, greater_is_better: bool) -> list[Manifest]:
    """Returns the checkpoints that have a value, the best first. Of equal values the earlier comes first."""
    sign = -1.0 if greater_is_better else 1.0
    # A value that is nan is not equal to itself
    valued = [manifest for manifest in manifests if manifest.value is not None and manifest.value == manifest.value]
    return sorted(valued, key=lambda manifest: (sign * (manifest.value or 0.0), manifest.update))


def remove_old_checkpoints(
    folder: Path,
    saved: Manifest,
    *,
    keep_best: int,
    keep_last: int,
    greater_is_better: bool,
    updates: Collection[int | None],
) -> None:
    """Removes all checkpoints except the newest `keep_last`, the best `keep_best` and those of `updates`. Removes a manifest
    before its file. What the disk does not let it remove, the next save removes.

    saved: the checkpoint that was just written. Checkpoints of later updates exist if the run resumed from an earlier one; they
    stay until the run passes them.
    """
    with contextlib.suppress(OSError):
        manifests = [manifest for manifest in read_manifests(folder) if manifest.update <= saved.update]
        others = [manifest for manifest in manifests if manifest.update != saved.update]
        last = others[max(0, len(others) - keep_last + 1) :]
        best = rank_checkpoints(manifests, greater_is_better=greater_is_better)[:keep_best]
        best += [manifest for manifest in others if manifest.update in updates]
        files_to_keep = {saved.file, *(manifest.file for manifest in [*last, *best])}
        for manifest in manifests:
            if manifest.file not in files_to_keep:
                remove_quietly(make_manifest_path(folder / manifest.file))
                remove_quietly(folder / manifest.file)
        for path in folder.glob("ckpt_*.pt"):  # of a save that was killed before it wrote the manifest
            if is_missing(make_manifest_path(path)):
                remove_quietly(path)
        for path in folder.glob(".*.writing"):
            remove_quietly(path)
