"""Text classification, as recipes' tests run it; its own tests are in test_classify.py."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny


def make_data(folder: Path) -> dict[str, Any]:
    """Three classes, told by one word."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_rows(count, seed=seed)))]
        for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16)))
    }


SETTINGS = {"train.learning_rate": 1e-2, "train.epochs": 6}
CASES = [
    Case(task="classification", recipe="classify", family="bert", make_data=make_data, settings=SETTINGS),
]
