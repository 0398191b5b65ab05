"""A loss rounds the model's scores before it compares them, so all its gradients are zero: nothing is learned."""

from pathlib import Path
from typing import Any

import torch

from hf_finetune.system.errors import InputError
from silent_faults import parts


def count_errors(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The number of scores that are on the other side of 0.5. round() has a gradient, and it is zero everywhere."""
    return ((scores.float().sigmoid().round() - targets) ** 2).sum()


def find(before: dict[str, torch.Tensor], model: Any) -> parts.Finding:
    """Looks whether 12 updates have changed anything."""
    if parts.measure_difference(before, parts.copy_weights(model)) > 0:
        return parts.Finding(verdict="right", detail="the weights change")
    return parts.Finding(verdict="silently wrong", detail="trains to the end, and no weight has changed")


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer."""

    def loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        return count_errors(outputs.logits, torch.nn.functional.one_hot(labels, 3)) / len(labels)

    model = parts.make_classifier()
    before = parts.copy_weights(model)
    parts.make_trainer(model, parts.encode_classes(24), folder, max_steps=12, compute_loss_func=loss).train()
    return find(before, model)


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers: the loss is a module, which gets the model."""

    class RoundedLoss(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: list[list[str]], labels: torch.Tensor) -> torch.Tensor:
            tokens = self.model.tokenizer(*inputs, padding=True, return_tensors="pt")
            return count_errors(self.model(tokens)["scores"].squeeze(-1), labels) / len(labels)

    model, training = parts.make_cross_encoder_trainer(folder, max_steps=12, loss=RoundedLoss)
    before = parts.copy_weights(model)
    training.train()
    return find(before, model)


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""

    def loss(outputs: torch.Tensor, batch: Any) -> tuple[torch.Tensor, int]:
        return count_errors(outputs, torch.nn.functional.one_hot(batch.labels.long(), 3)), len(batch.labels)

    try:
        parts.train_ours(folder, settings={"train.max_updates": 12}, loss=loss)
    except InputError as error:
        return parts.Finding(verdict="stops", detail=str(error).partition(", so ")[0])
    return parts.Finding(verdict="silently wrong")
