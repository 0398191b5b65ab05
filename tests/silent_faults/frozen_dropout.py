"""Layers are frozen, and dropout in them stays on: their output is noise around what it was in pretraining."""

from pathlib import Path
from typing import Any

from torch import nn

from silent_faults import parts


def freeze_lowest_layer(model: Any) -> None:
    """Freezes the embeddings and the lowest layer of BERT."""
    for name, parameter in model.named_parameters():
        if "embeddings" in name or ".layer.0." in name:
            parameter.requires_grad = False


def count_dropout(model: Any) -> int:
    """The dropout modules of the frozen layers that drop something."""
    return sum(
        module.training and module.p > 0
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and ("embeddings" in name or ".layer.0." in name)
    )


def find(counts: list[int]) -> parts.Finding:
    """What the counts after each update say."""
    if not any(counts):
        return parts.Finding(verdict="right", detail="frozen layers are in eval mode")
    return parts.Finding(verdict="silently wrong", detail=f"{max(counts)} dropout modules of frozen layers are on")


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer."""
    model, counts = parts.make_classifier(), list[int]()
    freeze_lowest_layer(model)
    look = parts.After(lambda _, model: counts.append(count_dropout(model)))
    parts.make_trainer(model, parts.encode_classes(24), folder, max_steps=2, callbacks=[look]).train()
    return find(counts)


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers."""
    counts: list[int] = []
    look = parts.After(lambda _, model: counts.append(count_dropout(model)))
    model, training = parts.make_cross_encoder_trainer(folder, max_steps=2, callbacks=[look])
    freeze_lowest_layer(model)
    training.train()
    return find(counts)


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""
    counts: list[int] = []
    parts.train_ours(
        folder,
        settings={"freeze.embeddings": True, "freeze.layers": 1, "train.max_updates": 2},
        on_update=lambda _, model: counts.append(count_dropout(model)),
    )
    assert len(counts) == 2
    return find(counts)
