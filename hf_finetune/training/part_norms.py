"""How strongly each part of a model is trained: the norm of its gradient, and how far an update moves it.

P parts, N tensors that train, K values of a tensor that are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

MAX_VALUES = 16_384  # of a tensor that are compared: a copy of all weights would be as large as the gradients


@dataclass(frozen=True, kw_only=True)
class PartNorms:
    """Norms of one update, by part of the model.

    Attributes:
        gradient: L2 norm of the gradient, before it is clipped.
        update_ratio: L2 norm of the change of the weights, divided by that of the weights before
            (https://cs231n.github.io/neural-networks-3/#ratio).
        total_update_ratio: The same for all weights that train together.
    """

    gradient: dict[str, float]
    update_ratio: dict[str, float]
    total_update_ratio: float


class PartWatch:
    """Measures the PartNorms of one update. Nothing waits for the device before read().

    Of a tensor with more than MAX_VALUES values, that many of them are compared, drawn once with a fixed seed: the sums of
    squares are then estimates without bias. Smaller tensors are compared completely.

    Args:
        optimizer: Its groups have the tensors that train, and their names.
        parts: The names of the parameters by part, as ModelStructure.parts() gives them.
    """

    def __init__(self, optimizer: Any, parts: Mapping[str, Sequence[str]]) -> None:
        part_of = {name: part.replace(" ", "_") for part, names in parts.items() for name in names}
        trained = {
            name: parameter
            for group in optimizer.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
            if parameter.numel() and name in part_of
        }
        self.tensors: list[torch.Tensor] = list(trained.values())
        held = {part_of[name] for name in trained}
        self.parts = [part for part in dict.fromkeys(part_of.values()) if part in held]
        numbers = {part: number for number, part in enumerate(self.parts)}
        self.members = [numbers[part_of[name]] for name in trained]  # the part of each tensor, [N]
        self.samples: dict[tuple[int, torch.device], torch.Tensor] = {}  # of tensors of one size, [K] int64
        self.gradient_norms: list[torch.Tensor] = []
        self.before: list[torch.Tensor] = []

    def look(self) -> None:
        """Looks at the gradients and the weights, before the optimizer takes them."""
        gradients = [tensor.new_zeros(1) if tensor.grad is None else tensor.grad for tensor in self.tensors]
        self.gradient_norms = list(torch._foreach_norm(gradients)) if gradients else []
        self.before = self.take_values(copies=True)

    def read(self) -> PartNorms:
        """Compares the weights with those before, and returns the norms. Here the CPU waits for the device."""
        if not self.tensors:
            return PartNorms(gradient={}, update_ratio={}, total_update_ratio=0.0)
        changes = torch._foreach_norm(torch._foreach_sub(self.take_values(), self.before))
        weights = torch._foreach_norm(self.before)
        self.before = []
        rows = (self.gradient_norms, changes, weights)
        norms = torch.stack([torch.stack([norm.float() for norm in row]) for row in rows])  # [3, N]
        sizes = torch.tensor(
            [tensor.numel() / min(tensor.numel(), MAX_VALUES) for tensor in self.tensors], dtype=torch.float64
        )
        squares = norms.cpu().double() ** 2
        squares[1:] *= sizes
        by_part = squares.new_zeros(3, len(self.parts)).index_add_(1, torch.tensor(self.members), squares)
        gradients, moved, held = by_part.sqrt()
        total = squares[1:].sum(1).sqrt().tolist()
        return PartNorms(
            gradient=dict(zip(self.parts, gradients.tolist(), strict=True)),
            update_ratio={
                part: divide(change, weight)
                for part, change, weight in zip(self.parts, moved.tolist(), held.tolist(), strict=True)
            },
            total_update_ratio=divide(*total),
        )

    def take_values(self, *, copies: bool = False) -> list[torch.Tensor]:
        """Returns the values of each tensor that are compared, [K] or the entire tensor. copies: they outlive an update."""
        values = []
        for tensor in self.tensors:
            detached = tensor.detach()
            if tensor.numel() > MAX_VALUES:
                values.append(torch.take(detached, self.find_sample(tensor)))
            else:
                values.append(detached.clone() if copies else detached)
        return values

    def find_sample(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the positions of the values of a tensor that are compared, [K]."""
        key = tensor.numel(), tensor.device
        if key not in self.samples:
            drawn = torch.randint(tensor.numel(), (MAX_VALUES,), generator=torch.Generator().manual_seed(0))
            self.samples[key] = drawn.to(tensor.device)
        return self.samples[key]


def divide(change: float, weight: float) -> float:
    """Returns the ratio of two norms; of weights that were all zero, as a fresh LoRA's B, 0."""
    return change / weight if weight else 0.0
