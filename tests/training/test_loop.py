"""Gradients, micro-batches and errors of the loop. tests/recipes/ has complete runs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.batches import MicroBatchLimit
from hf_finetune.data.features import IGNORED
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune
from hf_finetune.training.gradient_cache import UpdatePasses
from hf_finetune.training.loop import accumulate_gradients, make_micro_batch_limit, train_steps
from hf_finetune.training.train_state import UpdateBatch

MakeConfig = Callable[..., RunConfig]
MakeRun = Callable[..., TrainingRun]


def test_micro_batches_leave_no_process_without_work(make_config: MakeConfig) -> None:
    assert make_micro_batch_limit(make_config(), 1).num_examples == 8
    assert make_micro_batch_limit(make_config(), 3).num_examples == 3
    assert make_micro_batch_limit(make_config(**{"train.micro_batch_size": 8}), 2).num_examples == 4
    assert make_micro_batch_limit(make_config(**{"train.micro_batch_size": 2}), 2).num_examples == 2
    assert make_micro_batch_limit(make_config(**{"train.micro_batch_tokens": 50}), 2) == MicroBatchLimit(
        num_examples=4, num_tokens=50
    )


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_run: MakeRun, problem: str, size: int) -> None:
    """Against transformers' own mean loss and one backward over the same rows in one forward."""
    made = make_run(problem, **{"model.dropout": 0.0})
    rows = np.arange(7)
    pieces = [rows[start : start + size] for start in range(0, 7, size)]
    made.train_state.model.train()
    update_batch = UpdateBatch(number=0, pass_number=1, feature_indices=rows, micro_batches=pieces)
    loss, count = accumulate_gradients(
        UpdatePasses(made.train_state, made.features["train"], made.task, made.runtime, update_batch)
    )
    ours = {name: parameter.grad.clone() for name, parameter in made.train_state.model.named_parameters()}
    made.train_state.model.zero_grad()
    from hf_finetune.data.features import collate

    batch = collate(made.features["train"], rows, made.train_state.padding)
    theirs = made.train_state.model(**batch.inputs, labels=batch.labels).loss
    theirs.backward()
    assert float(loss) == pytest.approx(float(theirs.detach()), abs=1e-6)
    assert count == (21 if problem == "multi_label" else 7)
    for name, parameter in made.train_state.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_goes_into_backward_divided(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 a sum over targets would need another scale than their mean. No gradient is touched after backward."""
    made, propagated = make_run("multi_label"), []
    backward = made.runtime.accelerator.backward

    def record(loss: torch.Tensor) -> None:
        propagated.append(float(loss.detach()))
        backward(loss)

    monkeypatch.setattr(made.runtime.accelerator, "backward", record)
    monkeypatch.setattr("hf_finetune.training.loop.scale_gradients", lambda *_: pytest.fail("gradients were scaled"))
    rows = np.arange(7)
    update_batch = UpdateBatch(number=0, pass_number=1, feature_indices=rows, micro_batches=[rows[:4], rows[4:]])
    loss, _ = accumulate_gradients(
        UpdatePasses(made.train_state, made.features["train"], made.task, made.runtime, update_batch)
    )
    assert len(propagated) == 2
    assert sum(propagated) == pytest.approx(float(loss))


def test_the_number_of_targets_that_only_the_loss_knows_is_divided_by_afterwards(make_run: MakeRun) -> None:
    made = make_run(**{"model.dropout": 0.0})
    features, rows = made.features["train"], np.arange(7)
    update_batch = UpdateBatch(number=0, pass_number=1, feature_indices=rows, micro_batches=[rows[:4], rows[4:]])

    def compute_gradients(task: Any) -> tuple[float, float, list[torch.Tensor]]:
        made.train_state.model.zero_grad()
        loss, count = accumulate_gradients(UpdatePasses(made.train_state, features, task, made.runtime, update_batch))
        return float(loss), count, [parameter.grad.clone() for parameter in made.train_state.model.parameters()]

    def double(outputs: torch.Tensor, batch: Any) -> tuple[torch.Tensor, float]:  # each target twice
        return 2 * torch.nn.functional.cross_entropy(outputs, batch.labels, reduction="sum"), 2 * len(batch.labels)

    loss, count, gradients = compute_gradients(made.task)
    own_loss, own_count, own_gradients = compute_gradients(made.task.with_loss(double, made.config))
    assert (own_loss, own_count) == (pytest.approx(loss), 2 * count)
    torch.testing.assert_close(own_gradients, gradients)


@pytest.mark.parametrize("knows_count", [True, False])
def test_a_batch_without_a_target_changes_nothing(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, *, knows_count: bool
) -> None:
    """Not by the momentum of the updates before it, or by the decay of weights either; the moving average stays, too."""
    made = make_run(**{"train.weight_decay": 0.1, "train.ema_decay": 0.5})
    state, task = made.train_state, made.task

    def sum_loss(outputs: torch.Tensor, batch: Any) -> tuple[torch.Tensor, float]:
        total = torch.nn.functional.cross_entropy(outputs, batch.labels, reduction="sum")
        return total, float((batch.labels != IGNORED).sum())

    if not knows_count:
        task = task.with_loss(sum_loss, made.config)
    steps = train_steps(state, made.make_source(), task, made.config, made.runtime, total_updates=4)
    assert next(steps).num_targets == 8

    def copy() -> Any:
        optimizer = [value.clone() for values in state.optimizer.state.values() for value in values.values()]
        assert state.average is not None
        return [
            *map(torch.clone, state.model.state_dict().values()),
            *optimizer,
            *map(torch.clone, state.average.weights.values()),
        ]

    before = copy()

    def drop_labels(_: Any, batch: Any, *__: Any) -> Any:
        return dataclasses.replace(batch, labels=torch.full_like(batch.labels, IGNORED))

    with monkeypatch.context() as patch:
        patch.setattr(type(task.encoding), "prepare", drop_labels)
        update = next(steps)
    assert (math.isnan(update.loss), update.gradient_norm, update.num_targets) == (True, 0.0, 0.0)
    for old, new in zip(before, copy(), strict=True):
        assert torch.equal(old, new)
    assert next(steps).loss > 0
    assert not all(map(torch.equal, before, copy()))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(make_run: MakeRun) -> None:
    made = make_run()
    weight = made.train_state.model.classifier.weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in made.train_state.model.state_dict().items()}
    with pytest.raises(InputError, match=r"update 1: the gradient norm \((nan|inf)\) is not finite"):
        next(train_steps(made.train_state, made.make_source(), made.task, made.config, made.runtime, total_updates=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.train_state.model.state_dict().items())


def test_bf16_trains_and_reloads(make_config: MakeConfig) -> None:
    """Under autocast the weights stay fp32, and the exported model gives the same outputs."""
    result = finetune(make_config(**{"train.precision": "bf16", "train.max_updates": 4}))
    assert result.results["precision"] == "bf16"
    assert result.results["reload_difference"] == 0.0


def test_accumulation_by_accelerate_is_refused(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(InputError, match=r"gradient_accumulation_steps \(4\).*train.micro_batch_size"):
        finetune(make_config())


def test_gradients_that_overflow_for_good_stop_the_run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's scaler may skip updates while it lowers its scale; below 1 the gradients are not finite by themselves."""
    from types import SimpleNamespace

    made = make_run()
    made.train_state.model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    scale = [4.0]
    monkeypatch.setattr(made.runtime.accelerator, "scaler", SimpleNamespace(get_scale=lambda: scale[0]))
    monkeypatch.setattr(made.runtime.accelerator, "backward", lambda loss: loss.backward())
    monkeypatch.setattr(made.train_state.optimizer, "step", lambda: scale.__setitem__(0, scale[0] / 2))
    steps = train_steps(made.train_state, made.make_source(), made.task, made.config, made.runtime, total_updates=9)
    assert [next(steps).skipped for _ in range(3)] == [True, True, True]
    with pytest.raises(InputError, match=r"update 4: the gradient norm"):
        next(steps)
