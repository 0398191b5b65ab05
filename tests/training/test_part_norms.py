"""Gradient norms and update-to-weight ratios by part, against numbers computed from complete copies of the weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_finetune.run.training_run import TrainingRun
from hf_finetune.training import part_norms
from hf_finetune.training.loop import train_steps
from hf_finetune.training.part_norms import PartWatch

MakeRun = Callable[..., TrainingRun]


def watch_updates(run: TrainingRun, number: int, is_watched: Callable[[int], bool]) -> list[Any]:
    watch = PartWatch(run.train_state.optimizer, run.plan.structure.parts())
    return list(
        train_steps(
            run.train_state, run.make_source(), run.task, run.config, run.runtime, total_updates=number, part_watch=watch,
            is_watched=is_watched,
        )
    )  # fmt: skip


def test_norms_by_part_are_those_of_complete_copies_and_change_no_weight(make_run: MakeRun) -> None:
    watched, plain = (make_run(**{"train.max_grad_norm": 0.01, "freeze.layers": 1}) for _ in range(2))
    before = {name: value.detach().clone() for name, value in watched.train_state.model.named_parameters()}
    (update,) = watch_updates(watched, 1, lambda number: True)
    watch_updates(plain, 1, lambda number: False)
    after = {name: value.detach() for name, value in watched.train_state.model.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in plain.train_state.model.named_parameters())

    trainable = watched.plan.trainable
    parts = {
        part.replace(" ", "_"): [name for name in names if name in trainable]
        for part, names in watched.plan.structure.parts().items()
    }
    parts = {part: names for part, names in parts.items() if names}
    assert "block_0" not in parts
    assert update.norms.update_ratio.keys() == update.norms.gradient.keys() == parts.keys()
    for part, names in parts.items():
        change = torch.cat([(after[name] - before[name]).flatten() for name in names]).norm()
        weight = torch.cat([before[name].flatten() for name in names]).norm()
        assert update.norms.update_ratio[part] == pytest.approx(float(change / weight), rel=1e-4)
    # before they are clipped: their squares add up to that of the entire norm
    total = sum(norm**2 for norm in update.norms.gradient.values()) ** 0.5
    assert total == pytest.approx(update.gradient_norm, rel=1e-5)
    assert total > 0.01


@pytest.mark.parametrize(("limit", "tolerance"), [(1_000, 0.1), (1_000_000, 1e-5)])
def test_a_sample_of_large_tensors_estimates_the_ratio(
    monkeypatch: pytest.MonkeyPatch, limit: int, tolerance: float
) -> None:
    monkeypatch.setattr(part_norms, "MAX_VALUES", limit)
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(300, 400, generator=generator))
    before = weight.detach().clone()
    optimizer = torch.optim.SGD([("weight", weight)], lr=0.1)
    weight.grad = torch.randn(300, 400, generator=generator)
    watch = PartWatch(optimizer, {"block 3": ["weight"]})
    watch.look()
    optimizer.step()
    exact = float((weight.detach() - before).norm() / before.norm())
    norms = watch.read()
    assert norms.update_ratio["block_3"] == norms.total_update_ratio == pytest.approx(exact, rel=tolerance)
    assert norms.gradient["block_3"] == pytest.approx(float(weight.grad.norm()), rel=1e-5)


def test_only_watched_updates_are_measured(make_run: MakeRun) -> None:
    updates = watch_updates(make_run(), 4, lambda number: number % 2 == 0)
    assert [update.norms is not None for update in updates] == [False, True, False, True]
    assert all(0 <= update.padding_share < 1 for update in updates)
