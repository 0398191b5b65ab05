"""RunConfig and its sections: frozen dataclasses that check themselves. Imports nothing heavy.

The docstrings' Args sections are the help texts of `--help`.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

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


check = require  # until all callers are renamed


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The pretrained backbone.

    Args:
        backbone: Hub id, folder, or package://NAME/path of a folder in an installed package; a suffix
            #sha256=HEX has the weight file checked before it is loaded.
        revision: Branch, tag or commit of a backbone on the Hub.
        trust_remote_code: Run the Python code that a Hub repository carries.
        attention: Attention implementation, as transformers names them (eager, sdpa, flash_attention_2); its own
            choice if not given.
        dropout: One probability for every dropout of the model; the backbone's own if not given.
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
        dataset: Data set on the Hub, or a folder that the datasets library loads.
        subset: Configuration of that data set, where it has several.
        train: Files (csv, tsv, json, jsonl, parquet, also .gz), globs, package://NAME/path, or what the recipe takes besides (a
            folder with one sub-folder of .txt files a class, CoNLL files, text files). With data.dataset, the name of its split.
        validation: The same for validation; taken from training if not given.
        test: The same for the final test; taken from training if not given.
        text_columns: The columns that are read, in the order the recipe says: one text, or two for sentence pairs.
        label_column: The column of what is to be predicted: labels, lists of labels, numbers, tags, answers, texts.
        validation_fraction: Share of the training rows taken for validation where there is no such split.
        test_fraction: Share of the training rows taken for the test where there is no such split; 0 for none.
        max_length: Longest input in tokens, longer ones are cut; the model's own limit, at most 512, if not given.
        max_train_examples: Train on so many examples, drawn with the seed.
        encoding: Text encodings, tried in order for each file.
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
        require(bool(self.text_columns), "data.text_columns", "[]", "names at least one column")
        named = [*self.text_columns, self.label_column]
        require(
            len(set(named)) == len(named),
            "data.text_columns",
            list(self.text_columns),
            f"the columns, data.label_column ({self.label_column}) among them, must differ",
        )
        for key in ("validation_fraction", "test_fraction"):
            value = getattr(self, key)
            require(0 <= value < 1, f"data.{key}", value, "must be in [0, 1)")
        require(
            self.validation_fraction > 0 or bool(self.validation) or self.dataset is not None,
            "data.validation_fraction",
            self.validation_fraction,
            "must be above 0 where data.validation is not given: the best checkpoint is chosen on validation",
        )
        require(self.validation_fraction + self.test_fraction < 1, "data.validation_fraction", self.validation_fraction,
              f"leaves nothing to train on with data.test_fraction ({self.test_fraction})")  # fmt: skip
        require(self.max_length is None or self.max_length >= 4, "data.max_length", self.max_length, "must be at least 4")
        require(self.max_train_examples is None or self.max_train_examples >= 2, "data.max_train_examples",
              self.max_train_examples, "must be at least 2")  # fmt: skip
        require(bool(self.encoding), "data.encoding", "[]", "names at least one encoding, such as utf-8")
        require(self.subset is None or self.dataset is not None, "data.subset", self.subset, "needs data.dataset")


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The task, and its own settings: each task has a subclass with more fields (hf_finetune/tasks).

    Args:
        kind: Name of the task, which is its recipe's, or the import path of a class of your own: my_package.tasks:MyTask.
    """

    paths: ClassVar[tuple[str, ...]] = ()  # fields that hold a path of this machine, which a model card must not show

    kind: str


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """What stays as it was pretrained.

    Args:
        embeddings: Freeze all that feeds the first block.
        layers: Blocks frozen from the bottom up: a count, a negative count left free at the top, a fraction
            such as 2/3, or all.
        patterns: Regular expressions; a parameter whose name one of them finds (re.search) is frozen.
        unfreeze: Gradual unfreezing, such as [{epoch: 2, layers: 2}, {epoch: 3, layers: 0}]: from the start of
            that epoch, counted from 1, so many blocks are frozen.
    """

    embeddings: bool = False
    layers: int | str = 0
    patterns: tuple[str, ...] = ()
    unfreeze: tuple[dict[str, int | str], ...] = ()

    def __post_init__(self) -> None:
        check_layers("freeze.layers", self.layers)
        before = 1
        for stage in self.unfreeze:
            require(stage.keys() == {"epoch", "layers"}, "freeze.unfreeze", stage,
                  "takes epoch and layers, both and no more")  # fmt: skip
            epoch = stage["epoch"]
            require(isinstance(epoch, int) and epoch > before, "freeze.unfreeze", stage,
                  "epochs must be whole numbers, rise, and be above 1")  # fmt: skip
            check_layers("freeze.unfreeze", stage["layers"])
            before = int(epoch)
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(f"freeze.patterns ({pattern}): not a regular expression: {error}") from None

    def at(self, epoch: int) -> "FreezeConfig":
        """What is frozen in an epoch, counted from 1."""
        layers = [stage["layers"] for stage in self.unfreeze if int(stage["epoch"]) <= epoch]
        return dataclasses.replace(self, layers=[self.layers, *layers][-1], unfreeze=())


