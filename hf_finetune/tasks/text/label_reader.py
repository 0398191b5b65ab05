"""Labels of texts: from a column of labels, of lists, of several labels in one string, of numbers, or from a column of 0 and 1
for each label.

Each distinct value is read once, so that a million rows with ten labels cost ten readings. N rows of a table, C classes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.columns import find_distinct
from hf_finetune.data.features import Array, ClassSets
from hf_finetune.data.numbers import find_numbers, is_missing, is_missing_word
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import LabelForm, canonical_label, sort_numbers_first
from hf_finetune.tasks.text.label_checks import NOT_LABELLED, describe_spelling, suggest_names
from hf_finetune.tasks.text.label_choices import count_most_choices
from hf_finetune.tasks.text.label_errors import (
    LEAVE_OUT,
    advise_on_object,
    describe_joined,
    describe_missing,
    locate_value,
)
from hf_finetune.tasks.text.label_index import Item, find_items, make_index, make_key, make_sets
from hf_finetune.tasks.text.label_lists import (
    are_written_lists,
    describe_lists_of_one,
    is_list_of_one,
    read_list,
    unpack_values,
)
from hf_finetune.tasks.text.label_numbers import read_numbers
from hf_finetune.tasks.text.label_places import (
    are_words,
    count_places,
    find_odd_list,
    find_other_list,
    is_places,
    read_bit,
)


def guess_problem(table: Table, column: str, separator: str | None) -> tuple[str, str]:
    """Returns the problem that a label column looks like, and why."""
    if separator is not None:
        return "multi_label", f"task.label_separator splits {column}"
    codes, values = find_distinct(table.columns[column])
    if any(isinstance(value, (list, tuple)) for value in values):
        return "multi_label", f"{column} holds lists{describe_lists_of_one(codes, values)}"
    most = count_most_choices(values)
    if most is not None:
        several = "several choices for some texts" if most > 1 else "one choice for each text"
        return "multi_label" if most > 1 else "single_label", f"{column} holds {several}, as Label Studio writes them"
    if are_written_lists(values):
        return "multi_label", f"{column} holds lists that are written as text{describe_lists_of_one(codes, values)}"
    numbers = find_numbers(values)
    if numbers is not None and numbers.has_fractions:
        comma = "" if numbers.with_comma is None else " and a decimal comma"
        return "regression", f"{column} holds numbers with fractions{comma}"
    return "single_label", f"{column} holds single labels"


@dataclass(frozen=True, kw_only=True)
class LabelReader:
    """Reads the labels of a table.

    Args:
        problem: single_label, multi_label or regression.
        columns: The label column; or several, if each says by 0 or 1 whether a text has its label.
        separator: Splits a string of several labels (multi_label); None if the column holds lists.
        names: The names of the classes in their order, if the settings give them (task.label_names).
        has_places: multi_label: The lists of training have a place of 0 or 1 for each class, as find_places() found; None if
            nobody knows, and then each table shows it (a model of an earlier version, or one that was trained elsewhere).
    """

    problem: str
    columns: tuple[str, ...]
    separator: str | None = None
    names: tuple[str, ...] = ()
    has_places: bool | None = None

    @property
    def column(self) -> str:
        """The label column, if there is one."""
        return self.columns[0]

    # --- names ------------------------------------------------------------------------------------------------------

    def find_names(self, table: Table) -> tuple[str, ...]:
        """Returns all labels: those of the settings, else in the data set's own order if it has one, else numbers by value, then
        names by alphabet.

        Never in the order of the rows, which would change with the split. InputError if there are fewer than two.
        """
        if len(self.columns) > 1:
            return self.names or self.columns
        require(len(self.names) != 1, "task.label_names", list(self.names), "must be two names or more")
        _, lists = self.read_lists(table)
        self.check_places(lists, table)
        if self.names:
            return self.names
        items = find_items(lists)
        form = LabelForm.find(item.value for item in items.values())
        found = {self.name_item(table, item, form) for item in items.values()}
        if len(found) < 2:
            only = f"only {next(iter(found))!r}" if found else "no label"
            raise InputError(f"data.label_column ({self.column}): training has {only}; at least two classes are needed")
        if NOT_LABELLED in found and table.class_names is None:
            raise InputError(
                f"data.label_column ({self.column}): the label {NOT_LABELLED} usually means that a text is not labelled; leave "
                f"such rows out with task.ignore_labels {NOT_LABELLED}, or keep it by naming all classes in task.label_names"
            )
        return table.class_names or tuple(sorted(found, key=sort_numbers_first))

    def find_places(self, table: Table, names: Sequence[str]) -> bool:
        """True if the lists of the training table have a place of 0 or 1 for each class, and do not list the classes: [0, 1] is
        the second class or both. All other tables are then read as this one is.

        names: The names of the C classes.
        """
        if self.problem != "multi_label" or len(self.columns) > 1 or table.class_names is not None:
            return False
        return is_places(self.read_lists(table)[1], names)

    def check_places(self, lists: Sequence[Sequence[Any]], table: Table) -> None:
        """Raises InputError for lists of 0 and 1 whose places have no names, or too many or too few, and for a list that has
        other places than the others."""
        if self.problem != "multi_label" or table.class_names is not None:
            return
        self.check_lengths(lists, table)
        places, shown = count_places(lists), "" if not lists else list(lists[0])
        if places and not self.names:
            raise InputError(
                f"data.label_column ({self.column}): holds lists of 0 and 1, such as {shown}; name the {places} labels of their "
                "places in task.label_names"
            )
        if places and places != len(self.names):
            raise InputError(
                f"task.label_names ({', '.join(self.names)}): has {len(self.names)} names, and {self.column} has {places} "
                f"places, such as {shown}"
            )

    def check_lengths(self, lists: Sequence[Sequence[Any]], table: Table) -> None:
        """Raises InputError, with file and line, for a list that has not 0 or 1 at each place, if the others have."""
        odd = find_odd_list(lists)
        if odd is not None:
            code, places = odd
            raise self.make_error(
                table,
                code,
                f" ({list(lists[code])}): the other lists have {places} places of 0 and 1, one for each label",
            )

    def name_item(self, table: Table, item: Item, form: LabelForm) -> str:
        """Returns the name of a label: of the data set's classes if these are known and the value is a number.

        InputError with file and line if it cannot be a label.
        """
        value, names = item.value, table.class_names
        if isinstance(value, (list, tuple)) and not value:
            raise self.make_error(table, item.code, f" is an empty list; {LEAVE_OUT}")
        if isinstance(value, (list, tuple, dict)):
            hint = advise_on_object(value, self.column, is_in_list=self.problem == "multi_label")
            raise self.make_error(table, item.code, f" ({value}) is not a single label; {hint}")
        name = form.read(value)
        if name is None:
            hint = describe_joined(find_distinct(table.columns[self.column])[1])
            raise self.make_error(table, item.code, f" is {describe_missing(value)}; {LEAVE_OUT}{hint}")
        if isinstance(value, float) and not value.is_integer():
            hint = "set task.problem to regression for numbers"
            raise self.make_error(table, item.code, f" ({value}) is not a class; {hint}")
        if names is not None and isinstance(value, (int, float)):
            if not 0 <= value < len(names):
                hint = f"; leave such rows out with task.ignore_labels {name}" if value < 0 else ""
                raise self.make_error(table, item.code, f" ({value}) is not among the data set's classes{hint}")
            return names[int(value)]
        return name

    def make_error(self, table: Table, code: int, text: str) -> InputError:
        """Returns an error that begins with file, line and column of the first row with a distinct value."""
        return InputError(f"{locate_value(table, self.column, code)}: {self.column}{text}")

    def read_lists(self, table: Table, names: Collection[str] = ()) -> tuple[Array, list[list[Any]]]:
        """Returns the number of each row's distinct value [N], and the labels of each such value: one for single_label,
        which a list of one may hold.

        names: Those of the classes, if they are known. A text that is one of them is that label. Next to choices of Label Studio,
            which writes a single one as text, any text is one label.

        InputError with file and line for a value that is not a list of labels although the problem is multi_label.
        """
        codes, values = find_distinct(table.columns[self.column])
        if self.problem != "multi_label":
            return codes, [[value[0] if is_list_of_one(value) else value] for value in unpack_values(values, names)]
        has_choices, lists = count_most_choices(values) is not None, []
        for code, value in enumerate(values):
            labels = read_list(value, self.separator)
            if labels is None and not is_missing(value) and (has_choices or canonical_label(value) in names):
                labels = [value]
            if labels is None and is_missing(value):
                hint = f"give a row without labels an empty list; {LEAVE_OUT}"
                raise self.make_error(table, code, f" is {describe_missing(value)}; {hint}")
            if labels is None:
                hint = "a string of several labels needs task.label_separator"
                raise self.make_error(table, code, f" ({value}) is not a list; {hint}")
            lists.append(labels)
        return codes, lists

    def describe_spelling(self, table: Table) -> list[str]:
        """Returns what was changed in the spelling of labels, a phrase each."""
        if len(self.columns) > 1:
            return []
        _, lists = self.read_lists(table)
        values = [item.value for item in find_items(lists).values()]
        return describe_spelling(values, LabelForm.find(values))

    # --- targets ----------------------------------------------------------------------------------------------------

    def read_targets(self, table: Table, names: Sequence[str]) -> Array | ClassSets:
        """Returns class numbers [N] int64, the sets of class numbers for multi_label, or numbers [N] float32 for regression.

        names: The names of the C classes. InputError with file and line for a label that is not one of them.
        """
        if self.problem == "regression":
            return read_numbers(table, self.column)
        if len(self.columns) > 1:
            return self.read_bits(table)
        codes, lists = self.read_lists(table, frozenset(names))
        if self.are_places(lists, table, names):
            places = ([place for place, bit in enumerate(bits) if read_bit(bit)] for bits in lists)
            return make_sets(places, codes, len(names))
        form, index = LabelForm.find(names), make_index(names, has_codes=bool(self.names))
        numbers = {key: self.find_number(table, item, form, index) for key, item in find_items(lists).items()}
        if self.problem == "single_label":
            return np.array([numbers[make_key(value)] for [value] in lists], dtype=np.int64)[codes]
        return make_sets(({numbers[make_key(value)] for value in values} for values in lists), codes, len(names))

    def are_places(self, lists: Sequence[Sequence[Any]], table: Table, names: Sequence[str]) -> bool:
        """True if the lists of a table have a place of 0 or 1 for each class, as those of training; lists of words are names in
        any case. InputError with file and line for a list that is not written as those of training, or, if nobody knows these,
        not as the others."""
        if self.problem != "multi_label" or table.class_names is not None:
            return False
        if self.has_places is None:
            self.check_lengths(lists, table)
            return is_places(lists, names)
        if self.has_places and are_words(lists):
            return False
        code = find_other_list(lists, len(names) if self.has_places else None)
        if code is not None:
            written = (
                f"training has lists of {len(names)} places of 0 and 1, one for each label"
                if self.has_places
                else "it has places of 0 and 1, and the lists of training hold the labels themselves"
            )
            raise self.make_error(table, code, f" ({list(lists[code])}): {written}; write all lists in one way")
        return self.has_places

    def find_number(self, table: Table, item: Item, form: LabelForm, index: Mapping[str, int]) -> int:
        """Returns the class number of a label. InputError, with file, line and the nearest labels, if it is not known."""
        name = self.name_item(table, item, form)
        number = index.get(name, index.get(canonical_label(name) or ""))
        if number is None:
            num_names = len(set(index.values()))
            whose = "task.label_names" if self.names else "the training data"
            where = locate_value(table, self.column, item.code)
            raise InputError(
                f"{where}: the label {name!r} is not one of the {num_names} labels of {whose}; "
                f"{suggest_names(name, list(index)[:num_names])}"
            )
        return number

    def read_bits(self, table: Table) -> ClassSets:
        """Returns the sets of classes whose columns hold 1. InputError with file and line for a value that is not 0 or 1."""
        has_label = np.empty((len(table), len(self.columns)), dtype=bool)
        for place, column in enumerate(self.columns):
            codes, values = find_distinct(table.columns[column])
            bits = [read_bit(value) for value in values]
            if None in bits:
                code = bits.index(None)
                where, value = f"{table.where(int(np.argmax(codes == code)))}: {column}", values[code]
                if is_missing(value) or is_missing_word(value):
                    hint = LEAVE_OUT
                    if True in bits and False not in bits:
                        hint = "all other rows have 1: write 0 for a text without the label"
                    raise InputError(f"{where} is {describe_missing(value)}; {hint}")
                raise InputError(f"{where} ({value}) is not 0 or 1, which each of several label columns must be")
            has_label[:, place] = np.array(bits, dtype=bool)[codes]
        offsets = np.concatenate([[0], np.cumsum(has_label.sum(1))]).astype(np.int64)
        return ClassSets(
            values=np.nonzero(has_label)[1].astype(np.int32), offsets=offsets, num_classes=len(self.columns)
        )
