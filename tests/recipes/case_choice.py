"""Multiple choice, as recipes' tests run it: the right choice is the animal; two to four of them a row."""

from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny


def make_data(folder: Path) -> dict[str, Any]:
    """Three files of rows."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_choices(count, seed=seed)))]
        for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16)))
    }


CASES = [
    Case(task="choice", recipe="choose", family=family, make_data=make_data, settings={"train.learning_rate": 1e-2},
         tiny_options={"initializer_range": 0.1})  # else frozen random embeddings give all choices the same vector
    for family in ("bert", "deberta-v2")
]  # fmt: skip
