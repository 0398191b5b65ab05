"""Files that are written completely or not at all, and digests of what was written."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from hf_finetune.system.errors import AGAIN, InputError, first_line

if TYPE_CHECKING:
    import torch

SECONDS_TO_SETTLE = 2.0  # more than the coarsest times of change that file systems keep
CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # file systems that know no reserved space
BLOCK_BYTES = 2**20  # what is written and hashed at once
BLOCKS_TO_HASH = 32  # that are written and may wait for their digest
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written to a file.

    sha256: In hexadecimal, by which later readers detect damage. crc32: By which the writer reads the file back, in a fraction of
    the time; it misses one damage in four billion.
    """

    size: int
    sha256: str
    crc32: int


class HashingFile:
    """A file open for writing, which computes the digests of what is written. A thread does so, some blocks after the writing; a
    file smaller than a block needs no thread.

    A context manager, which waits for that thread. Used by one thread.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size, self.sha256, self.crc32 = 0, hashlib.sha256(), 0
        self.block = bytearray()  # gathered from small writes, and not yet written
        self.pool = ThreadPoolExecutor(1)  # which starts its thread when it gets its first block
        self.hashing = deque[Future[None]]()

    def __enter__(self) -> "HashingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def write(self, content: Any) -> int:
        """Writes bytes, or anything with the buffer interface."""
        view = memoryview(content).cast("B")
        for start in range(0, len(view), BLOCK_BYTES):
            self.block += view[start : start + BLOCK_BYTES]
            if len(self.block) >= BLOCK_BYTES:
                self.write_block()
        return len(view)

    def write_block(self) -> None:
        """Writes the gathered block. It is hashed after those before it, of which a few may wait."""
        block, self.block = self.block, bytearray()
        if len(block) < BLOCK_BYTES and not self.hashing:
            self.hash_block(block)
        else:
            self.hashing.append(self.pool.submit(self.hash_block, block))
        if len(self.hashing) > BLOCKS_TO_HASH:
            self.hashing.popleft().result()
        self.file.write(block)

    def hash_block(self, block: bytearray) -> None:
        """Adds a block to the digests. Called in the order of the blocks: by the one thread of the pool, or if nothing waits."""
        self.size += len(block)
        self.sha256.update(block)
        self.crc32 = zlib.crc32(block, self.crc32)

    def flush(self) -> None:
        """Passes what is gathered on to the operating system."""
        if self.block:
            self.write_block()
        self.file.flush()

    def describe(self) -> Written:
        """Returns what was written until the last flush, when its digests are computed."""
        while self.hashing:
            self.hashing.popleft().result()
        return Written(size=self.size, sha256=self.sha256.hexdigest(), crc32=self.crc32)

    @property
    def closed(self) -> bool:
        """True if the file is closed. pyarrow asks for it."""
        return self.file.closed


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file: it has either its old content or all of the new. InputError if the disk is full or read-only."""
    replace_atomically(path, lambda file: file.write(content), len(content))


