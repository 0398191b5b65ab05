"""A run without a home folder, temporary files, a cache that can be written, or removals that succeed."""

import shutil

import pytest
from support.shell import Shell

pytestmark = pytest.mark.processes

# As in a container that runs with a random user id
NO_NAME = """
import pwd
def forget(number): raise KeyError(number)
pwd.getpwuid = forget
os.environ.pop("HOME", None)
os.environ.pop("HF_FINETUNE_CACHE")
"""
EMPTY_HOME = "os.environ['HOME'] = ''; os.environ.pop('HF_FINETUNE_CACHE')"

# Nothing can be made in the folders of temporary files
FULL_TMPDIR = """
import io, tempfile
os.makedirs("temporary", exist_ok=True)
os.environ["TMPDIR"], tempfile.tempdir = os.path.abspath("temporary"), os.path.abspath("temporary")
def wrap(function):
    def call(path, *arguments, **options):
        if str(path).startswith(tempfile.tempdir):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return function(path, *arguments, **options)
    return call
os.open, os.mkdir = wrap(os.open), wrap(os.mkdir)
"""
NO_CACHE = "os.environ['HF_FINETUNE_CACHE'] = 'train.jsonl/cache'"  # below a file

# What is removed stays, as on a file system whose server has restarted
NO_REMOVALS = """
def refuse(path, **options): raise OSError(errno.ESTALE, "Stale file handle", str(path))
os.unlink = os.remove = os.rmdir = refuse
"""


@pytest.mark.parametrize("code", [NO_NAME, EMPTY_HOME], ids=["no name", "empty home"])
def test_without_a_home_the_cache_is_asked_for(shell: Shell, code: str) -> None:
    exit_code, output, errors = shell.train(code, "homeless")
    assert (exit_code, output) == (2, "")
    assert errors == (
        "error: cache.dir (null): this user has no home folder, where the caches would be; set cache.dir, or the environment "
        "variable HF_FINETUNE_CACHE, to a folder\n"
    )
    assert shell.train(code, "homeless", "--cache.dir", "given")[0] == 0
    assert shell.read_results("homeless") == shell.read_results("plain")
    assert shell.run(code, "predict", "out/homeless", "--text", "the old cat")[0] == 0
    assert not (shell.folder / "~").exists()
    shutil.rmtree(shell.folder / "out" / "homeless")


@pytest.mark.parametrize("code", [FULL_TMPDIR, FULL_TMPDIR + NO_CACHE], ids=["no temporary files", "no cache either"])
def test_a_run_works_where_only_its_folder_can_be_written(shell: Shell, code: str) -> None:
    name = "bare" if NO_CACHE in code else "full"
    exit_code, output, errors = shell.train(code, name, "--cache.activations", "off")
    assert (exit_code, errors) == (0, "")
    assert shell.read_results(name) == shell.read_results("plain")
    assert ("the encoded text cannot be written to train.jsonl/cache" in output) == (name == "bare")
    assert list((shell.folder / "temporary").iterdir()) == []
    if name == "bare":
        exit_code, _, errors = shell.train(code, "cached", "--cache.activations", "on")
        assert exit_code == 2
        assert errors.startswith(
            "error: cache.activations (on): train.jsonl/cache/activations cannot be read: Not a dir"
        )


def test_removals_that_fail_lose_nothing(shell: Shell) -> None:
    settings = ["--cache.activations", "on", "--checkpoint.every", "1"]
    assert shell.train("", "undisturbed", *settings)[0] == 0
    exit_code, _, errors = shell.train(NO_REMOVALS, "stale", *settings, "--cache.dir", "stale")
    assert (exit_code, errors) == (0, "")
    assert shell.read_results("stale") == shell.read_results("undisturbed")
    predict = ["predict", "out/stale", "--data", "train.jsonl", "--out", "stale.csv"]
    for words in (predict, ["checkpoints", "out/stale"]):
        assert shell.run(NO_REMOVALS, *words)[0] == 0
    assert shell.run("", "checkpoints", "out/stale", "--verify")[0] == 0
    exit_code, output, _ = shell.train("", "stale")  # the same command again
    assert exit_code == 0
    assert "is finished" in output
