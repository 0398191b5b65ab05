"""Anchors, the texts that belong to them, and how well cosine similarity finds these.

A feature is an anchor, its positive and any number of negatives. The candidates of an anchor are all texts of a batch or split
that are not anchors. A text number stands for all equal texts.

B features, S texts, C candidates, D numbers of a vector.
"""

from collections import defaultdict

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.tasks.base import Outputs

ANCHORS_AT_ONCE = 1024  # anchors whose similarities with all candidates are in memory together


def split_anchors(counts: Array) -> tuple[Array, Array]:
    """Returns the positions of the anchors [B] and of the candidates [C] among the texts of features with `counts` [B] texts."""
    anchors = np.cumsum(counts) - counts
    is_candidate = np.ones(int(counts.sum()), dtype=bool)
    is_candidate[anchors] = False
    return anchors, np.flatnonzero(is_candidate)


def find_false_negatives(anchors: Array, positives: Array, candidates: Array) -> tuple[Array, Array]:
    """Finds all candidates that are not negatives of an anchor.

    These are the anchor's own text, its positive, and each positive of another anchor with the same text.

    Args:
        anchors: Text numbers [B].
        positives: Text numbers of the anchors' positives [B].
        candidates: Text numbers [C].

    Returns:
        The indices of the anchors and those of the candidates, pair by pair, sorted by anchor.
    """
    indices_of_text: dict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(candidates.tolist()):
        indices_of_text[text].append(index)
    matching_texts: dict[int, set[int]] = {anchor: {anchor} for anchor in anchors.tolist()}
    for anchor, positive in zip(anchors.tolist(), positives.tolist(), strict=True):
        matching_texts[anchor].add(positive)
    pairs = [
        (anchor_index, candidate_index)
        for anchor_index, anchor in enumerate(anchors.tolist())
        for text in sorted(matching_texts[anchor])
        for candidate_index in indices_of_text.get(text, ())
    ]
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def rank_positives(outputs: Outputs, texts: Array) -> Array:
    """Returns the rank [B] of each anchor's positive among the different candidates, from 1, by cosine with the anchor.

    A candidate that is as near as the positive ranks before it. False negatives do not compete.

    Args:
        outputs: For each of the B features the vectors of its texts [number of its texts, D].
        texts: Text numbers [S] of all texts of the features, in their order.
    """
    counts = np.array([len(vectors) for vectors in outputs])
    anchors, others = split_anchors(counts)
    vectors = scale_to_unit(np.concatenate(outputs))
    candidates, first = np.unique(texts[others], return_index=True)
    positives = np.searchsorted(candidates, texts[anchors + 1])
    excluded_anchors, excluded_candidates = find_false_negatives(texts[anchors], texts[anchors + 1], candidates)
    ranks = np.empty(len(counts), dtype=np.int64)
    for begin in range(0, len(counts), ANCHORS_AT_ONCE):
        part = np.arange(begin, min(begin + ANCHORS_AT_ONCE, len(counts)))
        similarities = vectors[anchors[part]] @ vectors[others[first]].T
        of_positive = similarities[part - begin, positives[part]]
        low, high = np.searchsorted(excluded_anchors, [begin, begin + len(part)])
        similarities[excluded_anchors[low:high] - begin, excluded_candidates[low:high]] = -np.inf  # the positive too
        ranks[part] = 1 + (~(similarities < of_positive[:, None])).sum(1)  # negated, so that nan counts as near
    return ranks


def compute_cosines(vectors: Array) -> Array:
    """Returns the cosine of the first of the vectors [1 + C, D] with each other one [C]."""
    first, *others = scale_to_unit(vectors)
    return np.stack(others) @ first


def scale_to_unit(vectors: Array) -> Array:
    """Returns the vectors [..., D] with length 1. A zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
