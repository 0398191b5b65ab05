"""Multiple choice, as recipes' tests run it: the right choice is the one with an animal; two to four of them a row."""

import random
from pathlib import Path
from typing import Any

import tiny
from recipe_case import Case

ANIMALS = tiny.CLASSES["animals"].split()
OTHERS = f"{tiny.CLASSES['food']} {tiny.CLASSES['tools']}".split()


def make_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a stem, choices and the right one's index."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        size = 2 + number % 3
        choices = [" ".join([*generator.choices(tiny.FILLER, k=generator.randint(0, 3)), word])
                   for word in generator.sample(OTHERS, size)]  # fmt: skip
        right = generator.randrange(size)
        choices[right] = f"{generator.choice(tiny.FILLER)} {generator.choice(ANIMALS)}"
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
    Case(task="choice", recipe="choose", family=family, make_data=make_data, settings={"train.learning_rate": 3e-3})
    for family in ("bert", "deberta-v2")
]