def check_layers(key: str, value: Any) -> None:
    """Raises InputError where a value does not say how many blocks are frozen."""
    takes = 'takes a count, a negative count, a fraction such as "2/3", or "all"'
    is_count = isinstance(value, int) and not isinstance(value, bool)
    require(is_count or value == "all" or (isinstance(value, str) and parse_fraction(value) is not None), key, value, takes)


def parse_fraction(text: str) -> Fraction | None:
    """The fraction in [0, 1] that `text` writes as "a/b", or None."""
    if not re.fullmatch(r"\d{1,9}/[1-9]\d{0,8}", text):
        return None
    value = Fraction(text)
    return value if value <= 1 else None


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Small matrices that are trained instead of the weights beside them. An optional extra: pip install 'hf-finetune[lora]'.

    Args:
        kind: lora trains LoRA matrices (Hu et al. 2021, arXiv:2106.09685) in the blocks above freeze.layers, and the new
            head; every pretrained weight stays frozen. Wants up to ten times the train.learning_rate of training the weights.
        rank: Columns of the matrices.
        alpha: What the matrices add is multiplied by alpha / rank.
        dropout: Dropout probability of what goes into the matrices.
        targets: Names of the linear layers that get them, such as query and value, or the ends of names with dots; all linear
            layers of the blocks if not given.
        merge: model/ holds a whole model with the matrices added to the weights, which loads without peft, not the adapter alone.
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
        require(all(self.targets), "adapter.targets", list(self.targets), "a name is empty")
        for field in fields(self) if self.kind == "none" else ():
            value = getattr(self, field.name)
            require(value == field.default, f"adapter.{field.name}", list(value) if isinstance(value, tuple) else value,
                  "has no meaning without adapter.kind lora")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What is frozen is computed once and kept on disk, for all epochs and runs.

    Args:
        activations: on, off, or auto: on where it saves time on this machine, which is measured, printed and kept to on resume.
        dir: Folder of the cache, shared by all runs; prefix/ under HF_FINETUNE_CACHE if not given.
        precision: What hidden states are kept in: 16-bit (fp16; bf16 where values are too large for it) or fp32.
    """

    activations: Literal["auto", "on", "off"] = "auto"
    dir: str | None = None
    precision: Literal["16-bit", "fp32"] = "16-bit"

    def __post_init__(self) -> None:
        require(self.dir != "", "cache.dir", "''", "must not be empty")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the free parameters are trained.

    Args:
        epochs: Passes over the training examples.
        max_updates: Stop after so many updates, whatever train.epochs says.
        batch_size: Examples an update, over all processes and micro-batches.
        micro_batch_size: Examples a forward on one process; the process's whole share of the batch if not given.
            The numbers do not depend on it.
        micro_batch_tokens: Tokens a forward on one process, padding included, instead of a number of examples.
        learning_rate: Peak learning rate of the backbone.
        head_learning_rate: Peak learning rate of the new head; train.learning_rate if not given.
        layer_decay: Factor on the learning rate from each block to the one below it; 1 for none.
        weight_decay: Decoupled weight decay of AdamW, on matrices only (not on biases and norms).
        warmup_fraction: Share of all updates over which the learning rate rises from near 0 to its peak.
        schedule: Course of the learning rate after the warm-up, down to 0 or constant.
        max_grad_norm: Gradients are scaled down to this global norm; 0 for no limit.
        label_smoothing: Share of the target spread evenly over all classes, tags or tokens, where the loss is a cross entropy.
        precision: auto takes bf16 where the processor is fast at it, else fp32, and says why.
        dropout_masks: stateless draws them from a hash of seed, update, example and position, so that the numbers do not
            depend on how examples are grouped; torch from a generator. auto takes stateless on a CPU, where it is faster.
        patience: Stop after so many evaluations in a row without a better validation metric; never if not given.
        min_delta: What counts as better for train.patience, in units of the metric.
    """

    epochs: int = 3
    max_updates: int | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    micro_batch_tokens: int | None = None
    learning_rate: float = 5e-5
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    dropout_masks: Literal["auto", "stateless", "torch"] = "auto"
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
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
        require((self.micro_batch_size or 1) <= self.batch_size, "train.micro_batch_size", self.micro_batch_size,
              f"must not be above train.batch_size ({self.batch_size})")  # fmt: skip
        require(self.micro_batch_size is None or self.micro_batch_tokens is None, "train.micro_batch_tokens",
              self.micro_batch_tokens, "is instead of train.micro_batch_size; give one of them")  # fmt: skip
        require(self.min_delta == 0 or self.patience is not None, "train.min_delta", self.min_delta,
              "has no meaning without train.patience")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Validation during training.

    Args:
        every: "epoch", or a number of updates. The last update is always evaluated.
        metric: What "best" means: auto, loss, a name this package computes offline, or a metric on the Hub.
        batch_size: Examples a forward.
    """

    every: int | Literal["epoch"] = "epoch"
    metric: str = "auto"
    batch_size: int = 64

    def __post_init__(self) -> None:
        require(self.every == "epoch" or self.every >= 1, "evaluation.every", self.every, "must be at least 1")
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is saved and resumed.

    Args:
        every: "epoch", or a number of updates. The last update and every new best are always saved.
        every_minutes: Save also when so many minutes have passed since the last save.
        content: full, or trainable: only what trains and the optimizer, with the digest of the rest; `hf-finetune materialize`
            makes a whole model of it.
        keep_best: Checkpoints kept for the best values of evaluation.metric.
        keep_last: Newest checkpoints kept.
        resume: auto goes on from the newest whole checkpoint of the run; never starts anew and moves an older run of
            the same name aside; or the path of a checkpoint.
    """

    every: int | Literal["epoch"] = "epoch"
    every_minutes: float | None = None
    content: Literal["full", "trainable"] = "full"
    keep_best: int = 1
    keep_last: int = 1
    resume: str = "auto"

    def __post_init__(self) -> None:
        require(self.every == "epoch" or self.every >= 1, "checkpoint.every", self.every, "must be at least 1")
        require(self.every_minutes is None or 0 < self.every_minutes < float("inf"), "checkpoint.every_minutes",
              self.every_minutes, "must be above 0")  # fmt: skip
        for key in ("keep_best", "keep_last"):
            value = getattr(self, key)
            require(value >= 1, f"checkpoint.{key}", value, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the numbers are shown.

    Args:
        trackers: Trackers of Accelerate by name (tensorboard, wandb, ...); [] for none.
        log_every: Updates between two logged rows of training.
    """

    trackers: tuple[str, ...] = ("tensorboard",)
    log_every: int = 10

    def __post_init__(self) -> None:
        require(self.log_every >= 1, "tracking.log_every", self.log_every, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Sharing on the Hugging Face Hub. Nothing is uploaded unless asked for.

    Args:
        push: Push the best model when the run ends.
        repo_id: Repository as user/name.
        private: Make a new repository private.
        revision: Branch to push to; the main one if not given.
    """

    push: bool = False
    repo_id: str | None = None
    private: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        require(not self.push or self.repo_id is not None, "hub.repo_id", None, "is needed with hub.push")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run.

    Args:
        name: Folder of the run under output_dir.
        output_dir: Folder of all runs.
        seed: Of the new head, the splits, the order of examples and dropout.
        model: The pretrained backbone
        data: The labelled text
        task: What the labels mean
        freeze: What stays as it was pretrained
        adapter: What is trained beside it
        cache: What is frozen is computed once
        train: How the rest is trained
        evaluation: Validation during training
        checkpoint: What is saved and resumed
        tracking: Where the numbers are shown
        hub: Sharing on the Hugging Face Hub
    """

    name: str = "run"
    output_dir: str = "outputs"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    task: TaskSettings
    freeze: FreezeConfig = FreezeConfig()
    adapter: AdapterConfig = AdapterConfig()
    cache: CacheConfig = CacheConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    hub: HubConfig = HubConfig()

    def __post_init__(self) -> None:
        require(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name) is not None, "name", self.name,
              "takes letters, digits and . _ - inside: a folder's name, not a path (see output_dir)")  # fmt: skip
        require(0 <= self.seed < 2**31, "seed", self.seed, "must be 0 or more, and below 2147483648")
        require(
            self.model.backbone != "", "model.backbone", "''", "is needed: a Hub id, a folder, or package://NAME/path"
        )
        require(self.data.dataset is not None or bool(self.data.train), "data.train", "[]",
              "is needed: files or a folder; or name a data set in data.dataset")  # fmt: skip
        require(self.adapter.kind == "none" or not self.freeze.unfreeze, "freeze.unfreeze", list(self.freeze.unfreeze),
              f"has no meaning with adapter.kind {self.adapter.kind}: pretrained weights stay frozen")  # fmt: skip
        for key, value in flatten(to_dict(self)):
            if redact(str(value)) != str(value):
                raise InputError(
                    f"{key} (***): holds a token or a password, which would be written into the run's files; give tokens in "
                    "HF_TOKEN or by `hf auth login`"
                )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """Returns the config of settings by their dotted keys, such as `{"task.kind": "classify", "train.epochs": 2}`.

        Settings that are not given have the package's defaults. Raises InputError.
        """
        from hf_finetune.config.loading import load_config

        return load_config(settings)

    @property
    def run_dir(self) -> Path:
        """The folder of this run."""
        return Path(self.output_dir) / self.name


# Settings that may differ between a run and its resumption: no trained number depends on them; or, with data, what
# they stand for is recognised by its digest; or, with freeze, what changes is carried over name by name and reported.
FREE_ON_RESUME = ("output_dir", "cache.", "train.micro_batch_size", "train.micro_batch_tokens", "evaluation.batch_size",
                  "checkpoint.", "tracking.", "hub.", "data.", "freeze.", "adapter.merge")  # fmt: skip


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested plain values (tuples as lists), fit for YAML, JSON and a weights-only checkpoint."""
    return {
        field.name: to_dict(value)
        if dataclasses.is_dataclass(value := getattr(config, field.name))
        else (list(value) if isinstance(value, tuple) else value)
        for field in fields(config)
    }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value, in order."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """`(dotted key, old value, new value)` of what differs and matters to a resumed run's numbers."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(FREE_ON_RESUME)
    ]
