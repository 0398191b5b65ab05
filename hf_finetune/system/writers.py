"""Who could have written an entry of a cache: what other users of the machine could have written is not used."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_finetune.system.errors import InputError


def check_writers(root: Path, folders: Sequence[Path], *, trust_others: bool = False) -> None:
    """Raises InputError if another user could have written one of the folders, a file in it, or the folders that it lies in.

    Trusted are this user, root, and the owner of the folder of the caches, which the user names or has made. Digests show damage,
    not forgery: whoever writes an entry can write its digests. Windows is not checked.

    Args:
        root: The folder of all entries of this kind, in the folder of the caches.
        folders: The folders of an entry. They need not exist.
        trust_others: cache.trust_other_users.
    """
    if trust_others or not hasattr(os, "geteuid") or not root.is_dir():
        return
    trusted = {0, os.geteuid(), root.parent.stat().st_uid}
    for path, status in list_statuses(root, folders):
        if reason := describe_other_writer(status, trusted):
            raise InputError(
                f"cache.dir ({root.parent}): another user could have written {path} ({reason}); remove it, choose another "
                "folder, or set cache.trust_other_users to true"
            )


def list_statuses(root: Path, folders: Sequence[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields the paths that an entry depends on with their status: the folders of the caches, which may be links, and what is in
    the entry, which may not."""
    for folder in (root.parent, root):
        yield folder, folder.stat()
    for folder in folders:
        if os.path.lexists(folder):
            yield folder, folder.lstat()
            if folder.is_dir() and not folder.is_symlink():
                yield from ((path, path.lstat()) for path in folder.iterdir())


def describe_other_writer(status: os.stat_result, trusted: set[int]) -> str:
    """Returns how a user who is not trusted could have written a file or folder, "" if none could.

    A folder with the sticky bit, such as /tmp, lets everyone add entries, and only owners change them. The group of this user's
    own files is trusted, since systems that let groups write by default (umask 002) give each user a group.
    """
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if status.st_uid not in trusted:
        return f"its owner is the user {status.st_uid}"
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return "everyone may write it"
    if status.st_mode & stat.S_IWGRP and status.st_gid not in (0, os.getegid()):
        return f"the group {status.st_gid} may write it"
    return ""
