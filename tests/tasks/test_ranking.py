"""Metrics of a ranking: those of scikit-learn and sentence-transformers, ties, and hand-made cases."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from hf_finetune.tasks.ranking import compute_metric, parse_metric, rank_labels


@pytest.mark.parametrize("seed", range(20))
def test_without_ties_the_metrics_are_those_of_sklearn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 30))
    scores = generator.permutation(count).astype(np.float32) - 5
    labels = generator.integers(0, 4, count).astype(np.float32)
    labels[generator.integers(count)] = 2
    for cut in (1, 3, 10):
        expected = ndcg_score([labels], [scores], k=cut)
        assert compute_metric(f"ndcg_at_{cut}", scores, labels) == pytest.approx(expected)
    assert compute_metric("map", scores, labels) == pytest.approx(average_precision_score(labels > 0, scores))
    first = 1 + int(np.flatnonzero(labels[np.argsort(-scores)] > 0)[0])
    for cut in (1, 3, 10):
        assert compute_metric(f"mrr_at_{cut}", scores, labels) == (1 / first if first <= cut else 0.0)


def test_a_ranking_by_hand() -> None:
    scores, labels = np.array([0.1, 0.9, 0.5, 0.7]), np.array([3.0, 0.0, 1.0, 0.0])
    assert rank_labels(scores, labels).tolist() == [0, 0, 1, 3]
    assert compute_metric("mrr@10", scores, labels) == pytest.approx(1 / 3)
    assert compute_metric("map", scores, labels) == pytest.approx((1 / 3 + 2 / 4) / 2)
    gain = 1 / np.log2(4) + 3 / np.log2(5)
    assert compute_metric("ndcg@10", scores, labels) == pytest.approx(gain / (3 / np.log2(2) + 1 / np.log2(3)))
    assert compute_metric("ndcg@2", scores, labels) == 0.0


def test_equal_scores_give_the_worst_ranking_in_any_order_of_the_documents() -> None:
    for labels in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]):
        for scores in (np.zeros(3), np.full(3, np.nan)):
            assert compute_metric("mrr_at_10", scores, np.array(labels)) == pytest.approx(1 / 3)
            assert compute_metric("mrr_at_2", scores, np.array(labels)) == 0.0
    scores = np.array([np.nan, 1.0, 2.0])
    assert rank_labels(scores, np.array([1.0, 2.0, 0.0])).tolist() == [0, 2, 1]
    assert compute_metric("map", np.zeros(2), np.array([0.0, 0.0])) == 0.0


def test_names_of_metrics() -> None:
    assert parse_metric("ndcg_at_10") == parse_metric("ndcg@10") == ("ndcg", 10)
    assert parse_metric("map") == ("map", None)
    for name in ("ndcg", "mrr", "ndcg_at_0", "ndcg_at_01", "map_at_10", "ndcg_at_-1", "loss"):
        assert parse_metric(name) is None
