"""RunConfig and its sections: frozen dataclasses that check themselves. Imports nothing heavy.

The Args sections of the docstrings are the texts of `--help` and of docs/settings.md.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from hf_finetune.config.checks import require
from hf_finetune.config.model_sections import AdapterConfig, CacheConfig, FreezeConfig, ModelConfig
from hf_finetune.config.streaming import check_streaming
from hf_finetune.config.training_sections import (
    CheckpointConfig,
    EvaluationConfig,
    ExportConfig,
    TrainConfig,
    WaitingConfig,
)
from hf_finetune.system.errors import InputError, redact

__all__ = [
    "FILE_ENDINGS",
    "RENAMED",
    "AdapterConfig",
    "CacheConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExportConfig",
    "FreezeConfig",
    "HubConfig",
    "ModelConfig",
    "RunConfig",
    "TaskSettings",
    "TrackingConfig",
    "TrainConfig",
    "flatten",
    "get_default",
    "require",
    "to_dict",
]

FILE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather")


# Settings of earlier versions by their new names
RENAMED = {
    "prefix.cache": "cache.activations",
    "prefix.dir": "cache.dir",
    "prefix.precision": "cache.precision",
    "freeze.encoder_layers": "freeze.layers",
    "data.choice_columns": "task.choice_columns",
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The labelled text.

    Args:
        dataset: Data set on the Hub, or a folder that the datasets library can load.
        subset: Configuration of that data set, if it has several.
        train: Training data: csv, tsv, json, jsonl, parquet, arrow or feather files (.gz too), file patterns, package://NAME/path,
            or another format that the recipe reads (a folder with one sub-folder of .txt files per class, fastText and CoNLL
            files, text files). With data.dataset, the name of the split.
        validation: Validation data, in the same formats. If not given, a part of the training data is used.
        test: Data of the final test, in the same formats. If not given, a part of the training data is used.
        text_columns: Columns of the input text, in the order that the recipe describes: one text, or two for sentence pairs. In
            CoNLL files, the number of the column of words.
        label_column: Column of the target: labels, lists of labels, numbers, tags, answers or texts. Several columns, if each
            says by 0 or 1 whether a text has a label.
        validation_fraction: Share of the training data that is used for validation if data.validation is not given.
        test_fraction: Share of the training data that is used for the test if data.test is not given; 0 for no test.
        train_fraction: Share of the rows that are left for training to train on. Of each label it takes its share, and of two
            shares the larger one has the rows of the smaller one.
        folds: Divide the training data into this number of parts, of which data.fold is the validation split.
        fold: Number of that part, from 1. `hf-finetune train --folds K` trains a run for each.
        max_length: Maximum length of an input in tokens. If not given, the model's own limit, at most 512.
        max_train_examples: Number of training examples to use, drawn with the seed. If not given, all.
        encoding: Text encodings of the files; the first that fits is used.
        delimiter: Delimiter of csv and tsv files: one of , ; | or a tab. If not given, it is found in the file.
        quoting: Whether fields of csv and tsv files may stand in double quotes: quoted, none (a quote is a character like any
            other), or auto, which finds out.
        header: The first line of csv and tsv files has the names of the columns. If false, the columns are called 1, 2, 3, ...
        max_expansion: How many times its own size a .gz file may be unpacked to, beyond 100 MB.
        workers: Threads that encode text. If not given, one for each core.
        strict: Make the warnings of the report on the data errors.
        streaming: Read training data during training, from shards that need not fit on the disk. Needs train.max_updates.
        shuffle_buffer: With data.streaming, examples from which the next one is drawn.
    """

    dataset: str | None = None
    subset: str | None = None
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ("text",)
    label_column: str | tuple[str, ...] | None = "label"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    train_fraction: float = 1.0
    folds: int | None = None
    fold: int = 1
    max_length: int | None = None
    max_train_examples: int | None = None
    encoding: tuple[str, ...] = ("utf-8",)
    delimiter: str | None = None
    quoting: Literal["auto", "quoted", "none"] = "auto"
    header: bool = True
    max_expansion: int = 100
    workers: int | None = None
    strict: bool = False
    streaming: bool = False
    shuffle_buffer: int = 10_000

    def __post_init__(self) -> None:
        require(bool(self.text_columns), "data.text_columns", "[]", "must name at least one column")
        columns = [*self.text_columns, *self.label_columns]
        require(
            len(set(columns)) == len(columns),
            "data.text_columns",
            list(self.text_columns),
            f"must differ from each other and from data.label_column ({' '.join(self.label_columns) or 'null'})",
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
        require(
            0 < self.train_fraction <= 1, "data.train_fraction", self.train_fraction, "must be above 0, and at most 1"
        )
        require(
            self.train_fraction == 1 or not self.streaming,
            "data.train_fraction",
            self.train_fraction,
            "needs data.streaming off",
        )
        require(self.fold == 1 or self.folds is not None, "data.fold", self.fold, "must be used with data.folds")
        if self.folds is not None:
            self.check_folds(self.folds)
        minima = (
            ("max_length", 4),
            ("max_train_examples", 2),
            ("workers", 1),
            ("max_expansion", 1),
            ("shuffle_buffer", 1),
        )
        for key, minimum in minima:
            value = getattr(self, key)
            require(value is None or value >= minimum, f"data.{key}", value, f"must be at least {minimum}")
        require(
            self.delimiter in (None, ",", ";", "\t", "|"),
            "data.delimiter",
            self.delimiter,
            "must be one of , ; | or a tab",
        )
        require(bool(self.encoding), "data.encoding", "[]", "must name at least one encoding, such as utf-8")
        require(
            self.subset is None or self.dataset is not None,
            "data.subset",
            self.subset,
            "must be used with data.dataset",
        )

    def check_folds(self, folds: int) -> None:
        """Raises InputError if the folds are not possible with other settings."""
        require(folds >= 2, "data.folds", folds, "must be at least 2")
        require(1 <= self.fold <= folds, "data.fold", self.fold, f"must be between 1 and data.folds ({folds})")
        given = list(self.validation)
        way = "a fold of the training data is the validation split: leave it out, or add it to data.train"
        require(not given, "data.validation", given, way)
        for key in ("dataset", "streaming"):
            require(not getattr(self, key), f"data.{key}", getattr(self, key), "cannot be used with data.folds")

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns: one, several or none."""
        column = self.label_column
        return column if isinstance(column, tuple) else () if column is None else (column,)

    @property
    def one_label_column(self) -> str | None:
        """The label column of a task that takes one, or None."""
        column = self.label_column
        assert not isinstance(column, tuple)  # RunConfig checks it
        return column


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The task. Each task has its own settings besides task.kind, in a subclass (hf_finetune/tasks).

    Args:
        kind: Name of the task, which is also the name of its recipe; or the import path of your own class, such as
            my_package.tasks:MyTask.
    """

    paths: ClassVar[tuple[str, ...]] = ()  # fields that hold a path of this machine, which a model card must not show
    takes_label_columns: ClassVar[bool] = False  # data.label_column may name several

    kind: str


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
        on_failure: If the push at the end of the run fails: warn ends with exit code 0, error with 2. The run is complete, and
            `hf-finetune push --pending` makes the push.
    """

    push: bool = False
    repo_id: str | None = None
    private: bool = False
    revision: str | None = None
    on_failure: Literal["warn", "error"] = "warn"

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
    run: WaitingConfig = WaitingConfig()
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
            self.task.takes_label_columns or len(self.data.label_columns) <= 1,
            "data.label_column",
            list(self.data.label_columns),
            f"must be one column; several are for classify, and this task is {self.task.kind}",
        )
        require(
            self.adapter.kind == "none" or not self.freeze.unfreeze,
            "freeze.unfreeze",
            list(self.freeze.unfreeze),
            f"must not be used with adapter.kind {self.adapter.kind}: pretrained weights stay frozen",
        )
        check_streaming(self)
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
