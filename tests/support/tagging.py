"""Tables, tasks and features of tagging, made from a few words."""

from pathlib import Path
from typing import Any

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import Features, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.tasks.tag import Tagging
from support import tagged


def make_config(**settings: Any) -> RunConfig:
    """Returns a config of tagging that is never run."""
    defaults = {
        "task.kind": "tag",
        "model.backbone": "-",
        "data.train": ["-"],
        "data.text_columns": ["tokens"],
        "data.label_column": "tags",
    }
    return load_config(defaults | settings)


def make_table(rows: list[dict[str, Any]], **more: Any) -> Table:
    """Returns a table of rows from lines 1, 2, ... of rows.jsonl."""
    columns = {name: [row.get(name) for row in rows] for name in ("tokens", "tags")}
    return Table(columns=columns, files=["rows.jsonl"] * len(rows), lines=list(range(1, len(rows) + 1)), **more)


def make_rows(*pairs: str) -> list[dict[str, Any]]:
    """Returns rows of pairs such as "the cat|O B-animals"."""
    return [dict(zip(("tokens", "tags"), (side.split() for side in pair.split("|")), strict=True)) for pair in pairs]


def make_task(table: Table, **settings: Any) -> Tagging:
    """Returns the task that a training table gives."""
    return Tagging.from_table(make_config(**settings), table)


def encode(task: Tagging, table: Table, max_length: int = 60) -> Features:
    """Returns features with labels."""
    arrays = task.encoding.tokenize(table, tagged.word_piece(), max_length)
    return make_features(arrays, task.encoding.labels(table, arrays))


def read(path: Path, text: str | bytes, **settings: Any) -> Table:
    """Writes a file and returns its table."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    config = make_config(**{"data.train": [str(path)], **settings})
    return read_table(config.data.train, config.data, "data.train", Tagging.make_columns(config).spec)
