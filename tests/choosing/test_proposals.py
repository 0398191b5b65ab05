"""The settings of the next trial."""

import math
from typing import Any

import numpy as np
import pytest

from hf_finetune.choosing import proposals
from hf_finetune.choosing.proposals import describe_proposals, propose
from hf_finetune.choosing.search import Search, Values

SEARCH = Search(
    trials=30,
    halving=True,
    space={
        "train.learning_rate": Values(kind="log_uniform", items=(1e-5, 1e-1)),
        "freeze.layers": Values(kind="int_uniform", items=(0, 6)),
        "train.betas": Values(kind="choice", items=([0.9, 0.99], "null", 3)),
    },
)


def measure(settings: dict[str, Any]) -> float:
    """A value that is best at 1e-3."""
    return -abs(math.log10(settings["train.learning_rate"]) + 3)


def search_all(*, greater_is_better: bool = True, seed: int = 0) -> list[tuple[dict[str, Any], float | None]]:
    """All trials of a search."""
    seen: list[tuple[dict[str, Any], float | None]] = []
    for number in range(SEARCH.trials):
        settings = propose(SEARCH, seed, seen, greater_is_better=greater_is_better)
        value = measure(settings) if greater_is_better else -measure(settings)
        seen.append((settings, None if number == 2 else value))
    return seen


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_optuna_comes_closer(greater_is_better: bool) -> None:
    searches = [search_all(greater_is_better=greater_is_better, seed=seed) for seed in range(6)]
    values = np.array([[measure(settings) for settings, _ in seen] for seen in searches])
    assert values[:, -10:].mean() > values[:, :10].mean() + 0.15
    seen = searches[0]
    assert {type(settings["freeze.layers"]) for settings, _ in seen} == {int}
    assert all(settings["train.betas"] in SEARCH.space["train.betas"].items for settings, _ in seen)


def test_a_proposal_depends_on_what_was_seen_alone() -> None:
    seen = search_all()
    assert propose(SEARCH, 0, seen[:20], greater_is_better=True) == seen[20][0]
    assert propose(SEARCH, 1, seen[:20], greater_is_better=True) != seen[20][0]
    assert "Optuna" in describe_proposals()


def test_a_value_that_is_nan_is_none() -> None:
    settings = [settings for settings, _ in search_all()[:20]]
    without, broken = (
        [(each, value if number % 2 else measure(each)) for number, each in enumerate(settings)]
        for value in (None, math.nan)
    )
    assert propose(SEARCH, 0, broken, greater_is_better=True) == propose(SEARCH, 0, without, greater_is_better=True)


def test_without_optuna_settings_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "find_spec", lambda _: None)
    seen = search_all()
    assert len({settings["train.learning_rate"] for settings, _ in seen}) > 25
    assert propose(SEARCH, 0, seen[:5], greater_is_better=True) == seen[5][0]
    assert describe_proposals().startswith("at random; with Optuna (pip install 'hf-finetune[sweep]')")
