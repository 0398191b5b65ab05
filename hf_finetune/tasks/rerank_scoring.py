"""What reranking minimizes, and how well its rankings agree with the labels.

B queries of a batch, S sequences (a query with one of its documents), C documents of a query.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.data.features import Array, Batch, Features, Ragged
from hf_finetune.data.table import Table
from hf_finetune.tasks.base import CountedObjective, Outputs, Scoring
from hf_finetune.tasks.example_scores import ExampleScores
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.ranking import compute_metric, parse_metric
from hf_finetune.tasks.scoring import KeptOutputs
from hf_finetune.tasks.text.document_examples import DOCUMENTS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class RerankingObjective(CountedObjective):
    """The loss of a query's scores by the labels of its documents.

    listwise: cross entropy of the softmax of the scores and the labels divided by their sum (Bruch et al. 2019,
        doi:10.1145/3341981.3344221, eq. 2), for each query with a relevant document. With one relevant document that is minus
        the logarithm of its probability.
    pairwise: logistic loss of the difference of two scores (RankNet, Burges et al. 2005, doi:10.1145/1102351.1102363), for each
        pair of documents of a query with different labels.
    pointwise: binary cross entropy of each document's score and its label, divided by the highest label of training.
    """

    kind: str
    highest_label: float = 1.0
    label_smoothing: float = 0.0

    @property
    def compares_scores(self) -> bool:
        return self.kind != "pointwise"

    def count(self, batch: Batch) -> float:
        """Returns the number of queries, pairs or documents."""
        labels, is_document = get_documents(batch)
        if self.kind == "listwise":
            return float(find_ranked(labels, is_document).sum())
        return float((find_pairs(labels, is_document) if self.kind == "pairwise" else is_document).sum())

    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the loss summed over queries, pairs or documents. outputs: scores of all documents [S, 1]."""
        import torch
        from torch.nn import functional as F

        labels, is_document = get_documents(batch)
        parts = outputs.float()[:, 0].split(batch.sequence_counts.tolist())
        scores = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)  # [B, C]
        if self.kind == "listwise":
            return self.compare_lists(scores, labels, is_document)
        if self.kind == "pairwise":
            differences = (scores[:, :, None] - scores[:, None, :])[find_pairs(labels, is_document)]
            return F.softplus(-differences).sum()
        targets = labels[is_document] / self.highest_label
        return F.binary_cross_entropy_with_logits(scores[is_document], targets, reduction="sum")

    def compare_lists(
        self, scores: "torch.Tensor", labels: "torch.Tensor", is_document: "torch.Tensor"
    ) -> "torch.Tensor":
        """Returns the listwise loss. All arguments are [B, C]."""
        totals, counts = labels.sum(-1), is_document.sum(-1)
        log_probabilities = scores.masked_fill(~is_document, float("-inf")).log_softmax(-1)
        log_probabilities = log_probabilities.masked_fill(~is_document, 0.0)
        targets = labels / totals.clamp(min=1e-30)[:, None]
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / counts[:, None]
        terms = -(targets * log_probabilities).sum(-1)
        return terms[find_ranked(labels, is_document)].sum()


def get_documents(batch: Batch) -> "tuple[torch.Tensor, torch.Tensor]":
    """Returns the labels of each query's documents, 0 after the last one, and which entries are documents. Both are [B, C]."""
    import torch

    assert batch.labels is not None
    counts = torch.as_tensor(batch.sequence_counts, device=batch.labels.device)
    is_document = torch.arange(batch.labels.shape[1], device=batch.labels.device) < counts[:, None]
    return batch.labels.masked_fill(~is_document, 0.0), is_document


def find_ranked(labels: "torch.Tensor", is_document: "torch.Tensor") -> "torch.Tensor":
    """Returns which queries have a relevant document and another one [B]. Both arguments are [B, C]."""
    return (labels.sum(-1) > 0) & (is_document.sum(-1) > 1)


def find_pairs(labels: "torch.Tensor", is_document: "torch.Tensor") -> "torch.Tensor":
    """Returns for which documents the first has a higher label than the second [B, C, C]. Both arguments are [B, C]."""
    return (labels[:, :, None] > labels[:, None, :]) & is_document[:, None, :]


@dataclass(frozen=True, kw_only=True)
class RerankingScoring(Scoring):
    """Scores to rankings, and how well these agree with the labels.

    Args:
        query: The column of the query.
        gives_probabilities: Predicted scores are probabilities.
    """

    query: str
    gives_probabilities: bool

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("ndcg_at_10", "mrr_at_10", "map")

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Also takes ndcg_at_K and mrr_at_K for any K, written with @ too."""
        parsed = parse_metric(name)
        if parsed is not None and parsed[1] is not None:
            return "{}_at_{}".format(*parsed)
        return super().check_metric(name, key)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns the scores of each query's documents [C]."""
        return np.split(outputs.float()[:, 0].cpu().numpy(), np.cumsum(batch.sequence_counts)[:-1])

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """Returns the means over queries. A query without a relevant document counts as 0."""
        assert isinstance(features.labels, Ragged)
        labels = [features.labels.get(int(index)) for index in indices]
        return {
            name: float(np.mean([compute_metric(name, *query) for query in zip(outputs, labels, strict=True)]))
            for name in dict.fromkeys((*self.metric_names, metric))
            if name != "loss"
        }

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """The scores of each query's documents, a list of arrays [C], and the labels of these documents."""
        assert isinstance(features.labels, Ragged)
        labels = [features.labels.get(int(index)) for index in indices]
        return MetricInputs(predictions=list(outputs), references=labels)

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        """The metrics of each query."""
        assert isinstance(features.labels, Ragged)
        pairs = [
            (scores, features.labels.get(int(index))) for scores, index in zip(kept.outputs, kept.indices, strict=True)
        ]
        columns = tuple(name for name in dict.fromkeys((*self.metric_names, *names)) if name != "loss")
        return ExampleScores(
            rows=kept.indices,
            metrics={name: ("mean", name) for name in columns},
            columns=columns,
            numbers=np.array([[compute_metric(name, *pair) for name in columns] for pair in pairs]),
            labels=[labels.tolist() for _, labels in pairs],
            predictions=[scores.tolist() for scores, _ in pairs],
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields `{query, ranking}` for each query. ranking: `{document, text, score}` of each document, the best first, where
        document is its index from 0."""
        from scipy.special import expit

        for query, texts, scores in zip(table.columns[self.query], table.columns[DOCUMENTS], outputs, strict=True):
            order = np.argsort(-scores, kind="stable").tolist()
            shown = expit(scores) if self.gives_probabilities else scores
            ranking = [{"document": index, "text": texts[index], "score": float(shown[index])} for index in order]
            yield {"query": query, "ranking": ranking}
