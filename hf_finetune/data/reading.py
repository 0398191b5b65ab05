"""The output tokens that are read, if not all are: those with a target, or one of each sequence.

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
        targets: Their targets. If no token of the batch has a target, the first is read, and it has no target. [1, N]. None if
            one token of each sequence is read, whatever the targets are.
        project: From hidden states [1, N, H], the weight [V, H] and bias [V] of the vocabulary projection, and the targets,
            computes what takes the place of the logits. None if the logits themselves are read.
        kept: Which of the N tokens were there before fill_up() added some; None if it added none.
    """

    positions: "torch.Tensor"
    shape: tuple[int, int]
    targets: "torch.Tensor | None" = None
    project: Callable[..., Any] | None = None
    kept: "torch.Tensor | None" = None

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, values: "torch.Tensor") -> "torch.Tensor":
        """Returns the values [B, T, H] of the tokens that are read, [1, N, H]. Values of another shape are returned as they are:
        those of these tokens alone, or none of tokens."""
        if values.ndim != 3 or values.shape[:2] != self.shape:
            return values
        return values.flatten(0, 1).index_select(0, self.positions)[None]

    def scatter(self, values: "torch.Tensor", fill: int) -> "torch.Tensor":
        """Returns the values [N, ...] of the tokens that are read in their places, and `fill` for all others, [B, T, ...]."""
        full = values.new_full((self.shape[0] * self.shape[1], *values.shape[1:]), fill)
        return full.index_copy(0, self.positions, values).view(*self.shape, *values.shape[1:])

    def fill_up(self, step: int, ignored: int) -> "TokenReading":
        """Returns the reading with more tokens, which have no target (`ignored`), so that N is a multiple of `step`, as far as
        there are tokens. One token of each sequence stays one."""
        import torch

        total = self.shape[0] * self.shape[1]
        num_added = min(-len(self) % step, total - len(self))
        if self.targets is None or not num_added:
            return self
        is_unread = self.positions.new_ones(total).index_fill(0, self.positions, 0)
        positions, order = torch.cat([self.positions, is_unread.nonzero()[:num_added, 0]]).sort()
        targets = torch.cat([self.targets[0], self.targets.new_full((num_added,), ignored)])[order]
        return replace(self, positions=positions, targets=targets[None], kept=(order < len(self)).nonzero()[:, 0])

    def drop_added(self, values: "torch.Tensor") -> "torch.Tensor":
        """Returns the values [1, N, ...] without those of the tokens that fill_up() added."""
        return values if self.kept is None else values.index_select(1, self.kept)

    def move(self, move: "Callable[[torch.Tensor], torch.Tensor]") -> "TokenReading":
        """Returns the reading with its tensors where `move` puts them."""
        targets = None if self.targets is None else move(self.targets)
        kept = None if self.kept is None else move(self.kept)
        return replace(self, positions=move(self.positions), targets=targets, kept=kept)

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


def read_first_tokens(input_ids: "torch.Tensor") -> TokenReading:
    """Returns the reading of the first token of each sequence [B, T]."""
    return read_one_token(input_ids, input_ids.new_zeros(len(input_ids)))


def read_last_tokens(input_ids: "torch.Tensor", pad_token_id: int) -> TokenReading:
    """Returns the reading of the last token of each sequence [B, T] that is not padding; of the first if all are. It is found by
    its id, as the classifiers on decoders in transformers find it: whatever the attention mask says, and on whichever side
    the padding is."""
    import torch

    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    return read_one_token(input_ids, (columns * (input_ids != pad_token_id)).argmax(-1))


def read_one_token(input_ids: "torch.Tensor", columns: "torch.Tensor") -> TokenReading:
    """Returns a reading of one token of each sequence [B, T]: the one in its column [B]."""
    import torch

    num_sequences, num_tokens = input_ids.shape
    rows = torch.arange(num_sequences, device=input_ids.device)
    return TokenReading(positions=rows * num_tokens + columns, shape=(num_sequences, num_tokens))
