"""Hidden states on disk: computed once, shared by all runs, never used unless every byte is as it was written.

An entry is a folder named by its key under the cache's folder:
    states.bin      [tokens, hidden] in 16 bit or fp32, feature after feature, no padding
    manifest.json   what the states are of, and the digest of every chunk; written last
Beside it KEY.lock, held while the entry is filled or removed, and KEY.partial, an entry that is being filled: its chunks
are noted in journals as they are written, so that an interrupted capture goes on where it was. A damaged entry becomes a
partial one again, with the chunks that are still good.
"""

import contextlib
import hashlib
import json
import mmap
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from hf_finetune.data.features import Features
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import cache_root, rename, sync_folder, write_atomically, writing_error

if TYPE_CHECKING:
    import torch

STATES, MANIFEST = "states.bin", "manifest.json"

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

CHUNK_TOKENS = 4096  # padded tokens of a forward of the capture: enough for full speed, little memory

# What a damaged JSON file can raise, here or where its values are used
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError)

# Gathered between two times that the mapped pages are given back. A kernel with large pages maps far more than is read:
# with 64 MB here, all of a 390 MB file came to count as this process's memory; giving back costs nothing measurable.
RESIDENT_BYTES = 2**20


# --- where a feature's states lie -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The order of all sequences' states in the file: longest first, equal ones once, whatever their split.

    U different sequences. offsets: [U + 1] tokens. source: split and number of each. starts: first token of each split's
    sequences [S]. digest: of all inputs; does not depend on how they were split.
    """

    offsets: "np.ndarray[Any, Any]"
    source: list[tuple[str, int]]
    starts: Mapping[str, "np.ndarray[Any, Any]"]
    digest: str

    @property
    def num_tokens(self) -> int:
        """Tokens in the file."""
        return int(self.offsets[-1])

    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of features that are computed and written together; a function of the features alone."""
        lengths, ranges, begin = np.diff(self.offsets), [], 0
        while begin < len(lengths):
            end = min(len(lengths), begin + max(1, CHUNK_TOKENS // max(1, int(lengths[begin]))))
            ranges.append((begin, end))
            begin = end
        return ranges


def make_layout(features: Mapping[str, Features]) -> Layout:
    """The layout of the features of all splits."""
    digests: list[bytes] = []
    places: list[tuple[str, int]] = []
    for split, rows in features.items():
        arrays = [np.asarray(rows.inputs[name]) for name in sorted(rows.inputs)]
        for row, (begin, end) in enumerate(zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True)):
            digest = hashlib.blake2b(digest_size=16)
            for array in arrays:
                digest.update(array[begin:end].tobytes())
            digests.append(digest.digest())
            places.append((split, row))
    words = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    lengths = np.concatenate([rows.sequence_lengths for rows in features.values()])
    order = np.lexsort((words[:, 1], words[:, 0], -lengths))
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (words[order][1:] != words[order][:-1]).any(1)
    first = order[is_new]
    offsets = np.concatenate([[0], np.cumsum(lengths[first])]).astype(np.int64)
    starts = np.empty(len(order), dtype=np.int64)
    starts[order] = offsets[:-1][np.cumsum(is_new) - 1]
    ends = np.cumsum([rows.num_sequences for rows in features.values()])
    names = sorted({name for rows in features.values() for name in rows.inputs})
    whole = hashlib.sha256(json.dumps(names).encode() + words[first].tobytes() + lengths[first].tobytes())
    return Layout(
        offsets=offsets,
        source=[places[index] for index in first.tolist()],
        starts=dict(zip(features, np.split(starts, ends[:-1]), strict=True)),
        digest=whole.hexdigest(),
    )


@dataclass(kw_only=True)
class StoredActivations:
    """The stored states of one split's sequences, as a memory map of the whole entry.

    starts: [S] first token of each sequence. gathered: bytes read since the mapped pages were given back.
    """

    path: Path
    kind: str  # float16, bfloat16 or float32
    hidden: int
    starts: "np.ndarray[Any, Any]"
    unreleased_bytes: int = 0
    mapped: Any = field(init=False, repr=False)
    array: "np.ndarray[Any, Any]" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with self.path.open("rb") as file:
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        kind: Any = np.uint16 if ITEM_BYTES[self.kind] == 2 else np.uint32  # bits: numpy has no bfloat16
        self.array = np.frombuffer(self.mapped, dtype=kind).reshape(-1, self.hidden)

    def gather(self, rows: "np.ndarray[Any, Any]", mask: "np.ndarray[Any, Any]") -> "torch.Tensor":
        """[B, T, H] states of the rows; where the mask [B, T] is false, those of some token."""
        import torch

        positions = np.where(mask, self.starts[rows][:, None] + np.arange(mask.shape[1]), 0)
        taken = self.array[positions]
        self.unreleased_bytes += taken.nbytes
        if (
            self.unreleased_bytes > RESIDENT_BYTES
        ):  # the file's pages count as this process's memory while they are mapped
            self.unreleased_bytes = 0
            if hasattr(self.mapped, "madvise"):
                self.mapped.madvise(mmap.MADV_DONTNEED)
        bits = torch.int16 if ITEM_BYTES[self.kind] == 2 else torch.int32
        return torch.from_numpy(taken).view(bits).view(getattr(torch, self.kind))


# --- entries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry: what it is of (`description`, whose digest is the key), and the form of its file."""

    root: Path
    description: Mapping[str, Any]
    layout: Layout
    kind: str
    hidden: int

    @property
    def key(self) -> str:
        """Digest of everything the states depend on."""
        content = {**self.description, "features": self.layout.digest, "kind": self.kind}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Where it is when it is whole."""
        return self.root / self.key

    @property
    def partial(self) -> Path:
        """Where it is while it is filled."""
        return self.root / f"{self.key}.partial"

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's states."""
        return self.hidden * ITEM_BYTES[self.kind]

    @property
    def num_bytes(self) -> int:
        """Bytes of the file."""
        return self.layout.num_tokens * self.token_bytes

    def is_complete(self) -> bool:
        """Whether the entry is there; says nothing of its bytes."""
        return (self.folder / MANIFEST).is_file()

    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of every chunk in the file, in bytes."""
        offsets = self.layout.offsets
        return [
            (int(offsets[begin]) * self.token_bytes, int(offsets[end]) * self.token_bytes)
            for begin, end in self.layout.chunks()
        ]


@contextlib.contextmanager
def lock_entry(root: Path, key: str, waiting: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Holds the entry's lock; where another process has it, says so and waits."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{key}.lock")
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            waiting(f"waiting for another run that fills {root / key}")
            lock.acquire()
    except OSError as error:
        raise InputError(f"cache.dir ({root}): cannot be made or written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def find_missing_chunks(entry: Entry) -> tuple[list[int], list[str]]:
    """The chunks that have to be computed, and what was found damaged. Under the lock.

    Where the entry is whole, bytes and manifest: none. Otherwise KEY.partial is there when this returns, with a file of the
    right size and a journal of the good chunks (perhaps of all, and only `finish` is to do).
    """
    spans = entry.spans()
    notes: list[str] = []
    try:
        if entry.folder.exists():
            digests = read_digests(entry.folder)
            good = find_good_chunks(entry.folder / STATES, spans, digests or read_journals(entry.folder))
            if is_intact(entry, good):
                os.utime(entry.folder / MANIFEST)  # `cache prune` removes what was not used for longest
                remove_journals(entry.folder)
                return [], notes
            notes.append(describe_damage(entry, len(spans) - len(good), len(spans)))
            write_journal(entry.folder, good)
            (entry.folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(entry.partial, ignore_errors=True)
            rename(entry.folder, entry.partial)
        else:
            good = find_good_chunks(entry.partial / STATES, spans, read_journals(entry.partial))
        make_partial(entry, good)
    except OSError as error:
        raise writing_error(entry.root, entry.num_bytes, error) from None
    return [number for number in range(len(spans)) if number not in good], notes


def is_intact(entry: Entry, good: Mapping[int, str]) -> bool:
    """Whether every byte of an entry's two files is as it was written."""
    if len(good) < len(entry.spans()) or (entry.folder / STATES).stat().st_size != entry.num_bytes:
        return False
    try:
        return (entry.folder / MANIFEST).read_bytes() == make_manifest(entry, good)
    except OSError:
        return False


def describe_damage(entry: Entry, num_damaged: int, num_chunks: int) -> str:
    """What a run says of a damaged entry."""
    if num_damaged:
        return f"{entry.folder} is damaged in {num_damaged} of {num_chunks} chunks; they are computed anew"
    return f"{entry.folder} has a file of the wrong size or a damaged manifest; it is written anew"


def make_partial(entry: Entry, good: Mapping[int, str]) -> None:
    """The folder of an entry that is being filled: the file in its full size, one journal of what is good."""
    entry.partial.mkdir(parents=True, exist_ok=True)
    try:
        with (entry.partial / STATES).open("ab") as file:
            file.truncate(entry.num_bytes)
            if hasattr(os, "posix_fallocate") and entry.num_bytes:  # a full disk is met now, not halfway
                os.posix_fallocate(file.fileno(), 0, entry.num_bytes)
    except OSError:
        if not good:
            shutil.rmtree(entry.partial, ignore_errors=True)
        raise
    write_journal(entry.partial, good)


def write_journal(folder: Path, good: Mapping[int, str]) -> None:
    """One journal of what is good instead of all there are."""
    lines = "".join(json.dumps([number, digest]) + "\n" for number, digest in sorted(good.items()))
    write_atomically(folder / "journal-0", lines.encode())
    remove_journals(folder, kept="journal-0")


def remove_journals(folder: Path, kept: str = "") -> None:
    """Removes the journals of a folder, but for one."""
    for path in folder.glob("journal-*"):
        if path.name != kept:
            path.unlink()


def fill_entry(entry: Entry, numbers: Iterable[int], process: int, compute: Callable[[int], bytes]) -> None:
    """Computes chunks and writes each to its place, then notes it in this process's journal."""
    spans = entry.spans()
    try:
        with (entry.partial / STATES).open("r+b") as file, (entry.partial / f"journal-{process}").open("a") as journal:
            for number in numbers:
                content = compute(number)
                assert len(content) == spans[number][1] - spans[number][0]
                file.seek(spans[number][0])
                file.write(content)
                file.flush()
                journal.write(json.dumps([number, hashlib.sha256(content).hexdigest()]) + "\n")
                journal.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise writing_error(entry.root, entry.num_bytes, error) from None


def finish_entry(entry: Entry) -> None:
    """Reads back what all processes wrote, writes the manifest, and renames the entry into place. Under the lock."""
    spans, digests = entry.spans(), read_journals(entry.partial)
    good = find_good_chunks(entry.partial / STATES, spans, digests)
    if len(good) < len(spans):
        raise InputError(
            f"{entry.partial}: {len(spans) - len(good)} chunks do not read back as they were written; is the disk sound? "
            "--cache.activations off trains without"
        )
    write_atomically(entry.partial / MANIFEST, make_manifest(entry, good))
    try:
        rename(entry.partial, entry.folder)
        remove_journals(entry.folder)
        sync_folder(entry.root)
    except OSError as error:
        raise writing_error(entry.root, entry.num_bytes, error) from None


def make_manifest(entry: Entry, digests: Mapping[int, str]) -> bytes:
    """The manifest of a whole entry, a function of the entry and its digests: a damaged one is told by comparing."""
    manifest = {
        "description": dict(entry.description),
        "features": entry.layout.digest,
        "kind": entry.kind,
        "hidden": entry.hidden,
        "num_features": len(entry.layout.source),
        "num_tokens": entry.layout.num_tokens,
        "size": entry.num_bytes,
        "spans": entry.spans(),
        "digests": [digest for _, digest in sorted(digests.items())],
    }
    return json.dumps(manifest, default=str).encode()


def find_good_chunks(path: Path, spans: list[tuple[int, int]], digests: Mapping[int, str]) -> dict[int, str]:
    """Number and digest of every chunk whose bytes in the file have the digest that was noted."""
    good: dict[int, str] = {}
    with contextlib.suppress(OSError), path.open("rb") as file:
        for number, (begin, end) in enumerate(spans):
            if number in digests:
                file.seek(begin)
                if hashlib.sha256(file.read(end - begin)).hexdigest() == digests[number]:
                    good[number] = digests[number]
    return good


def read_digests(folder: Path) -> dict[int, str]:
    """The digests in a manifest, by chunk; none where it cannot be read."""
    try:
        return dict(enumerate(map(str, json.loads((folder / MANIFEST).read_bytes())["digests"])))
    except (OSError, *MALFORMED):
        return {}


def read_journals(folder: Path) -> dict[int, str]:
    """The digests that the journals of a partial entry note; a line that was cut off counts as not written."""
    digests: dict[int, str] = {}
    for path in sorted(folder.glob("journal-*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(*MALFORMED):
                number, digest = json.loads(line)
                digests[int(number)] = str(digest)
    return digests


# --- hf-finetune cache ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FoundEntry:
    """An entry as the cache's folder shows it. used: seconds since the epoch."""

    folder: Path
    size: int
    used: float
    manifest: Mapping[str, Any]

    @property
    def is_partial(self) -> bool:
        """Whether its capture was interrupted, or is under way."""
        return self.folder.name.endswith(".partial")


def activations_dir(folder: str | None) -> Path:
    """The folder of the entries, under cache.dir (`folder`) or its default."""
    return cache_root(folder) / "activations"


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of an entry; empty where it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return manifest if isinstance(manifest["description"], dict) else {}
    except (OSError, *MALFORMED):
        return {}


def list_entries(root: Path) -> list[FoundEntry]:
    """All entries, the least recently used first."""
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        if re.fullmatch(r"[0-9a-f]{32}(\.partial)?", folder.name) and folder.is_dir():
            with contextlib.suppress(FileNotFoundError):  # finished or removed while we look
                files = [path.stat() for path in folder.iterdir()]
                used = max((status.st_mtime for status in files), default=folder.stat().st_mtime)
                size = sum(status.st_size for status in files)
                found.append(FoundEntry(folder=folder, size=size, used=used, manifest=read_manifest(folder)))
    return sorted(found, key=lambda entry: entry.used)


def find_damage(found: FoundEntry) -> str | None:
    """Why an entry is not whole, or None where every byte is as it was written."""
    if found.is_partial:
        return "is not finished; the run that needs it goes on with it"
    try:
        spans = [(int(begin), int(end)) for begin, end in found.manifest["spans"]]
        digests = dict(enumerate(found.manifest["digests"]))
        size = int(found.manifest["size"])
        if [0, *(end for _, end in spans)] != [*(begin for begin, _ in spans), size] or len(digests) != len(spans):
            raise ValueError
        states = found.folder / STATES
        if not states.is_file() or states.stat().st_size != size:
            return f"has {states.stat().st_size if states.is_file() else 0} bytes of states instead of {size}"
        damaged = len(spans) - len(find_good_chunks(states, spans, digests))
    except MALFORMED:
        return "has no manifest that can be read"
    return f"is damaged in {damaged} of {len(spans)} chunks" if damaged else None


def prune_entries(root: Path, *, max_bytes: int | None, older_than_seconds: float | None) -> list[FoundEntry]:
    """Removes entries not used for so long, then the least recently used until the rest fits; returns the removed.

    One that a run is filling is left alone; one that a run reads stays readable to it where files can be removed while open.
    """
    for left in root.glob(".removing-*"):
        shutil.rmtree(left, ignore_errors=True)
    entries = list_entries(root)
    total = sum(entry.size for entry in entries)
    removed = []
    for entry in entries:
        is_old = older_than_seconds is not None and time.time() - entry.used > older_than_seconds
        if not is_old and (max_bytes is None or total <= max_bytes):
            continue
        lock_path = root / f"{entry.folder.name.removesuffix('.partial')}.lock"
        with contextlib.suppress(Timeout, FileNotFoundError), FileLock(lock_path, timeout=0):
            # Out of sight first: a removal that is interrupted must not look like an entry
            doomed = entry.folder.with_name(f".removing-{uuid.uuid4().hex}")
            try:
                rename(entry.folder, doomed)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise writing_error(root, 0, error) from None
            shutil.rmtree(doomed, ignore_errors=True)
            total -= entry.size
            removed.append(entry)
    return removed
