"""The columns that data sets of multiple choice have on the Hub, made into those of the task.

They are looked for only in place of a column that the settings do not name: one that has the name of the recipe's default.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from hf_finetune.data.column_writer import make_column
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError

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

# One column of lists, or a column for each choice. A table may have one of them
CHOICE_SETS = (
    ("options",),  # RACE, MedQA
    ("endings",),  # HellaSwag
    ("answers",),  # ReClor
    ("ending0", "ending1", "ending2", "ending3"),  # SWAG
    ("choice1", "choice2"),  # COPA
    ("option1", "option2"),  # WinoGrande
    ("sol1", "sol2"),  # PIQA
    ("answerA", "answerB", "answerC"),  # Social IQa
    ("answer0", "answer1", "answer2", "answer3"),  # Cosmos QA
    ("opa", "opb", "opc", "opd"),  # MedMCQA
)

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
        pairs = [(*prompts, *choices) for prompts, choices in product(self.prompt_sets, self.choice_sets)]
        labels = [(*own, label) for label in self.labels if label != self.label]
        objects = [(*OBJECT, label) for label in self.labels] if (self.prompts, self.choices) == (STEM, CHOICES) else []
        return (*(pair for pair in pairs if pair != own), *labels, *objects)

    def convert_rows(self, table: Table) -> Table:
        """Returns the table with prompt, choices and label in the task's own columns. InputError if two columns may be one of
        them."""
        filled = {name for name, column in table.columns.items() if any(value is not None for value in column)}
        prompts = next((names for names in self.prompt_sets if filled.issuperset(names)), self.prompts)
        choices = self.choose(table, "choices", "task.choice_columns", self.choice_sets, filled)
        (label,) = self.choose(table, "label", "data.label_column", [(name,) for name in self.labels], filled)
        if (prompts, choices, label) == (self.prompts, self.choices, self.label):
            return table
        columns = dict(table.columns)
        if prompts != self.prompts:
            columns[self.prompts[0]] = make_column(map(join_prompt, iterate_rows(table, prompts)))
        if choices != self.choices:
            columns[self.choices[0]] = make_column(map(join_choices, iterate_rows(table, choices)))
        elif prompts == OBJECT and not filled.intersection(choices):
            columns[self.choices[0]] = make_column(map(get_choices, table.columns["question"]))
        columns[self.label] = table.columns[label]
        note = f"the prompt is {' and '.join(prompts)}, the choices are {', '.join(choices)}, the right one is {label}"
        return replace(table.with_columns(columns), notes=(*table.notes, note))

    def choose(
        self, table: Table, role: str, setting: str, candidates: Sequence[tuple[str, ...]], filled: set[str]
    ) -> tuple[str, ...]:
        """Returns the columns of a role. InputError if there are several that may be it."""
        own, *others = candidates
        found = [names for names in others if filled.issuperset(names[:2])]
        if filled.issuperset(own[:2]) or not found:
            return own
        if len(found) > 1:
            first, second = (", ".join(names) for names in found[:2])
            raise InputError(f"{table.where(0)}: both {first} and {second} may be the {role}; name one in {setting}")
        return found[0]


def iterate_rows(table: Table, names: Iterable[str]) -> Iterable[tuple[Any, ...]]:
    """Returns the values of some columns, row by row."""
    return zip(*(table.columns[name] for name in names), strict=True)


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
    while choices and choices[-1] in (None, ""):
        choices.pop()
    return choices


def get_choices(question: Any) -> Any:
    """Returns the choices of a question that is an object of stem and choices; None if it is anything else."""
    return question.get("choices") if isinstance(question, Mapping) else None
