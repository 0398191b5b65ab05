"""Cases of recipes/rerank.py: each loss with rows of another form. A document with the query's animal is relevant."""

import functools

from recipe_case import Case
from support import ranked

CASES = [
    Case(
        recipe="rerank",
        family=family,
        make_data=functools.partial(ranked.write_splits, form=form),
        settings={"task.loss": loss, "train.learning_rate": 1e-2, "train.epochs": 4},
        tiny_options={"initializer_range": 0.1},  # else frozen random embeddings give all documents the same vector
    )
    for family, loss, form in (
        ("bert", "listwise", "lists"),
        ("deberta-v2", "pairwise", "positives"),
        ("modernbert", "pointwise", "pairs"),
    )
]
