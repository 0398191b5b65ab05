"""The loop's schedule and its sums, on their own; whole runs stand in tests/recipes/."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.batches import MicroBatchLimit
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune
from hf_finetune.training.evaluation import run_evaluation
from hf_finetune.training.loop import accumulate_gradients, make_micro_batch_limit, train_steps
from hf_finetune.training.schedule import Schedule, make_schedule
from hf_finetune.training.train_state import UpdateBatch

MakeConfig = Callable[..., RunConfig]


def test_schedule_counts_updates_from_one() -> None:
    schedule = Schedule(updates_per_epoch=4, total_updates=10)
    assert [schedule.epoch(update) for update in (0, 1, 4, 5, 8, 9, 10)] == [1, 1, 1, 2, 2, 3, 3]
    assert [update for update in range(1, 11) if schedule.is_due("epoch", update)] == [4, 8, 10]
    assert [update for update in range(1, 11) if schedule.is_due(3, update)] == [3, 6, 9, 10]


@pytest.mark.parametrize(("size", "limit", "total"), [(60, None, 16), (64, None, 16), (65, None, 18), (60, 5, 5)])
def test_schedule_covers_every_example(make_config: MakeConfig, size: int, limit: int | None, total: int) -> None:
    assert make_schedule(size, make_config(**{"train.max_updates": limit})).total_updates == total


def test_micro_batches_leave_no_process_without_work(make_config: MakeConfig) -> None:
    assert make_micro_batch_limit(make_config(), 1).num_examples == 8
    assert make_micro_batch_limit(make_config(), 3).num_examples == 3
    assert make_micro_batch_limit(make_config(**{"train.micro_batch_size": 8}), 2).num_examples == 4
    assert make_micro_batch_limit(make_config(**{"train.micro_batch_size": 2}), 2).num_examples == 2
    assert make_micro_batch_limit(make_config(**{"train.micro_batch_tokens": 50}), 2) == MicroBatchLimit(
        num_examples=4, num_tokens=50
    )


@pytest.fixture
def job(make_config: MakeConfig) -> Any:
    """`job("multi_label", **settings)`: a job that is set up and not begun."""

    def make(problem: str = "single_label", **settings: Any) -> TrainingRun:
        config = make_config(problem, **settings)
        with open_run(config) as run:
            return set_up(config, "classification", run, Clock())

    return make


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_accumulated_gradients_are_those_of_the_whole_batch(job: Any, problem: str, size: int) -> None:
    """Against transformers' own mean loss and one backward over the same rows in one forward."""
    made = job(problem, **{"model.dropout": 0.0})
    rows = np.arange(7)
    pieces = [rows[start : start + size] for start in range(0, 7, size)]
    made.train_state.model.train()
    window = UpdateBatch(number=0, epoch=1, feature_indices=rows, micro_batches=pieces)
    loss = accumulate_gradients(made.train_state, made.features["train"], made.task, made.runtime, window)
    ours = {name: parameter.grad.clone() for name, parameter in made.train_state.model.named_parameters()}
    made.train_state.model.zero_grad()
    from hf_finetune.data.features import collate

    batch = collate(made.features["train"], rows, made.train_state.pad_token_id)
    theirs = made.train_state.model(**batch.inputs, labels=batch.labels).loss
    theirs.backward()
    assert loss == pytest.approx(float(theirs), abs=1e-6)
    for name, parameter in made.train_state.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_evaluation_restores_modes_and_leaves_random_state_alone(job: Any) -> None:
    made = job()
    model = made.train_state.model
    model.train()
    model.bert.embeddings.eval()
    before, state = [module.training for module in model.modules()], torch.get_rng_state()
    run_evaluation(model, made.features["validation"], made.task, made.runtime, batch_size=5, pad_token_id=0)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_keeps_the_order_of_the_data_and_counts_every_row_once(job: Any) -> None:
    made = job()
    features = made.features["validation"]
    small = run_evaluation(made.train_state.model, features, made.task, made.runtime, batch_size=5, pad_token_id=0)
    whole = run_evaluation(made.train_state.model, features, made.task, made.runtime, batch_size=100, pad_token_id=0)
    np.testing.assert_allclose(small.outputs, whole.outputs, atol=1e-5)
    by_hand = torch.nn.functional.cross_entropy(
        torch.from_numpy(np.stack(whole.outputs)), torch.from_numpy(features.labels)
    )
    assert small.loss == pytest.approx(float(by_hand), abs=1e-5)
    some = run_evaluation(
        made.train_state.model,
        features,
        made.task,
        made.runtime,
        batch_size=3,
        pad_token_id=0,
        rows=np.array([7, 2, 11]),
    )
    np.testing.assert_allclose(some.outputs, np.stack(whole.outputs)[[7, 2, 11]], atol=1e-5)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(job: Any) -> None:
    made = job()
    weight = made.train_state.model.classifier.weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in made.train_state.model.state_dict().items()}
    with pytest.raises(InputError, match=r"update 1: the gradient norm \((nan|inf)\) is not finite"):
        next(train_steps(made.train_state, made.features["train"], made.task, made.config, made.runtime))
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


def test_gradients_that_overflow_for_good_stop_the_run(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's scaler may skip updates while it lowers its scale; below 1 the gradients are not finite by themselves."""
    from types import SimpleNamespace

    made = job()
    made.train_state.model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    scale = [4.0]
    monkeypatch.setattr(made.runtime.accelerator, "scaler", SimpleNamespace(get_scale=lambda: scale[0]))
    monkeypatch.setattr(made.runtime.accelerator, "backward", lambda loss: loss.backward())
    monkeypatch.setattr(made.train_state.optimizer, "step", lambda: scale.__setitem__(0, scale[0] / 2))
    steps = train_steps(made.train_state, made.features["train"], made.task, made.config, made.runtime)
    assert [next(steps).skipped for _ in range(3)] == [True, True, True]
    with pytest.raises(InputError, match=r"update 4: the gradient norm"):
        next(steps)
