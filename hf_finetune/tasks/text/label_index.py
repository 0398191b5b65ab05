"""The labels of a column, each once, and the numbers of the classes that they are. N rows of a table, C classes."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from hf_finetune.data.features import Array, ClassSets
from hf_finetune.tasks.labels import LabelForm, canonical_label


class Item(NamedTuple):
    """A label as it is written, and the number of the first distinct value of the column that holds it."""

    value: Any
    code: int


def make_index(names: Sequence[str], *, has_codes: bool) -> dict[str, int]:
    """Returns the class number of each name, of its form in other types of files, and, with `has_codes`, of its number as text.

    A name that is itself wins; a form that several names share is left out.
    """
    form = LabelForm.find(names)
    index = {form.read(name) or name: number for number, name in enumerate(names)}
    forms: dict[str, set[int]] = defaultdict(set)
    for number, name in enumerate(names):
        forms[canonical_label(name) or name].add(number)
    for name, numbers in forms.items():
        if len(numbers) == 1:
            index.setdefault(name, min(numbers))
    if has_codes and form.kind != "integer":
        for number in range(len(names)):
            index.setdefault(str(number), number)
    return index


def spell_label(label: str, names: Sequence[str]) -> str:
    """Returns the one of the names that a label is in another form (11.0 is 11); the label itself if it is none of them."""
    index = make_index(names, has_codes=False)
    number = index.get(LabelForm.find(names).read(label) or "", index.get(canonical_label(label) or ""))
    return label if number is None else names[number]


def make_sets(numbers: Iterable[Collection[int]], codes: Array, num_classes: int) -> ClassSets:
    """Returns the sets of class numbers of all rows.

    Args:
        numbers: The class numbers of each distinct value, each once.
        codes: The number of each row's distinct value, [N].
        num_classes: C.
    """
    members = [sorted(values) for values in numbers]
    flat = np.fromiter(chain.from_iterable(members), dtype=np.int32)
    lengths = np.fromiter(map(len, members), dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])[codes]
    offsets = np.concatenate([[0], np.cumsum(lengths[codes])]).astype(np.int64)
    positions = np.repeat(starts - offsets[:-1], lengths[codes]) + np.arange(offsets[-1])
    return ClassSets(values=flat[positions], offsets=offsets, num_classes=num_classes)


def make_key(value: Any) -> tuple[type, Any]:
    """Returns a key that is equal for equal labels of one type."""
    return (type(value), repr(value) if isinstance(value, (list, tuple, dict)) else value)


def find_items(lists: Sequence[Sequence[Any]]) -> dict[tuple[type, Any], Item]:
    """Returns the distinct labels of the distinct values of a column, in the order in which they occur first."""
    items: dict[tuple[type, Any], Item] = {}
    for code, values in enumerate(lists):
        for value in values:
            key = make_key(value)
            if key not in items:
                items[key] = Item(value=value, code=code)
    return items
