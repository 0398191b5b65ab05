"""The forward passes of one update, and the embeddings of its entire batch (GradCache, Gao et al. 2021, arXiv:2101.06983).

S sequences of a batch, D numbers of an embedding.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from hf_finetune.data.features import Batch, Features
from hf_finetune.system.processes import Runtime
from hf_finetune.tasks.base import Task
from hf_finetune.training.train_state import TrainState, UpdateBatch, make_training_batch, run_training_forward


class UpdatePasses:
    """The forward passes of one update (a tasks.base.UpdateForwards).

    Attributes:
        batches: Of each micro-batch of this process, on the CPU. A process without features of its own still takes part in the
            exchange of gradients: an empty micro-batch runs the first feature, and counts nothing.
    """

    def __init__(
        self, state: TrainState, features: Features, task: Task, runtime: Runtime, update_batch: UpdateBatch
    ) -> None:
        self.features = features
        self.indices = update_batch.feature_indices
        self.state, self.task, self.runtime, self.update_batch = state, task, runtime, update_batch
        self.batches = [
            make_training_batch(state, features, task, micro if len(micro) else self.indices[:1], update_batch)
            for micro in update_batch.micro_batches
        ]
        self.single: tuple[torch.Tensor, Batch] | None = None  # of a process with one micro-batch, with its graph

    def count_targets(self, count: Callable[[Batch], float]) -> float:
        """Sum of count(batch) over all micro-batches and processes."""
        micro_batches = zip(self.update_batch.micro_batches, self.batches, strict=True)
        return self.runtime.sum(math.fsum(count(batch) for micro, batch in micro_batches if len(micro)))

    def measure_padding(self) -> float:
        """The share of padding in the tokens that the forwards of this process take."""
        taken = sum(batch.inputs["input_ids"].numel() for batch in self.batches)
        features = np.concatenate([batch.feature_indices for batch in self.batches])
        return 1.0 - int(self.features.get_num_tokens(features).sum()) / taken

    def run(self, position: int) -> tuple[torch.Tensor, Batch]:
        """Outputs and batch of a micro-batch, for a backward pass."""
        return self.single or self.forward(self.batches[position])

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Batch]:
        """Runs the model on a batch. Returns its outputs, and the batch on the device."""
        through = self.state.prepared if torch.is_grad_enabled() else None  # the wrapper expects a backward
        return run_training_forward(self.state, self.features, self.runtime.device, batch, self.update_batch, through)

    def embed_all(self, embed: Callable[[torch.Tensor, Batch], torch.Tensor]) -> torch.Tensor:
        """Embeddings [S, D] of all sequences of the batch, from all processes, without a graph; the same on all processes.

        With several micro-batches each is computed twice: here without gradients, and again for its backward pass, so that
        memory is that of a micro-batch. Dropout masks are the same both times: stateless ones by themselves, torch's from the
        same seed.
        """
        micro_batches, indices = self.update_batch.micro_batches, self.indices
        is_single = len(micro_batches) == 1  # as on every process
        embeddings: torch.Tensor | None = None
        torch.manual_seed(torch.initial_seed())  # of every device
        with torch.set_grad_enabled(is_single):
            for micro_indices, host_batch in zip(micro_batches, self.batches, strict=True):
                outputs, batch = self.forward(host_batch)
                own = embed(outputs, batch).detach().float()
                if embeddings is None:
                    embeddings = own.new_zeros(int(self.features.count_sequences(indices).sum()), own.shape[-1])
                if len(micro_indices):
                    embeddings[self.find_positions(batch)] = own
                if is_single:
                    self.single = outputs, batch
        torch.manual_seed(torch.initial_seed())
        assert embeddings is not None  # a batch has features
        if self.runtime.num_processes > 1:
            torch.distributed.all_reduce(embeddings)  # each process's part, and zeros
        return embeddings

    def find_positions(self, batch: Batch) -> list[int]:
        """Positions of a micro-batch's sequences among the S of embed_all()."""
        sequences = self.features.get_sequence_indices(self.indices)
        position = {int(sequence): number for number, sequence in enumerate(sequences)}
        return [position[int(sequence)] for sequence in batch.sequence_indices]
