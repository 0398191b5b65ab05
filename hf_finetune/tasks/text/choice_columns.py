"""The columns that data sets of multiple choice have on the Hub, made into those of the task.

They are looked for only in place of a column that the settings do not name: one that has the name of the recipe's default.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hf_finetune.data.columns import has_values
from hf_finetune.data.table import Conversion, Table
from hf_finetune.system.errors import InputError

BLANK = (None, "")

STEM, CHOICES, LABEL = ("stem",), ("choices",), "label"  # the defaults of the recipe

OBJECT = ("question",)  # a text; or an object of stem and choices, as in the files of ARC

# Columns of the prompt, which are joined. The first of which a table has all is taken
PROMPTS = (
    ("article", "question"),  # RACE
    ("passage", "question"),
    ("context", "question"),  # Social IQa, Cosmos QA, ReClor
    ("premise", "question"),  # COPA
    ("question_stem",),  # OpenBookQA
    OBJECT,  # ARC, CommonsenseQA, MMLU
    ("sent1", "sent2"),  # SWAG
    ("ctx",),  # HellaSwag
    ("goal",),  # PIQA
    ("sentence",),  # WinoGrande
)

CHOICE_LISTS = (
    ("options",),  # RACE, MedQA
    ("endings",),  # HellaSwag
    ("answers",),  # ReClor
)

# Names of columns of one choice each, as they begin, and how they end: with numbers, capitals or small letters
MOST_COLUMNS = 8
NUMBERED = ("ending", "choice", "choice_", "option", "option_", "answer", "answer_", "sol")  # ending0 is SWAG's
CAPITALS = ("", "answer", "choice", "choice_", "option", "option_")  # answerA is Social IQa's
SMALL_LETTERS = ("", "op", "answer_", "choice_", "option_")  # opa is MedMCQA's
ENDINGS = {NUMBERED: ("012345678", "123456789"), CAPITALS: ("ABCDEFGHI",), SMALL_LETTERS: ("abcdefghi",)}

# A column for each choice, one more than the most. The first two are there, and the others as far as a file has them
CHOICE_SERIES = tuple(
    tuple(f"{begin}{end}" for end in ends) for begins, series in ENDINGS.items() for begin in begins for ends in series
)
CHOICE_SETS = (*CHOICE_LISTS, *CHOICE_SERIES)  # A table may have one of them

LABELS = ("answerKey", "answer", "correct_answer", "answer_idx", "cop")  # A table may have one of them


@dataclass(frozen=True, kw_only=True)
class ChoiceColumnFinder:
    """Finds the columns of prompt, choices and label in a table.

    Args:
        prompts, choices, label: The columns that the settings name.
    """

    prompts: tuple[str, ...]
    choices: tuple[str, ...]
    label: str

    @property
    def prompt_sets(self) -> tuple[tuple[str, ...], ...]:
        """The columns that may hold the prompt."""
        return (self.prompts, *(PROMPTS if self.prompts == STEM else ()))

    @property
    def choice_sets(self) -> tuple[tuple[str, ...], ...]:
        """The columns that may hold the choices."""
        return (self.choices, *(CHOICE_SETS if self.choices == CHOICES else ()))

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns that may hold the label."""
        return (self.label, *(LABELS if self.label == LABEL else ()))

    @property
    def alternatives(self) -> tuple[tuple[str, ...], ...]:
        """Sets of columns that a table may have instead of its own."""
        own = (*self.prompts, *self.choices)
        pairs = [(*prompts, *choices[:2]) for prompts, choices in product(self.prompt_sets, self.choice_sets)]
        labels = [(*own, label) for label in self.labels if label != self.label]
        objects = [(*OBJECT, label) for label in self.labels] if (self.prompts, self.choices) == (STEM, CHOICES) else []
        return (*(pair for pair in pairs if pair != own), *labels, *objects)

    @property
    def also_read(self) -> tuple[str, ...]:
        """The columns that a table need not have."""
        return (*self.labels, *(name for names in self.choice_sets[1:] for name in names))

    def find_conversion(self, table: Table) -> Conversion | None:
        """Returns how prompt, choices and label come into the task's own columns; None if they are there. InputError if two
        columns may be one of them."""
        filled = {name for name, column in table.columns.items() if has_values(column, BLANK)}
        prompts = next((names for names in self.prompt_sets if filled.issuperset(names)), self.prompts)
        choices = self.choose(table, "choices", "task.choice_columns", self.choice_sets, filled)
        if choices in CHOICE_SERIES:
            choices = cut_series(table, choices, filled)
        (label,) = self.choose(table, "label", "data.label_column", [(name,) for name in self.labels], filled)
        if (prompts, choices, label) == (self.prompts, self.choices, self.label):
            return None
        is_object = prompts == OBJECT and not filled.intersection(choices)

        def convert(columns: Mapping[str, Sequence[Any]]) -> dict[str, Iterable[Any]]:
            made: dict[str, Iterable[Any]] = {self.label: columns[label]}
            if prompts != self.prompts:
                made[self.prompts[0]] = map(join_prompt, iterate_rows(columns, prompts))
            if choices != self.choices:
                made[self.choices[0]] = map(join_choices, iterate_rows(columns, choices))
            elif is_object:
                made[self.choices[0]] = map(get_choices, columns["question"])
            return made

        note = f"the prompt is {' and '.join(prompts)}, the choices are {', '.join(choices)}, the right one is {label}"
        return Conversion(convert=convert, notes=(note,))

    def choose(
        self, table: Table, role: str, setting: str, candidates: Sequence[tuple[str, ...]], filled: set[str]
    ) -> tuple[str, ...]:
        """Returns the columns of a role. InputError if there are several that may be it."""
        own, *others = candidates
        found = [names for names in others if filled.issuperset(names[:2])]
        found = [names for names in found if not any(names[0] in other[1:] for other in found)]  # option1 after option0
        if filled.issuperset(own[:2]) or not found:
            return own
        if len(found) > 1:
            first, second = (", ".join(names) for names in found[:2])
            raise InputError(f"{table.where(0)}: both {first} and {second} may be the {role}; name one in {setting}")
        return found[0]


