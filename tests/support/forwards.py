"""Models, batches and their outputs, for the tests of forward/."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_finetune.config.sections import FreezeConfig
from hf_finetune.forward.cached import CachedForward
from hf_finetune.model import freezing
from support import tiny

Gradients = dict[str, torch.Tensor]

# Each ends with one end token, as T5 requires
ROWS = ((2, 7, 9, 3), (2, 5, 6, 7, 8, 9, 3), (2, 11, 3), (2, 20, 6, 25, 30, 8, 9, 12, 3))


def make(family: str, blocks: int | str, layers: int = 4, **changes: Any) -> tuple[Any, freezing.FreezePlan]:
    """Returns a model with that many frozen blocks, and its plan. The weights are large: with tiny ones, wrong outputs look
    right."""
    model = tiny.make_model(family, layers=layers, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim >= 2 and family != "t5" else 1.0)  # T5's are large
    plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=blocks))
    return model, plan


def make_batch(model: Any, rows: Sequence[Sequence[int]] = ROWS, extra: int = 0) -> dict[str, torch.Tensor]:
    """Returns a batch padded to its longest row and `extra` tokens more."""
    longest = max(map(len, rows)) + extra
    pad = model.config.pad_token_id
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def capture_activations(cached: CachedForward, model: Any, longest: int) -> torch.Tensor:
    """Returns the activations of ROWS, each captured alone, padded with garbage [4, longest, H]."""
    with torch.no_grad():
        captured = [cached.compute_activations(make_batch(model, [row]))[0] for row in ROWS]
    activations = torch.full((len(ROWS), longest, captured[0].shape[-1]), 3.0)
    for number, values in enumerate(captured):
        activations[number, : len(values)] = values
    return activations


def compute_outcome(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Gradients]:
    """Returns the logits, and the gradient of each parameter that has one."""
    model.zero_grad(set_to_none=True)
    logits = model(**batch).logits
    logits.sin().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def assert_same(
    outcome: tuple[torch.Tensor, Gradients], expected: tuple[torch.Tensor, Gradients], tolerance: float = 1e-6
) -> None:
    """Asserts that logits and all gradients are equal, relative to the largest of each or to 1."""
    logits, gradients = outcome
    expected_logits, expected_gradients = expected
    bound = tolerance * max(1.0, float(expected_logits.abs().max()))
    assert float((logits - expected_logits).abs().max()) <= bound
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        bound = 10 * tolerance * float(gradient.abs().max()) + tolerance * largest
        assert float((gradients[name] - gradient).abs().max()) <= bound, name


def count_rows(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Returns for how many tokens each linear layer of a model runs in the forward passes that follow, by its name; 0 if not."""
    names = {id(module.weight): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    num_rows = dict.fromkeys(names.values(), 0)
    linear = F.linear

    def count(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        num_rows[names[id(weight)]] = states.shape[:-1].numel()
        return linear(states, weight, bias)

    monkeypatch.setattr(F, "linear", count)
    return num_rows
