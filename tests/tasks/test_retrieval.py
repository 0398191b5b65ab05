"""Which candidates are not negatives, and the ranks of positives, against slow code."""

import numpy as np
import pytest
from support import tiny
from support.sentence_pairs import COLUMNS, WORDS, encode_pairs

from hf_finetune.tasks.embed_objectives import get_text_numbers
from hf_finetune.tasks.retrieval import (
    compute_cosines,
    find_false_negatives,
    rank_positives,
    scale_to_unit,
    split_anchors,
)


def test_the_first_text_of_each_feature_is_its_anchor() -> None:
    anchors, candidates = split_anchors(np.array([2, 3, 2]))
    assert anchors.tolist() == [0, 2, 5]
    assert candidates.tolist() == [1, 3, 4, 6]


def test_false_negatives_are_the_anchor_itself_its_positive_and_positives_of_equal_anchors() -> None:
    def find(anchors: list[int], positives: list[int], candidates: list[int]) -> list[tuple[int, int]]:
        indices = find_false_negatives(np.array(anchors), np.array(positives), np.array(candidates))
        return sorted(zip(*(part.tolist() for part in indices), strict=True))

    assert find([0, 5], [1, 1], [1, 7, 5, 1]) == [(0, 0), (0, 3), (1, 0), (1, 2), (1, 3)]
    assert find([0, 0], [1, 2], [1, 2, 3]) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert find([0], [1], [2]) == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranks_are_those_of_a_search_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_finetune.tasks.retrieval.ANCHORS_AT_ONCE", 7)
    generator = np.random.default_rng(seed)
    texts = [f"{filler} {word}" for filler in tiny.FILLER[:6] for word in WORDS[:4]]  # few, so that many are equal
    rows = [dict(zip(COLUMNS["triplets"], generator.choice(texts, 3), strict=True)) for _ in range(25)]
    features = encode_pairs(rows)
    vectors = {text: generator.normal(size=6) for text in texts}
    chosen = np.array([20, 3, 4, 11, 0, 7, 8, 9, 22, 24])
    expected = []
    for number in chosen:
        row = rows[number]
        excluded = {row["anchor"]}
        excluded |= {rows[other]["positive"] for other in chosen if rows[other]["anchor"] == row["anchor"]}
        candidates = {rows[other][name] for other in chosen for name in ("positive", "negative")} - excluded

        def compute_cosine(text: str, row: dict[str, str] = row) -> float:
            one, other = vectors[row["anchor"]], vectors[text]
            return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

        limit = compute_cosine(row["positive"])
        expected.append(1 + sum(compute_cosine(text) >= limit for text in candidates))
    outputs = [np.stack([vectors[text] for text in rows[number].values()]) for number in chosen]
    assert rank_positives(outputs, get_text_numbers(features, chosen)).tolist() == expected
    assert max(expected) > 3


def test_a_candidate_as_near_as_the_positive_ranks_before_it() -> None:
    outputs = [np.ones((2, 4), dtype=np.float32)] * 3
    assert rank_positives(outputs, np.arange(6)).tolist() == [3, 3, 3]


def test_vectors_that_are_not_finite_find_nothing() -> None:
    outputs = [np.full((2, 4), np.nan, dtype=np.float32)] * 3
    assert rank_positives(outputs, np.arange(6)).min() >= 3


def test_cosines_are_of_the_first_vector_with_each_other_one() -> None:
    vectors = np.array([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    assert compute_cosines(vectors).tolist() == [1.0, 0.0, -1.0, 0.0]
    assert scale_to_unit(vectors).tolist() == [[1, 0], [1, 0], [0, 1], [-1, 0], [0, 0]]
