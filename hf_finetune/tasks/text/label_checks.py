"""What may be wrong with the labels of a data set: labels that look alike, and labels that mean that there is none."""

import difflib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_finetune.data.columns import find_distinct
from hf_finetune.data.joined_labels import find_bare_lists, find_joined
from hf_finetune.data.label_counts import WAY_OUT
from hf_finetune.data.literals import read_literal
from hf_finetune.data.numbers import MISSING_WORDS, find_sign, is_missing_word, is_number
from hf_finetune.data.table import NoExamplesError, Table
from hf_finetune.tasks.labels import BOOLEANS, LabelForm, canonical_label
from hf_finetune.tasks.text.label_choices import count_most_choices
from hf_finetune.tasks.text.label_lists import unpack_values

NOT_LABELLED = "-100"  # torch's ignore_index, which data sets for token classification hold, too
FEWEST_AMOUNTS = 6  # numbers with a sign; fewer are steps, such as 25%, 50% and 100%
MANY_LABELS = 20  # fewer are ratings, numbers of classes, or classes of a few rows
POINT_OF_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(\.\d{3})+", re.ASCII)
FEWEST_THOUSANDS = 5
MOST_SHOWN = 5  # labels or groups in one message


def suggest_names(name: str, names: Sequence[str]) -> str:
    """Returns the end of an error about a label that is not known: the labels that are nearest to it, else the first ones."""
    by_case = {known.casefold(): known for known in reversed(names)}
    near = difflib.get_close_matches(name.casefold(), by_case, n=2, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(repr(by_case[match]) for match in near)}?"
    return f"they are {', '.join(names[:MOST_SHOWN])}{', ...' if len(names) > MOST_SHOWN else ''}"


