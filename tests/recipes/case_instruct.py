"""Conversations for recipes/instruct.py: a word of a class is answered by the next word of the class."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny


def make_data(folder: Path) -> dict[str, Any]:
    """Writes files of conversations and their chat template."""
    return tiny.write_conversations(folder, {"train": 48, "validation": 16, "test": 16})


CASES = [
    Case(
        recipe="instruct",
        family=family,
        make_data=make_data,
        settings={"data.max_length": 32, "train.learning_rate": 5e-3, "train.epochs": 6},
    )
    for family in ("llama", "gpt2")
]
