"""Sentence embeddings, as recipes' tests run it: pairs, triplets, and pairs with a score."""

import random
from pathlib import Path
from typing import Any

from recipe_case import Case
from support import tiny

WORDS = [word for words in tiny.CLASSES.values() for word in words.split()]


def sentence(generator: random.Random, word: str) -> str:
    """A few filler words around a word that says what the sentence is about."""
    words = [*generator.choices(tiny.FILLER, k=generator.randint(1, 3)), word]
    generator.shuffle(words)
    return " ".join(words)


def make_rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of pairs, triplets or scored: anchor and positive are about the same word; the more words two texts have in
    common in place of one that is not, the higher the score, from 1 to 5."""
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        word = WORDS[number % len(WORDS)]
        anchor = sentence(generator, word)
        if kind == "scored":
            score = 1 + number % 5
            words = [other if generator.random() < (score - 1) / 4 else generator.choice(WORDS)
                     for other in [*anchor.split(), word]]  # fmt: skip
            rows.append({"one": anchor, "two": " ".join(words), "score": score})
            continue
        rows.append({"anchor": anchor, "positive": sentence(generator, word)})
        if kind == "triplets":
            others = generator.sample([other for other in WORDS if other != word], 3)
            negatives = [sentence(generator, other) for other in others]
            rows[-1]["negative"] = [negatives[0], None, negatives[1:]][number % 3]  # a text, none, two
    return rows


def make_data(folder: Path, kind: str) -> dict[str, Any]:
    """Files of the three splits, and the settings of their columns."""
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


def case(family: str, kind: str, **settings: Any) -> Case:
    """A case of one kind of rows."""
    return Case(task="embedding", recipe="embed", family=family, settings=settings,
                make_data=lambda folder: make_data(folder, kind))  # fmt: skip


CASES = [
    case("bert", "pairs", **{"train.learning_rate": 1e-2}),
    case("modernbert", "triplets", **{"train.learning_rate": 1e-2}),
    case("distilbert", "scored", **{"task.normalize": False, "train.learning_rate": 1e-2, "train.batch_size": 16}),
]
