"""Reads cached activations from the file of an entry.

B sequences of a batch, T tokens, H hidden.
"""

import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.system.files import open_regular

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

# Bytes to gather before the mapped pages are given back. A kernel with large pages maps far more than is read: with 64 MB
# here, an entire 390 MB file counted as this process's memory. Giving pages back costs nothing measurable.
RESIDENT_BYTES = 2**20


@dataclass(kw_only=True)
class StoredActivations:
    """The stored activations of one split's sequences, as a memory map of the entry's file.

    Args:
        dtype: float16, bfloat16 or float32.
        hidden: Size H of a hidden state.
        starts: First token of each sequence [S].
        unreleased_bytes: Bytes gathered since the mapped pages were given back.
    """

    path: Path
    dtype: str
    hidden: int
    starts: Array
    unreleased_bytes: int = 0
    mapped: mmap.mmap = field(init=False, repr=False)
    array: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with open_regular(self.path, os.O_RDONLY) as file:
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        bits: Any = np.uint16 if ITEM_BYTES[self.dtype] == 2 else np.uint32  # numpy has no bfloat16
        self.array = np.frombuffer(self.mapped, dtype=bits).reshape(-1, self.hidden)

    def gather(self, indices: Array, mask: Array, positions: Array | None = None) -> "torch.Tensor":
        """Returns the activations of tokens [B, T, H]. Where the mask [B, T] is false, they are those of some other token.

        indices: The sequence of each row [B], or of each token [B, T]. positions: The place of each token in its sequence [B, T];
        if not given, that in its row.
        """
        import torch

        starts = self.starts[indices if indices.ndim == 2 else indices[:, None]]
        places = np.arange(mask.shape[1]) if positions is None else positions
        values = self.array[np.where(mask, starts + places, 0)]
        self.unreleased_bytes += values.nbytes
        if self.unreleased_bytes > RESIDENT_BYTES:  # mapped pages of the file count as this process's memory
            self.unreleased_bytes = 0
            if hasattr(self.mapped, "madvise"):
                self.mapped.madvise(mmap.MADV_DONTNEED)
        bits = torch.int16 if ITEM_BYTES[self.dtype] == 2 else torch.int32
        return torch.from_numpy(values).view(bits).view(getattr(torch, self.dtype))
