"""Multiple choice, as recipes' tests run it: the right choice is the animal; two to four of them a row."""

import random
from pathlib import Path
from typing import Any

import tiny
from recipe_case import Case

RIGHT, WRONG = ["cat", "dog"], ["bread", "saw"]


def make_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a stem, choices and the right one's index."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        choices = [f"{generator.choice(tiny.FILLER)} {generator.choice(WRONG)}" for _ in range(2 + number % 3)]
        right = generator.randrange(len(choices))
        choices[right] = generator.choice(RIGHT)
        stem = " ".join(generator.choices(tiny.FILLER, k=generator.randint(1, 9)))
        rows.append({"stem": stem, "choices": choices, "label": right})
    return rows


def make_data(folder: Path) -> dict[str, Any]:
    """Three files of rows."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", make_rows(count, seed=seed)))]
        for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16)))
    }


CASES = [
    Case(task="choice", recipe="choose", family=family, make_data=make_data, settings={"train.learning_rate": 1e-2},
         tiny_options={"initializer_range": 0.1})  # else frozen random embeddings give all choices the same vector
    for family in ("bert", "deberta-v2")
]  # fmt: skip
