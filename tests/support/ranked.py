"""Made queries and their documents: a document is relevant if it has the animal that the query asks for."""

import random
from pathlib import Path
from typing import Any

from support import tiny

ANIMALS = tiny.CLASSES["animals"].split()
OTHERS = [*tiny.CLASSES["food"].split(), *tiny.CLASSES["tools"].split()]


def make_rows(count: int, *, seed: int = 0, form: str = "lists") -> list[dict[str, Any]]:
    """Returns rows of `count` queries, in one of the forms of tasks.text.document_reader.FORMS.

    A query has two to five documents; every fifth has two relevant ones. Of lists, the documents with the word twice have the
    label 2.
    """
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        word = ANIMALS[number % len(ANIMALS)]
        query = f"{generator.choice(tiny.FILLER)} {word} {number % 7 * 'this '}{generator.choice(tiny.FILLER)}"
        others = generator.sample(OTHERS, 1 + number % 3)
        texts = [f"{generator.choice(tiny.FILLER)} {other} {generator.choice(tiny.FILLER)}" for other in others]
        relevant = [f"{word} {generator.choice(tiny.FILLER)} {word if number % 3 else generator.choice(tiny.FILLER)}"]
        if number % 5 == 0:
            relevant.append(f"{generator.choice(tiny.FILLER)} here {word}")
        documents = [*relevant, *texts]
        generator.shuffle(documents)
        labels = [min(2, document.split().count(word)) for document in documents]
        if form == "lists":
            rows.append({"query": query, "documents": documents, "labels": labels})
        elif form == "positives":
            rows.append({"query": query, "positive": relevant, "negatives": texts})
        else:
            rows += [
                {"query": query, "document": document, "score": int(label > 0)}
                for document, label in zip(documents, labels, strict=True)
            ]
    return rows


def write_splits(folder: Path, form: str = "lists", counts: tuple[int, int, int] = (48, 16, 16)) -> dict[str, Any]:
    """Writes three files of rows. Returns the settings that name them."""
    return {
        f"data.{split}": [str(tiny.write_jsonl(folder / f"{split}.jsonl", make_rows(count, seed=seed, form=form)))]
        for seed, (split, count) in enumerate(zip(("train", "validation", "test"), counts, strict=True))
    }
