"""The objective of a task: the loss, as a sum over targets and their number, or over an entire batch.

B features of a batch, S sequences of a batch, D numbers of an embedding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from hf_finetune.data.features import IGNORED, Array, Batch, Features
from hf_finetune.data.reading import TokenReading, read_targets
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.own_functions import call_loss

if TYPE_CHECKING:
    # --help imports the tasks for their Settings, and torch takes a second to import: tasks import it inside functions
    import torch

# For each feature what Scoring.reduce() returned, together in an array if they are arrays; or texts
Outputs = Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class UpdateLoss:
    """The loss of one update, as a function of its micro-batches.

    Args:
        micro_batch: From the outputs and the batch of a micro-batch, returns the loss that is propagated backward, summed over
            targets, and the number of targets, which is only read if num_targets is None.
        num_targets: The number of targets of the entire batch, over all processes; None if only micro_batch knows it.
        total: The loss of the entire batch, over all processes, summed over targets; None if it is the sum of what micro_batch
            returns.
    """

    micro_batch: "Callable[[torch.Tensor, Batch], tuple[torch.Tensor, float]]"
    num_targets: float | None = None
    total: "torch.Tensor | None" = None


class UpdateForwards(Protocol):
    """What an objective can ask for before an update.

    features: The features of the training split. indices: Those of the batch [B], over all micro-batches and processes.
    """

    features: Features
    indices: Array

    def count_targets(self, count: Callable[[Batch], float]) -> float:
        """Returns the sum of count(batch) over all micro-batches and processes. No forward pass runs; the batches are on the
        CPU."""

    def embed_all(self, embed: "Callable[[torch.Tensor, Batch], torch.Tensor]") -> "torch.Tensor":
        """Returns the embeddings [S, D] of all sequences of the batch, over all processes, detached from the graph.

        embed: From outputs and batch of a micro-batch, returns the embeddings of its sequences.
        """

    def find_positions(self, batch: Batch) -> list[int]:
        """Returns the positions of a micro-batch's sequences among the S of embed_all()."""


@dataclass(frozen=True, kw_only=True)
class LinearTargets:
    """How the labels of a batch are the targets of the last linear layer (train.head_start).

    Args:
        problem: single_label (class numbers), multi_label (0 and 1 for each class) or regression (numbers).
        class_weights: A weight for each class, or ().
    """

    problem: str
    class_weights: tuple[float, ...] = ()


LOSSES = ("loss", "sum_loss", "evaluate", "timing_loss", "embed")  # the methods of an objective that take outputs


def reads_some_tokens(part: Any, *methods: str) -> bool:
    """True if the class that has these methods of an objective or a scoring, or one derived from it, says that they read only the
    outputs of some tokens."""
    return holds_for(part, "reads_some_tokens", *methods) and bool(part.reads_some_tokens)


def holds_for(part: Any, statement: str, *methods: str) -> bool:
    """True if the class that has these methods, or one derived from it, has the member `statement`.

    What a class says of its methods need not be true of one that a derived class puts in their place.
    """
    for kind in type(part).__mro__:
        if statement in vars(kind):
            return True
        if any(method in vars(kind) for method in methods):
            return False
    return False


