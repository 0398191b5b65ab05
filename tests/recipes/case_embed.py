"""Cases of recipes/embed.py: pairs, triplets, and pairs with a score."""

import functools
import random
from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny

WORDS = [word for words in tiny.CLASSES.values() for word in words.split()]


def make_sentence(generator: random.Random, word: str) -> str:
    """Returns a word, which decides what the sentence is about, among a few filler words."""
    words = [*generator.choices(tiny.FILLER, k=generator.randint(1, 3)), word]
    generator.shuffle(words)
    return " ".join(words)


def make_rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Returns rows of a kind: pairs, triplets or scored.

    Anchor and positive are about the same word. The more words two scored texts share, the higher is their score, from 1 to 5.
    """
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        word = WORDS[number % len(WORDS)]
        anchor = make_sentence(generator, word)
        if kind == "scored":
            score = 1 + number % 5
            words = [
                other if generator.random() < (score - 1) / 4 else generator.choice(WORDS)
                for other in [*anchor.split(), word]
            ]
            rows.append({"one": anchor, "two": " ".join(words), "score": score})
            continue
        rows.append({"anchor": anchor, "positive": make_sentence(generator, word)})
        if kind == "triplets":
            others = generator.sample([other for other in WORDS if other != word], 3)
            negatives = [make_sentence(generator, other) for other in others]
            rows[-1]["negative"] = [negatives[0], None, negatives[1:]][number % 3]  # one text, none, or two
    return rows


def make_data(folder: Path, kind: str) -> dict[str, Any]:
    """Writes the files of the three splits; returns the settings of their columns."""
    columns = {
        "pairs": ["anchor", "positive"],
        "triplets": ["anchor", "positive", "negative"],
        "scored": ["one", "two"],
    }
    settings: dict[str, Any] = {"data.text_columns": columns[kind]}
    settings |= {"data.label_column": "score"} if kind == "scored" else {}
    for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16))):
        path = tiny.write_jsonl(folder / f"{split}.jsonl", make_rows(kind, count, seed))
        settings[f"data.{split}"] = [str(path)]
    return settings


def make_case(family: str, kind: str, **settings: Any) -> Case:
    """Returns a case with one kind of rows."""
    return Case(recipe="embed", family=family, settings=settings, make_data=functools.partial(make_data, kind=kind))


CASES = [
    make_case("bert", "pairs", **{"train.learning_rate": 1e-2}),
    make_case("modernbert", "triplets", **{"train.learning_rate": 1e-2}),
    make_case("distilbert", "scored", **{"task.normalize": False, "train.learning_rate": 1e-2, "train.batch_size": 16}),
]
