"""Where the batches of the updates come from: the stored features of a split, or any other BatchSource (run/streaming.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.batches import EpochPlan, plan_epoch
from hf_finetune.data.features import Array, Features, PerFeature
from hf_finetune.training.schedule import make_schedule


@dataclass(frozen=True, kw_only=True)
class MeasuredFeatures:
    """N features, and what sharing a batch needs to know of each.

    Attributes:
        features: The features.
        lengths: Number of tokens of each one's longest sequence, [N].
        num_tokens: Number of tokens of each, [N].
        sequence_counts: Number of sequences of each, [N].
    """

    features: Features
    lengths: PerFeature
    num_tokens: PerFeature
    sequence_counts: PerFeature


def measure_features(features: Features) -> MeasuredFeatures:
    """Returns the features with the measures of each."""
    computed = (features.get_lengths, features.get_num_tokens, features.count_sequences)
    lengths, num_tokens, counts = (PerFeature(len(features), compute) for compute in computed)
    return MeasuredFeatures(features=features, lengths=lengths, num_tokens=num_tokens, sequence_counts=counts)


@dataclass(frozen=True, kw_only=True)
class SourceBatch:
    """The batch of one update, over all processes.

    Attributes:
        measured: The features that the batch is taken from.
        indices: Those of the batch, [B].
        epoch: Counted from 1.
        pass_number: For inputs that are drawn again whenever the data are read (Encoding.prepare): no feature is drawn twice with
            the same number.
    """

    measured: MeasuredFeatures
    indices: Array
    epoch: int
    pass_number: int


class BatchSource(Protocol):
    """Gives the batch of each update."""

    def get_batch(self, update: int) -> SourceBatch:
        """Returns the batch of an update, counted from 0. The same on all processes, which all call it."""


class StoredBatches:
    """The batches of stored features: law 2, a pure function of (size, seed, epoch)."""

    def __init__(
        self, features: Features, config: RunConfig, augmented: Callable[[int], Features] | None = None
    ) -> None:
        """Plans nothing yet.

        Args:
            features: The features of the training split.
            config: The settings of the run.
            augmented: The features of an epoch, counted from 1, as many as `features`; if not given, each epoch has `features`.
        """
        self.config, self.augmented = config, augmented
        self.updates_per_epoch = make_schedule(len(features), config).updates_per_epoch
        self.measured = measure_features(features)
        self.planned_epoch = -1
        self.batches: EpochPlan

    def get_batch(self, update: int) -> SourceBatch:
        epoch, position = divmod(update, self.updates_per_epoch)
        if epoch != self.planned_epoch:
            if self.augmented is not None:
                self.measured = measure_features(self.augmented(epoch + 1))
            train = self.config.train
            self.batches = plan_epoch(self.measured.lengths, train.batch_size, self.config.seed, epoch)
            self.planned_epoch = epoch
        indices = self.batches[position]
        return SourceBatch(measured=self.measured, indices=indices, epoch=epoch + 1, pass_number=epoch + 1)
