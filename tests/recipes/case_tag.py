"""Tagging in the tests of all recipes: entities of one or two words. Some sentences are longer than a window."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tagged


def make_data(folder: Path) -> dict[str, Any]:
    """Writes three files of rows. Returns the settings that name them."""
    return tagged.write_splits(folder, longest=18)


SETTINGS = {"data.max_length": 14, "task.window_overlap": 4}
CASES = [
    Case(recipe="tag", family=family, make_data=make_data, settings=SETTINGS)
    for family in ("bert", "deberta-v2", "modernbert")
]
