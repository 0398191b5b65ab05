"""The precision of outputs in training."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_finetune.run.training_run import TrainingRun
from hf_finetune.training.loop import accumulate_gradients
from hf_finetune.training.train_state import TrainState, UpdateBatch

MakeRun = Callable[..., TrainingRun]


def compute_update(made: TrainingRun) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of one update of two micro-batches, and its gradients."""
    rows = np.arange(8)
    batch = UpdateBatch(number=0, pass_number=1, feature_indices=rows, micro_batches=[rows[:4], rows[4:]])
    made.train_state.model.zero_grad()
    loss, _ = accumulate_gradients(made.train_state, made.features["train"], made.task, made.runtime, batch)
    gradients = {name: p.grad.clone() for name, p in made.train_state.model.named_parameters() if p.grad is not None}
    return float(loss), gradients


def watch_outputs(made: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that gets the type of the outputs of each loss."""
    objective: Any = type(made.task.objective)
    loss_of, dtypes = objective.sum_loss, list[Any]()

    def look(self: Any, outputs: Any, *others: Any) -> Any:
        dtypes.append(outputs.dtype)
        return loss_of(self, outputs, *others)

    monkeypatch.setattr(objective, "sum_loss", look)
    return dtypes


def test_logits_of_targets_stay_in_16_bit_and_loss_and_gradients_the_same(
    make_run: MakeRun, backbones: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are not projected: the loss of sequences gets them."""
    backbone = {"model.backbone": str(backbones("t5")), "task.kind": "summarize", "train.precision": "bf16"}
    made = make_run(**backbone, **{"evaluation.metric": "loss"})
    monkeypatch.setattr(type(made.task.objective), "project", None)
    dtypes = watch_outputs(made, monkeypatch)
    loss, gradients = compute_update(made)
    monkeypatch.setattr(TrainState, "outputs_in_own_precision", contextlib.nullcontext)
    expected_loss, expected = compute_update(made)
    assert dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert loss == expected_loss
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())


def test_other_losses_get_outputs_in_fp32(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of one's own need not know 16 bit."""
    made = make_run(**{"train.precision": "bf16"})
    dtypes = watch_outputs(made, monkeypatch)
    compute_update(made)
    assert dtypes == [torch.float32] * 2
