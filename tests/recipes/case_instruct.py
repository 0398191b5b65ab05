"""Conversations for recipes/instruct.py: a word of a class is answered by the next word of the class."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny

COUNTS = {"train": 48, "validation": 16, "test": 16}


def make_data(folder: Path) -> dict[str, Any]:
    """Writes files of conversations and their chat template."""
    return tiny.write_conversations(folder, COUNTS)


def make_uneven_data(folder: Path) -> dict[str, Any]:
    """The same with conversations of unequal lengths, so that some fit into one row."""
    return tiny.write_conversations(folder, COUNTS, tiny.make_uneven_conversations)


SETTINGS: dict[str, Any] = {"data.max_length": 32, "train.learning_rate": 5e-3, "train.epochs": 6}
CASES = [
    Case(recipe="instruct", family="llama", make_data=make_data, settings=SETTINGS),
    Case(
        recipe="instruct",
        family="gpt2",
        make_data=make_uneven_data,
        settings={**SETTINGS, "train.shared_rows": "on", "train.batch_size": 32},
        variant="shared_rows",
    ),
]
