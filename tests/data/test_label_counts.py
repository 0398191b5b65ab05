"""Counts of labels as text, rare labels, and splits whose labels are distributed in another way."""

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from hf_finetune.data.label_counts import compute_chance, find_rare_labels, find_shift, format_counts


def test_labels_with_fewer_than_five_examples_are_named() -> None:
    (finding,) = find_rare_labels({"a": 100, "b": 4, "c": 5, "d": 1, "e": 0})
    assert finding.count == 2
    assert finding.details == {"labels": {"d": 1, "b": 4}}
    assert "2 labels have fewer than 5 examples, such as d (1) and b (4)" in finding.sentence
    assert find_rare_labels({"a": 5, "b": 100}) == []


@pytest.mark.parametrize(
    ("train", "test", "is_shifted"),
    [
        ({"a": 500, "b": 500}, {"a": 90, "b": 10}, True),
        ({"a": 500, "b": 500}, {"a": 52, "b": 48}, False),
        ({"a": 500, "b": 500}, {"a": 9, "b": 3}, False),  # as far as a coin may fall
        ({"a": 500_000, "b": 500_000}, {"a": 52_000, "b": 48_000}, False),  # beyond chance, and of no consequence
        ({"a": 500_000, "b": 500_000}, {"a": 62_000, "b": 38_000}, True),
        ({"a": 500, "b": 500}, {"a": 100}, True),  # a sorted file that was cut in two
        ({"a": 5, "b": 5}, {"a": 5}, False),
        ({"a": 100}, {"a": 100}, False),
        ({"a": 100, "b": 100}, {}, False),
        ({str(label): 2 for label in range(100)}, {str(label): 1 for label in range(0, 100, 2)}, False),
    ],
)
def test_a_shift_is_beyond_chance_and_large(train: dict[str, int], test: dict[str, int], is_shifted: bool) -> None:
    assert bool(find_shift("test", test, train)) == is_shifted


def test_the_warning_names_the_labels_that_differ_most() -> None:
    (finding,) = find_shift("test", {"a": 80, "b": 10, "c": 10}, {"a": 400, "b": 200, "c": 400})
    assert finding.split == "test"
    assert finding.details["distance"] == pytest.approx(0.4)
    assert "a 80.0 % (training: 40.0 %) and c 10.0 % (training: 40.0 %)" in finding.sentence
    assert "data.test" in finding.sentence


@pytest.mark.parametrize("table", [[[50, 70, 30], [20, 10, 9]], [[900, 800], [45, 60]]])
def test_the_chance_is_that_of_scipy(table: list[list[int]]) -> None:
    expected = chi2_contingency(table, correction=False, lambda_="log-likelihood").pvalue
    assert compute_chance(np.array(table, dtype=float)) == pytest.approx(expected)


def test_rare_labels_count_as_one() -> None:
    rare = [1.0] * 30
    table = np.array([[500, 500, *rare], [50, 50, *rare]])
    pooled = np.array([[500.0, 500, 30], [50, 50, 30]])
    assert compute_chance(table) == pytest.approx(compute_chance(pooled))
    few = np.array([[500.0, 400, 1], [50, 50, 0]])  # too few even together: they join the rarest other label
    assert compute_chance(few) == pytest.approx(compute_chance(np.array([[500.0, 401], [50, 50]])))


def test_draws_from_one_source_hardly_ever_differ() -> None:
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(8))
    draws = [np.stack([generator.multinomial(2000, shares), generator.multinomial(100, shares)]) for _ in range(500)]
    chances = np.array([compute_chance(draw.astype(float)) for draw in draws])
    assert (chances < 1e-4).sum() <= 1
    assert 0.02 < (chances < 0.05).mean() < 0.09


def test_counts_are_printed_with_the_most_frequent_first() -> None:
    assert format_counts({"a": 1, "b": 2000}) == "b (2,000), a (1)"
    assert format_counts(dict.fromkeys("abcdefghij", 1)).endswith("h (1), and 2 more")
