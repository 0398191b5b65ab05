"""The optimizer and its parameter groups."""

from collections.abc import Iterable
from typing import Any

import torch

from hf_finetune.config.sections import TrainConfig
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.training.schedule import compute_learning_rate


def make_parameter_groups(
    model: torch.nn.Module, plan: FreezePlan, config: TrainConfig, new_parameters: Iterable[str]
) -> list[dict[str, Any]]:
    """AdamW groups of the trainable parameters: backbone and head (each part of the model if train.layer_decay is below 1),
    each with and without weight decay. A group has `name` and `peak_learning_rate` in addition to AdamW's own keys.

    Biases and norms (fewer than two dimensions) get no weight decay, as in BERT's own training
    (google-research/bert, optimization.py).
    """
    new = set(new_parameters)
    depth = len(plan.structure.blocks)
    level_of = {name: 0 for names in plan.structure.rest.values() for name in names}  # powers of layer_decay
    for number, names in enumerate(plan.structure.blocks):
        level_of |= dict.fromkeys(names, depth - number)
    level_of |= dict.fromkeys(plan.structure.embeddings, depth + 1)
    parts = {name: part.replace(" ", "_") for part, names in plan.structure.parts().items() for name in names}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if name in plan.frozen:
            continue
        is_head = name in new or parts[name] == "head"
        decays = parameter.ndim >= 2
        peak = (config.head_learning_rate or config.learning_rate) if is_head else config.learning_rate
        level = 0 if is_head else level_of[name]
        part = "head" if is_head else parts[name] if config.layer_decay < 1 else "backbone"
        key = part if decays else f"{part}_no_decay"
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "peak_learning_rate": peak * config.layer_decay**level,
            },
        )
        group["params"].append((name, parameter))
    return list(groups.values())


def build_optimizer(groups: list[dict[str, Any]], device: torch.device) -> torch.optim.AdamW:
    """AdamW, fused if torch has that for the device. It is built from named parameters, so its state records the names."""
    fused = device.type in ("cuda", "cpu", "mps", "xpu")
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def restore_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Restores the state of each parameter by its name, so the groups may differ from the saved ones. Learning rates and weight
    decay stay those of the optimizer. Returns the names without a saved state, which start fresh, and the saved names that the
    optimizer does not have."""
    named = {
        name: saved["state"][number]
        for group in saved["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
        if number in saved["state"]
    }
    own = optimizer.state_dict()
    numbers = {
        name: number
        for group in own["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    own["state"] = {number: named[name] for name, number in numbers.items() if name in named}
    optimizer.load_state_dict(own)
    if not named:
        return [], []
    return sorted(numbers.keys() - named.keys()), sorted(named.keys() - numbers.keys())


def set_learning_rates(optimizer: Any, update: int, total_updates: int, config: TrainConfig) -> dict[str, float]:
    """Sets the learning rate of every group for `update`, counted from 0. Returns `{group: rate}`."""
    factor = compute_learning_rate(update, total_updates, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_learning_rate"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
