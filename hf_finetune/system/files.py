"""Files that are written completely or not at all, and digests of what was written."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from hf_finetune.system.errors import AGAIN, InputError, first_line

if TYPE_CHECKING:
    import torch

SECONDS_TO_SETTLE = 2.0  # more than the coarsest times of change that file systems keep
CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # file systems that know no reserved space
BYTES_FOR_A_THREAD = 2**20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HashingFile:
    """A file open for writing that computes the sha256 of what is written: a later reader can detect damage on the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, content: Any) -> int:
        """Writes bytes, or anything with the buffer interface. Large ones are hashed by a thread while they are written."""
        if memoryview(content).nbytes < BYTES_FOR_A_THREAD:
            self.digest.update(content)
            return self.file.write(content)
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(self.digest.update, content)
            num_written = self.file.write(content)
            hashing.result()
        return num_written

    def flush(self) -> None:
        """Passes buffered bytes on to the operating system."""
        self.file.flush()

    @property
    def closed(self) -> bool:
        """True if the file is closed. pyarrow asks for it."""
        return self.file.closed


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file: it has either its old content or all of the new. InputError if the disk is full or read-only."""
    replace_atomically(path, lambda file: file.write(content), len(content))


def replace_atomically(path: Path, write: Callable[[BinaryIO], object], num_bytes: int) -> str:
    """Replaces a file with what `write` writes, and returns its sha256 in hexadecimal.

    Writes a temporary file, syncs it, renames it to `path` and syncs the folder. Raises InputError if there are fewer than
    `num_bytes` free, or if the file cannot be written; the file at `path` is unchanged then.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        if shutil.disk_usage(path.parent).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with temporary.open("wb") as file:
            hashing_file = HashingFile(file)
            write(cast(BinaryIO, hashing_file))
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        remove_quietly(temporary)
        raise writing_error(path.parent, num_bytes, error) from None
    return hashing_file.digest.hexdigest()


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
