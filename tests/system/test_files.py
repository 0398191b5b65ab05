"""files.py: a file is there whole or not at all."""

from pathlib import Path
from typing import Any

import pytest

from hf_finetune.system import files
from hf_finetune.system.errors import InputError


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    files.write_atomically(path, b"old")

    def fail(file: Any) -> None:
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="the disk is full"):
        files.replace_atomically(path, fail, 10)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
