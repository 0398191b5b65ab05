"""Rows are cut only between examples."""

import numpy as np
import pytest

from hf_finetune.data.joined_rows import ALL_ROWS, cut_sizes, find_cuts


@pytest.mark.parametrize(
    ("keys", "cuts"),
    [
        ("aabbcc", [2, 4, 6]),
        ("abc", [1, 2, 3]),
        ("abab", [4]),
        ("aabcbdd", [2, 5, 7]),
        ("abca", [4]),
        ("a", [1]),
        ("", []),
    ],
)
def test_no_key_has_rows_on_both_sides_of_a_cut(keys: str, cuts: list[int]) -> None:
    assert find_cuts(keys).tolist() == cuts


@pytest.mark.parametrize("seed", range(5))
def test_cuts_are_all_there_are(seed: int) -> None:
    generator = np.random.default_rng(seed)
    keys = [int(key) for key in np.arange(200) // 4 + generator.integers(0, 3, 200)]
    expected = [row for row in range(1, 201) if not {*keys[:row]} & {*keys[row:]}]
    assert find_cuts(keys).tolist() == expected


def test_parts_end_at_the_next_cut_and_the_last_has_all_that_remain() -> None:
    assert list(cut_sizes(np.array([2, 4, 6, 9, 10]), [1, 3, 3, 3])) == [2, 4, 3, ALL_ROWS]
    assert list(cut_sizes(np.array([5]), [1, 1])) == [5, ALL_ROWS]
    assert list(cut_sizes(find_cuts([]), [1])) == [ALL_ROWS]
