"""In-batch losses over micro-batches and processes (GradCache, Gao et al. 2021, arXiv:2101.06983).

S sequences of a batch, D numbers of one embedding.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_finetune.data.features import Features
from hf_finetune.training.train_state import TrainState, UpdateBatch, embed_sequences

if TYPE_CHECKING:
    from hf_finetune.system.processes import Runtime
    from hf_finetune.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class EmbeddingGradients:
    """Of a batch whose rows are coupled: the summed loss, its targets, and its gradient [S, D] by each sequence's
    representation. alone: of a process with one micro-batch its representations, with their graph, and their places."""

    loss: float
    count: float
    gradient: torch.Tensor
    single: tuple[torch.Tensor, list[int]] | None


def compute_embedding_gradients(
    trainee: TrainState, features: Features, task: "Task", runtime: "Runtime", window: UpdateBatch
) -> EmbeddingGradients:
    """The pull of the whole batch on every representation, the same on all processes.

    Where there are several micro-batches, representations are computed twice, first without gradients for the loss of the
    whole batch, then by accumulate() for the backward (GradCache, Gao et al. 2021, arXiv:2101.06983): so memory is that of
    a micro-batch, and the numbers those of one batch on one process. Dropout's masks are the same both times: stateless
    ones by themselves, torch's from the same seed.
    """
    is_alone = len(window.micro_batches) == 1  # as on every process
    found: torch.Tensor | None = None
    alone: tuple[torch.Tensor, list[int]] | None = None
    torch.manual_seed(torch.initial_seed())  # of every device
    with torch.set_grad_enabled(is_alone):
        for micro_rows in window.micro_batches:
            taken = micro_rows if len(micro_rows) else window.feature_indices[:1]
            vectors, places = embed_sequences(trainee, features, task, runtime, taken, window)
            if found is None:
                found = vectors.new_zeros(
                    int(features.count_sequences(window.feature_indices).sum()), vectors.shape[-1]
                )
            if len(micro_rows):
                found[places] = vectors.detach()
            if is_alone:
                alone = vectors, places
    torch.manual_seed(torch.initial_seed())
    assert found is not None  # a window has rows
    if runtime.num_processes > 1:
        torch.distributed.all_reduce(found)  # each process's part, and zeros
    leaf = found.requires_grad_()
    loss, count = task.coupled_loss(
        leaf, features.count_sequences(window.feature_indices), features, window.feature_indices
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    return EmbeddingGradients(loss=float(loss.detach()), count=count, gradient=gradient, single=alone)
