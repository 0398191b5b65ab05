"""The train, validation and test tables of a run: read if they are given, split off from training if not."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_finetune.config.sections import DataConfig, require
from hf_finetune.data.memory import MEMORY, read_memory
from hf_finetune.data.numbers import has_fractions
from hf_finetune.data.sources import hides_labels, read_hub_dataset, read_table
from hf_finetune.data.table import ColumnSpec, Table, text_and_label_spec
from hf_finetune.system.errors import InputError

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
    config: DataConfig, seed: int, spec: ColumnSpec | None = None, given: Mapping[str, Any] | None = None
) -> Splits:
    """Reads all splits, and splits the missing ones off from training.

    Args:
        config: Where the splits are, and the fractions of those that are missing.
        seed: The seed of the run.
        spec: The columns to read; texts with a label if not given.
        given: Rows that a program gave, by split (data.memory.KINDS).

    Raises InputError for rows that cannot be used, or if a split would be empty.
    """
    if spec is None:
        spec = text_and_label_spec(config.text_columns, str(config.label_column))
    tables = read_given_splits(config, spec, given or {})
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
        train = train.take(sorted(order[: config.max_train_examples].tolist()))
    return Splits(
        train=train,
        validation=tables["validation"],
        test=tables.get("test"),
        notes=tuple(notes),
        num_rows=num_rows,
    )


def read_given_splits(config: DataConfig, spec: ColumnSpec, given: Mapping[str, Any]) -> dict[str, Table]:
    """Reads the splits that the data set has, that data.train, data.validation and data.test name, or that are `given`."""
    if config.dataset is not None:
        return read_hub_dataset(config, spec)
    tables: dict[str, Table] = {}
    for split in SPLITS:
        locations: tuple[str, ...] = getattr(config, split)
        if split in given:
            table = read_memory(given[split], split, config, spec)
            if split == "train" or not hides_labels(table, config):
                tables[split] = table
        elif locations == (f"{MEMORY}{split}",):
            raise InputError(
                f"data.{split} ({locations[0]}): a program or notebook gave these rows; run it again, or name files"
            )
        elif locations:
            tables[split] = read_table(locations, config, f"data.{split}", spec)
    return tables


def describe_drawing(spec: ColumnSpec, seed: int) -> str:
    """Returns how rows were chosen for a split."""
    if spec.in_order:
        return "from the end"
    return f"stratified, seed {seed}" if spec.strata else f"seed {seed}"


def split_off(
    table: Table, spec: ColumnSpec, fractions: Mapping[str, float], seed: int
) -> tuple[list[int], dict[str, list[int]]]:
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
    keys = [make_group_key(table, spec, row) for row in range(len(table))]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    labels: Sequence[Any] = []
    if spec.strata:
        labels = table.columns[spec.strata]
    elif spec.in_order:
        labels = table.files
    is_stratified = bool(labels) and not has_fractions(labels)  # numbers to predict are not stratified
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        strata[format_stratum(labels[rows[0]]) if is_stratified else ""].append(rows)
    generator = np.random.default_rng([seed, 0])
    split_rows: dict[str, list[int]] = {split: [] for split in fractions}
    train_rows: list[int] = []
    carry = dict.fromkeys(fractions, 0.0)  # groups that the strata so far gave too few of, because of rounding
    for stratum in sorted(strata):
        members = strata[stratum]
        order = members[::-1] if spec.in_order else [members[index] for index in generator.permutation(len(members))]
        for split, fraction in fractions.items():
            carry[split] += fraction * len(members)
            # A label with too few rows gives fewer; the rest is not taken from other labels
            most = math.ceil(fraction * len(members))
            num_taken = min(int(carry[split] + 0.5), most, len(order) - 1)
            carry[split] = min(carry[split] - num_taken, 1.0)
            split_rows[split] += [row for rows in order[:num_taken] for row in rows]
            order = order[num_taken:]
        train_rows += [row for rows in order for row in rows]
    if is_stratified:
        ensure_all_labels_in_train(labels, train_rows, split_rows, groups=groups, keys=keys)
    return sorted(train_rows), {split: sorted(rows) for split, rows in split_rows.items()}


def make_group_key(table: Table, spec: ColumnSpec, row: int) -> tuple[str, ...]:
    """Returns a key that is equal for rows that must stay in one split."""
    if not spec.together:
        return (str(row),)
    values = (table.columns[name][row] for name in spec.together)
    return tuple(value if isinstance(value, str) else json.dumps(value, default=str) for value in values)


def ensure_all_labels_in_train(
    labels: Sequence[Any],
    train_rows: list[int],
    split_rows: Mapping[str, list[int]],
    *,
    groups: Mapping[tuple[str, ...], list[int]],
    keys: Sequence[tuple[str, ...]],
) -> None:
    """Moves rows back to training, in place, until every label occurs there.

    A label can be lost if it only occurs in multi-label rows, or in duplicate texts with several labels.

    Args:
        labels: The label, or list of labels, of each row.
        train_rows: The rows of training.
        split_rows: The rows of the other splits.
        groups: The rows of each key, which stay together.
        keys: The key of each row.
    """

    def get_names(row: int) -> set[str]:
        label = labels[row]
        return set(map(str, label)) if isinstance(label, (list, tuple)) else {format_stratum(label)}

    train_names = {name for row in train_rows for name in get_names(row)}
    for rows in split_rows.values():
        for row in sorted(rows):
            if not get_names(row) <= train_names and row in rows:
                group = groups[keys[row]]
                train_rows += group
                train_names |= {name for member in group for name in get_names(member)}
                rows[:] = [other for other in rows if other not in group]


def format_stratum(label: Any) -> str:
    """Returns the stratum of a label: its name, with 1.0 written as 1. All lists of labels are one stratum."""
    if isinstance(label, (list, tuple, dict)):
        return ""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
