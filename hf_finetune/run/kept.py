"""What the evaluations of a run keep of the model's outputs."""

from hf_finetune.data.features import Features
from hf_finetune.data.table import Table
from hf_finetune.tasks.base import Scoring
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.objectives import holds_for
from hf_finetune.tasks.scoring import KeptOutputs

MOST_KEPT = 200_000  # features of a split whose examples are kept: the file then has some 60 MB


class KeptEvaluations:
    """The outputs of the latest evaluation of each split, and of the best one of validation. Other processes than the main one
    have None in their place."""

    def __init__(self) -> None:
        self.latest: dict[str, KeptOutputs | None] = {}
        self.best: tuple[int, KeptOutputs | None] | None = None

    def note_best(self, update: int) -> None:
        """Keeps the latest evaluation of validation as the best one, that after `update`."""
        self.best = update, self.latest.get("validation")

    def take_best(self, update: int | None) -> bool:
        """Makes the best evaluation the latest one. False if another start of the run made it, that after `update`."""
        if self.best is None or self.best[0] != update:
            return False
        self.latest["validation"] = self.best[1]
        return True


def can_describe(scoring: Scoring) -> bool:
    """True if a scoring says what it knows of each example. A class of one's own that keeps other outputs than the class which
    it is derived from does not, unless it has its own describe_examples()."""
    return holds_for(scoring, "describe_examples", "reduce", "plan_metrics", "evaluate")


def describe_kept(
    scoring: Scoring, kept: KeptOutputs | None, features: Features, table: Table, names: tuple[str, ...]
) -> ExampleScores | None:
    """Returns what is known of the examples whose outputs were kept; None if nothing is."""
    if kept is None or not can_describe(scoring):
        return None
    return scoring.describe_examples(kept, features, table, names)
