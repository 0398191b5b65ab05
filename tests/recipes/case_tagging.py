"""Tagging, as recipes' tests run it: entities of a word or two; some sentences are longer than a window."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tagged


def make_data(folder: Path) -> dict[str, Any]:
    """Three files of rows."""
    return tagged.write_splits(folder, longest=18)


SETTINGS = {"data.max_length": 14, "task.window_overlap": 4}
CASES = [
    Case(task="tagging", recipe="tag", family=family, make_data=make_data, settings=SETTINGS)
    for family in ("bert", "deberta-v2", "modernbert")
]
