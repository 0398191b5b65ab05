"""RunConfig and its sections: frozen dataclasses that check themselves. Imports nothing heavy.

The Args sections of the docstrings are the texts of `--help` and of docs/settings.md.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

from hf_finetune.config.optimizers import check_optimizer
from hf_finetune.config.references import is_reference
from hf_finetune.config.schedules import check_schedule
from hf_finetune.system.errors import InputError, redact

FILE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


# Settings of earlier versions by their new names
RENAMED = {
    "prefix.cache": "cache.activations",
    "prefix.dir": "cache.dir",
    "prefix.precision": "cache.precision",
    "freeze.encoder_layers": "freeze.layers",
    "data.choice_columns": "task.choice_columns",
}


def require(condition: bool, key: str, value: object, message: str) -> None:
    """Raises InputError `key (value): message` if the condition is false."""
    if not condition:
        raise InputError(f"{key} ({value}): {message}")


def check_reference(key: str, value: str | None) -> None:
    """Raises InputError if a setting that takes an import path is given anything else."""
    require(value is None or is_reference(value), key, value, "must be an import path, as my_module:name")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The pretrained backbone.

    Args:
        backbone: Hub id, folder, or package://NAME/path for a folder in an installed package. With the suffix
            #sha256=HEX, the digest of the weight file is checked before it is loaded.
        revision: Branch, tag or commit of a backbone on the Hub.
        trust_remote_code: Run Python code from the backbone's repository on the Hub.
        attention: Attention implementation, by its name in transformers (eager, sdpa, flash_attention_2). If not given,
            transformers chooses.
        dropout: Probability for every dropout of the model. If not given, the backbone's own.
    """

    backbone: str = ""
    revision: str | None = None
    trust_remote_code: bool = False
    attention: str | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        require(self.dropout is None or 0 <= self.dropout < 1, "model.dropout", self.dropout, "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The labelled text.

    Args:
        dataset: Data set on the Hub, or a folder that the datasets library can load.
        subset: Configuration of that data set, if it has several.
        train: Training data: csv, tsv, json, jsonl or parquet files (.gz too), file patterns, package://NAME/path, or another
            format that the recipe reads (a folder with one sub-folder of .txt files per class, CoNLL files, text files). With
            data.dataset, the name of the split.
        validation: Validation data, in the same formats. If not given, a part of the training data is used.
        test: Data of the final test, in the same formats. If not given, a part of the training data is used.
        text_columns: Columns of the input text, in the order that the recipe describes: one text, or two for sentence pairs.
        label_column: Column of the target: labels, lists of labels, numbers, tags, answers or texts.
        validation_fraction: Share of the training data that is used for validation if data.validation is not given.
        test_fraction: Share of the training data that is used for the test if data.test is not given; 0 for no test.
        max_length: Maximum length of an input in tokens. If not given, the model's own limit, at most 512.
        max_train_examples: Number of training examples to use, drawn with the seed. If not given, all.
        encoding: Text encodings of the files; the first that fits is used.
    """

    dataset: str | None = None
    subset: str | None = None
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ("text",)
    label_column: str | None = "label"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    max_length: int | None = None
    max_train_examples: int | None = None
    encoding: tuple[str, ...] = ("utf-8",)

    def __post_init__(self) -> None:
        require(bool(self.text_columns), "data.text_columns", "[]", "must name at least one column")
        columns = [*self.text_columns, self.label_column]
        require(
            len(set(columns)) == len(columns),
            "data.text_columns",
            list(self.text_columns),
            f"must differ from each other and from data.label_column ({self.label_column})",
        )
        for key in ("validation_fraction", "test_fraction"):
            value = getattr(self, key)
            require(0 <= value < 1, f"data.{key}", value, "must be in [0, 1)")
        require(
            self.validation_fraction > 0 or bool(self.validation) or self.dataset is not None,
            "data.validation_fraction",
            self.validation_fraction,
            "must be above 0 if data.validation is not given: the best checkpoint is chosen by validation",
        )
        require(
            self.validation_fraction + self.test_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            f"must be below 1 together with data.test_fraction ({self.test_fraction}): nothing is left to train on",
        )
        for key, minimum in (("max_length", 4), ("max_train_examples", 2)):
            value = getattr(self, key)
            require(value is None or value >= minimum, f"data.{key}", value, f"must be at least {minimum}")
        require(bool(self.encoding), "data.encoding", "[]", "must name at least one encoding, such as utf-8")
        require(
            self.subset is None or self.dataset is not None,
            "data.subset",
            self.subset,
            "must be used with data.dataset",
        )


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The task. Each task has its own settings besides task.kind, in a subclass (hf_finetune/tasks).

    Args:
        kind: Name of the task, which is also the name of its recipe; or the import path of your own class, such as
            my_package.tasks:MyTask.
    """

    paths: ClassVar[tuple[str, ...]] = ()  # fields that hold a path of this machine, which a model card must not show

    kind: str


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """The pretrained weights that are not trained.

    Args:
        embeddings: Freeze everything below the first block.
        layers: Number of blocks to freeze, counted from the bottom; a negative number -N to train the N top blocks; a fraction
            such as 2/3; or all.
        patterns: Regular expressions. A parameter is frozen if one of them matches anywhere in its name (re.search).
        unfreeze: Gradual unfreezing, such as [{epoch: 2, layers: 2}, {epoch: 3, layers: 0}]: the number of frozen blocks from
            the start of each of these epochs, counted from 1.
    """

    embeddings: bool = False
    layers: int | str = 0
    patterns: tuple[str, ...] = ()
    unfreeze: tuple[dict[str, int | str], ...] = ()

    def __post_init__(self) -> None:
        check_layers("freeze.layers", self.layers)
        previous = 1
        for stage in self.unfreeze:
            require("encoder_layers" not in stage, "freeze.unfreeze", stage, "encoder_layers is now called layers")
            require(
                stage.keys() == {"epoch", "layers"},
                "freeze.unfreeze",
                stage,
                "must have exactly the keys epoch and layers",
            )
            epoch = stage["epoch"]
            require(
                isinstance(epoch, int) and epoch > previous,
                "freeze.unfreeze",
                stage,
                "must have epochs that are whole numbers above 1, in ascending order",
            )
            check_layers("freeze.unfreeze", stage["layers"])
            previous = int(epoch)
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(f"freeze.patterns ({pattern}): must be a regular expression: {error}") from None

    def at(self, epoch: int) -> "FreezeConfig":
        """Returns the plan of one epoch (counted from 1), without later stages."""
        layers = [stage["layers"] for stage in self.unfreeze if int(stage["epoch"]) <= epoch]
        return dataclasses.replace(self, layers=[self.layers, *layers][-1], unfreeze=())


def check_layers(key: str, value: Any) -> None:
    """Raises InputError if a value is not a number of blocks to freeze."""
    is_count = isinstance(value, int) and not isinstance(value, bool)
    is_fraction = isinstance(value, str) and parse_fraction(value) is not None
    require(
        is_count or is_fraction or value == "all",
        key,
        value,
        'must be a count, a negative count, a fraction such as "2/3", or "all"',
    )


def parse_fraction(text: str) -> Fraction | None:
    """The fraction in [0, 1] that `text` writes as "a/b", or None."""
    if not re.fullmatch(r"\d{1,9}/[1-9]\d{0,8}", text):
        return None
    value = Fraction(text)
    return value if value <= 1 else None


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Small matrices that are trained instead of the pretrained weights: pip install 'hf-finetune[lora]'.

    Args:
        kind: lora trains LoRA matrices (Hu et al. 2021, arXiv:2106.09685) in the blocks above freeze.layers, and the new
            head. All pretrained weights stay frozen. The best train.learning_rate is up to ten times that of full fine-tuning.
        rank: Rank of the matrices.
        alpha: Scale of the matrices: their output is multiplied by alpha / rank.
        dropout: Dropout probability at the input of the matrices.
        targets: Names of the linear layers that get matrices, such as query and value, or the last parts of dotted names. If
            not given, all linear layers of the blocks.
        merge: Add the matrices to the weights, and export a complete model that loads without peft. If false, model/ holds the
            adapter alone.
    """

    # Rank and alpha are those of the paper's own RoBERTa scripts (github.com/microsoft/LoRA, NLU/roberta_*.sh, with learning
    # rates of 2e-4 to 5e-4). All linear layers, and some ten times the learning rate of full fine-tuning: Schulman et al. 2025,
    # "LoRA Without Regret"
    kind: Literal["none", "lora"] = "none"
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    merge: bool = False

    def __post_init__(self) -> None:
        for key in ("rank", "alpha"):
            require(getattr(self, key) >= 1, f"adapter.{key}", getattr(self, key), "must be at least 1")
        require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "must be in [0, 1)")
        require(all(self.targets), "adapter.targets", list(self.targets), "must not have an empty name")
        if self.kind == "none":
            for field in fields(self):
                value = getattr(self, field.name)
                shown = list(value) if isinstance(value, tuple) else value
                require(value == field.default, f"adapter.{field.name}", shown, "must be used with adapter.kind lora")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The caches: encoded text, and activations, which are the outputs of frozen layers.

    Args:
        activations: Compute the frozen layers once, and store their outputs for all epochs and runs. auto: measured at the start,
            and on if it saves time on this machine. The decision is printed, and kept when the run is resumed.
        dir: Folder of all caches, shared by all runs: encoded text and activations lie under it. If not given,
            HF_FINETUNE_CACHE, else ~/.cache/hf_finetune.
        precision: Number format of stored activations: 16-bit (fp16, or bf16 if values are too large for it) or fp32.
    """

    activations: Literal["auto", "on", "off"] = "auto"
    dir: str | None = None
    precision: Literal["16-bit", "fp32"] = "16-bit"

    def __post_init__(self) -> None:
        require(self.dir != "", "cache.dir", "''", "must not be empty")


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
        learning_rate: Peak learning rate of the backbone.
        head_learning_rate: Peak learning rate of the new head. If not given, train.learning_rate.
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
    learning_rate: float = 5e-5
    head_learning_rate: float | None = None
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
        every: Updates between two evaluations, or "epoch". There is always an evaluation after the last update.
        metric: Metric that decides which checkpoint is the best: auto, loss, a metric of this package, one on the Hub, or the
            name of one of evaluation.metrics.
        metrics: Metrics to compute besides the task's: names, or import paths of your own functions, as my_module:kappa or
            NAME=my_module:function; docs/extending.md.
        greater_is_better: Whether a larger value of evaluation.metric is better. If not given, it is known for the metrics of
            this package, and true for all others.
        batch_size: Examples per forward pass.
    """

    every: int | Literal["epoch"] = "epoch"
    metric: str = "auto"
    metrics: tuple[str, ...] = ()
    greater_is_better: bool | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if ":" in metric:
                check_reference("evaluation.metrics", metric.partition("=")[2] if "=" in metric else metric)
        require(self.every == "epoch" or self.every >= 1, "evaluation.every", self.every, "must be at least 1")
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


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Logging of the numbers.

    Args:
        trackers: Trackers of Accelerate by name (tensorboard, wandb, ...); [] for none.
        log_every: Updates between two logged training losses.
    """

    trackers: tuple[str, ...] = ("tensorboard",)
    log_every: int = 10

    def __post_init__(self) -> None:
        require(self.log_every >= 1, "tracking.log_every", self.log_every, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Sharing on the Hugging Face Hub. Nothing is uploaded by default.

    Args:
        push: Push the best model when the run ends.
        repo_id: Repository as user/name.
        private: Make a new repository private.
        revision: Branch to push to. If not given, the main branch.
    """

    push: bool = False
    repo_id: str | None = None
    private: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        require(not self.push or self.repo_id is not None, "hub.repo_id", None, "must be given with hub.push")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run.

    Args:
        name: Name of the run's folder in output_dir. If not given, it is made from the name of the training data.
        output_dir: Folder of all runs.
        seed: Random seed for the new head, splits, example order and dropout.
        start_from: Weights to begin from instead of those of model.backbone: a run folder (its best weights), the file of a
            checkpoint, a model folder, or a Hub id. An adapter is merged into the weights of its model.
    """

    name: str = "run"
    output_dir: str = "outputs"
    seed: int = 0
    start_from: str | None = None
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    task: TaskSettings
    freeze: FreezeConfig = FreezeConfig()
    adapter: AdapterConfig = AdapterConfig()
    cache: CacheConfig = CacheConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()
    hub: HubConfig = HubConfig()

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name) is not None,
            "name",
            self.name,
            "must be a folder's name of letters, digits and . _ - (not a path; see output_dir)",
        )
        require(self.start_from != "", "start_from", "''", "must not be empty")
        require(0 <= self.seed < 2**31, "seed", self.seed, "must be 0 or more, and below 2147483648")
        require(
            self.model.backbone != "" or self.start_from is not None,
            "model.backbone",
            "''",
            "must be given: a Hub id, a folder, or package://NAME/path; or set start_from to an earlier run",
        )
        require(
            self.data.dataset is not None or bool(self.data.train),
            "data.train",
            "[]",
            "must be given: files or a folder; or name a data set in data.dataset",
        )
        require(
            self.adapter.kind == "none" or not self.freeze.unfreeze,
            "freeze.unfreeze",
            list(self.freeze.unfreeze),
            f"must not be used with adapter.kind {self.adapter.kind}: pretrained weights stay frozen",
        )
        for key, value in flatten(to_dict(self)):
            if redact(str(value)) != str(value):
                raise InputError(
                    f"{key} (***): must not hold a token or a password, because it would be written into the run's files; "
                    "give tokens in HF_TOKEN or by `hf auth login`"
                )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """Returns the config of settings by their dotted keys, such as `{"task.kind": "classify", "train.epochs": 2}`.

        Settings that are not given have the defaults of the task's recipe, as on the command line. Raises InputError.
        """
        from hf_finetune.config.loading import choose_kind, load_config
        from hf_finetune.config.recipes import read_defaults

        return load_config({**read_defaults(choose_kind({}, settings)), **settings})

    @property
    def run_dir(self) -> Path:
        """The folder of this run."""
        return Path(self.output_dir) / self.name


