"""Question answering, as recipes' tests run it: the answer is the context's one word of a class; some contexts have none."""

import random
from pathlib import Path
from typing import Any

import tiny
from recipe_case import Case

WORDS = [word for words in tiny.CLASSES.values() for word in words.split()]


def make_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows as of SQuAD 2.0; every fourth has no answer, and some contexts are longer than a window."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        words = generator.choices(tiny.FILLER, k=generator.choice([4, 8, 30]))
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if number % 4:
            position, answer = generator.randint(0, len(words)), generator.choice(WORDS)
            words.insert(position, answer)
            answers = {"text": [answer], "answer_start": [len(" ".join([*words[:position], ""]))]}
        rows.append({"id": f"q{number}", "question": generator.choice(["this one", "that one here"]),
                     "context": " ".join(words), "answers": answers})  # fmt: skip
    return rows


def make_data(folder: Path) -> dict[str, Any]:
    """Three files of rows."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", make_rows(count, seed=seed)))]
        for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16)))
    }


SETTINGS = {"data.max_length": 24, "task.window_overlap": 4, "task.longest_answer": 3}
CASES = [
    Case(task="answering", recipe="answer", family=family, make_data=make_data, settings=SETTINGS)
    for family in ("bert", "modernbert", "deberta-v2", "bart")
]
