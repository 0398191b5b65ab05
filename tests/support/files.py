"""Files written and read as a run reads them."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

CONFIG = DataConfig(train=("unused",))


def read(*locations: str | Path, config: DataConfig = CONFIG, **options: Any) -> Table:
    """Reads these locations as data.train."""
    return read_table([str(location) for location in locations], config, "data.train", **options)


def error_of(*locations: str | Path, config: DataConfig = CONFIG) -> str:
    """Returns the text of the InputError that reading these locations raises. It is one line."""
    with pytest.raises(InputError) as caught:
        read(*locations, config=config)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def write(path: Path, content: str | bytes) -> Path:
    """Writes a file, compressed if its name ends with .gz. Returns the path."""
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path
