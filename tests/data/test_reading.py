"""Tokens that are read: some more are computed, so that there are few numbers of them, and nobody reads these."""

import pytest
import torch

from hf_finetune.data.features import IGNORED
from hf_finetune.data.reading import read_last_tokens, read_targets


@pytest.mark.parametrize(("step", "number"), [(1, 3), (4, 4), (8, 8), (16, 10)])
def test_tokens_without_a_target_fill_up_those_that_are_read(step: int, number: int) -> None:
    targets = torch.full((2, 5), IGNORED)
    targets[0, 1], targets[1, 0], targets[1, 4] = 7, 8, 9
    reading = read_targets(targets, IGNORED)
    filled = reading.fill_up(step, IGNORED)
    assert len(filled) == len(filled.positions.unique()) == number
    assert filled.positions.tolist() == sorted(filled.positions.tolist())
    assert filled.targets is not None
    assert torch.equal(filled.targets[0], targets.flatten()[filled.positions])
    hidden = torch.randn(2, 5, 3)
    assert torch.equal(filled.drop_added(filled.select(hidden)), reading.select(hidden))


def test_one_token_of_each_sequence_stays_one() -> None:
    reading = read_last_tokens(torch.tensor([[5, 6, 0], [5, 0, 0]]), 0)
    assert reading.fill_up(8, IGNORED) is reading
