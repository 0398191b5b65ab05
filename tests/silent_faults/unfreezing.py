"""A layer is frozen at first and unfrozen later, in the second epoch: it stays as it was."""

from pathlib import Path
from typing import Any

import torch
import transformers

from silent_faults import parts

LAYER = ".layer.0."  # of two


def select(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights of the layer."""
    return {name: tensor for name, tensor in parts.copy_weights(model).items() if LAYER in name}


def set_frozen(model: Any, *, is_frozen: bool) -> None:
    """Freezes the layer, or unfreezes it."""
    for name, parameter in model.named_parameters():
        if LAYER in name:
            parameter.requires_grad = not is_frozen


class Unfreeze(transformers.TrainerCallback):
    """Unfreezes the layer at the start of the second epoch."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by Trainer."""
        if state.epoch >= 1:
            set_frozen(model, is_frozen=False)


def find(weights: list[dict[str, torch.Tensor]]) -> parts.Finding:
    """Compares the layer at the beginning, after the first epoch, and after the second."""
    start, first, second = weights
    if parts.measure_difference(start, first) > 0:
        return parts.Finding(verdict="silently wrong", detail="the layer trains while it is frozen")
    if parts.measure_difference(first, second) > 0:
        return parts.Finding(verdict="right", detail="the layer trains in the second epoch alone")
    return parts.Finding(verdict="silently wrong", detail="the layer says that it trains, and no weight of it changes")


def compare(model: Any, make: Any) -> parts.Finding:
    """Trains two epochs of 3 updates."""
    set_frozen(model, is_frozen=True)
    weights = [select(model)]
    look = parts.After(lambda number, model: weights.append(select(model)) if number in (3, 6) else None)
    make([Unfreeze(), look]).train()
    return find(weights)


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer, with a callback."""
    model, rows = parts.make_classifier(), parts.encode_classes(24)
    return compare(
        model, lambda callbacks: parts.make_trainer(model, rows, folder, num_train_epochs=2, callbacks=callbacks)
    )


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers, with a callback."""
    weights: list[dict[str, torch.Tensor]] = []
    look = parts.After(lambda number, model: weights.append(select(model)) if number in (3, 6) else None)
    model, training = parts.make_cross_encoder_trainer(folder, num_train_epochs=2, callbacks=[Unfreeze(), look])
    set_frozen(model, is_frozen=True)
    weights.append(select(model))
    training.train()
    return find(weights)


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""
    weights: list[dict[str, torch.Tensor]] = []
    settings = {"train.epochs": 2, "freeze.embeddings": True, "freeze.layers": 1}
    settings |= {"freeze.unfreeze": [{"epoch": 2, "layers": 0}]}
    parts.train_ours(
        folder,
        settings=settings,
        on_update=lambda update, model: weights.append(select(model)) if update.number in (1, 3, 6) else None,
    )
    return find(weights)