def replace_atomically(path: Path, write: Callable[[BinaryIO], object], num_bytes: int) -> Written:
    """Replaces a file with what `write` writes, and returns its size and digests.

    Writes a temporary file, syncs it, renames it to `path` and syncs the folder. Raises InputError if there are fewer than
    `num_bytes` free, or if the file cannot be written; the file at `path` is unchanged then.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        if shutil.disk_usage(path.parent).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with temporary.open("wb") as file, HashingFile(file) as hashing_file:
            write(cast(BinaryIO, hashing_file))
            hashing_file.flush()
            os.fsync(file.fileno())
            written = hashing_file.describe()
        rename(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        remove_quietly(temporary)
        raise writing_error(path.parent, num_bytes, error) from None
    return written


def find_difference(path: Path, written: Written) -> str | None:
    """Returns how a file differs from what was written to it, or None. Reads it."""
    size = crc32 = 0
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES // 4):
                size, crc32 = size + len(block), zlib.crc32(block, crc32)
    except FileNotFoundError:
        return "is missing"
    if size != written.size:
        return f"has {size} bytes instead of {written.size}"
    return None if crc32 == written.crc32 else "has other bytes than were written"


def check_room(folder: Path, num_bytes: int) -> None:
    """Raises InputError if a file of this size cannot be written to a folder: reserves its space, and gives it back."""
    path = folder / ".room.writing"
    try:
        if shutil.disk_usage(folder).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with path.open("wb") as file:
            file.write(b"room")
            file.flush()
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, num_bytes + 1)
                except OSError as error:
                    if error.errno not in CANNOT_RESERVE:
                        raise
            os.fsync(file.fileno())
    except OSError as error:
        raise writing_error(folder, num_bytes, error) from None
    finally:
        remove_quietly(path)


def rename(source: Path, target: Path) -> None:
    """Renames like os.replace, and raises OSError if the file system reported success without renaming."""
    os.replace(source, target)
    if source.exists():
        raise OSError(errno.EIO, f"{source.name} is still there after it was renamed")


def remove_quietly(path: Path) -> None:
    """Removes a temporary file. If the disk does not allow it, a later save removes it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def is_missing(path: Path) -> bool:
    """True if there is certainly nothing at `path`. False if a file system that fails does not tell: what looks like a leftover
    must stay then."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def explain_failures(folder: Path) -> Iterator[None]:
    """Makes an InputError of any OSError within the block, which reads and writes files in the folder."""
    try:
        yield
    except OSError as error:
        raise disk_error(folder, error) from None


def read_clock(folder: Path) -> float:
    """Returns the time by the clock of a folder's file system, to compare the times of files with: a server's clock may differ
    from that of this machine, which is taken if the folder cannot be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in a folder durable. Windows cannot sync a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_umask() -> int:
    """Returns the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def open_regular(path: Path, flags: int) -> BinaryIO:
    """Opens a file. OSError if it is a link, a pipe, a device or a folder."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a plain file", str(path))
    return os.fdopen(descriptor, "rb" if flags & 3 == os.O_RDONLY else "r+b")


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_unchanged(path: Path) -> str:
    """As hash_file(), once in a process as long as the file's size and time of change stay the same.

    For files of the user's. A file that has just been written is read each time: its time may not show another change.
    """
    status = path.stat()
    if time.time() - status.st_mtime < SECONDS_TO_SETTLE:
        return hash_file(path)
    return hash_version(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1000)
def hash_version(path: Path, *_: int) -> str:
    """Returns hash_file(). The other arguments tell versions of the file apart."""
    return hash_file(path)


def disk_error(folder: Path, error: OSError) -> InputError:
    """Returns the error for a disk that could not be read or written, with the file, if it is known, or else the folder."""
    if error.errno is None and error.filename is None:  # of a network, or of code that raises it for reasons of its own
        return InputError(f"{type(error).__name__}: {first_line(error)}; {AGAIN} when that is mended")
    place, reason = error.filename or folder, error.strerror or first_line(error)
    if error.errno in FULL_DISK:
        return InputError(f"{place}: cannot be written: {reason}; free some space, and {AGAIN}")
    return InputError(f"{place}: cannot be read or written: {reason}; {AGAIN} when it can be")


def writing_error(folder: Path, num_bytes: int, error: Exception) -> InputError:
    """Returns the error that tells the user why `num_bytes` could not be written to a folder."""
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, OSError) and cause.errno not in FULL_DISK:
        return InputError(f"{folder}: cannot be written: {cause.strerror or first_line(cause)}")
    free = measure_free(folder)
    # tokenizers and safetensors report a full disk without an OSError; with this much free, it is something else
    if cause is None and free > 2 * num_bytes:
        return InputError(f"{folder}: cannot be written: {' '.join(str(error).split()) or type(error).__name__}")
    return InputError(
        f"{folder}: the disk is full: {num_bytes / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free; free some "
        "space and run the same command again: the run resumes from its last checkpoint"
    )


def measure_free(folder: Path) -> int:
    """Returns the free bytes on the disk of a folder, or of the place where it would be made; 0 if the disk does not tell."""
    for parent in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(parent).free
    return 0


def cache_root(folder: str | None = None) -> Path:
    """The folder of the caches: `folder` (cache.dir) if given, else HF_FINETUNE_CACHE, else ~/.cache/hf_finetune.

    Tables lie in its subfolder `tables`, encoded text in `encoded`, cached hidden states in `activations`. All can be made again.
    Raises InputError if none is given and the user has no home folder, as in a container with a random user id.
    """
    if given := folder or os.environ.get("HF_FINETUNE_CACHE"):
        return Path(given)
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or home == "/" != os.environ.get("HOME"):  # "/" for an empty HOME
        raise InputError(
            "cache.dir (null): this user has no home folder, where the caches would be; set cache.dir, or the environment "
            "variable HF_FINETUNE_CACHE, to a folder"
        )
    return Path(home) / ".cache" / "hf_finetune"


def digest_tensors(tensors: "Mapping[str, torch.Tensor]", names: Iterable[str]) -> str:
    """Returns the sha256 of the named tensors, in hexadecimal: of their names, dtypes, shapes and bytes, in this order."""
    import torch

    digest = hashlib.sha256()
    for name in names:
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
