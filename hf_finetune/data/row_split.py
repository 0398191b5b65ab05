"""Which rows go to which split: shares drawn by label, folds, and rows that stay together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.columns import find_distinct, hash_rows
from hf_finetune.data.features import Array
from hf_finetune.data.numbers import has_fractions
from hf_finetune.data.table import ColumnSpec, Table


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
    strata = find_strata(table, spec)
    split_of_group = draw_groups(strata.of_group, strata.number, fractions, seed, in_order=spec.in_order)
    split_of_row = split_of_group[strata.groups]
    if strata.is_stratified:
        ensure_all_labels_in_train(strata.codes, strata.values, split_of_row, strata.groups)
    rows = {split: np.flatnonzero(split_of_row == number) for number, split in enumerate(fractions, 1)}
    return np.flatnonzero(split_of_row == 0), rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Strata:
    """The groups of rows that stay together, and the strata that splits take even shares of.

    Attributes:
        groups: The number of the group of each row [N].
        of_group: The stratum of each group, from 0 [G].
        number: The number of strata.
        is_stratified: False if there is one stratum, because the rows have no labels, or numbers.
        codes, values: The number of each row's label among the different ones [N], and these.
    """

    groups: Array
    of_group: Array
    number: int
    is_stratified: bool
    codes: Array
    values: Sequence[Any]

    def list_members(self, generator: np.random.Generator | None) -> Iterator[Array]:
        """Yields the groups of each stratum: in a random order, or as they are in the table without a generator."""
        by_stratum = np.argsort(self.of_group, kind="stable")
        ends = np.cumsum(np.bincount(self.of_group, minlength=self.number))
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            members = by_stratum[start:end]
            yield members if generator is None else members[generator.permutation(len(members))]


def find_strata(table: Table, spec: ColumnSpec) -> Strata:
    """Returns the groups of a table's rows, and the strata."""
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
    of_group = stratum_of_code[codes[first_rows]] if is_stratified else np.zeros(len(first_rows), dtype=np.int64)
    return Strata(
        groups=groups, of_group=of_group, number=len(strata), is_stratified=is_stratified, codes=codes, values=values
    )


def take_fold(table: Table, spec: ColumnSpec, folds: int, fold: int, seed: int) -> tuple[Array, Array]:
    """Returns the rows of all other folds, and those of a fold (from 1), in ascending order.

    Rows with the same texts stay together, and each fold has its share of each label, as with split_off(). A row whose label no
    other fold has stays in training. With ColumnSpec.in_order a fold is a part of each file in one piece; a file with fewer rows
    than folds is in some of them.
    """
    strata = find_strata(table, spec)
    num_groups = len(strata.of_group)
    require(folds <= num_groups, "data.folds", folds, f"must be at most the number of different rows ({num_groups})")
    fold_of_group = np.zeros(num_groups, dtype=np.int64)
    next_fold = 0  # the groups of a stratum continue where those of the one before ended, so that folds are of one size
    for members in strata.list_members(None if spec.in_order else np.random.default_rng([seed, 2])):
        of_members = (np.arange(len(members)) + next_fold) % folds
        fold_of_group[members] = np.sort(of_members) if spec.in_order else of_members
        next_fold += len(members)
    split_of_row = (fold_of_group == fold - 1).astype(np.int8)[strata.groups]
    if strata.is_stratified and spec.strata:  # training need not have a row of each file
        ensure_all_labels_in_train(strata.codes, strata.values, split_of_row, strata.groups)
    return np.flatnonzero(split_of_row == 0), np.flatnonzero(split_of_row == 1)


def take_share(table: Table, spec: ColumnSpec, share: float, seed: int) -> Array:
    """Returns the rows of a share of a table, in ascending order: of each label its share, and at least one group of rows. A
    larger share has all rows of a smaller one."""
    strata = find_strata(table, spec)
    is_taken = np.zeros(len(strata.of_group), dtype=bool)
    for members in strata.list_members(None if spec.in_order else np.random.default_rng([seed, 3])):
        is_taken[members[: max(1, math.ceil(share * len(members) - 1e-9))]] = True
    split_of_row = np.where(is_taken[strata.groups], 0, 1).astype(np.int8)
    if strata.is_stratified:
        ensure_all_labels_in_train(strata.codes, strata.values, split_of_row, strata.groups)
    return np.flatnonzero(split_of_row == 0)


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
