"""How sentence embeddings are scored: correlations with scores, and how well anchors find their positives.

N features of a split, D numbers of a vector.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.table import Table
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import Outputs, Scoring
from hf_finetune.tasks.embed_objectives import Pooling, get_text_numbers
from hf_finetune.tasks.example_scores import ExampleScores, Rule
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.retrieval import compute_cosines, rank_positives
from hf_finetune.tasks.scoring import KeptOutputs

if TYPE_CHECKING:
    import torch


RECALL = "recall_at_"


@dataclass(frozen=True, kw_only=True)
class EmbeddingScoring(Scoring):
    """Correlations with the scores, or how well anchors find their positives; predictions are vectors or similarities."""

    pooling: Pooling
    has_scores: bool

    @property
    def reads_some_tokens(self) -> bool:
        return self.pooling.reads_first_tokens

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("spearman", "pearson") if self.has_scores else ("recall_at_1", "recall_at_10", "mrr")

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Also takes recall_at_K for any K if there are no scores."""
        name = metrics.expand_name(name)
        count = name.removeprefix(RECALL)
        if not self.has_scores and count != name and count.isdecimal() and int(count) > 0:
            return f"{RECALL}{int(count)}"
        return super().check_metric(name, key)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns, for each feature, the vectors of its texts [number of its texts, D]."""
        vectors = self.pooling.embed(outputs, batch).cpu().numpy()
        return np.split(vectors, np.cumsum(batch.sequence_counts)[:-1])

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """Returns the correlations of scores and cosines. Without scores, returns recall_at_K, the share of positives with rank K
        or better, and mrr, the mean of 1 / rank."""
        names = dict.fromkeys((*self.metric_names, metric))
        if self.has_scores:
            cosines = np.array([compute_cosines(vectors)[0] for vectors in outputs])
            scores = features.get_labels(indices)
            return metrics.compute_all(names, predictions=cosines, scores=cosines, references=scores)
        ranks = rank_positives(outputs, get_text_numbers(features, indices))
        recalls = {
            name: float(np.mean(ranks <= int(name.removeprefix(RECALL)))) for name in names if name.startswith(RECALL)
        }
        return recalls | {"mrr": float(np.mean(1 / ranks))}

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """The cosines of the first text of each row with its others, a list of arrays; as scores the vectors of its texts
        [texts, D]. References are the scores of the rows [N], or None if they have none: the second text belongs to the first."""
        return MetricInputs(
            predictions=[compute_cosines(vectors) for vectors in outputs],
            references=features.get_labels(indices) if self.has_scores else None,
            scores=list(outputs),
        )

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        """The cosine and the score of each pair; without scores the rank of each positive."""
        if not self.has_scores:
            ranks = rank_positives(kept.outputs, get_text_numbers(features, kept.indices)).astype(np.float64)
            recalls = [name for name in (*self.metric_names, *names) if name.startswith(RECALL)]
            rules: dict[str, Rule] = {name: ("at_most", "rank", int(name.removeprefix(RECALL))) for name in recalls}
            return ExampleScores(
                rows=kept.indices,
                metrics={**rules, "mrr": ("mean", "reciprocal_rank")},
                columns=("rank", "reciprocal_rank"),
                numbers=np.stack([ranks, 1 / ranks], 1),
            )
        cosines = np.array([compute_cosines(vectors)[0] for vectors in kept.outputs], dtype=np.float64)
        scores = features.get_targets(kept.indices).astype(np.float64)
        pair = ("predicted", "expected")
        return ExampleScores(
            rows=kept.indices,
            metrics={name: (name, *pair) for name in self.metric_names},
            columns=pair,
            numbers=np.stack([cosines, scores], 1),
            labels=scores.tolist(),
            predictions=cosines.tolist(),
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields `{embedding}` for one text, `{similarity}` for two, or `{similarities}` of the first with each other one."""
        for vectors in outputs:
            if len(vectors) == 1:
                # By way of str: the fewest digits that give the same float32 again
                yield {"embedding": [float(str(value)) for value in vectors[0]]}
                continue
            cosines = [float(value) for value in compute_cosines(vectors)]
            yield {"similarity": cosines[0]} if len(cosines) == 1 else {"similarities": cosines}
