"""Instruction tuning: a causal model learns the answers of conversations, written by the tokenizer's chat template.

T tokens, N features.
"""

import os.path
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import IGNORED, Features, Ragged
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Kept
from hf_finetune.tasks.tokens import CausalTask, check_columns

if TYPE_CHECKING:
    from pathlib import Path

Message = dict[str, str]  # role and content

ROLES = ("system", "user", "assistant")

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")  # where a template marks the assistant's words itself


@dataclass(frozen=True, kw_only=True)
class Instruction(CausalTask):
    """Conversations in one column, or prompts and answers in two. template: of task.chat_template; the tokenizer's own where
    it is empty."""

    columns: tuple[str, ...]
    template: str = ""

    name = "instruction"
    problem = "instruction"
    settings = frozenset({"chat_template", "max_target_length"})

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        check_columns(config, "instruction tuning", 2, "takes one column of messages, or two: prompts and answers")
        columns = config.data.text_columns
        return ColumnSpec(inputs=columns[:1], labels=columns[1:], together=columns[:1])

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Instruction":
        """Learns nothing of the table. InputError where the file of the template cannot be read."""
        path = config.task.chat_template
        return cls.from_facts(config, {"template": read_template(path) if path is not None else ""})

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "Instruction":
        return cls(
            columns=config.data.text_columns,
            template=facts.get("template", ""),
            max_target_length=config.task.max_target_length,
            label_smoothing=config.train.label_smoothing,
        )

    def facts(self) -> dict[str, Any]:
        """The template, which the run's numbers depend on."""
        return {"template": self.template}

    # --- model

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """The tokenizer carries the template. InputError where there is none."""
        if self.template:
            tokenizer.chat_template = self.template
        if not isinstance(tokenizer.chat_template, str):
            raise InputError(
                "task.chat_template (None): this backbone's tokenizer has no chat template; name a file with one (Jinja), "
                "such as ChatML's"
            )
        CausalTask.prepare_model(self, model, tokenizer)

    def end_ids(self, ends: Any, tokenizer: Any) -> Any:
        """The model's own, and the special token that ends an answer in the template."""
        found = list(ends) if isinstance(ends, (list, tuple)) else [ends] if ends is not None else []
        asked, answered = [{"role": "user", "content": "a"}], {"role": "assistant", "content": "a"}
        write = writer(tokenizer, lambda: "task.chat_template")
        ids, answers = spans_of_prefixes(tokenizer, [*asked, answered], write)[0]
        last = ids[np.flatnonzero(answers)[-1]] if answers.any() else None
        if last in special_ids(tokenizer) and last not in found:
            found.append(int(last))
        return found if len(found) > 1 else found[0] if found else None

    # --- data

    def encoded_columns(self) -> tuple[str, ...]:
        return self.columns

    def encoding_settings(self) -> dict[str, Any]:
        return {"template": self.template}

    def conversation(self, table: Table, row: int) -> list[Message]:
        """The messages of a row; of what is asked up to the last user's. InputError with file and line where they are none."""
        given = table.columns[self.columns[0]][row]
        if len(self.columns) == 2:
            answer = table.columns[self.columns[1]][row]
            given = [{"role": "user", "content": given}]
            given += [] if self.asks else [{"role": "assistant", "content": answer}]
        fault = fault_of(given)
        if not fault and given[-1]["role"] != "assistant" and not self.asks:
            fault = "the last message is not the assistant's, so there is no answer to learn"
        if fault:
            raise InputError(f"{table.where(row)}: {', '.join(self.columns)}: {fault}")
        messages = [{"role": each["role"], "content": each["content"]} for each in given]
        return messages[:-1] if self.asks and messages[-1]["role"] == "assistant" else messages

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """The conversations as the template writes them, cut at max_length, and beside them answers [T], whether each token is
        to be learned, and dropped, how many have no such token left. Of what is asked the prompts, whole."""
        found: list[tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        truncated = dropped = 0
        for row in range(len(table)):
            messages = self.conversation(table, row)
            write = writer(tokenizer, lambda row=row: table.where(row))  # type: ignore[misc]
            if self.asks:
                ids = encoded(tokenizer, write(messages, asks=True))
                found.append((row, ids, np.zeros(len(ids), dtype=bool)))
                continue
            for ids, answers in spans(tokenizer, messages, write):
                truncated += len(ids) > max_length
                if answers[1:max_length].any():
                    found.append((row, ids[:max_length], answers[:max_length]))
                else:
                    dropped += 1
        if not found:
            raise InputError(f"data.max_length ({max_length}): no conversation has an answer within so many tokens")
        return {
            "input_ids": np.concatenate([ids for _, ids, _ in found]).astype(np.int32),
            "offsets": np.concatenate([[0], np.cumsum([len(ids) for _, ids, _ in found])]).astype(np.int64),
            "truncated": np.array(truncated),
            "examples": np.array([row for row, _, _ in found], dtype=np.int64),
            "answers": np.concatenate([answers for _, _, answers in found]),
            "dropped": np.array(dropped),
        }

    def labels(self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> Ragged:
        """The tokens of answers, IGNORED elsewhere."""
        return Ragged(values=np.where(arrays["answers"], arrays["input_ids"], IGNORED), offsets=arrays["offsets"])

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """How many tokens are learned, what was cut, and what was left out."""
        learned, total = int(np.sum(features.extras["answers"])), int(features.offsets[-1])
        dropped = int(features.extras["dropped"])
        left_out = f"; {dropped:,} have no answer within them and are left out" if dropped else ""
        cut = f"{features.num_truncated:,} training conversations are longer and were cut{left_out}"
        return [
            ("input", f"at most {max_length} tokens; {cut}"),
            ("answers", f"{learned:,} of {total:,} tokens are learned ({learned / total:.0%})"),
            ("template", "task.chat_template" if self.template else "the tokenizer's own"),
        ]

    # --- use

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """`{answer}` to the last user's message of each row."""
        for written in kept:
            yield {"answer": written.strip()}

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 1:
            raise InputError(f"--text: takes one user's message, not {len(texts)}")
        asked: Any = texts[0] if len(self.columns) == 2 else [{"role": "user", "content": texts[0]}]
        return {self.columns[0]: asked}

    def card(self) -> str:
        return (
            "answering instructions.\nConversations are written by the tokenizer's chat template: "
            '`pipeline("text-generation", model)([{"role": "user", "content": "..."}])` answers greedily, in at most '
            f"{self.max_target_length} tokens, as generation_config.json says."
        )


def read_template(path: "str | Path") -> str:
    """The text of a template's file."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"task.chat_template ({path}): cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not text.strip():
        raise InputError(f"task.chat_template ({path}): is empty")
    return text


def fault_of(messages: Any) -> str:
    """Why a value is no conversation: a system message or none, then user and assistant in turns; '' where it is one."""
    if not isinstance(messages, (list, tuple)) or not messages:
        what = "null" if messages is None else "empty" if messages in ([], ()) else "no list of messages"
        return f'is {what}; takes [{{"role": "user", "content": ...}}, {{"role": "assistant", "content": ...}}]'
    turns = 0
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {number} has no role and content"
        role, content = message["role"], message["content"]
        if role not in ROLES:
            return f"message {number} has the role {role!r}; takes {', '.join(ROLES)}"
        if not isinstance(content, str) or not content.strip():
            return f"message {number}, the {role}'s, has no text"
        if role == "system":
            if number > 1:
                return f"message {number} is the system's; it takes the first place or none"
            continue
        expected = ROLES[1 + turns % 2]
        if role != expected:
            return f"message {number} is the {role}'s where the {expected}'s turn is; they take turns, the user first"
        turns += 1
    return "" if turns else "has a system message only"


Writer = Callable[..., str]


def writer(tokenizer: Any, where: Callable[[], str]) -> Writer:
    """A function that writes messages by the tokenizer's template; with asks=True up to where the assistant begins. InputError
    naming `where` as it cannot."""
    import jinja2

    def write(messages: Sequence[Message], *, asks: bool = False) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{where()}: the chat template does not take this conversation: {reason}") from None

    return write


def encoded(tokenizer: Any, text: str) -> "np.ndarray[Any, Any]":
    """Ids of what a template wrote, which has its special tokens already."""
    return np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)


Span = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]  # ids [T], and whether each is of an answer


def spans(tokenizer: Any, messages: Sequence[Message], write: Writer) -> list[Span]:
    """The conversation with its answers marked; where the template writes earlier turns otherwise once others follow, one
    for each answer, with what was said before it."""
    if GENERATION_TAG.search(tokenizer.chat_template) and tokenizer.is_fast:
        write(messages)  # for its errors
        found = tokenizer.apply_chat_template(list(messages), return_dict=True, return_assistant_tokens_mask=True)
        return [(np.array(found["input_ids"], dtype=np.int32), np.array(found["assistant_masks"], dtype=bool))]
    return spans_of_prefixes(tokenizer, messages, write)


def spans_of_prefixes(tokenizer: Any, messages: Sequence[Message], write: Writer) -> list[Span]:
    """The same, found by what the template writes of the first messages alone."""
    whole = write(messages)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    asked = [write(messages[:number], asks=True) for number in answers]
    said = [write(messages[: number + 1]) for number in answers]
    if all(whole.startswith(text) for text in (*asked, *said)):
        return [marked(tokenizer, whole, asked, said)]
    for one, other in zip(asked, said, strict=True):
        if not other.startswith(one):
            raise InputError(
                "task.chat_template: an answer does not begin where the template's generation prompt ends; mark answers in "
                "it with {% generation %} and {% endgeneration %}"
            )
    return [marked(tokenizer, text, [begin], [text]) for begin, text in zip(asked, said, strict=True)]


def marked(tokenizer: Any, whole: str, begins: Sequence[str], ends: Sequence[str]) -> Span:
    """Ids of a text, and which of them follow what `begins` say, up to what `ends` say, without blanks behind the token that
    ends a turn."""
    ids = encoded(tokenizer, whole)
    is_answer = np.zeros(len(ids), dtype=bool)
    closing = special_ids(tokenizer)
    for one, other in zip(begins, ends, strict=True):
        start = common_length(encoded(tokenizer, one), ids)
        end = len(ids) if other == whole else common_length(encoded(tokenizer, other), ids)
        last = next((place for place in range(end - 1, start - 1, -1) if int(ids[place]) in closing), end - 1)
        if not tokenizer.decode(ids[last + 1 : end].tolist()).strip():
            end = last + 1
        is_answer[start:end] = True
    return ids, is_answer


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are no text, whether the tokenizer calls them special or has them added."""
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def common_length(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]") -> int:
    """How many tokens two sequences begin alike with."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
