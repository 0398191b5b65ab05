"""Files that are there whole or not at all, whatever stops the process or the disk."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from hf_finetune.system.errors import InputError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HashingFile:
    """A file that is written to, and the digest of what was: what the disk gives back is compared with it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, content: Any) -> int:
        """Writes all of it."""
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        """Gives to the system what is still held back."""
        self.file.flush()


def write_atomically(path: Path, content: bytes) -> None:
    """The file has its old content or all of the new. InputError where the disk is full or read-only."""
    replace_atomically(path, lambda file: file.write(content), len(content))


def replace_atomically(path: Path, write: Callable[[BinaryIO], object], num_bytes: int) -> str:
    """Has `write` fill a temporary file, syncs it, renames it to `path` and syncs the folder; returns the sha256 of what
    was written. `num_bytes` are checked to be free. InputError where that cannot be done; `path` is as it was then."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        if shutil.disk_usage(path.parent).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with temporary.open("wb") as file:
            hashing = HashingFile(file)
            write(cast(BinaryIO, hashing))
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        remove_quietly(temporary)
        raise writing_error(path.parent, num_bytes, error) from None
    return hashing.digest.hexdigest()


def rename(source: Path, target: Path) -> None:
    """os.replace, which a file system may say it did and not have done."""
    os.replace(source, target)
    if source.exists():
        raise OSError(errno.EIO, f"{source.name} is still there after it was renamed")


def remove_quietly(path: Path) -> None:
    """Removes a file that no one needs, if the disk lets us; what stays behind is removed by a later save."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in a folder durable, where the system can sync a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """Digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def writing_error(folder: Path, num_bytes: int, error: Exception) -> InputError:
    """What a failed write means to the user."""
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, OSError) and cause.errno not in FULL_DISK:
        return InputError(f"{folder}: cannot be written: {cause.strerror}")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if (
        cause is None and free > 2 * num_bytes
    ):  # tokenizers and safetensors say a full disk without an OSError; it is none
        return InputError(f"{folder}: cannot be written: {' '.join(str(error).split()) or type(error).__name__}")
    return InputError(
        f"{folder}: the disk is full: {num_bytes / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free; make "
        "room and run the same command again, the run goes on from its last checkpoint"
    )


def cache_root(folder: str | None) -> Path:
    """The folder of all caches: `folder` (cache.dir) if it is given, else HF_FINETUNE_CACHE, else ~/.cache/hf_finetune."""
    return Path(folder or os.environ.get("HF_FINETUNE_CACHE") or Path.home() / ".cache" / "hf_finetune")


def digest_tensors(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> str:
    """Digest of the name, type, shape and bytes of tensors."""
    digest = hashlib.sha256()
    for name in names:
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
