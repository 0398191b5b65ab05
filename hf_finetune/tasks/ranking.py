"""How well scores rank the documents of a query.

C documents of a query. A label of 0 is not relevant; a larger number is more relevant. Of documents with equal scores, the less
relevant one ranks first, so that a model that gives all documents one score gets the worst ranking. A score of nan ranks last.
"""

import re

import numpy as np

from hf_finetune.data.features import Array

CUT_METRICS = ("ndcg", "mrr")  # metrics of the first K documents, named ndcg_at_K
NAME = re.compile(rf"({'|'.join(CUT_METRICS)})(?:_at_|@)([1-9]\d{{0,8}})")


def parse_metric(name: str) -> tuple[str, int | None] | None:
    """Returns metric and K of ndcg_at_K, ndcg@K, mrr_at_K and mrr@K, and None as K of map. None for any other name."""
    if name == "map":
        return name, None
    match = NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def compute_metric(name: str, scores: Array, labels: Array) -> float:
    """Returns a metric of one query; 0 if it has no relevant document.

    Args:
        name: As parse_metric() takes it.
        scores: [C].
        labels: [C].
    """
    parsed = parse_metric(name)
    assert parsed is not None
    metric, cut = parsed
    ranked = rank_labels(scores, labels)
    if not ranked.any():
        return 0.0
    if metric == "map":
        return compute_average_precision(ranked)
    return compute_ndcg(ranked, cut) if metric == "ndcg" else compute_reciprocal_rank(ranked, cut)


def rank_labels(scores: Array, labels: Array) -> Array:
    """Returns the labels [C] in the order of the ranking, the document with the highest score first."""
    usable = np.where(np.isnan(scores), -np.inf, scores)
    return labels[np.lexsort((labels, -usable))]


def compute_reciprocal_rank(ranked: Array, cut: int | None) -> float:
    """Returns 1 / rank of the first relevant document; 0 if there is none among the first `cut`. ranked: labels [C]."""
    found = np.flatnonzero(ranked[:cut] > 0)
    return float(1 / (1 + found[0])) if len(found) else 0.0


def compute_average_precision(ranked: Array) -> float:
    """Returns the mean, over the relevant documents, of the share of relevant documents down to it. ranked: labels [C]."""
    is_relevant = ranked > 0
    precision = np.cumsum(is_relevant) / np.arange(1, len(ranked) + 1)
    return float(precision[is_relevant].mean())


def compute_ndcg(ranked: Array, cut: int | None) -> float:
    """Returns the discounted cumulative gain of the first `cut` documents, divided by that of the best order.

    The gain of a document is its label (Järvelin and Kekäläinen 2002, doi:10.1145/582415.582418), as in trec_eval, scikit-learn
    and BEIR; some libraries use 2 ** label - 1. ranked: labels [C].
    """
    discounts = 1 / np.log2(np.arange(2, len(ranked) + 2))
    gains = np.stack([ranked, np.sort(ranked)[::-1]]).astype(float)
    actual, best = (gains[:, :cut] * discounts[:cut]).sum(1)
    return float(actual / best)
