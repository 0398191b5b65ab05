"""What the evaluations of a run keep of the model's outputs."""

import numpy as np

from hf_finetune.data.features import Features
from hf_finetune.data.table import Table
from hf_finetune.tasks.base import Scoring
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.objectives import holds_for
from hf_finetune.tasks.scoring import KeptOutputs
from hf_finetune.training.outputs import Entries, RaggedEntries

MOST_KEPT = 200_000  # features of a split whose examples are kept: the file then has some 60 MB
MOST_BYTES = 500_000_000  # of their outputs


class KeptEvaluations:
    """The outputs of the latest evaluation of each split, and of the best one of validation. Other processes than the main one
    have None in their place.

    While a run trains, the outputs of its best evaluation are the only ones in memory.
    """

    def __init__(self) -> None:
        self.latest: dict[str, KeptOutputs | None] = {}
        self.best: tuple[int, KeptOutputs | None] | None = None
        self.left_out: dict[str, str] = {}  # by split: why outputs of one of its evaluations were not kept

    def keep(self, split: str, kept: KeptOutputs | None) -> None:
        """Keeps the outputs of a split's latest evaluation, unless they are too large."""
        num_bytes = 0 if kept is None else count_bytes(kept.outputs)
        if num_bytes > MOST_BYTES:
            self.left_out[split] = f"the outputs of its examples have {num_bytes:,} bytes, more than {MOST_BYTES:,}"
            kept = None
        self.latest[split] = kept

    def drop(self, split: str) -> None:
        """Forgets the latest evaluation of a split. The best one of validation stays."""
        self.latest.pop(split, None)

    def note_validation(self, update: int, *, is_best: bool) -> None:
        """Keeps the latest evaluation of validation, that after `update`, if it is the best one; else drops it."""
        if is_best:
            self.best = update, self.latest.get("validation")
        self.drop("validation")

    def take_best(self, update: int | None) -> bool:
        """Makes the best evaluation the latest one. False if another start of the run made it, that after `update`."""
        best, self.best = self.best, None
        if best is None or best[0] != update:
            return False
        self.latest["validation"] = best[1]
        return True


def count_bytes(outputs: Entries) -> int:
    """Returns the size of what an evaluation kept of the outputs."""
    if isinstance(outputs, np.ndarray):
        return outputs.nbytes
    if isinstance(outputs, RaggedEntries):
        return int(outputs.values.nbytes)
    return sum(np.asarray(entry).nbytes for entry in outputs)


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