def cut_series(table: Table, names: Sequence[str], filled: Container[str]) -> tuple[str, ...]:
    """Returns the columns of a series up to the last one that has values. InputError if there are too many."""
    count = max(number for number, name in enumerate(names, 1) if name in filled)
    if count > MOST_COLUMNS:
        raise InputError(
            f"{table.where(0)}: has more than {MOST_COLUMNS} columns of choices, {names[0]} to {names[-1]}; name all of them in "
            "task.choice_columns"
        )
    return tuple(names[:count])


def iterate_rows(columns: Mapping[str, Sequence[Any]], names: Iterable[str]) -> Iterable[tuple[Any, ...]]:
    """Returns the values of some columns, row by row; None for those of a column that is not there."""
    count = len(next(iter(columns.values())))
    return zip(*(columns.get(name, [None] * count) for name in names), strict=True)


def join_prompt(values: Sequence[Any]) -> Any:
    """Returns the prompt of a row: its texts, joined with a space; or the stem of an object. None if a text is missing."""
    if len(values) > 1:
        return " ".join(values) if all(isinstance(value, str) for value in values) else None
    return values[0].get("stem") if isinstance(values[0], Mapping) else values[0]


def join_choices(values: Sequence[Any]) -> Any:
    """Returns the choices of a row: a list as it is, or a list of the values of several columns. The last may be missing."""
    if len(values) == 1:
        return values[0]
    choices = list(values)
    while choices and choices[-1] in BLANK:
        choices.pop()
    return choices


def get_choices(question: Any) -> Any:
    """Returns the choices of a question that is an object of stem and choices; None if it is anything else."""
    return question.get("choices") if isinstance(question, Mapping) else None