# Settings that may change when a run is resumed. No trained number depends on them; or a digest of their contents is compared
# (data); or their effect is carried over parameter by parameter, and printed (freeze).
FREE_ON_RESUME = (
    "output_dir",
    "task.choice_columns",  # names of columns, as those of data.: the data are recognised by their content
    "cache.",
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "evaluation.batch_size",
    "checkpoint.",
    "tracking.",
    "hub.",
    "data.",
    "freeze.",
    "adapter.merge",
    "train.on_update",
)

# Settings that say how long a run trains. They may change too, so that a run trains on after its end: the checkpoints stay right,
# and results.json records the values that the run was finished with.
EXTENDABLE = ("train.epochs", "train.max_updates", "train.patience", "train.min_delta")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the config as nested plain values (tuples as lists), for YAML, JSON and weights-only checkpoints."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {
        name: to_dict(value) if is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def get_default(setting: "Field[Any]") -> Any:
    """Returns the default of a section's field; MISSING if it has none."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields pairs of dotted key and value, in order. A mapping without a key is a value."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get_length(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of EXTENDABLE, by their dotted keys, of a config as to_dict() returns it."""
    values = dict(flatten(config))
    return {key: values.get(key) for key in EXTENDABLE}


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns `(dotted key, old value, new value)` of the settings that differ and must not change when a run is resumed."""
    before, after = ({key: value for key, value in flatten(nested) if value != {}} for nested in (old, new))
    free: tuple[str, ...] = (*FREE_ON_RESUME, *EXTENDABLE)
    if before.get("start_from") == after.get("start_from") is not None:
        free = (*free, "model.backbone")  # which start_from replaces
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]
