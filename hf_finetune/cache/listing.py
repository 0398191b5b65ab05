"""The entries in the folder of the activation cache: listed, verified and pruned for `hf-finetune cache`."""

import contextlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_finetune.cache.store import ACTIVATIONS, MALFORMED, MANIFEST, find_good_chunks
from hf_finetune.system.files import rename, writing_error


@dataclass(frozen=True, kw_only=True)
class EntryListing:
    """An entry as it lies in the folder of the cache.

    Args:
        size: Bytes of all its files.
        used: Last use, in seconds since the epoch.
        manifest: Content of its manifest; empty if it cannot be read.
    """

    folder: Path
    size: int
    used: float
    manifest: Mapping[str, Any]

    @property
    def is_partial(self) -> bool:
        """True if its capture was interrupted or still runs."""
        return self.folder.name.endswith(".partial")


def list_entries(root: Path) -> list[EntryListing]:
    """Returns all entries, the least recently used first."""
    entries: list[EntryListing] = []
    if not root.is_dir():
        return entries
    for folder in root.iterdir():
        if re.fullmatch(r"[0-9a-f]{32}(\.partial)?", folder.name) and folder.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process finished or removed it in the meantime
                files = [path.stat() for path in folder.iterdir()]
                used = max((status.st_mtime for status in files), default=folder.stat().st_mtime)
                size = sum(status.st_size for status in files)
                entries.append(EntryListing(folder=folder, size=size, used=used, manifest=read_manifest(folder)))
    return sorted(entries, key=lambda entry: entry.used)


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """Returns the manifest of an entry; an empty mapping if it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return manifest if isinstance(manifest["description"], dict) else {}
    except (OSError, *MALFORMED):
        return {}


def find_damage(entry: EntryListing) -> str | None:
    """Returns what is wrong with an entry, or None if every byte is as it was written."""
    if entry.is_partial:
        return "is not finished; the next run that needs it completes it"
    try:
        spans = [(int(begin), int(end)) for begin, end in entry.manifest["spans"]]
        digests = dict(enumerate(entry.manifest["digests"]))
        size = int(entry.manifest["size"])
        if [0, *(end for _, end in spans)] != [*(begin for begin, _ in spans), size] or len(digests) != len(spans):
            raise ValueError
        path = entry.folder / ACTIVATIONS
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            return f"has {actual or 0} bytes of activations instead of {size}"
        num_damaged = len(spans) - len(find_good_chunks(path, spans, digests))
    except MALFORMED:
        return "has no readable manifest"
    return f"is damaged in {num_damaged} of {len(spans)} chunks" if num_damaged else None


def prune_entries(root: Path, *, max_bytes: int | None, older_than_seconds: float | None) -> list[EntryListing]:
    """Removes the entries that were not used for `older_than_seconds`, then the least recently used ones until the rest has at
    most `max_bytes`. Returns the removed entries.

    Skips an entry that a run is writing. A run that reads a removed entry can still read it on systems that can remove open
    files. Raises InputError if the folder cannot be changed.
    """
    for remains in root.glob(".removing-*"):  # of a removal that was interrupted
        shutil.rmtree(remains, ignore_errors=True)
    entries = list_entries(root)
    total = sum(entry.size for entry in entries)
    removed = []
    for entry in entries:
        is_old = older_than_seconds is not None and time.time() - entry.used > older_than_seconds
        is_too_much = max_bytes is not None and total > max_bytes
        if (is_old or is_too_much) and remove_entry(root, entry):
            total -= entry.size
            removed.append(entry)
    return removed


def remove_entry(root: Path, entry: EntryListing) -> bool:
    """Removes an entry. Returns False if a run is writing it, or if it is no longer there."""
    lock_path = root / f"{entry.folder.name.removesuffix('.partial')}.lock"
    with contextlib.suppress(Timeout, FileNotFoundError), FileLock(lock_path, timeout=0):
        # Rename it first: the remains of an interrupted removal must not look like an entry
        doomed = entry.folder.with_name(f".removing-{uuid.uuid4().hex}")
        try:
            rename(entry.folder, doomed)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise writing_error(root, 0, error) from None
        shutil.rmtree(doomed, ignore_errors=True)
        return True
    return False