class Objective(ABC):
    """The loss.

    Subclass CountedObjective if the loss is a sum over targets whose number the labels say, SummedObjective if only the loss
    itself knows their number, InBatchObjective if it compares the features of a batch with each other.
    """

    @property
    def reads_some_tokens(self) -> bool:
        """True if loss() reads only the outputs of the tokens of find_reading(): by default those whose target is not IGNORED. So
        only these are computed: if the batch has a `reading`, loss() takes their outputs [1, N, ...], or what project() returned.
        It counts for the loss(), sum_loss() and embed() of the class that says so, not for those of a derived class.

        In training they may be in 16 bit if they have targets, and loss() computes in fp32 itself.
        """
        return False

    @property
    def compares_scores(self) -> bool:
        """True if loss() compares scores of the model with each other alone, as a softmax over them does: a bias that is added to
        all of them has no gradient then, and need not have one (law 5)."""
        return False

    @property
    def read_tokens(self) -> str:
        """Which tokens these are, for a line at the start of a run."""
        return "tokens with a target"

    def find_targets(self, batch: Batch) -> "torch.Tensor":
        """Returns the target of each output token, IGNORED for those without [B, T]. Called only if `reads_some_tokens`."""
        assert batch.labels is not None
        return batch.labels

    def find_reading(self, batch: Batch) -> "TokenReading | None":
        """Returns the tokens whose outputs are read, None if these are all. Called only if `reads_some_tokens`."""
        if batch.labels is None:
            return None
        return read_targets(self.find_targets(batch), IGNORED, self.project)

    @property
    def project(self) -> Callable[..., Any] | None:
        """The function that takes the place of a projection whose output is the logits (TokenReading.project); None if the loss
        reads logits."""
        return None

    @property
    def why_rows_are_not_shared(self) -> str:
        """The reason why examples cannot share rows (train.shared_rows), or "" if the loss is a sum over tokens, each of which is
        predicted from those before it."""
        return "only causal models that predict the next token can, with the task's own loss"

    @property
    def linear_targets(self) -> LinearTargets | None:
        """How labels are the targets of the last linear layer; None if the outputs of that layer are not what the loss reads."""
        return None

    @abstractmethod
    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        """Returns the loss of an update. Called before its micro-batches run."""

    @abstractmethod
    def evaluate(self, outputs: "torch.Tensor", batch: Batch) -> tuple[float, float]:
        """Returns the loss of one evaluation batch, summed over targets, and their number."""

    @abstractmethod
    def mean(self, sums: Sequence[tuple[float, float]], outputs: Outputs, features: Features, indices: Array) -> float:
        """Returns the mean loss of the features at `indices`, nan if they have no targets.

        Args:
            sums: What evaluate() returned for each of their batches.
            outputs: What Scoring.reduce() returned for each of them.
            features: The features of the split.
            indices: Which of these were evaluated.
        """

    @abstractmethod
    def timing_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns a loss of one micro-batch alone. It is used only to measure how long a backward pass takes."""

    def with_loss(self, function: Callable[..., Any]) -> "Objective":
        """Returns the objective with a loss function of one's own (train.loss) instead of its loss."""
        raise InputError(f"train.loss: {type(self).__name__} does not take another loss")


class SummedObjective(Objective):
    """A loss that is a sum over targets. Gradients are divided by the number of targets after the last backward pass."""

    @abstractmethod
    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Returns the loss summed over all targets of a micro-batch, and their number (or the sum of their weights).

        The mean loss is the sum over all micro-batches, divided by the sum of these numbers: targets are counted nowhere else
        (law 1 in docs/design.md). outputs: What model.heads.run_model() returned, such as logits.
        """

    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        return UpdateLoss(micro_batch=self.loss)

    def evaluate(self, outputs: "torch.Tensor", batch: Batch) -> tuple[float, float]:
        if batch.labels is None:
            return 0.0, 0.0
        loss, count = self.loss(outputs, batch)
        return float(loss), count

    def mean(self, sums: Sequence[tuple[float, float]], outputs: Outputs, features: Features, indices: Array) -> float:
        count = math.fsum(number for _, number in sums)
        return math.fsum(loss for loss, _ in sums) / count if count else math.nan

    def timing_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        return self.loss(outputs, batch)[0]

    def with_loss(self, function: Callable[..., Any]) -> "SummedObjective":
        return OwnLoss(function=function)


class CountedObjective(SummedObjective):
    """A loss that is a sum over targets whose number the labels say. It is known before the forward passes, so that the loss goes
    into the backward pass already divided: in fp16 the loss scale fits, and no gradient is touched twice."""

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """Returns the number of targets of a micro-batch, or the sum of their weights. The batch may be on the CPU."""

    @abstractmethod
    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the loss summed over all targets of a micro-batch. outputs: What model.heads.run_model() returned."""

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        return self.sum_loss(outputs, batch), self.count(batch)

    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        if type(self).loss is not CountedObjective.loss:  # of a derived class: only it knows the number
            return super().start_update(forwards)
        return UpdateLoss(
            micro_batch=lambda outputs, batch: (self.sum_loss(outputs, batch), 0.0),
            num_targets=forwards.count_targets(self.count),
        )


