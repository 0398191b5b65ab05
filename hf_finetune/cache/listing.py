"""The entries of all caches: activations, encoded text, tables, converted models. Listed, verified and pruned for
`hf-finetune cache`."""

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_finetune.cache.store import ACTIVATIONS, MALFORMED, MANIFEST, find_good_chunks
from hf_finetune.data import encoded_parts, table_store
from hf_finetune.model import converted_files
from hf_finetune.system.console import print_message
from hf_finetune.system.files import explain_failures, read_clock, rename, writing_error
from hf_finetune.system.locks import HeldError, Lock

TEMPORARY = (".writing-*", ".removing-*")  # folders of entries that are written or removed
OLD_MARK = "done"  # a file of encoded text as versions before 0.4 wrote it
SECONDS_OF_SILENCE = 600.0  # after which the process that wrote such a folder is dead


@dataclass(frozen=True, kw_only=True)
class EntryListing:
    """An entry as it lies in its folder.

    Args:
        kind: activations, encoded text, tables or converted (GGUF files).
        size: Bytes of all its files.
        used: Last use, in seconds since the epoch.
        content: What it holds, in a few words.
        is_partial: It was interrupted, or is still written.
        is_old: An earlier version of the package wrote it, in a form that no run reads any more.
        manifest: Content of the manifest of activations; empty if it cannot be read, and for other kinds.
    """

    kind: str
    folder: Path
    size: int
    used: float
    content: str = ""
    is_partial: bool = False
    is_old: bool = False
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of entries.

    Args:
        subfolder: Where they lie under the folder of the caches.
        describe: Returns the fields of an entry's listing that depend on the kind.
        find_damage: Returns what is wrong with a finished entry, or None if every byte is as it was written.
    """

    subfolder: str
    describe: Callable[[Path], Mapping[str, Any]]
    find_damage: Callable[[EntryListing], str | None]


def list_all_entries(root: Path) -> list[EntryListing]:
    """Returns the entries of all kinds under the folder of the caches, the least recently used first."""
    entries = [entry for name, kind in KINDS.items() for entry in list_entries(root / kind.subfolder, name)]
    return sorted(entries, key=lambda entry: entry.used)


def list_entries(folder: Path, kind: str = "activations") -> list[EntryListing]:
    """Returns the entries of a kind in the folder of these, the least recently used first. OSError if it cannot be read."""
    entries: list[EntryListing] = []
    try:
        paths = list(folder.iterdir())  # glob() would say nothing of a folder that cannot be read
    except (FileNotFoundError, NotADirectoryError):
        return []
    for path in paths:
        if re.fullmatch(r"[0-9a-f]{32}(\.partial)?", path.name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # another process finished or removed it in the meantime
                size, used = measure_folder(path)
                described = KINDS[kind].describe(path)
                entries.append(EntryListing(kind=kind, folder=path, size=size, used=used, **described))
    return sorted(entries, key=lambda entry: entry.used)


def measure_folder(folder: Path) -> tuple[int, float]:
    """Returns the bytes of the files in a folder, and the last change of one."""
    files = [path.lstat() for path in folder.iterdir()]
    used = max((status.st_mtime for status in files), default=folder.stat().st_mtime)
    return sum(status.st_size for status in files), used


def find_damage(entry: EntryListing) -> str | None:
    """Returns what is wrong with an entry, or None if every byte is as it was written."""
    if entry.is_old:
        return "was written by an earlier version, and no run reads it; cache prune can remove it"
    if entry.is_partial:
        return "is not finished; the next run that needs it completes it"
    return KINDS[entry.kind].find_damage(entry)


def find_leftovers(root: Path, *, is_any: bool = False) -> list[Path]:
    """Returns the folders that killed processes were writing or removing. is_any: also those that may still be written."""
    folders = [folder for kind in KINDS.values() for name in TEMPORARY for folder in (root / kind.subfolder).glob(name)]
    return [folder for folder in folders if is_any or is_left(folder)]


def is_left(folder: Path) -> bool:
    """True if no process is writing a folder any more. False if it is no longer there."""
    if folder.name.startswith(".removing-"):
        return True
    try:
        return read_clock(folder.parent) - measure_folder(folder)[1] > SECONDS_OF_SILENCE
    except FileNotFoundError:  # another process finished or removed it in the meantime
        return False


# --- each kind ------------------------------------------------------------------------------------------------------


def describe_activations(folder: Path) -> dict[str, Any]:
    """Returns content, is_partial and manifest of activations."""
    manifest = read_manifest(folder)
    is_partial = folder.name.endswith(".partial")
    content = "not finished" if is_partial else "no readable manifest"
    if manifest:
        model = manifest["description"]
        content = (
            f"{model.get('architecture')}, {model.get('blocks')} layers, {manifest.get('num_tokens')} tokens, "
            f"{manifest.get('dtype')}"
        )
    return {"content": content, "is_partial": is_partial, "manifest": manifest}


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """Returns the manifest of activations; an empty mapping if it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return manifest if isinstance(manifest["description"], dict) else {}
    except (OSError, *MALFORMED):
        return {}


def find_damaged_activations(entry: EntryListing) -> str | None:
    """Returns what is wrong with activations."""
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


