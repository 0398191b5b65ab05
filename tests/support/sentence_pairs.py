"""Made-up rows for sentence embeddings, and tables and features of them."""

import random
from typing import Any

from hf_finetune.data.features import Features, make_features
from hf_finetune.data.table import Table
from hf_finetune.tasks.embed_encoding import EmbeddingEncoding
from hf_finetune.tasks.embed_objectives import Pooling
from support import tiny

COLUMNS = {"pairs": ["anchor", "positive"], "triplets": ["anchor", "positive", "negative"], "scored": ["one", "two"]}
WORDS = [word for words in tiny.CLASSES.values() for word in words.split()]


def make_rows(kind: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows of pairs, triplets or scored pairs, whose texts are all different. Two texts match if they share a word."""
    generator = random.Random(seed)
    known: set[str] = set()

    def make_text(word: str) -> str:
        while True:
            text = " ".join([*generator.choices(tiny.FILLER, k=generator.randint(2, 7)), word])
            if text not in known:
                known.add(text)
                return text

    rows: list[dict[str, Any]] = []
    for number in range(count):
        word, other = generator.sample(WORDS, 2)
        if kind == "scored":
            second = word if number % 2 else other
            rows.append({"one": make_text(word), "two": make_text(second), "score": number % 7 / 2})
            continue
        rows.append({"anchor": make_text(word), "positive": make_text(word)})
        if kind == "triplets":
            rows[-1]["negative"] = make_text(other)
    return rows


def encode_pairs(rows: list[dict[str, str]]) -> Features:
    """Returns the features of pairs or triplets."""
    columns = tuple(rows[0])
    table = Table(
        columns={name: [row[name] for row in rows] for name in columns},
        files=["rows.jsonl"] * len(rows),
        lines=list(range(1, len(rows) + 1)),
    )
    pooling = Pooling(mode="mean", normalize=True)
    encoding = EmbeddingEncoding(problem="pairs", texts=columns, label=None, pooling=pooling)
    arrays = encoding.tokenize(table, tiny.make_tokenizer(), 48)
    return make_features(arrays, encoding.labels(table, arrays))
