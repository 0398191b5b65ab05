"""Cases of recipes/classify.py. More tests of this recipe are in test_classify_recipe.py."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny


def make_data(folder: Path) -> dict[str, Any]:
    """Writes texts of three classes; one word of a text decides."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_rows(count, seed=seed)))]
        for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16)))
    }


SETTINGS = {"train.learning_rate": 1e-2, "train.epochs": 6}
CASES = [Case(recipe="classify", family="bert", make_data=make_data, settings=SETTINGS)]
