"""The train, validation and test tables of a run: read where they are given, split off from training where not."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.config.sections import DataConfig, require
from hf_finetune.data.sources import read_hub_dataset, read_table
from hf_finetune.data.table import ColumnSpec, Table, has_fractions, text_and_label_spec

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The tables of a run. `notes` say what was carved out of what."""

    train: Table
    validation: Table
    test: Table | None
    notes: tuple[str, ...] = ()

    def tables(self) -> dict[str, Table]:
        """The splits there are."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: table for split, table in named.items() if table is not None}


def load_splits(config: DataConfig, seed: int, form: ColumnSpec | None = None) -> Splits:
    """Reads all splits, and carves the missing ones out of training: stratified, seeded, equal texts together; or, where the
    form says so, in order from the end."""
    form = form or text_and_label_spec(config.text_columns, str(config.label_column))
    if config.dataset is not None:
        given = read_hub_dataset(config, form)
    else:
        given = {
            split: read_table(getattr(config, split), config, f"data.{split}", form)
            for split in SPLITS
            if getattr(config, split)
        }
    train = given.pop("train")
    fractions = {
        split: getattr(config, f"{split}_fraction")
        for split in ("validation", "test")
        if split not in given and getattr(config, f"{split}_fraction") > 0
    }
    notes: list[str] = []
    if fractions:
        kept, carved = split_off(train, form, fractions, seed)
        for split, rows in carved.items():
            require(
                len(rows) > 0,
                f"data.{split}_fraction",
                fractions[split],
                f"takes none of the {len(train)} training rows",
            )
            given[split] = train.take(rows)
            how = "from the end" if form.in_order else f"stratified, seed {seed}" if form.strata else f"seed {seed}"
            notes.append(f"{split}: {len(rows)} of the {len(train)} training rows, {how}")
        train = train.take(kept)
    require(len(train) > 0, "data.train", list(config.train), "leaves no row to train on")
    require("validation" in given, "data.validation_fraction", config.validation_fraction, "leaves no validation split")
    if config.max_train_examples is not None and config.max_train_examples < len(train):
        order = np.arange(len(train)) if form.in_order else np.random.default_rng([seed, 1]).permutation(len(train))
        train = train.take(sorted(order[: config.max_train_examples].tolist()))
    return Splits(
        train=train,
        validation=given["validation"],
        test=given.get("test"),
        notes=tuple(notes),
    )


def split_off(
    table: Table, form: ColumnSpec, fractions: Mapping[str, float], seed: int
) -> tuple[list[int], dict[str, list[int]]]:
    """Rows kept, and rows of each new split.

    Stratified: each label gives its share, rounded so that the totals come out; every label keeps at least one row in
    training. Rows with the same text go the same way, so that no test text was trained on. In order: each file gives its end.
    """
    texts = [make_group_key(table, form, row) for row in range(len(table))]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        groups[text].append(row)
    labels: Sequence[Any] = table.columns[form.strata] if form.strata else table.files if form.in_order else []
    whole = not labels or has_fractions(labels)  # numbers to predict are one stratum
    by_label: dict[str, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        by_label["" if whole else format_stratum(labels[rows[0]])].append(rows)
    generator = np.random.default_rng([seed, 0])
    carved: dict[str, list[int]] = {split: [] for split in fractions}
    kept: list[int] = []
    owed = dict.fromkeys(fractions, 0.0)
    for label in sorted(by_label):
        members = by_label[label]
        order = members[::-1] if form.in_order else [members[i] for i in generator.permutation(len(members))]
        for split, fraction in fractions.items():
            owed[split] += fraction * len(members)
            fair = math.ceil(fraction * len(members))  # what labels of one row could not give is not taken from others
            share = min(int(owed[split] + 0.5), fair, len(order) - 1)
            owed[split] = min(owed[split] - share, 1.0)
            carved[split] += [row for rows in order[:share] for row in rows]
            order = order[share:]
        kept += [row for rows in order for row in rows]
    if not whole:
        ensure_all_labels_in_train(labels, kept, carved, groups=groups, texts=texts)
    return sorted(kept), {split: sorted(rows) for split, rows in carved.items()}


def make_group_key(table: Table, form: ColumnSpec, row: int) -> tuple[str, ...]:
    """What rows that stay in one split have in common."""
    if not form.together:
        return (str(row),)
    values = (table.columns[name][row] for name in form.together)
    return tuple(value if isinstance(value, str) else json.dumps(value, default=str) for value in values)


def ensure_all_labels_in_train(
    labels: Sequence[Any],
    kept: list[int],
    carved: Mapping[str, list[int]],
    *,
    groups: Mapping[tuple[str, ...], list[int]],
    texts: Sequence[tuple[str, ...]],
) -> None:
    """Moves rows back to `kept` until it has every label: one of a list, or of equal texts with several labels, may
    have gone whole."""

    def of(row: int) -> set[str]:
        label = labels[row]
        return set(map(str, label)) if isinstance(label, (list, tuple)) else {format_stratum(label)}

    known = {name for row in kept for name in of(row)}
    for rows in carved.values():
        for row in sorted(rows):
            if not of(row) <= known and row in rows:
                together = groups[texts[row]]
                kept += together
                known |= {name for member in together for name in of(member)}
                rows[:] = [other for other in rows if other not in together]


def format_stratum(label: Any) -> str:
    """What a row is stratified by: its label, as the task names it (1.0 is 1); lists are one stratum for all."""
    if isinstance(label, (list, tuple, dict)):
        return ""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
