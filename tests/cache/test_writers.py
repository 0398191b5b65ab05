"""Caches that users share: read without the right to write, and not used if another user could have written them."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.entries import assert_intact, build, make_entry
from support.other_user import OTHER_USER, run_as_other_user

from hf_finetune.cache import capture, store
from hf_finetune.cache.store import Entry
from hf_finetune.config.sections import CacheConfig
from hf_finetune.system.errors import InputError
from hf_finetune.system.writers import check_writers, describe_other_writer

pytestmark = [
    pytest.mark.usefixtures("small_chunks"),
    pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights"),
]
needs_root = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can be another user")


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder for activations that other users can reach, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="hf-finetune-test-"))
    folder.chmod(0o755)
    (folder / "activations").mkdir(mode=0o755)
    yield folder / "activations"
    shutil.rmtree(folder)


def complete(entry: Entry) -> str:
    """Has a run complete the entry, which must be there already. Returns "used", or the error."""
    runtime = SimpleNamespace(on_main=lambda do: do(), say=print)
    run: Any = SimpleNamespace(runtime=runtime, config=SimpleNamespace(cache=CacheConfig()))
    try:
        capture.capture_missing(run, None, entry)  # type: ignore[arg-type]
    except InputError as error:
        return str(error)
    return "used"


@needs_root
def test_a_warm_cache_of_another_user_is_read_without_a_lock(root: Path) -> None:
    """The attack: "Permission denied", since KEY.lock could not be made."""
    entry = make_entry(root)
    build(entry)
    before = sorted(root.rglob("*"))
    assert run_as_other_user(lambda: complete(entry)) == "used"
    assert sorted(root.rglob("*")) == before
    content = bytearray((entry.folder / store.ACTIVATIONS).read_bytes())
    content[3] ^= 1
    (entry.folder / store.ACTIVATIONS).write_bytes(content)
    answer = run_as_other_user(lambda: complete(entry))
    assert answer.startswith(f"cache.dir ({root}): cannot be created or written")


@needs_root
def test_what_another_user_wrote_into_a_shared_folder_is_refused(root: Path) -> None:
    root.chmod(0o1777)
    entry = make_entry(root)
    run_as_other_user(lambda: build(entry) and None)
    assert entry.is_complete()
    message = rf"another user could have written {entry.folder} \(its owner is the user {OTHER_USER}\)"
    with pytest.raises(InputError, match=message):
        check_writers(entry.root, (entry.folder, entry.partial))
    check_writers(entry.root, (entry.folder, entry.partial), trust_others=True)
    os.chown(entry.folder, 0, 0)  # the folder is ours, a file in it is not
    with pytest.raises(InputError, match=r"another user could have written .*\.(bin|json) \(its owner"):
        check_writers(entry.root, (entry.folder, entry.partial))


@pytest.mark.parametrize("place", ["root", "entry", "file", "sticky root"])
def test_what_everyone_may_write_is_refused(root: Path, place: str) -> None:
    entry = make_entry(root)
    build(entry)
    check_writers(entry.root, (entry.folder, entry.partial))
    if place == "sticky root":  # such as /tmp
        root.chmod(0o1777)
        check_writers(entry.root, (entry.folder, entry.partial))
        return
    {"root": root, "entry": entry.folder, "file": entry.folder / store.ACTIVATIONS}[place].chmod(0o777)
    with pytest.raises(
        InputError, match=r"\(everyone may write it\); remove it, .* set cache\.trust_other_users to true"
    ):
        check_writers(entry.root, (entry.folder, entry.partial))


@pytest.mark.parametrize("place", ["entry", "partial"])
def test_a_link_in_place_of_a_folder_or_a_file_is_not_followed(root: Path, tmp_path: Path, place: str) -> None:
    """The attack: KEY.partial/activations.bin was a link to a file of the victim's, which was overwritten."""
    entry, victim = make_entry(root), tmp_path / "victim"
    victim.write_bytes(b"precious")
    entry.partial.mkdir()
    (entry.partial / store.ACTIVATIONS).symlink_to(victim)
    with pytest.raises(InputError, match=r"\(it is a symbolic link\)"):
        check_writers(entry.root, (entry.folder, entry.partial))
    with pytest.raises(InputError):  # also if the link came after that check
        build(entry)
    assert victim.read_bytes() == b"precious"
    shutil.rmtree(entry.partial, ignore_errors=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    {"entry": entry.folder, "partial": entry.partial}[place].symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"\(it is a symbolic link\)"):
        check_writers(entry.root, (entry.folder, entry.partial))


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_only_the_owner_may_write_an_entry_whatever_the_umask(root: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        entry = make_entry(root)
        missing, _ = store.find_missing_chunks(entry)
        assert stat.S_IMODE(entry.partial.stat().st_mode) == 0o700
        assert len(build(entry)) == len(missing)
    finally:
        os.umask(previous)
    assert_intact(entry)
    for path in (entry.folder, *entry.folder.iterdir()):
        assert path.stat().st_mode & 0o022 == 0
        assert bool(path.stat().st_mode & 0o044) == (umask != 0o077)
    check_writers(entry.root, (entry.folder, entry.partial))


def test_the_private_group_of_a_user_may_write() -> None:
    """Systems with umask 002 give each user a group; folders of earlier versions have its right to write."""
    status: Any = SimpleNamespace(st_mode=stat.S_IFDIR | 0o775, st_uid=5, st_gid=os.getegid())
    assert describe_other_writer(status, {5}) == ""
    status.st_gid = os.getegid() + 1
    assert describe_other_writer(status, {5}) == f"the group {status.st_gid} may write it"
    status.st_mode = stat.S_IFDIR | 0o755
    assert describe_other_writer(status, {5}) == ""
    assert describe_other_writer(status, {6}) == "its owner is the user 5"
