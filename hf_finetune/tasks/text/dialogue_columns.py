"""The columns that files of conversations and instructions have, made into one column of messages.

They are looked for only if the settings name the recipe's column, messages, and the table does not have it.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hf_finetune.data.arrow_columns import ROWS_AT_ONCE
from hf_finetune.data.columns import has_values
from hf_finetune.data.literals import read_literal
from hf_finetune.data.table import Conversion, Table
from hf_finetune.system.errors import InputError

MESSAGES, TOOLS, SYSTEM = "messages", "tools", "system"
CONVERSATIONS = ("conversations", "conversation")

# A user's message and the assistant's: the columns of the first, with the columns that may continue it and those of the answer
INSTRUCTIONS = {
    "instruction": (("input", "context"), ("output", "response")),  # Alpaca; Dolly
    "prompt": ((), ("completion", "response")),  # TRL, and OpenAI's older files
}
BEFORE = (SYSTEM, "history")  # columns of what comes before
PREFERENCES = "chosen"  # the column of the better of two answers

ALTERNATIVES = tuple((name,) for name in (*CONVERSATIONS, *INSTRUCTIONS, PREFERENCES))
ALSO_READ = (
    *(name for columns in INSTRUCTIONS.values() for names in columns for name in names),
    *BEFORE,
    TOOLS,
)


def find_conversion(table: Table, column: str) -> Conversion:
    """Returns how each conversation comes into `column`: a list of messages, or a dict of messages and what goes with them.

    InputError if there are two answers to choose from.
    """
    filled = {name for name, cells in table.columns.items() if has_values(cells)}
    source, first, notes, more = column, None, list[str](), [TOOLS]
    if column == MESSAGES and MESSAGES not in filled:
        if PREFERENCES in filled:
            raise InputError(
                f"{table.where(0)}: has two answers to a prompt, {PREFERENCES} and another, and instruct learns one; name the "
                f"columns of prompt and answer, data.text_columns [prompt, {PREFERENCES}]"
            )
        named = next((name for name in CONVERSATIONS if name in filled), None)
        first = next((name for name in INSTRUCTIONS if name in filled), None) if named is None else None
        if named is not None:
            source = named
            notes.append(f"conversations are in the column {named}")
            more.append(SYSTEM)
    instruction = None if first is None else InstructionColumns.find(first, filled)
    if instruction is not None:
        notes.append(instruction.describe())
    more = [name for name in more if name in filled]

    def convert(columns: Mapping[str, Sequence[Any]]) -> dict[str, Iterable[Any]]:
        cells = columns[source] if instruction is None else instruction.join(columns)
        return {column: map(partial(add_entries, more), cells, *(columns[name] for name in more))}

    if form := describe_form(find_first(table, column, convert)):
        notes.append(form)
    return Conversion(convert=convert, notes=tuple(notes))


def find_first(
    table: Table, column: str, convert: Callable[[Mapping[str, Sequence[Any]]], Mapping[str, Iterable[Any]]]
) -> Any:
    """Returns the first conversation of a table that is not empty; None if all are."""
    for start in range(0, len(table), ROWS_AT_ONCE):
        columns = {name: cells[start : start + ROWS_AT_ONCE] for name, cells in table.columns.items()}
        if found := next(filter(None, convert(columns)[column]), None):
            return found
    return None


def add_entries(names: Sequence[str], cell: Any, *values: Any) -> Any:
    """Returns a conversation with the values of other columns, `names`, that go with it."""
    return {MESSAGES: cell, **dict(zip(names, values, strict=True))} if any(values) else cell


@dataclass(frozen=True, kw_only=True)
class InstructionColumns:
    """The columns of instructions.

    Attributes:
        prompts: Those of the user's message.
        answers: That of the assistant's message, if there is one.
        before: Those of what comes before.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    before: tuple[str, ...]

    @classmethod
    def find(cls, first: str, filled: Container[str]) -> "InstructionColumns":
        """Returns the columns of a table. first: That of the instruction. filled: Those that have values."""
        inputs, outputs = INSTRUCTIONS[first]
        return cls(
            prompts=(first, *(name for name in inputs if name in filled)),
            answers=tuple(name for name in outputs if name in filled)[:1],
            before=tuple(name for name in BEFORE if name in filled),
        )

    def describe(self) -> str:
        """Returns a sentence about the columns."""
        prompts = self.prompts
        note = f"the user's message is {' and '.join(prompts)}{', on a new line' if len(prompts) > 1 else ''}"
        note += f", the answer is {self.answers[0]}" if self.answers else ""
        return note + (f"; before them {' and '.join(self.before)}" if self.before else "")

    def join(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[list[Any]]:
        """Yields the messages of each row."""
        names = (*self.prompts, *self.answers, *self.before)
        for values in zip(*(columns[name] for name in names), strict=True):
            yield join_row(dict(zip(names, values, strict=True)), self.prompts, self.answers)


def join_row(row: Mapping[str, Any], prompts: Sequence[str], answers: Sequence[str]) -> list[Any]:
    """Returns the messages of a row. prompts, answers: The columns of the user's message and of the assistant's."""
    first, *inputs = (row[name] for name in prompts)
    texts = [text for text in inputs if isinstance(text, str) and text.strip()]
    prompt = "\n".join([first, *texts]) if isinstance(first, str) else first
    answer = row[answers[0]] if answers else None
    return [*make_start(row.get(SYSTEM), row.get("history")), *join_turn(prompt, answer)]


def make_start(system: Any, history: Any) -> list[Any]:
    """Returns the messages before an instruction: the system's, and the pairs of a history."""
    messages = [{"role": "system", "content": system}] if system else []
    pairs = read_literal(history) if isinstance(history, str) else history
    for pair in pairs or ():
        messages += join_turn(*pair) if isinstance(pair, (list, tuple)) and len(pair) == 2 else [pair]
    return messages


def join_turn(prompt: Any, answer: Any) -> list[Any]:
    """Returns the messages of a prompt and its answer. Each is a text, or a list of messages. answer: None if there is none."""
    messages: list[Any] = []
    for role, part in (("user", prompt), ("assistant", answer)):
        literal: Any = read_literal(part) if isinstance(part, str) else part
        if is_list_of_messages(literal):
            messages += literal
        elif part is not None or role == "user":
            messages.append({"role": role, "content": part})
    return messages


def is_list_of_messages(value: Any) -> bool:
    """True if a value is a list of messages, and not one of the parts of a message."""
    return (
        isinstance(value, Sequence)
        and bool(value)
        and all(isinstance(part, Mapping) and "role" in part for part in value)
    )


def describe_form(cell: Any) -> str:
    """Returns a sentence about how a conversation is written; "" if it is written as role and content."""
    cell = cell["messages"] if isinstance(cell, Mapping) and "messages" in cell else cell
    cell = read_literal(cell) if isinstance(cell, str) else cell
    messages = [message for message in cell or () if isinstance(message, Mapping)]
    forms = []
    if any(message.get("from") is not None for message in messages):
        forms.append("from and value, as ShareGPT writes them")
    if any(isinstance(message.get("content"), (list, tuple)) for message in messages):
        forms.append("content that is a list of parts, joined with a line break")
    return f"messages have {' and '.join(forms)}" if forms else ""
