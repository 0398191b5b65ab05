"""The sections of training: training, evaluation, checkpoints, export. Frozen dataclasses that check themselves."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_finetune.config.checks import check_reference, require
from hf_finetune.config.optimizers import check_optimizer
from hf_finetune.config.schedules import check_schedule


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training.

    Args:
        epochs: Passes over the training examples.
        loss: Import path of a loss of your own, as my_module:loss; docs/extending.md. If not given, the task's.
        augment: Import path of a function of your own that changes the training rows in each epoch; docs/extending.md.
        on_update: Import path of a function of your own that is called after each update; docs/extending.md.
        max_updates: Maximum number of updates; training stops there even if train.epochs is not reached.
        batch_size: Examples per update, over all processes and micro-batches.
        micro_batch_size: Examples per forward pass on one process. If not given, the process's share of the batch in one
            pass. The results do not depend on it.
        micro_batch_tokens: Tokens per forward pass on one process, padding included; an alternative to train.micro_batch_size.
        shared_rows: Put several examples into one row of a forward pass instead of padding; for causal models. No example sees
            another, and the results do not depend on it. auto: on if the attention computes only what each example needs of a
            row (flash_attention_2, flex_attention), else off; docs/performance.md.
        learning_rate: Peak learning rate of the backbone.
        head_learning_rate: Peak learning rate of the new head. If not given, train.learning_rate.
        head_start: First weights of a new head. none: random. ridge: its last linear layer is fitted to training examples in
            closed form; docs/training.md.
        layer_decay: Factor on the learning rate from each block to the block below it; 1 for none.
        optimizer: Name of the optimizer: adamw, adafactor, sgd, lion, muon, schedule_free_adamw, adamw_8bit or another one of
            docs/settings.md; or the import path of your own, my_module:build, or of a class, such as torch.optim:ASGD.
        optimizer_options: Options of the optimizer by name.
        weight_decay: Weight decay, on matrices only (not on biases and norms).
        warmup_fraction: Share of all updates in which the learning rate rises from near 0 to its peak.
        schedule: Course of the learning rate after the warm-up; docs/settings.md has the formulas.
        schedule_options: Options of the schedule by name.
        ema_decay: Evaluate, save and export an exponential moving average of the trained weights, which keeps this share of
            itself in each update, such as 0.999. If not given, the trained weights themselves.
        max_grad_norm: Maximum global norm of the gradients, which are scaled down to it; 0 for no limit.
        label_smoothing: Share of the target that is spread evenly over all classes, tags or tokens, for cross-entropy losses.
        precision: Number format of the computation. auto: bf16 if the processor is fast at it, else fp32; the reason is printed.
        dropout_masks: Random generator of dropout. stateless: masks are a hash of seed, update, example and position, so
            results do not depend on how examples are grouped. torch: a sequential generator. auto: stateless on a CPU, where it
            is faster, else torch.
        patience: Stop after this number of evaluations in a row without a better validation metric. If not given, never.
        min_delta: Smallest improvement that counts as better for train.patience, in units of the metric.
    """

    epochs: int = 3
    loss: str | None = None
    augment: str | None = None
    on_update: str | None = None
    max_updates: int | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    micro_batch_tokens: int | None = None
    shared_rows: Literal["auto", "on", "off"] = "auto"
    learning_rate: float = 5e-5
    head_learning_rate: float | None = None
    head_start: Literal["none", "ridge"] = "none"
    layer_decay: float = 1.0
    optimizer: str = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    schedule: Literal["linear", "cosine", "constant", "cosine_with_restarts", "polynomial", "inverse_sqrt", "wsd"] = (
        "linear"
    )
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    ema_decay: float | None = None
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    dropout_masks: Literal["auto", "stateless", "torch"] = "auto"
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        for key in ("loss", "augment", "on_update"):
            check_reference(f"train.{key}", getattr(self, key))
        for key in ("epochs", "max_updates", "batch_size", "micro_batch_size", "micro_batch_tokens", "patience"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"train.{key}", value, "must be at least 1")
        for key in ("learning_rate", "head_learning_rate"):
            value = getattr(self, key)
            require(value is None or 0 < value < 10, f"train.{key}", value, "must be above 0 and below 10")
        require(0 < self.layer_decay <= 1, "train.layer_decay", self.layer_decay, "must be in (0, 1]")
        for key in ("weight_decay", "max_grad_norm", "min_delta"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"train.{key}", value, "must be 0 or more")
        for key in ("warmup_fraction", "label_smoothing"):
            value = getattr(self, key)
            require(0 <= value < 1, f"train.{key}", value, "must be in [0, 1)")
        require(
            self.micro_batch_size is None or self.micro_batch_size <= self.batch_size,
            "train.micro_batch_size",
            self.micro_batch_size,
            f"must be at most train.batch_size ({self.batch_size})",
        )
        require(
            self.micro_batch_size is None or self.micro_batch_tokens is None,
            "train.micro_batch_tokens",
            self.micro_batch_tokens,
            "must not be given together with train.micro_batch_size",
        )
        require(
            self.min_delta == 0 or self.patience is not None,
            "train.min_delta",
            self.min_delta,
            "must be used with train.patience",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1, "train.ema_decay", self.ema_decay, "must be in (0, 1)"
        )
        check_optimizer(self.optimizer, self.optimizer_options, self.schedule, self.ema_decay)
        check_schedule(self.schedule, self.schedule_options, self.warmup_fraction)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Validation during training.

    Args:
        every: Updates between two evaluations, "epoch", or a share of the run's updates such as 1/9. There is always one after
            the last update.
        metric: Metric that decides which checkpoint is the best: auto, loss, a metric of this package, one on the Hub, or the
            name of one of evaluation.metrics.
        metrics: Metrics to compute besides the task's: names, or import paths of your own functions, as my_module:kappa or
            NAME=my_module:function; docs/extending.md.
        greater_is_better: Whether a larger value of evaluation.metric is better. If not given, it is known for the metrics of
            this package, and true for all others.
        trust_metric_code: Run the Python code of a metric on the Hub, or in a file, that evaluation.metric or
            evaluation.metrics names.
        batch_size: Examples per forward pass.
    """

    every: int | str = "epoch"
    metric: str = "auto"
    metrics: tuple[str, ...] = ()
    greater_is_better: bool | None = None
    trust_metric_code: bool = False
    batch_size: int = 64

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if ":" in metric:
                check_reference("evaluation.metrics", metric.partition("=")[2] if "=" in metric else metric)
        is_share = isinstance(self.every, str) and re.fullmatch(r"1/[1-9][0-9]{0,5}", self.every) is not None
        require(
            self.every == "epoch" or is_share or (isinstance(self.every, int) and self.every >= 1),
            "evaluation.every",
            self.every,
            "must be a number of updates (at least 1), epoch, or a share of the run's updates such as 1/9",
        )
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving and resuming.

    Args:
        every: Updates between two checkpoints, or "epoch". The last update and every new best are always saved.
        every_minutes: Also save if this number of minutes has passed since the last checkpoint.
        content: full; or trainable, which saves only trained weights and the optimizer, with the digest of the rest:
            `hf-finetune materialize` makes a complete model from it.
        keep_best: Number of checkpoints to keep with the best values of evaluation.metric.
        keep_last: Number of newest checkpoints to keep.
        resume: auto continues from the newest intact checkpoint of the run. never starts again, and moves an earlier run of the
            same name to another folder. Or the path of a checkpoint.
    """

    every: int | Literal["epoch"] = "epoch"
    every_minutes: float | None = None
    content: Literal["full", "trainable"] = "full"
    keep_best: int = 1
    keep_last: int = 1
    resume: str = "auto"

    def __post_init__(self) -> None:
        require(self.every == "epoch" or self.every >= 1, "checkpoint.every", self.every, "must be at least 1")
        require(
            self.every_minutes is None or 0 < self.every_minutes < float("inf"),
            "checkpoint.every_minutes",
            self.every_minutes,
            "must be above 0",
        )
        for key in ("keep_best", "keep_last"):
            value = getattr(self, key)
            require(value >= 1, f"checkpoint.{key}", value, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class WaitingConfig:
    """The processes of a run.

    Args:
        patience_minutes: Minutes that a process waits for another one that gives no sign of life, because it is stopped or its
            network is dead. Then the run ends, with its last checkpoint.
    """

    patience_minutes: float = 30.0

    def __post_init__(self) -> None:
        require(
            0 < self.patience_minutes < float("inf"), "run.patience_minutes", self.patience_minutes, "must be above 0"
        )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The model that the run leaves in model/.

    Args:
        average: none exports the best checkpoint. last:K exports the mean of the weights of the checkpoints of the last K
            evaluations, and best:K that of the K best. Each evaluation then saves a checkpoint, and as many as that are kept.
    """

    average: str = "none"

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"none|(last|best):[1-9]\d{0,3}", self.average) is not None,
            "export.average",
            self.average,
            "must be none, last:K or best:K, such as last:3",
        )

    @property
    def order(self) -> str:
        """What is averaged: none, the last or the best."""
        return self.average.partition(":")[0]

    @property
    def count(self) -> int:
        """The number of checkpoints that are averaged; 0 for none."""
        return int(self.average.partition(":")[2] or 0)