def find_lookalikes(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the groups of labels that differ in case, blanks, hyphens, invisible characters or compatible forms of characters
    alone. Numbers are never alike."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if not is_number(name):
            text = unicodedata.normalize("NFKC", name).casefold()
            visible = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
            groups[re.sub(r"(?<=\w)[\s_.-]+(?=\w)|\s+|\.$|_", "", visible) or name].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def find_label_warnings(counts: Mapping[str, int]) -> list[str]:
    """Returns what may be wrong with labels, a sentence each. counts: The number of training examples by label."""
    warnings = []
    for group in find_lookalikes(list(counts))[:MOST_SHOWN]:
        shown = " and ".join(f"{name!r} ({counts[name]:,})" for name in group)
        warnings.append(
            f"labels that look alike are different classes: {shown}; write them in one way if they are the same"
        )
    for name in counts:
        if is_missing_word(name):
            warnings.append(
                f"the label {name!r} ({counts[name]:,}) is a class, and in many files it means that a label is missing: "
                f"task.ignore_labels {name} leaves such rows out"
            )
    warnings += find_several_in_one(counts)
    bits, words = (sorted(name for name in counts if name.lower() in kind) for kind in (("0", "1"), BOOLEANS))
    if bits and words:
        shown = ", ".join(f"{name} {counts[name]:,}" for name in (*bits, *words))
        warnings.append(
            f"0 and 1 are other classes than false and true: {shown}; write them in one way if they are the same"
        )
    if "-1" in counts and not is_scale(list(counts)):
        warnings.append(
            f"the label -1 ({counts['-1']:,}) is a class, and in many files it means that a text is not labelled: "
            "task.ignore_labels -1 leaves such rows out"
        )
    return warnings


def find_several_in_one(counts: Mapping[str, int]) -> list[str]:
    """Returns warnings about labels that may be several: lists as text among other labels, labels joined by a separator, lists
    without quotes. counts: The number of training examples by label."""
    warnings = []
    lists = [name for name in counts if name.startswith("[") and isinstance(read_literal(name), list)]
    if lists and len(lists) < len(counts):
        warnings.append(
            f"labels that are lists as text are classes, because other labels are no lists, such as {lists[0]!r} "
            f"({counts[lists[0]]:,}); write all labels as lists for several labels a text"
        )
    if joined := find_joined(counts):
        warnings.append(f"{joined}: for several labels a text, set task.label_separator to {joined.separator!r}")
    if bare := find_bare_lists(counts):
        quoted = json.dumps([part.strip() for part in bare[0][1:-1].split(",")], ensure_ascii=False)
        warnings.append(
            f"{len(bare):,} labels look like lists without quotes, such as {bare[0]}, and each is one class: for several labels "
            f"a text, write {quoted}"
        )
    return warnings


def find_numbers_as_labels(counts: Mapping[str, int]) -> list[str]:
    """Returns a warning about classes that are numbers to predict, perhaps: numbers with a sign such as % or $, and whole numbers
    that are very many for so few rows. counts: The training examples by label."""
    rows, signs = sum(counts.values()), find_signs(counts)
    if None in signs:
        return []
    are = f"{len(counts):,} labels in {rows:,} rows are numbers"
    if "" not in signs and len(counts) >= FEWEST_AMOUNTS:
        shown = " or ".join(sorted(map(str, signs)))
        return [f"{are} with {shown}: to predict a number, write them without it and set task.problem to regression"]
    if signs == {""} and are_very_many(counts):
        return [f"{are}: to predict a number, set task.problem to regression"]
    return []


def find_signs(names: Iterable[str]) -> set[str | None]:
    """Returns the signs of labels that are numbers, such as %; "" of one without a sign, None of a label that is not a number."""
    return set(map(find_sign, names))


def are_very_many(counts: Mapping[str, int]) -> bool:
    """True if labels have fewer than three examples each on average, so that they are no classes."""
    return len(counts) > MANY_LABELS and 3 * len(counts) > sum(counts.values())


def find_own_labels(counts: Mapping[str, int], column: str) -> list[str]:
    """Returns a warning if nearly each row has a label of its own. counts: The training examples by label."""
    if not are_very_many(counts):
        return []
    return [
        f"{column} has {len(counts):,} different labels in {sum(counts.values()):,} rows, as ids, dates and texts have: nearly "
        "nothing can be learned of each; set data.label_column to the column of the classes"
    ]


def advise_on_rare_labels(counts: Mapping[str, int], *, may_predict_numbers: bool) -> str:
    """Returns what can be done about labels with few examples.

    counts: The training examples by label. may_predict_numbers: A text has one label, which may be a number.
    """
    signs = find_signs(counts)
    if may_predict_numbers and None not in signs and len(counts) > 2:
        write = "" if signs == {""} else f"write them without {' or '.join(sorted(map(str, signs - {''})))} and "
        return f"add examples; if the labels are numbers to predict, {write}set task.problem to regression"
    if find_joined(counts) or find_bare_lists(counts):
        return "add examples"
    return WAY_OUT


def find_number_warnings(values: Sequence[Any], column: str) -> list[str]:
    """Returns warnings about the numbers of a regression: what looks like separators of thousands, and numbers that may be two
    labels each. values: The distinct numbers as they are written."""
    texts = [value.strip() for value in values if isinstance(value, str)]
    fractions = [text for text in texts if "." in text]
    if len(fractions) >= FEWEST_THOUSANDS and all(POINT_OF_THOUSANDS.fullmatch(text) for text in fractions):
        return [
            f"all numbers of {column} with a point have three digits after it, such as {fractions[0]}: if the point separates "
            "thousands, write them without it"
        ]
    return find_pairs(values)


def find_pairs(values: Sequence[Any]) -> list[str]:
    """Returns a warning about numbers with a decimal comma that may be two labels each: 0,1 next to 0 and 1. values: The distinct
    numbers of a regression, as they are written."""
    pairs = {value.strip() for value in values if isinstance(value, str) and "," in value}
    if not pairs:
        return []
    others = {canonical_label(value) for value in values} - pairs - {None}
    parts = {part for text in pairs for part in text.split(",")}
    if not all(str(text).isdecimal() for text in others) or not parts <= others:
        return []
    return [
        f"numbers such as {min(pairs)} are read with a decimal comma; if each is several labels, set task.label_separator ','"
    ]


def is_scale(names: Sequence[str]) -> bool:
    """True if labels are numbers on both sides of zero, so that -1 is one of them: -1 and 1; -1, 0, 1; -2 to 2."""
    if not all(re.fullmatch(r"-?\d+", name) for name in names):
        return False
    values = sorted(int(name) for name in names)
    return values[0] < -1 or values[-1] <= 1


def describe_spelling(values: Sequence[Any], form: LabelForm) -> list[str]:
    """Returns what was changed in the spelling of labels, a phrase each. values: The distinct labels as they are written."""
    texts = [value for value in values if isinstance(value, str)]
    phrases = []
    if blanks := sum(text != text.strip() for text in texts):
        phrases.append(f"blanks at the ends of {blanks:,} labels removed")
    if composed := sum(unicodedata.normalize("NFC", text) != text for text in texts):
        phrases.append(f"accents of {composed:,} labels composed")
    changed = [text.strip() for text in texts if form.kind != "text" and form.read(text) not in (text.strip(), None)]
    if changed:
        phrases.append(f"{changed[0]} read as {form.read(changed[0])}")
    return phrases


# --- rows without a label -------------------------------------------------------------------------------------------


def leave_out_ignored(
    table: Table, columns: Sequence[str], ignored: Sequence[str], *, needs_one: bool = False
) -> Table:
    """Returns the rows that have a label, with a note about those that have none.

    Args:
        table: The rows.
        columns: The label columns. A row is left out if one of them has an ignored label, or a list with one.
        ignored: Labels that mean "not labelled" (task.ignore_labels); null for a missing label.
        needs_one: An empty list is a missing label, too; as it is if all texts have one choice of Label Studio at most.

    NoExamplesError if no row is left.
    """
    is_ignored = np.zeros(len(table), dtype=bool)
    for column in columns:
        codes, values = find_distinct(table.columns[column])
        lists = [list(value) if isinstance(value, (list, tuple)) else [value] for value in unpack_values(values)]
        if needs_one or count_most_choices(values) in (0, 1):
            lists = [labels or [None] for labels in lists]
        form = LabelForm.find(label for labels in lists for label in labels)
        flags = [any(means_nothing(label, form, ignored) for label in labels) for labels in lists]
        is_ignored |= np.array(flags, dtype=bool)[codes]
    num_ignored, shown = int(is_ignored.sum()), ", ".join(ignored)
    if not num_ignored:
        return table
    if num_ignored == len(table):
        raise NoExamplesError(f"task.ignore_labels ({shown}): leaves no row of {table.files[0]}")
    note = f"{num_ignored:,} of {len(table):,} rows are left out: they are not labelled (task.ignore_labels {shown})"
    rows = np.flatnonzero(~is_ignored)
    return replace(table.take(rows), notes=(*table.notes, f"{table.files[0]}: {note}"))


def means_nothing(value: Any, form: LabelForm, ignored: Sequence[str]) -> bool:
    """True if a label is an ignored one, in any form."""
    name = form.read(value)
    if name is None:
        return any(entry.lower() in MISSING_WORDS for entry in ignored)
    return bool({name, canonical_label(value)} & {canonical_label(entry) for entry in ignored})
