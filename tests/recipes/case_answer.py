"""Question answering in the tests of all recipes: the answer is the one word of a class in the context. Some contexts lack it."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny


def make_data(folder: Path) -> dict[str, Any]:
    """Writes three files of rows. Returns the settings that name them."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_questions(count, seed=seed)))]
        for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16)))
    }


SETTINGS = {"data.max_length": 24, "task.window_overlap": 4, "task.longest_answer": 3}
CASES = [
    Case(recipe="answer", family=family, make_data=make_data, settings=SETTINGS)
    for family in ("bert", "modernbert", "deberta-v2", "bart")
]
