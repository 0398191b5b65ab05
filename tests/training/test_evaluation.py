"""Evaluation: the order of the data, every feature once, nothing changed in training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hf_finetune.data.features import Padding
from hf_finetune.run.training_run import TrainingRun, evaluate_split
from hf_finetune.system.errors import StoppedError
from hf_finetune.tasks.base import EvaluationOutput
from hf_finetune.training.evaluation import ModelRunner

MakeRun = Callable[..., TrainingRun]


def make_runner(run: TrainingRun, batch_size: int, **changes: Any) -> ModelRunner:
    """A runner of the validation split."""
    options: dict[str, Any] = {
        "model": run.train_state.model,
        "tokenizer": run.backbone.tokenizer,
        "task": run.task,
        "features": run.features["validation"],
        "processes": run.runtime,
        "padding": Padding(0),
        "batch_size": batch_size,
    }
    return ModelRunner(**options | changes)


def compute(run: TrainingRun, batch_size: int, indices: Any = None) -> EvaluationOutput:
    """Loss and outputs of the validation split."""
    everything = np.arange(len(run.features["validation"]))
    return make_runner(run, batch_size).compute_outputs(everything if indices is None else indices)


def test_evaluation_restores_modes_and_leaves_random_state_alone(make_run: MakeRun) -> None:
    run = make_run()
    model = run.train_state.model
    model.train()
    model.bert.embeddings.eval()
    before, state = [module.training for module in model.modules()], torch.get_rng_state()
    compute(run, 5)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_keeps_the_order_of_the_data_and_counts_every_feature_once(make_run: MakeRun) -> None:
    run = make_run()
    small, large = compute(run, 5), compute(run, 100)
    np.testing.assert_allclose(small.outputs, large.outputs, atol=1e-5)
    labels: Any = run.features["validation"].labels
    by_hand = torch.nn.functional.cross_entropy(torch.from_numpy(np.stack(large.outputs)), torch.from_numpy(labels))
    assert small.loss == pytest.approx(float(by_hand), abs=1e-5)
    some = compute(run, 3, np.array([7, 2, 11]))
    np.testing.assert_allclose(some.outputs, np.stack(large.outputs)[[7, 2, 11]], atol=1e-5)


def test_a_split_is_evaluated_as_a_whole_or_in_part(make_run: MakeRun) -> None:
    run = make_run()
    values = evaluate_split(run, "validation")
    assert values.keys() == {"loss", "accuracy", "f1_macro"}
    assert values == evaluate_split(run, "validation", np.arange(24), uses_cache=False)
    assert values != evaluate_split(run, "validation", np.arange(3))


def test_a_stop_signal_ends_an_evaluation(make_run: MakeRun) -> None:
    run = make_run()
    run.runtime.signals.received = "SIGTERM"
    with pytest.raises(StoppedError, match="SIGTERM"):
        compute(run, 5)


def test_texts_are_generated_under_autocast_and_decoded(make_run: MakeRun) -> None:
    run = make_run()
    entered: list[bool] = []

    class Autocast:
        def __enter__(self) -> None:
            entered.append(True)

        def __exit__(self, *_: object) -> None:
            entered.append(False)

    def generate(model: Any, batch: Any) -> list[Any]:
        assert entered == [True]
        assert not model.training
        return [ids[1:3] for ids in batch.inputs["input_ids"].numpy()]

    runner = make_runner(run, 4, autocast=Autocast)
    texts = runner.generate_texts(generate, np.array([3, 1]))
    assert entered == [True, False]
    expected = [run.splits.validation.columns["text"][row].split()[:2] for row in (3, 1)]
    assert [text.split() for text in texts] == expected
