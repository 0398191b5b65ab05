"""Which tokens are masked: their share, whole words, and what the model sees instead."""

import numpy as np
import pytest

from hf_finetune.tasks.text.masking import choose_masked_tokens, draw_shown_tokens

MASK = 4


@pytest.mark.parametrize("seed", range(5))
def test_all_tokens_of_a_chosen_word_are_chosen(seed: int) -> None:
    words = np.array([-1, 0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, -1])
    chosen = choose_masked_tokens(np.random.default_rng(seed), words, 0.5, whole_words=True)
    chosen_words = set(words[chosen].tolist())
    assert chosen.tolist() == [position for position, word in enumerate(words) if word in chosen_words]
    assert 0 < len(chosen) <= 6


@pytest.mark.parametrize("seed", range(5))
def test_the_shortest_word_is_chosen_if_all_exceed_the_share(seed: int) -> None:
    words = np.array([-1, 7, 7, 7, 8, 8, 8, 8])
    chosen = choose_masked_tokens(np.random.default_rng(seed), words, 0.1, whole_words=True)
    assert chosen.tolist() == [1, 2, 3]


@pytest.mark.parametrize("whole_words", [True, False])
def test_at_least_one_token_is_chosen_if_there_is_a_word(whole_words: bool) -> None:
    generator = np.random.default_rng(0)
    assert choose_masked_tokens(generator, np.array([-1, 0]), 0.01, whole_words=whole_words).tolist() == [1]
    assert not len(choose_masked_tokens(generator, np.array([-1, -1]), 0.5, whole_words=whole_words))


@pytest.mark.parametrize("fraction", [0.15, 0.5])
def test_the_share_is_rounded_and_positions_are_in_order(fraction: float) -> None:
    words = np.array([-1, *range(38), -1])
    chosen = choose_masked_tokens(np.random.default_rng(1), words, fraction, whole_words=False)
    assert len(chosen) == round(fraction * 38)
    assert (np.diff(chosen) > 0).all()
    assert words[chosen].min() >= 0


def test_eight_in_ten_are_masked_one_is_random_one_is_unchanged() -> None:
    targets = np.full(20_000, 7)
    shown = draw_shown_tokens(np.random.default_rng(0), targets, MASK, np.arange(5, 105))
    assert shown.dtype == np.int64
    assert (shown == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (shown == 7).mean() == pytest.approx(0.1 + 0.001, abs=0.01)  # one in a hundred random tokens is the same
    others = shown[(shown != MASK) & (shown != 7)]
    assert set(others.tolist()) == set(range(5, 105)) - {7}


def test_the_draw_of_a_seed_never_changes() -> None:
    """Runs are resumed with masks that an earlier version drew."""
    generator = np.random.default_rng([1, 3, 1, 2])
    chosen = choose_masked_tokens(generator, np.arange(-1, 11), 0.5, whole_words=False)
    shown = draw_shown_tokens(generator, chosen, MASK, np.arange(100, 200))
    assert chosen.tolist() == [3, 4, 6, 9, 10, 11]
    assert shown.tolist() == [113, MASK, 160, MASK, 10, 11]
    words = np.array([-1, 0, 0, 1, 2, 2, 2, 3, 4, 4, 5, -1])
    generator = np.random.default_rng([0, 3, 1, 5])
    assert choose_masked_tokens(generator, words, 0.4, whole_words=True).tolist() == [1, 2, 8, 9]
