"""Cases with a user's own parts: those that docs/extending.md shows. Each is killed, resumed, and run on two processes."""

from pathlib import Path
from typing import Any

import case_classify
import case_embed
import extending_page
from recipe_case import Case
from support import tiny

extending_page.add_modules()


def make_votes(folder: Path) -> dict[str, Any]:
    """Writes texts of three classes, with the votes of three annotators, one of whom may be wrong."""
    names = ("cat", "dog", "fish")
    settings: dict[str, Any] = {"data.label_column": "votes"}
    for seed, (split, count) in enumerate((("train", 48), ("validation", 16), ("test", 16))):
        rows = tiny.make_rows(count, seed=seed)
        labels = sorted({row["label"] for row in rows})
        assert len(labels) == len(names)
        for number, row in enumerate(rows):
            right = labels.index(row["label"])
            row["votes"] = [(3 - number % 2) * (place == right) + (number % 2) * (place == 0) for place in range(3)]
        settings[f"data.{split}"] = [str(tiny.write_jsonl(folder / f"{split}.jsonl", rows))]
    return settings


def make_case(variant: str, **settings: Any) -> Case:
    """A case of classification with one part of one's own."""
    return Case(
        recipe="classify",
        family="bert",
        variant=variant,
        make_data=case_classify.make_data,
        settings=case_classify.SETTINGS | settings,
        caches="train.augment" not in settings,
    )


PAIRS = case_embed.CASES[0]
CASES = [
    make_case("own-loss", **{"train.loss": "my_losses:ordinal"}),
    make_case("own-optimizer", **{"train.optimizer": "my_optimizers:adamax", "train.optimizer_options": {"beta": 0.8}}),
    make_case("own-augmentation", **{"train.augment": "my_augmentation:drop_words"}),
    make_case(
        "own-metrics-and-function",
        **{
            "evaluation.metrics": ["my_metrics:kappa", "wrong=my_metrics:sure_and_wrong", "roc_auc"],
            "evaluation.metric": "wrong",
            "evaluation.greater_is_better": False,
            "train.on_update": "my_watch:watch",  # which writes into the current folder
        },
    ),
    Case(
        recipe="embed",
        family=PAIRS.family,
        variant="own-loss",
        make_data=PAIRS.make_data,
        settings=PAIRS.settings | {"train.loss": "my_losses:symmetric"},
        tiny_options=PAIRS.tiny_options,
    ),
    Case(
        recipe="classify",
        family="bert",
        variant="own-task",
        make_data=make_votes,
        settings=case_classify.SETTINGS | {"task.kind": "my_tasks:Votes"},
    ),
]
