"""The train, validation and test tables of a run: read if they are given, split off from training if not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_finetune.config.sections import DataConfig, require
from hf_finetune.data.columns import find_distinct, hash_rows
from hf_finetune.data.features import Array
from hf_finetune.data.hub_datasets import hides_labels, read_hub_dataset
from hf_finetune.data.memory import MEMORY, not_given_error, read_memory
from hf_finetune.data.numbers import has_fractions
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


def split_off(
    table: Table, spec: ColumnSpec, fractions: Mapping[str, float], seed: int
) -> tuple[Array, dict[str, Array]]:
    """Returns the rows that stay in training, and the rows of each new split, in ascending order.

    Rows with the same texts (ColumnSpec.together) stay together, so that no test text was trained on. Each label gives its
    share of each split, rounded so that the totals are right, and keeps at least one group of rows in training. With
    ColumnSpec.in_order, each file gives its last rows.

    Args:
        table: The training rows.
        spec: How the rows may be split.
        fractions: The share of the rows for each new split.
        seed: The seed of the run.
    """
    groups, first_rows = number_groups(table, spec)
    labels: Sequence[Any] = []
    if spec.strata:
        labels = table.columns[spec.strata]
    elif spec.in_order:
        labels = table.files
    codes, values = find_distinct(labels)
    is_stratified = len(labels) > 0 and not has_fractions(values)  # numbers to predict are not stratified
    names = [format_stratum(value) for value in values] if is_stratified else [""]
    strata = {name: number for number, name in enumerate(sorted(set(names)))}
    stratum_of_code = np.array([strata[name] for name in names])
    stratum_of_group = (
        stratum_of_code[codes[first_rows]] if is_stratified else np.zeros(len(first_rows), dtype=np.int64)
    )
    split_of_group = draw_groups(stratum_of_group, len(strata), fractions, seed, in_order=spec.in_order)
    split_of_row = split_of_group[groups]
    if is_stratified:
        ensure_all_labels_in_train(codes, values, split_of_row, groups)
    rows = {split: np.flatnonzero(split_of_row == number) for number, split in enumerate(fractions, 1)}
    return np.flatnonzero(split_of_row == 0), rows


def draw_groups(strata: Array, num_strata: int, fractions: Mapping[str, float], seed: int, *, in_order: bool) -> Array:
    """Returns the split of each group of rows: 0 for training, 1, 2, ... for the splits of `fractions`.

    Args:
        strata: The stratum of each group, from 0.
        num_strata: The number of strata.
        fractions: The share of the groups for each new split.
        seed: The seed of the run.
        in_order: True if each stratum gives its last groups.
    """
    generator = np.random.default_rng([seed, 0])
    split_of_group = np.zeros(len(strata), dtype=np.int8)
    carry = dict.fromkeys(fractions, 0.0)  # groups that the strata so far gave too few of, because of rounding
    by_stratum = np.argsort(strata, kind="stable")
    ends = np.cumsum(np.bincount(strata, minlength=num_strata))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        if start == end:  # a label that no group begins with
            continue
        members = by_stratum[start:end]
        order = members[::-1] if in_order else members[generator.permutation(len(members))]
        for number, (split, fraction) in enumerate(fractions.items(), 1):
            carry[split] += fraction * len(members)
            # A label with too few rows gives fewer; the rest is not taken from other labels
            most = math.ceil(fraction * len(members))
            num_taken = min(int(carry[split] + 0.5), most, len(order) - 1)
            carry[split] = min(carry[split] - num_taken, 1.0)
            split_of_group[order[:num_taken]] = number
            order = order[num_taken:]
    return split_of_group


def number_groups(table: Table, spec: ColumnSpec) -> tuple[Array, Array]:
    """Returns the number of the group of each row [N], and the first row of each group [G]. Rows of a group have the same texts
    and stay in one split. Groups are numbered in the order of their first rows."""
    if not spec.together:
        rows = np.arange(len(table))
        return rows, rows
    _, first_rows, groups = np.unique(hash_rows(table, spec.together), return_index=True, return_inverse=True)
    order = np.argsort(first_rows, kind="stable")
    numbers = np.empty(len(order), dtype=np.int32 if len(table) < 2**31 else np.int64)
    numbers[order] = np.arange(len(order))
    return numbers[groups], first_rows[order]


def ensure_all_labels_in_train(codes: Array, values: Sequence[Any], split_of_row: Array, groups: Array) -> None:
    """Moves rows back to training, in place, until every label occurs there.

    A label can be lost if it only occurs in multi-label rows, or in duplicate texts with several labels.

    Args:
        codes: The number of each row's label, or list of labels, among `values`.
        values: The different labels.
        split_of_row: The split of each row; 0 is training.
        groups: The group of each row. Groups stay together.
    """
    names = [
        frozenset(map(str, value)) if isinstance(value, (list, tuple)) else {format_stratum(value)} for value in values
    ]
    in_train = np.bincount(codes[split_of_row == 0], minlength=len(values)) > 0
    train_names = {name for code in np.flatnonzero(in_train) for name in names[code]}
    is_lost = np.array([not of_value <= train_names for of_value in names], dtype=bool)
    for split in range(1, int(split_of_row.max(initial=0)) + 1):
        for row in np.flatnonzero((split_of_row == split) & is_lost[codes]):
            if split_of_row[row] == split and not names[codes[row]] <= train_names:
                members = np.flatnonzero(groups == groups[row])
                split_of_row[members] = 0
                train_names |= {name for code in np.unique(codes[members]) for name in names[code]}


def format_stratum(label: Any) -> str:
    """Returns the stratum of a label: its name, with 1.0 written as 1. All lists of labels are one stratum."""
    if isinstance(label, (list, tuple, dict)):
        return ""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