def describe_encoded(folder: Path) -> dict[str, Any]:
    """Returns content and is_partial of encoded text."""
    parts = encoded_parts.read_parts(folder)
    if not parts and (folder / OLD_MARK).exists():
        return {"content": "written by an earlier version", "is_old": True}
    if not parts:
        return {"content": "no readable list of parts"}
    last = parts[max(parts)]
    if last.number < last.of - 1:
        return {"content": f"not finished: {len(parts)} of {last.of} parts", "is_partial": True}
    tokens = last.arrays.get("input_ids")
    return {"content": f"{last.rows[1]:,} rows" + (f", {tokens.end:,} tokens" if tokens else "")}


def find_damaged_parts(entry: EntryListing) -> str | None:
    """Returns what is wrong with encoded text."""
    parts = encoded_parts.read_parts(entry.folder)
    if not parts:
        return "has no readable list of parts"
    count = parts[max(parts)].of
    num_damaged = count - len(encoded_parts.find_good_parts(entry.folder, parts))
    return f"is damaged in {num_damaged} of {count} parts" if num_damaged else None


def describe_table(folder: Path) -> dict[str, Any]:
    """Returns the content of a table."""
    try:
        table = json.loads((folder / table_store.META).read_bytes())["content"]["table"]
        num_rows, names = sum(count for _, count in table["files"]), ", ".join(table["names"])
        return {"content": f"{num_rows:,} rows of {names}"}
    except (OSError, *MALFORMED):
        return {"content": "no readable description"}


def find_damaged_table(entry: EntryListing) -> str | None:
    """Returns what is wrong with a table."""
    return "is damaged; the next run reads the files again" if table_store.open_table(entry.folder) is None else None


def describe_converted(folder: Path) -> dict[str, Any]:
    """Returns the content of a converted GGUF file."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return {"content": f"{config['architectures'][0]}, {config['num_hidden_layers']} layers, from a GGUF file"}
    except (OSError, *MALFORMED):
        return {"content": "no readable config"}


def find_damaged_model(entry: EntryListing) -> str | None:
    """Returns what is wrong with a converted GGUF file."""
    reason = converted_files.find_damage(entry.folder)
    return f"{reason}; the next run converts the file again" if reason else None


KINDS = {
    "activations": Kind(subfolder="activations", describe=describe_activations, find_damage=find_damaged_activations),
    "encoded text": Kind(subfolder="encoded", describe=describe_encoded, find_damage=find_damaged_parts),
    "converted": Kind(subfolder=converted_files.FOLDER, describe=describe_converted, find_damage=find_damaged_model),
    "tables": Kind(subfolder=table_store.FOLDER, describe=describe_table, find_damage=find_damaged_table),
}


# --- removing -------------------------------------------------------------------------------------------------------


def prune_entries(root: Path, *, max_bytes: int | None, older_than_seconds: float | None) -> list[EntryListing]:
    """Removes what killed processes left, the entries that were not used for `older_than_seconds`, then the least recently used
    ones until the rest has at most `max_bytes`. Returns the removed entries.

    Skips an entry that a run is writing. A run that reads a removed entry can still read it on systems that can remove open
    files. Raises InputError if a folder cannot be changed.
    """
    removed: list[EntryListing] = []
    with explain_failures(root):
        for folder in find_leftovers(root, is_any=max_bytes == 0):
            shutil.rmtree(folder, ignore_errors=True)
        entries = list_all_entries(root)
        total = sum(entry.size for entry in entries)
        for entry in entries:
            is_old = (
                older_than_seconds is not None and read_clock(entry.folder.parent) - entry.used > older_than_seconds
            )
            is_too_much = max_bytes is not None and total > max_bytes
            if (is_old or is_too_much or (max_bytes == 0 and not entry.size)) and remove_entry(entry):
                total -= entry.size
                removed.append(entry)
        remove_unused_locks(root)
    return removed


def remove_entry(entry: EntryListing) -> bool:
    """Removes an entry. Returns False if a run is writing it, or if it is no longer there."""
    parent = entry.folder.parent
    with hold_lock(parent / f"{entry.folder.name.removesuffix('.partial')}.lock") as is_held:
        if not is_held:
            return False
        # Rename it first: the remains of an interrupted removal must not look like an entry
        doomed = entry.folder.with_name(f".removing-{uuid.uuid4().hex}")
        try:
            rename(entry.folder, doomed)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise writing_error(parent, 0, error) from None
        shutil.rmtree(doomed, ignore_errors=True)
        return True


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Holds a lock within the block, and gives True; False if another process holds it. InputError if it cannot be made."""
    lock = Lock(path)
    try:
        lock.acquire(print_message)
    except (HeldError, FileNotFoundError):
        yield False
        return
    except OSError as error:
        raise writing_error(path.parent, 0, error) from None
    try:
        yield True
    finally:
        lock.release()


def remove_unused_locks(root: Path) -> None:
    """Removes the locks of entries that are no longer there, unless a process holds them."""
    for kind in KINDS.values():
        for path in (root / kind.subfolder).glob("*.lock"):
            key = path.name.removesuffix(".lock")
            if not any(path.with_name(name).exists() for name in (key, f"{key}.partial")):
                with hold_lock(path):  # whose end removes the file
                    pass
