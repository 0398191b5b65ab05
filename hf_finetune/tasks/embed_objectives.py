"""How a text becomes a vector, and what is minimized: the ranking of positives among all texts, or the difference to scores.

B features of a batch, S texts (one sequence each), C candidates, T tokens, D numbers of a vector.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.reading import TokenReading, read_first_tokens
from hf_finetune.tasks.base import CountedObjective, InBatchObjective, Objective
from hf_finetune.tasks.retrieval import find_false_negatives, split_anchors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Turns the hidden states of a text into its vector. mode: mean or cls."""

    mode: str
    normalize: bool

    @property
    def reads_first_tokens(self) -> bool:
        """True if the vector of a text depends on the hidden states of its first token only."""
        return self.mode == "cls"

    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the vectors [S, D] of texts with the last hidden states `outputs` [S, T, D], or [1, S, D] of the first
        tokens if the batch has a reading."""
        from torch.nn import functional as F

        hidden = outputs.float()
        if batch.reading is not None:
            vectors = hidden[0]
        elif self.reads_first_tokens:
            vectors = hidden[:, 0]
        else:
            mask = batch.inputs["attention_mask"][..., None].to(hidden.dtype)
            vectors = (hidden * mask).sum(1) / mask.sum(1)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors


@dataclass(frozen=True, kw_only=True)
class PooledObjective(Objective):
    """A loss of the vectors of texts. One that says so reads the first tokens only, if the vectors depend on no others."""

    pooling: Pooling

    @property
    def read_tokens(self) -> str:
        return "the first token"

    def find_reading(self, batch: Batch) -> TokenReading:
        return read_first_tokens(batch.inputs["input_ids"])


@dataclass(frozen=True, kw_only=True)
class RankingObjective(PooledObjective, InBatchObjective):
    """Multiple negatives ranking: each anchor finds its positive among all texts of the batch that are not anchors (Henderson
    et al. 2017, arXiv:1705.00652). The negatives of all rows are candidates too."""

    similarity_scale: float

    @property
    def reads_some_tokens(self) -> bool:
        return self.pooling.reads_first_tokens

    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        return self.pooling.embed(outputs, batch)

    def batch_loss(
        self, embeddings: "torch.Tensor", counts: Array, features: Features, indices: Array
    ) -> "tuple[torch.Tensor, float]":
        """Returns the cross entropy of the positives, by the scaled cosines, and B. False negatives are not candidates."""
        import torch
        from torch.nn import functional as F

        vectors = F.normalize(embeddings.float(), dim=-1)
        anchors, others = split_anchors(counts)
        texts = get_text_numbers(features, indices)
        similarities = self.similarity_scale * vectors[anchors] @ vectors[others].T
        positives = anchors - np.arange(len(indices))  # indices among the candidates, which the anchors are not
        of_positives = similarities[np.arange(len(indices)), positives]
        rows, columns = find_false_negatives(texts[anchors], texts[anchors + 1], texts[others])
        is_masked = columns != positives[rows]
        masked = (torch.from_numpy(rows[is_masked]), torch.from_numpy(columns[is_masked]))
        logits = similarities.index_put(masked, similarities.new_tensor(-torch.inf))
        return (torch.logsumexp(logits, 1) - of_positives).sum(), float(len(indices))


@dataclass(frozen=True, kw_only=True)
class SimilarityObjective(PooledObjective, CountedObjective):
    """Squared difference of the cosine of a pair and its score, scaled from the training rows' range to 0..1.

    On STS-B this reached a Spearman correlation of 0.885 after one epoch. CoSENT, which uses only the order of the scores,
    reached 0.871.
    """

    score_range: tuple[float, float]

    @property
    def reads_some_tokens(self) -> bool:
        return self.pooling.reads_first_tokens

    def count(self, batch: Batch) -> float:
        """Returns the number of pairs."""
        return float(len(batch.feature_indices))

    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the squared differences, summed over pairs."""
        from torch.nn import functional as F

        assert batch.labels is not None
        pairs = self.pooling.embed(outputs, batch).unflatten(0, (-1, 2))
        least, most = self.score_range
        cosines = F.cosine_similarity(pairs[:, 0], pairs[:, 1], dim=-1)
        return F.mse_loss(cosines, (batch.labels - least) / (most - least), reduction="sum")


def get_text_numbers(features: Features, indices: Array) -> Array:
    """Returns the text numbers [S] of the features at `indices`: equal for texts with the same tokens."""
    return np.asarray(features.extras["texts"])[features.get_sequence_indices(indices)]
