"""Muon for the matrices of hidden layers, and AdamW for all other parameters, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch

MUON_OPTIONS = ("momentum", "nesterov", "ns_steps", "ns_coefficients", "adjust_lr_fn")


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon for the groups that have `only_hidden_matrices`, and torch.optim.AdamW for the others.

    Both work on the state and the groups of this object, so that it is saved and restored like any other optimizer. Which
    parameters are whose is as in Keller Jordan's description (https://kellerjordan.github.io/posts/muon/): embeddings, head,
    biases and norms are AdamW's.

    Args:
        betas, eps, fused: Of AdamW. The other options are Muon's.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, fused: bool, **options: Any
    ) -> None:
        groups = [dict(group) for group in params]
        matrices = [group for group in groups if group["only_hidden_matrices"]]
        others = [group for group in groups if not group["only_hidden_matrices"]]
        self.parts: list[tuple[bool, torch.optim.Optimizer]] = []
        if matrices:
            self.parts.append((True, torch.optim.Muon(matrices, lr=lr, **options)))
        if others:
            self.parts.append((False, torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=fused)))
        super().__init__([group for _, part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates the weights from their gradients."""
        for has_matrices, part in self.parts:
            part.state = self.state  # load_state_dict replaces it
            part.param_groups = [group for group in self.param_groups if group["only_hidden_matrices"] == has_matrices]
            part.step()
