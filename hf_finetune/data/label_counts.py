"""Labels that are rare, and splits whose labels are distributed in another way than those of training. K labels."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.data.findings import NUM_EXAMPLES, Finding, cut, describe_percent

FEWEST_EXAMPLES = 5  # a label with fewer is hardly learned, and its metrics are noise
SMALLEST_EXPECTED = 5.0  # the chi-squared approximation needs this number in each cell (Cochran 1954)
CHANCE = 1e-4  # of a difference as large as this between two draws from the same source
WAY_OUT = "add examples, or join these labels with others"  # of rare labels
MOST_SHOWN = 8  # labels in a line
SMALLEST_DISTANCE = 0.1  # total variation distance; with many rows any difference is beyond chance


def find_rare_labels(counts: Mapping[str, int], way_out: str = WAY_OUT) -> list[Finding]:
    """Returns a finding if labels have fewer than 5 examples.

    counts: The training examples by label. way_out: What can be done about it; "" if there is another warning that says more.
    """
    rare = {
        label: count for label, count in sorted(counts.items(), key=lambda item: item[1]) if 0 < count < FEWEST_EXAMPLES
    }
    if not rare or not way_out:
        return []
    shown = " and ".join(f"{cut(label)} ({count})" for label, count in list(rare.items())[:NUM_EXAMPLES])
    have = "1 label has" if len(rare) == 1 else f"{len(rare):,} labels have"
    sentence = (
        f"train: {have} fewer than {FEWEST_EXAMPLES} examples, such as {shown}; they will hardly be learned: {way_out}"
    )
    return [Finding(kind="rare_labels", split="train", count=len(rare), sentence=sentence, details={"labels": rare})]


def find_shift(split: str, counts: Mapping[str, int], train: Mapping[str, int]) -> list[Finding]:
    """Returns a finding if the labels of a split are distributed in another way than those of training, beyond chance.

    Both must hold: a G-test gives a probability below CHANCE, and the total variation distance, which is the share of the
    examples that would need another label, is at least SMALLEST_DISTANCE.
    """
    labels = list(dict.fromkeys((*train, *counts)))
    table = np.array([[part.get(label, 0) for label in labels] for part in (train, counts)], dtype=np.float64)
    if not table.sum(1).all():
        return []
    shares = table / table.sum(1, keepdims=True)
    differences = np.abs(shares[0] - shares[1])
    distance = float(differences.sum() / 2)
    probability = compute_chance(table)
    if probability >= CHANCE or distance < SMALLEST_DISTANCE:
        return []
    examples = [
        f"{cut(labels[index])} {describe_percent(shares[1][index])} (training: {describe_percent(shares[0][index])})"
        for index in np.argsort(-differences, kind="stable")[:NUM_EXAMPLES]
    ]
    sentence = (
        f"{split}: its labels are distributed in another way than those of training, beyond chance (total variation distance "
        f"{distance:.2f}, p = {probability:.0e}): {' and '.join(examples)}; if all rows come from one source, shuffle them "
        f"before they are split, or leave data.{split} out, so that a part of training is used"
    )
    details = {"distance": distance, "probability": probability}
    return [Finding(kind="label_shift", split=split, count=int(table[1].sum()), sentence=sentence, details=details)]


def compute_chance(table: Array) -> float:
    """Returns the probability, by a G-test, that two rows of counts [2, K] that come from one source differ as much as these.

    Labels whose expected counts are too small for the test count as one label.
    """
    from scipy.special import chdtrc, xlogy

    smallest_share = table.sum(1).min() / table.sum()
    is_small = table.sum(0) * smallest_share < SMALLEST_EXPECTED
    cells = table[:, ~is_small]
    if is_small.any():
        pool = table[:, is_small].sum(1)
        if pool.sum() * smallest_share >= SMALLEST_EXPECTED:
            cells = np.column_stack([cells, pool])
        elif cells.shape[1]:
            cells = cells.copy()
            cells[:, cells.sum(0).argmin()] += pool
    if cells.shape[1] < 2:
        return 1.0
    expected = np.outer(cells.sum(1), cells.sum(0)) / cells.sum()
    statistic = 2 * float(xlogy(cells, cells / expected).sum())
    return float(chdtrc(cells.shape[1] - 1, max(statistic, 0.0)))


def format_counts(counts: Mapping[str, int], most: int = MOST_SHOWN) -> str:
    """Returns names and their counts as text, the most frequent first, and at most `most` of them."""
    ordered = Counter(counts).most_common()
    shown = [f"{cut(name)} ({count:,})" for name, count in ordered[:most]]
    if len(ordered) > most:
        shown.append(f"and {len(ordered) - most:,} more")
    return ", ".join(shown)
