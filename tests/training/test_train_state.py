"""The precision of outputs in training."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import compute_update

from hf_finetune.run.training_run import TrainingRun
from hf_finetune.training.train_state import TrainState

MakeRun = Callable[..., TrainingRun]


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
