"""Lines of a tiny language for recipes/model_language.py. The words of a line are of one class, so they predict each other."""

import random
from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny

COUNTS = {"train": 128, "validation": 32, "test": 32}  # lines


def make_data(folder: Path) -> dict[str, Any]:
    """Writes text files in which the words of a class come in their order."""
    generator = random.Random(0)
    for split, count in COUNTS.items():
        lines = []
        for number in range(count):
            words = generator.choice(list(tiny.CLASSES.values())).split()
            begin = generator.randrange(len(words))
            line = " ".join(("the", *words[begin:], *words[:begin]))
            lines.append("" if number % 7 == 6 else line)
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {f"data.{split}": [str(folder / f"{split}.txt")] for split in COUNTS}


COMMON = {"data.max_length": 16, "train.learning_rate": 5e-3, "train.epochs": 4}
MASKED = {**COMMON, "task.objective": "masked"}
CASES = [
    *(
        Case(recipe="model_language", family=family, make_data=make_data, settings=COMMON)
        for family in ("gpt2", "llama")
    ),
    *(
        Case(recipe="model_language", family=family, make_data=make_data, settings=MASKED, caches=False)
        for family in ("bert", "modernbert", "deberta-v2")
    ),
]
