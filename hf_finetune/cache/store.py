"""Activations on disk: computed once, shared by all runs, and never used unless every byte is as it was written.

An entry is a folder, named by its key, under the cache's folder:
    activations.bin  [tokens, hidden] in 16 bit or fp32, sequence after sequence, without padding
    manifest.json    what the activations depend on, and the digest of every chunk; written last
Next to it lie KEY.lock, which is held while the entry is written or removed, and KEY.partial, an entry that is being written.
Its chunks are noted in journals as they are written, so that an interrupted capture resumes where it stopped. A damaged entry
becomes a partial one again, and keeps the chunks that are still good.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.cache.layout import Layout
from hf_finetune.cache.reader import ITEM_BYTES
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import (
    cache_root,
    explain_failures,
    open_regular,
    read_umask,
    remove_quietly,
    rename,
    sync_folder,
    write_atomically,
    writing_error,
)
from hf_finetune.system.locks import Lock

ACTIVATIONS, MANIFEST = "activations.bin", "manifest.json"

# What a damaged JSON file can raise when it is read or its values are used
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError)


def activations_dir(folder: str | None) -> Path:
    """Returns the folder of the entries under cache.dir (`folder`), or under its default."""
    return cache_root(folder) / "activations"


# --- entries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the cache.

    Args:
        root: The folder of all entries.
        description: What the activations depend on besides the features. Its digest is part of the key.
        layout: The order of the sequences in the file.
        dtype: float16, bfloat16 or float32.
        hidden: Size H of a hidden state.
    """

    root: Path
    description: Mapping[str, Any]
    layout: Layout
    dtype: str
    hidden: int

    @property
    def key(self) -> str:
        """The digest of everything that the activations depend on."""
        content = {**self.description, "features": self.layout.digest, "dtype": self.dtype}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """The folder of the complete entry."""
        return self.root / self.key

    @property
    def partial(self) -> Path:
        """The folder of the entry while it is being written."""
        return self.root / f"{self.key}.partial"

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's activations."""
        return self.hidden * ITEM_BYTES[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Bytes of the file."""
        return self.layout.num_tokens * self.token_bytes

    def is_complete(self) -> bool:
        """True if the entry was written to its end. Its bytes are not checked. False if the disk does not tell."""
        return os.path.isfile(self.folder / MANIFEST)

    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of every chunk in the file, in bytes."""
        offsets, size = self.layout.offsets, self.token_bytes
        return [(int(offsets[begin]) * size, int(offsets[end]) * size) for begin, end in self.layout.chunks()]


@contextlib.contextmanager
def lock_entry(root: Path, key: str, say: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Holds the lock of an entry. If another process holds it, passes a line about it to `say` and waits.

    Raises InputError if the folder cannot be created or written.
    """
    lock = Lock(root / f"{key}.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(say, seconds=math.inf, waiting=f"waiting for another run that is writing {root / key}")
    except OSError as error:
        raise InputError(f"cache.dir ({root}): cannot be created or written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


# --- writing, under the lock ----------------------------------------------------------------------------------------


def find_missing_chunks(entry: Entry) -> tuple[list[int], list[str]]:
    """Returns the numbers of the chunks that have to be computed, and lines about damage.

    If no byte of the entry and its manifest is damaged, there are none. Otherwise KEY.partial exists afterwards, with a file
    of the right size and a journal of the good chunks. If all chunks are good, only `finish_entry` remains to be done.
    Raises InputError if the disk is full or cannot be written.
    """
    spans = entry.spans()
    notes: list[str] = []
    try:
        if entry.folder.exists():
            digests = read_digests(entry.folder)
            good = find_good_chunks(entry.folder / ACTIVATIONS, spans, digests or read_journals(entry.folder))
            if is_intact(entry, good):
                with contextlib.suppress(OSError):  # another user's
                    os.utime(entry.folder / MANIFEST)  # `cache prune` removes the least recently used entries first
                remove_journals(entry.folder)
                return [], notes
            notes.append(describe_damage(entry, len(spans) - len(good), len(spans)))
            write_journal(entry.folder, good)
            (entry.folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(entry.partial, ignore_errors=True)
            rename(entry.folder, entry.partial)
        else:
            good = find_good_chunks(entry.partial / ACTIVATIONS, spans, read_journals(entry.partial))
        make_partial(entry, good)
    except OSError as error:
        raise writing_error(entry.root, entry.num_bytes, error) from None
    return [number for number in range(len(spans)) if number not in good], notes


def is_intact(entry: Entry, good: Mapping[int, str]) -> bool:
    """True if every byte of an entry's two files is as it was written. good: its good chunks and their digests."""
    if len(good) < len(entry.spans()) or (entry.folder / ACTIVATIONS).stat().st_size != entry.num_bytes:
        return False
    try:
        return (entry.folder / MANIFEST).read_bytes() == make_manifest(entry, good)
    except OSError:
        return False


def describe_damage(entry: Entry, num_damaged: int, num_chunks: int) -> str:
    """Returns the line that a run prints about a damaged entry."""
    if num_damaged:
        return f"{entry.folder} is damaged in {num_damaged} of {num_chunks} chunks; they are computed again"
    return f"{entry.folder} has a file of the wrong size or a damaged manifest; it is written again"


def make_partial(entry: Entry, good: Mapping[int, str]) -> None:
    """Makes the folder of a partial entry: the file in its full size, and one journal of the good chunks."""
    entry.partial.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a file system without rights; check_writers() looks at what others may write
        entry.partial.chmod(0o700)  # while it is written, nobody else can put a link there
    try:
        with open_regular(entry.partial / ACTIVATIONS, os.O_RDWR | os.O_CREAT) as file:
            file.truncate(entry.num_bytes)
            if hasattr(os, "posix_fallocate") and entry.num_bytes:  # a full disk is an error now, not halfway
                os.posix_fallocate(file.fileno(), 0, entry.num_bytes)
    except OSError:
        if not good:
            shutil.rmtree(entry.partial, ignore_errors=True)
        raise
    write_journal(entry.partial, good)


def fill_entry(entry: Entry, numbers: Iterable[int], process: int, compute: Callable[[int], bytes]) -> None:
    """Computes the chunks `numbers`, writes each to its place in the file, and notes it in the journal of this process.

    Raises InputError if the disk is full or cannot be written.
    """
    spans = entry.spans()
    try:
        with (
            open_regular(entry.partial / ACTIVATIONS, os.O_RDWR) as file,
            (entry.partial / f"journal-{process}").open("a") as journal,
        ):
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
    """Reads back what all processes wrote, writes the manifest, and renames the entry to its final name.

    Raises InputError if a chunk does not read back as it was written, or if the disk is full or cannot be written.
    """
    with explain_failures(entry.root):
        spans, digests = entry.spans(), read_journals(entry.partial)
    good = find_good_chunks(entry.partial / ACTIVATIONS, spans, digests)
    if len(good) < len(spans):
        raise InputError(
            f"{entry.partial}: {len(spans) - len(good)} chunks do not read back as they were written; check the disk, or "
            "train without the cache: set cache.activations to off"
        )
    write_atomically(entry.partial / MANIFEST, make_manifest(entry, good))
    try:
        share_with_readers(entry.partial)
        rename(entry.partial, entry.folder)
        remove_journals(entry.folder)
        sync_folder(entry.root)
    except OSError as error:
        raise writing_error(entry.root, entry.num_bytes, error) from None


def share_with_readers(folder: Path) -> None:
    """Lets other users read an entry if the umask does, and no one but its owner write it."""
    readable = 0o755 & ~read_umask()
    with contextlib.suppress(OSError):  # a file system without rights
        for path in folder.iterdir():
            path.chmod(readable & 0o666)
        folder.chmod(readable)


def is_usable_unlocked(entry: Entry) -> bool:
    """True if an entry is intact in a folder that this user cannot write, as in the cache of another user: no lock can be made
    there."""
    can_write = os.access(entry.root, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    if can_write or not entry.is_complete():
        return False
    try:
        return is_intact(entry, find_good_chunks(entry.folder / ACTIVATIONS, entry.spans(), read_digests(entry.folder)))
    except OSError:
        return False


# --- manifest and journals ------------------------------------------------------------------------------------------


def make_manifest(entry: Entry, digests: Mapping[int, str]) -> bytes:
    """Returns the manifest of a complete entry. It depends on the entry and its digests alone, so that a damaged manifest is
    recognized by comparing it."""
    manifest = {
        "description": dict(entry.description),
        "features": entry.layout.digest,
        "dtype": entry.dtype,
        "hidden": entry.hidden,
        "num_sequences": len(entry.layout.source),
        "num_tokens": entry.layout.num_tokens,
        "size": entry.num_bytes,
        "spans": entry.spans(),
        "digests": [digest for _, digest in sorted(digests.items())],
    }
    return json.dumps(manifest, default=str).encode()


def find_good_chunks(path: Path, spans: list[tuple[int, int]], digests: Mapping[int, str]) -> dict[int, str]:
    """Returns number and digest of every chunk whose bytes in the file match its digest."""
    good: dict[int, str] = {}
    with contextlib.suppress(OSError), open_regular(path, os.O_RDONLY) as file:
        for number, (begin, end) in enumerate(spans):
            if number in digests:
                file.seek(begin)
                if hashlib.sha256(file.read(end - begin)).hexdigest() == digests[number]:
                    good[number] = digests[number]
    return good


def read_digests(folder: Path) -> dict[int, str]:
    """Returns the digests in a manifest by chunk number; none if it cannot be read."""
    try:
        return dict(enumerate(map(str, json.loads((folder / MANIFEST).read_bytes())["digests"])))
    except (OSError, *MALFORMED):
        return {}


def read_journals(folder: Path) -> dict[int, str]:
    """Returns the digests in the journals of a partial entry by chunk number. A line that was cut off does not count."""
    digests: dict[int, str] = {}
    for path in sorted(folder.glob("journal-*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(*MALFORMED):
                number, digest = json.loads(line)
                digests[int(number)] = str(digest)
    return digests


def write_journal(folder: Path, good: Mapping[int, str]) -> None:
    """Replaces all journals by one that lists the good chunks."""
    lines = "".join(json.dumps([number, digest]) + "\n" for number, digest in sorted(good.items()))
    write_atomically(folder / "journal-0", lines.encode())
    remove_journals(folder, keep="journal-0")


def remove_journals(folder: Path, keep: str = "") -> None:
    """Removes the journals of a folder, except the one named `keep`."""
    for path in folder.glob("journal-*"):
        if path.name != keep:
            remove_quietly(path)
