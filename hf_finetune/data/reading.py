"""The output tokens that a loss or a scoring reads, if it reads only those with a target.

B sequences of a batch, T output tokens of one, N tokens that are read, H hidden, V entries of the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    # --help imports the tasks, and torch takes a second to import
    import torch


@dataclass(frozen=True, kw_only=True)
class TokenReading:
    """The output tokens that are read.

    Args:
        positions: Their numbers among the B x T tokens, ascending; at least one. [N]
        shape: (B, T).
        targets: Their targets. If no token of the batch has a target, the first is read, and it has no target. [1, N]
        project: From hidden states [1, N, H], the weight [V, H] and bias [V] of the vocabulary projection, and the targets,
            computes what takes the place of the logits. None if the logits themselves are read.
    """

    positions: "torch.Tensor"
    shape: tuple[int, int]
    targets: "torch.Tensor"
    project: Callable[..., Any] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, values: "torch.Tensor") -> "torch.Tensor":
        """Returns the values [B, T, ...] of the tokens that are read, [1, N, ...]."""
        return values.flatten(0, 1).index_select(0, self.positions)[None]

    def move(self, move: "Callable[[torch.Tensor], torch.Tensor]") -> "TokenReading":
        """Returns the reading with its tensors where `move` puts them."""
        return replace(self, positions=move(self.positions), targets=move(self.targets))

    def sum_by_sequence(self, values: "torch.Tensor") -> np.ndarray[Any, Any]:
        """Returns the sum of the values [N] of the tokens of each sequence, in float64 [B]."""
        sequences = (self.positions // self.shape[1]).cpu().numpy()
        return np.bincount(sequences, values.cpu().numpy().astype(np.float64), self.shape[0])


def read_targets(targets: "torch.Tensor", ignored: int, project: Callable[..., Any] | None = None) -> TokenReading:
    """Returns the reading of all tokens whose target [B, T] is not `ignored`."""
    flat = targets.reshape(-1)
    positions = (flat != ignored).nonzero()[:, 0]
    if not len(positions):
        positions = positions.new_zeros(1)
    num_sequences, num_tokens = targets.shape
    return TokenReading(
        positions=positions, shape=(num_sequences, num_tokens), targets=flat[positions][None], project=project
    )
