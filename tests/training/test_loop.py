"""Gradients, micro-batches and errors of the loop. tests/recipes/ has complete runs."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.batches import MicroBatchLimit
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune
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
    loss = accumulate_gradients(made.train_state, made.features["train"], made.task, made.runtime, update_batch)
    ours = {name: parameter.grad.clone() for name, parameter in made.train_state.model.named_parameters()}
    made.train_state.model.zero_grad()
    from hf_finetune.data.features import collate

    batch = collate(made.features["train"], rows, made.train_state.pad_token_id)
    theirs = made.train_state.model(**batch.inputs, labels=batch.labels).loss
    theirs.backward()
    assert loss == pytest.approx(float(theirs), abs=1e-6)
    for name, parameter in made.train_state.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


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
