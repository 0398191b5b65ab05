"""Models, batches and their outputs, for the tests of forward/."""

from typing import Any

import torch

from hf_finetune.config.sections import FreezeConfig
from hf_finetune.forward.cached import CachedForward
from hf_finetune.model import freezing
from support import tiny

IDS = ((2, 7, 9, 3), (2, 5, 6, 7, 8, 9, 3), (2, 11, 3), (2, 20, 6, 25, 30, 8, 9, 12, 3))  # one end each, as T5 wants


def make(family: str, blocks: int | str, layers: int = 4, **changes: Any) -> tuple[Any, freezing.FreezePlan]:
    """A frozen model; its weights are made large, because with tiny ones wrong things look right."""
    model = tiny.make_model(family, layers=layers, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim >= 2 and family != "t5" else 1.0)  # T5's are large
    plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=blocks))
    return model, plan


def batch_of(model: Any, rows: Any = IDS, extra: int = 0) -> dict[str, torch.Tensor]:
    """A batch padded to its longest, and more."""
    longest = max(map(len, rows)) + extra
    pad = model.config.pad_token_id
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def stored(found: CachedForward, model: Any, longest: int) -> torch.Tensor:
    """States captured from each example alone, padded with garbage."""
    with torch.no_grad():
        alone = [found.compute_activations(batch_of(model, [row]))[0] for row in IDS]
    states = torch.full((len(IDS), longest, alone[0].shape[-1]), 3.0)
    for row, each in enumerate(alone):
        states[row, : len(each)] = each
    return states


def outcome(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of each parameter that has one."""
    model.zero_grad(set_to_none=True)
    logits = model(**batch).logits
    logits.sin().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-6) -> None:
    """Logits and all gradients equal, relative to the largest of each or to 1."""
    assert float((ours[0] - theirs[0]).abs().max()) <= tolerance * max(1.0, float(theirs[0].abs().max()))
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        bound = 10 * tolerance * float(gradient.abs().max()) + tolerance * largest
        assert float((ours[1][name] - gradient).abs().max()) <= bound, name
