"""Law 5: every tensor that trains gets a gradient other than zero in the first updates, or the run ends with the tensor's name.

N tensors that train.
"""

from typing import Any

import torch

from hf_finetune.system.errors import InputError

# Of two updates, the second is the first in which all gradients of LoRA differ from zero: its B begins as zeros, so the gradient
# of A is zero. The others leave room for what is drawn in each update, such as layers and experts that are left out.
NUM_UPDATES, LEAST_UPDATES = 8, 3


class GradientWatch:
    """Watches the gradients of the first updates. They are compared on the device, without waiting for it, and read once.

    An update counts if it changed the weights and has a gradient other than zero: a batch without a target, and a loss that has
    reached its minimum, show nothing about a tensor.

    Args:
        optimizer: Its groups have the tensors and their names.
        num_updates: How many updates come. If they are fewer than LEAST_UPDATES, nothing is watched.
        compares_scores: As in tasks.objectives.Objective: a bias of one number, which the loss does not depend on, is not
            watched. Its gradient is zero up to rounding, and in 16 bit it is zero.
    """

    def __init__(self, optimizer: Any, num_updates: int, *, compares_scores: bool = False) -> None:
        self.tensors = {
            name: parameter
            for group in optimizer.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
            if parameter.numel() and not (compares_scores and parameter.numel() == 1 and name.endswith("bias"))
        }
        self.num_needed = min(NUM_UPDATES, num_updates) if num_updates >= LEAST_UPDATES else 0
        self.num_counted = 0
        self.num_zero = 0  # updates with a loss, but without any gradient
        self.alive: torch.Tensor | None = None  # [N] bool
        self.latest: torch.Tensor | None = None  # [N] bool, of the update that is under way

    def look(self) -> None:
        """Looks at the gradients of an update, before the optimizer takes them."""
        if not self.num_needed:
            return
        gradients = {
            place: parameter.grad for place, parameter in enumerate(self.tensors.values()) if parameter.grad is not None
        }
        if gradients:
            sums = torch._foreach_norm(list(gradients.values()), 1.0)  # norm inf is slow on a CPU
            is_other = torch.stack([value != 0 for value in sums])  # also if it is nan
            places = torch.tensor(list(gradients), device=is_other.device)
            self.latest = is_other.new_zeros(len(self.tensors)).index_put((places,), is_other)

    def count(self, update: int, loss: float, norm: float, *, is_skipped: bool) -> None:
        """Counts the update that was looked at. update: Its number, from 1.

        Raises InputError with the names of the tensors whose gradients were zero in all updates that counted.
        """
        if not self.num_needed or is_skipped or self.latest is None:
            return
        if norm == 0:
            self.num_zero += loss != 0
            if self.num_zero == NUM_UPDATES and not self.num_counted:
                raise make_error(update, NUM_UPDATES, list(self.tensors), is_all=True)
            return
        self.alive = self.latest if self.alive is None else self.alive | self.latest
        self.num_counted += 1
        if self.num_counted == self.num_needed:
            dead = [name for name, is_alive in zip(self.tensors, self.alive.tolist(), strict=True) if not is_alive]
            if dead:
                raise make_error(update, self.num_counted, dead, is_all=False)
            self.num_needed = 0


def make_error(update: int, num_counted: int, dead: list[str], *, is_all: bool) -> InputError:
    """Returns law 5's error for tensors that do not train."""
    what = f"no gradient, or only zeros, in the first {num_counted} updates"
    if is_all:
        return InputError(
            f"update {update}: all {len(dead)} tensors that train, such as {dead[0]}, had {what}, so nothing is learned; check "
            "the loss (train.loss), and that the model's forward does not cut its output off from the weights"
        )
    more = f" and {len(dead) - 1} more tensors that train" if len(dead) > 1 else ""
    listed = ", ".join(dead[1:6]) + (", ..." if len(dead) > 6 else "")
    return InputError(
        f"update {update}: {dead[0]}{more} had {what}, so they do not train{f' ({listed})' if listed else ''}; freeze them with "
        "freeze.patterns if the loss does not depend on them, or check the model's forward"
    )
