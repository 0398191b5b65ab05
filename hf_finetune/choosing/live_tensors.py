"""How many bytes of activations are alive in a forward and its backward: tensors that autograd keeps."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch


@dataclass
class LiveTensors:
    """Bytes of the tensors that autograd keeps. Parts of one storage count once, parameters not at all.

    Attributes:
        known: Storages that do not count, such as those of parameters.
        num_bytes, peak: Alive now, and at most.
    """

    known: set[int]
    counts: Counter[int] = field(default_factory=Counter)
    num_bytes: int = 0
    peak: int = 0

    def keep(self, tensor: torch.Tensor) -> "Kept":
        """Counts a tensor until the graph drops what this returns."""
        return Kept(tensor, self)

    def add(self, tensor: torch.Tensor, count: int) -> None:
        """Counts a storage once more, or (-1) once less."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self.known:
            return
        before = self.counts[place]
        self.counts[place] += count
        if bool(before) != bool(self.counts[place]):
            self.num_bytes += count * storage.nbytes()
            self.peak = max(self.peak, self.num_bytes)


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: torch.Tensor, live: LiveTensors) -> None:
        self.tensor, self.live = tensor, live
        live.add(tensor, 1)

    def __del__(self) -> None:
        self.live.add(self.tensor, -1)


@contextlib.contextmanager
def measure_activations(model: torch.nn.Module) -> Iterator[LiveTensors]:
    """Measures the activations of forwards and backwards within the block."""
    live = LiveTensors({tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())})
    with torch.autograd.graph.saved_tensors_hooks(live.keep, lambda kept: kept.tensor):
        yield live
