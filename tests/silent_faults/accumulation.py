"""An update (SGD, no clipping) of one batch of 8 and one of 8 accumulated batches of 1 change the weights differently."""

from pathlib import Path
from typing import Any

import torch

from silent_faults import parts


def find(weights: list[dict[str, torch.Tensor]], before: dict[str, torch.Tensor]) -> parts.Finding:
    """Compares the change of the weights by one update."""
    changes = [
        torch.cat([(after[name].float() - before[name].float()).flatten() for name in before]).norm()
        for after in weights
    ]
    ratio = float(changes[1] / changes[0])
    difference = parts.measure_difference(weights[0], weights[1])
    detail = f"the accumulated update is {ratio:.2f} times as long"
    if difference < 1e-6:
        return parts.Finding(verdict="right", detail="equal updates")
    return parts.Finding(verdict="silently wrong", detail=detail)


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer, tagging: rows have 3 to 14 tokens."""
    weights = []
    for size in (8, 1):
        model = parts.make_tagger()
        before = parts.copy_weights(model)
        options: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        options |= {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
        parts.make_trainer(model, parts.encode_tags(8), folder, tags=True, **options).train()
        weights.append(parts.copy_weights(model))
    return find(weights, before)


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers, pairs with a score: one target a row."""
    weights = []
    for size in (8, 1):
        changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        options: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        options |= {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
        model, training = parts.make_cross_encoder_trainer(folder, model_changes=changes, **options)
        before = parts.copy_weights(model)
        training.train()
        weights.append(parts.copy_weights(model))
    return find(weights, before)


def ours(folder: Path) -> parts.Finding:
    """hf_finetune, tagging."""
    weights: list[dict[str, torch.Tensor]] = []
    for size in (8, 1):
        settings: dict[str, Any] = {"name": f"size-{size}", "train.max_updates": 1, "train.micro_batch_size": size}
        settings |= {"train.optimizer": "sgd", "train.learning_rate": 0.1, "model.dropout": 0.0}
        parts.train_ours(
            folder, "tag", settings=settings, on_update=lambda _, model: weights.append(parts.copy_weights(model))
        )
    return find(weights, {name: torch.zeros_like(tensor) for name, tensor in weights[0].items()})
