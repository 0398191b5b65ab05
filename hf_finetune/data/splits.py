"""The train, validation and test tables of a run: read if they are given, split off from training if not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.config.sections import DataConfig, require
from hf_finetune.data.hub_datasets import hides_labels, read_hub_dataset
from hf_finetune.data.memory import MEMORY, not_given_error, read_memory
from hf_finetune.data.row_split import split_off, take_fold, take_share
from hf_finetune.data.shards import read_streamed_splits
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import ColumnSpec, Table, text_and_label_spec

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The tables of a run.

    Attributes:
        train: The rows to train on.
        validation: The rows that choose the best checkpoint.
        test: The rows of the final evaluation, if there are any.
        notes: Lines for the start-up report: which split was taken from training, and how.
        num_rows: The number of rows that data.train, data.validation and data.test gave, by split, before any was split off.
    """

    train: Table
    validation: Table
    test: Table | None
    notes: tuple[str, ...] = ()
    num_rows: Mapping[str, int] = field(default_factory=dict)

    def tables(self) -> dict[str, Table]:
        """Returns the tables that there are, by split."""
        tables = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: table for split, table in tables.items() if table is not None}


def load_splits(
    config: DataConfig,
    seed: int,
    spec: ColumnSpec | None = None,
    given: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> Splits:
    """Reads all splits, and splits the missing ones off from training.

    Args:
        config: Where the splits are, and the fractions of those that are missing.
        seed: The seed of the run.
        spec: The columns to read; texts with a label if not given.
        given: Rows that a program gave, by split (data.memory.KINDS).
        root: The folder of the caches, where the rows of large files lie; if it is not given, they lie in memory.

    Raises InputError for rows that cannot be used, or if a split would be empty.
    """
    if spec is None:
        spec = text_and_label_spec(config.text_columns, str(config.label_column))
    tables = read_given_splits(config, spec, given or {}, root)
    num_rows = {split: len(table) for split, table in tables.items()}
    train = tables.pop("train")
    fractions = {
        split: getattr(config, f"{split}_fraction")
        for split in ("validation", "test")
        if split not in tables and getattr(config, f"{split}_fraction") > 0
    }
    if config.folds is not None:
        fractions.pop("validation", None)
    notes = [
        f"{split}: left out, because all its labels are -1, which means that they are hidden"
        for split in given or {}
        if split not in num_rows
    ]
    if fractions:
        train_rows, split_rows = split_off(train, spec, fractions, seed)
        for split, rows in split_rows.items():
            key, fraction = f"data.{split}_fraction", fractions[split]
            require(len(rows) > 0, key, fraction, f"takes none of the {len(train)} training rows")
            tables[split] = train.take(rows)
            notes.append(f"{split}: {len(rows)} of the {len(train)} training rows, {describe_drawing(spec, seed)}")
        train = train.take(train_rows)
    if config.folds is not None:
        train_rows, rows = take_fold(train, spec, config.folds, config.fold, seed)
        reason = f"has no row in fold {config.fold}: labels that no other fold has stay in training; use fewer folds"
        require(len(rows) > 0, "data.folds", config.folds, reason)
        tables["validation"] = train.take(rows)
        drawing = describe_drawing(spec, seed)
        notes.append(f"validation: fold {config.fold} of {config.folds}, {len(rows)} of {len(train)} rows, {drawing}")
        train = train.take(train_rows)
    if config.train_fraction < 1:
        train_rows = take_share(train, spec, config.train_fraction, seed)
        notes.append(f"train: {len(train_rows)} of {len(train)} rows, {describe_drawing(spec, seed)}")
        train = train.take(train_rows)
    require(len(train) > 0, "data.train", list(config.train), "leaves no row to train on")
    require(
        "validation" in tables, "data.validation_fraction", config.validation_fraction, "leaves no validation split"
    )
    if config.max_train_examples is not None and config.max_train_examples < len(train):
        order = np.arange(len(train)) if spec.in_order else np.random.default_rng([seed, 1]).permutation(len(train))
        train = train.take(np.sort(order[: config.max_train_examples]))
    return Splits(
        train=train,
        validation=tables["validation"],
        test=tables.get("test"),
        notes=tuple(notes),
        num_rows=num_rows,
    )


def read_given_splits(
    config: DataConfig, spec: ColumnSpec, given: Mapping[str, Any], root: Path | None = None
) -> dict[str, Table]:
    """Reads the splits that the data set has, that data.train, data.validation and data.test name, or that are `given`. With
    data.streaming, all but training."""
    if config.dataset is not None:
        return read_streamed_splits(config, spec) if config.streaming else read_hub_dataset(config, spec, root)
    tables: dict[str, Table] = {}
    for split in SPLITS:
        locations: tuple[str, ...] = getattr(config, split)
        if config.streaming and split == "train":
            continue
        if split in given:
            table = read_memory(given[split], split, config, spec)
            if split == "train" or not hides_labels(table, config):
                tables[split] = table
        elif locations == (f"{MEMORY}{split}",):
            raise not_given_error(split)
        elif locations:
            tables[split] = read_table(locations, config, f"data.{split}", spec, root=root)
    return tables


def describe_drawing(spec: ColumnSpec, seed: int) -> str:
    """Returns how rows were chosen for a split."""
    if spec.in_order:
        return "from the end"
    return f"stratified, seed {seed}" if spec.strata else f"seed {seed}"