@dataclass(frozen=True, kw_only=True)
class OwnLoss(SummedObjective):
    """A loss function of one's own, with the arguments and the result of SummedObjective.loss()."""

    function: Callable[..., Any]

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Returns what the function returns. InputError if that is not a sum and a number of targets."""
        return call_loss(self.function, outputs, batch)


class InBatchObjective(Objective):
    """A loss that compares the sequences of a batch with each other, for example by in-batch negatives.

    The loss is that of the entire batch, however it is split into micro-batches and processes (GradCache, Gao et al. 2021,
    arXiv:2101.06983): all sequences are embedded, the gradient of the loss with respect to the embeddings is computed, and
    each micro-batch propagates its part of this gradient backward.
    """

    EVALUATION_SIZE: ClassVar[int] = 64  # features compared with each other in evaluation, whatever the batch size is

    @abstractmethod
    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the embeddings [S, D] of the sequences of a micro-batch."""

    @abstractmethod
    def batch_loss(
        self, embeddings: "torch.Tensor", counts: Array, features: Features, indices: Array
    ) -> "tuple[torch.Tensor, float]":
        """Returns the loss of an entire batch, summed over targets, and their number.

        Args:
            embeddings: Of all sequences of the batch [S, D].
            counts: Number of sequences of each feature [B].
            features: The features of the split.
            indices: Those of the batch [B].
        """

    def start_update(self, forwards: UpdateForwards) -> UpdateLoss:
        import torch

        embeddings = forwards.embed_all(self.embed).requires_grad_()
        features, indices = forwards.features, forwards.indices
        loss, count = self.batch_loss(embeddings, features.count_sequences(indices), features, indices)
        (gradient,) = torch.autograd.grad(loss, embeddings)

        def compute_surrogate(outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float]:
            """Returns a sum whose gradient is the micro-batch's part of the gradient of the batch's loss."""
            own = self.embed(outputs, batch).float()
            return (own * gradient[forwards.find_positions(batch)]).sum(), 0.0

        return UpdateLoss(micro_batch=compute_surrogate, num_targets=count, total=loss.detach())

    def evaluate(self, outputs: "torch.Tensor", batch: Batch) -> tuple[float, float]:
        return 0.0, 0.0  # mean() computes the loss from the embeddings

    def mean(self, sums: Sequence[tuple[float, float]], outputs: Outputs, features: Features, indices: Array) -> float:
        """Compares the features in groups of EVALUATION_SIZE, in their order. outputs: Embeddings [sequences, D] of each."""
        import torch

        if features.labels is None:
            return math.nan
        parts = []
        for start in range(0, len(indices), self.EVALUATION_SIZE):
            group = slice(start, start + self.EVALUATION_SIZE)
            embeddings = torch.from_numpy(np.concatenate(outputs[group]))
            counts = np.array([len(array) for array in outputs[group]])
            loss, count = self.batch_loss(embeddings, counts, features, indices[group])
            parts.append((float(loss), count))
        return math.fsum(loss for loss, _ in parts) / (math.fsum(count for _, count in parts) or math.nan)

    def timing_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        return self.embed(outputs, batch).sum()

    def with_loss(self, function: Callable[..., Any]) -> "InBatchObjective":
        return OwnBatchLoss(function=function, objective=self)


@dataclass(frozen=True, kw_only=True)
class OwnBatchLoss(InBatchObjective):
    """A loss function of one's own over the embeddings of a batch, with the arguments and the result of batch_loss()."""

    function: Callable[..., Any]
    objective: InBatchObjective

    @property
    def reads_some_tokens(self) -> bool:
        return reads_some_tokens(self.objective, *LOSSES)

    @property
    def read_tokens(self) -> str:
        return self.objective.read_tokens

    def find_reading(self, batch: Batch) -> TokenReading | None:
        return self.objective.find_reading(batch)

    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        return self.objective.embed(outputs, batch)

    def batch_loss(
        self, embeddings: "torch.Tensor", counts: Array, features: Features, indices: Array
    ) -> "tuple[torch.Tensor, float]":
        """Returns what the function returns. InputError if that is not a sum and a number of targets."""
        return call_loss(self.function, embeddings, counts, features, indices)
