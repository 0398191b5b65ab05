"""The columns of sentence embeddings: pairs of texts with negatives or with a score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns
from hf_finetune.tasks.labels import read_number

SCORES = ("label", "score", "similarity_score")  # columns of scored pairs in public data sets
NEGATIVES = ("negative", "negatives", "hard_negative", "hard_negatives")  # of triplets


@dataclass(frozen=True, kw_only=True)
class EmbeddingColumns(Columns):
    """A column of anchors, one of positives, columns of negatives; or two columns of texts and one of scores."""

    texts: tuple[str, ...]
    label: str | None

    @property
    def spec(self) -> ColumnSpec:
        first, *others = self.texts
        labels = others if self.label is None else [*others, self.label]
        unused = [name for name in (*SCORES, *NEGATIVES) if self.label is None and name not in self.texts]
        return ColumnSpec(
            inputs=(first,), labels=tuple(labels), texts=(first,), together=(first,), also_read=tuple(unused)
        )

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        most = len(self.texts)
        if len(texts) > most:
            others = {1: "", 2: ", or two to compare"}.get(most, f", or up to {most} to compare the first with")
            raise InputError(f"--text: takes one text{others}")
        return dict(zip(self.texts, texts, strict=False))


def read_score(table: Table, row: int, column: str) -> float:
    """Returns the score of a row: how similar its two texts are. InputError with file and line if it is not a number."""
    return read_number(table, row, column, "as a score must be")
