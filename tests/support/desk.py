"""The folder in which a page's commands run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import tiny


@contextlib.contextmanager
def at_desk(folder: Path) -> Iterator[Path]:
    """Within the block, a folder is the current one, with a small backbone in it, and the program is called hf-finetune."""
    tiny.make_backbone(folder / "backbone", "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["hf-finetune"])
        yield folder
