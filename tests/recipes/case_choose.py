"""Multiple choice in the tests of all recipes: the right choice is the animal. A row has two to four choices."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny


def make_data(folder: Path) -> dict[str, Any]:
    """Writes three files of rows. Returns the settings that name them."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_choices(count, seed=seed)))]
        for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16)))
    }


CASES = [
    Case(
        recipe="choose",
        family=family,
        make_data=make_data,
        settings={"train.learning_rate": 1e-2},
        tiny_options={"initializer_range": 0.1},  # else frozen random embeddings give all choices the same vector
    )
    for family in ("bert", "deberta-v2")
]
