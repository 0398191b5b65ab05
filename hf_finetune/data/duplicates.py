"""Rows that occur several times: in one split, in several splits, and with different labels.

Rows are compared by hashes of 8 bytes, and those that are shown by their values. N rows of a split.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.data.columns import hash_rows, iterate_hashes
from hf_finetune.data.features import Array
from hf_finetune.data.findings import NUM_EXAMPLES
from hf_finetune.data.table import Table

UnifyLabels = Callable[[Table], Sequence[Any] | None]


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Rows that repeat others.

    Attributes:
        count: How many.
        pairs: Examples: the number of a row, and that of the row that it repeats.
    """

    count: int = 0
    pairs: tuple[tuple[int, int], ...] = ()


def sort_hashes(table: Table, names: Sequence[str]) -> Array:
    """Returns the hashes of the rows in ascending order, [N] uint64."""
    hashes = hash_rows(table, names)
    hashes.sort()
    return hashes


def find_duplicates(
    table: Table,
    inputs: Sequence[str],
    labels: Sequence[str],
    hashes: Array | None = None,
    unify_labels: UnifyLabels | None = None,
) -> tuple[Repeats, Repeats]:
    """Returns the rows that have the inputs and labels of an earlier row, and the rows that have the inputs of an earlier row
    and other labels. Each input counts once among the latter.

    hashes: sort_hashes() of the inputs, if they are known. unify_labels: Returns a value for each row of a table, equal for rows
    whose labels mean the same, as Encoding.unify_labels().
    """
    hashes = sort_hashes(table, inputs) if hashes is None else hashes
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(repeated):
        return Repeats(), Repeats()
    rows, keys = collect_rows(table, inputs, repeated)
    repeats = table.take(rows)
    if labels and unify_labels is not None and (unified := unify_labels(repeats)) is not None:
        repeats, labels = repeats.with_columns({"": unified}), ("",)
    targets = hash_rows(repeats, labels) if labels else np.zeros(len(rows), dtype=np.uint64)
    order = np.lexsort((rows, targets, keys))
    rows, keys, targets = rows[order], keys[order], targets[order]
    same_key = keys[1:] == keys[:-1]
    same_target = targets[1:] == targets[:-1]
    copies = np.flatnonzero(same_key & same_target)
    conflicts = np.flatnonzero(same_key & ~same_target)
    conflicts = conflicts[np.unique(keys[conflicts], return_index=True)[1]]  # one for each input
    return make_repeats(table, inputs, rows, copies), make_repeats(table, inputs, rows, conflicts)


def make_repeats(table: Table, inputs: Sequence[str], rows: Array, places: Array) -> Repeats:
    """Returns the repeats of rows[place + 1] and rows[place], with the first ones as examples."""
    later = np.maximum(rows[places], rows[places + 1])
    earlier = np.minimum(rows[places], rows[places + 1])
    pairs: list[tuple[int, int]] = []
    for index in np.argsort(later, kind="stable"):
        if len(pairs) == NUM_EXAMPLES:
            break
        pair = int(later[index]), int(earlier[index])
        if get_values(table, pair[0], inputs) == get_values(table, pair[1], inputs):
            pairs.append(pair)
    return Repeats(count=len(places), pairs=tuple(pairs))


def find_shared(table: Table, other: Table, names: Sequence[str], hashes: Array) -> Repeats:
    """Returns the rows of `table` whose values another table has too. Pairs hold a row of each.

    hashes: sort_hashes() of the other table.
    """
    count = 0
    examples: dict[int, int] = {}  # a row of `table` by its hash
    for start, part in number_parts(iterate_hashes(table, names)):
        found = np.flatnonzero(is_among(part, hashes))
        count += len(found)
        for index in found:
            if len(examples) == NUM_EXAMPLES:
                break
            examples.setdefault(int(part[index]), start + int(index))
    others: dict[int, int] = {}
    wanted = np.array(sorted(examples), dtype=np.uint64)
    for start, part in number_parts(iterate_hashes(other, names)):
        if len(others) == len(examples):
            break
        for index in np.flatnonzero(is_among(part, wanted)):
            others.setdefault(int(part[index]), start + int(index))
    pairs = [
        (row, others[key])
        for key, row in examples.items()
        if get_values(table, row, names) == get_values(other, others[key], names)
    ]
    return Repeats(count=count, pairs=tuple(pairs))


def collect_rows(table: Table, names: Sequence[str], wanted: Array) -> tuple[Array, Array]:
    """Returns the rows whose hashes are among `wanted`, which are sorted, in ascending order, and their hashes."""
    rows: list[Array] = []
    keys: list[Array] = []
    for start, part in number_parts(iterate_hashes(table, names)):
        found = np.flatnonzero(is_among(part, wanted))
        rows.append(found + start)
        keys.append(part[found])
    return np.concatenate(rows), np.concatenate(keys)


def number_parts(parts: Iterator[Array]) -> Iterator[tuple[int, Array]]:
    """Yields the number of the first row of each part, and the part."""
    start = 0
    for part in parts:
        yield start, part
        start += len(part)


def is_among(hashes: Array, wanted: Array) -> Array:
    """Returns which hashes are among `wanted`, which are sorted."""
    if not len(wanted):
        return np.zeros(len(hashes), dtype=bool)
    places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    return np.asarray(wanted[places] == hashes)


def get_values(table: Table, row: int, names: Sequence[str]) -> list[object]:
    """Returns the values of a row."""
    return [table.columns[name][row] for name in names]
