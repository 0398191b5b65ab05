"""Small made-up data for summarization and translation, which a model of two blocks can learn."""

import random
from pathlib import Path
from typing import Any

from support import tiny

COUNTS = {"train": 48, "validation": 16, "test": 16}
DICTIONARY = dict(zip(("the", "a", "one", "some", "this"), ("big", "small", "old", "new", "red"), strict=True))


def make_summaries(folder: Path) -> dict[str, Any]:
    """Writes rows of a few filler words and one other, which is the summary. Every third row has a second reference."""
    settings: dict[str, Any] = {}
    for seed, (split, count) in enumerate(COUNTS.items()):
        generator = random.Random(seed)
        rows = []
        for number in range(count):
            word = generator.choice(["cat", "bread", "saw"])
            words = [*generator.choices(tiny.FILLER, k=generator.randint(2, 9)), word]
            generator.shuffle(words)
            summary = f"{word} here"
            rows.append({"document": " ".join(words), "summary": [summary, word] if number % 3 == 0 else summary})
        settings[f"data.{split}"] = [str(tiny.write_jsonl(folder / f"{split}.jsonl", rows))]
    return settings


def make_translations(folder: Path) -> dict[str, Any]:
    """Writes parallel text files: each word has one translation."""
    settings: dict[str, Any] = {}
    for seed, (split, count) in enumerate(COUNTS.items()):
        generator = random.Random(seed)
        sources = [generator.choices(list(DICTIONARY), k=generator.randint(1, 6)) for _ in range(count)]
        sides = {"en": sources, "xx": [[DICTIONARY[word] for word in words] for words in sources]}
        for language, lines in sides.items():
            path = folder / f"{split}.{language}"
            path.write_text("".join(" ".join(words) + "\n" for words in lines), encoding="utf-8")
        settings[f"data.{split}"] = [str(folder / f"{split}.{language}") for language in sides]
    return settings


SETTINGS = {
    "train.learning_rate": 3e-3,
    "task.input_prefix": "",
    "task.max_target_length": 10,
    "task.num_beams": 2,
    "task.generate_examples": 8,
    "data.max_length": 32,
}
