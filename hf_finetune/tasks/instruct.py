"""Instruction tuning: a causal model learns the answers of conversations. The tokenizer's chat template makes them texts.

T tokens, N features.
"""

import os.path
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.features import IGNORED, Array, Features, Ragged
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns, Encoding, Outputs, Task
from hf_finetune.tasks.text import chat
from hf_finetune.tasks.text.dialogue_columns import ALSO_READ, ALTERNATIVES, MESSAGES, TOOLS, find_conversion, join_turn
from hf_finetune.tasks.text.dialogues import Dialogue, DialogueError, Message, read_dialogue
from hf_finetune.tasks.tokens import (
    CausalScoring,
    EndIds,
    TokenObjective,
    check_columns,
    check_is_causal,
    get_end_ids,
    set_greedy_generation,
)


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of instruction tuning.

    Args:
        chat_template: File with a Jinja chat template; the tokenizer's own if not given.
        max_target_length: Most tokens that are generated.
    """

    paths = ("chat_template",)

    chat_template: str | None = None
    max_target_length: int = 128

    def __post_init__(self) -> None:
        require(self.max_target_length >= 1, "task.max_target_length", self.max_target_length, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ConversationColumns(Columns):
    """One column of messages, or two columns: prompts and answers."""

    names: tuple[str, ...]

    @property
    def spec(self) -> ColumnSpec:
        spec = ColumnSpec(inputs=self.names[:1], labels=self.names[1:], together=self.names[:1])
        if len(self.names) == 2:
            return spec
        is_default = self.names == (MESSAGES,)
        return replace(
            spec,
            alternatives=ALTERNATIVES if is_default else (),
            also_read=ALSO_READ if is_default else (TOOLS,),
            find_conversion=lambda table: find_conversion(table, self.names[0]),
        )

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        """The row of one user message."""
        if len(texts) != 1:
            raise InputError(f"--text: takes one user message, not {len(texts)}")
        if len(self.names) == 2:
            return {self.names[0]: texts[0]}
        return {self.names[0]: [{"role": "user", "content": texts[0]}]}


@dataclass(frozen=True, kw_only=True)
class InstructionEncoding(Encoding):
    """Conversations to the tokens that the chat template gives, with the answers as targets.

    Args:
        columns: As ConversationColumns.names.
        template: The chat template of task.chat_template; "" for the tokenizer's own.
        is_inference: Conversations end with the user's message, which is to be answered.
    """

    rows_are_independent: ClassVar[bool] = True

    columns: tuple[str, ...]
    template: str = ""
    is_inference: bool = False

    def encoded_columns(self) -> tuple[str, ...]:
        return self.columns

    def encoding_settings(self) -> dict[str, Any]:
        return {"template": self.template}

    def for_inference(self, tokenizer: Any) -> Self:
        return replace(self, is_inference=True)

    def read_dialogue(self, table: Table, row: int) -> Dialogue:
        """The conversation of a row; for inference up to the last answer. InputError with file and line if it is none."""
        value = table.columns[self.columns[0]][row]
        if len(self.columns) == 2:
            value = join_turn(value, None if self.is_inference else table.columns[self.columns[1]][row])
        try:
            dialogue = read_dialogue(value)
            is_answered = dialogue.messages[-1]["role"] == "assistant"
            if not is_answered and not self.is_inference:
                unread = table.describe_unread()
                raise DialogueError(f"the last message is not the assistant's, so there is no answer to learn{unread}")
        except DialogueError as fault:
            raise InputError(f"{table.where(row)}: {', '.join(self.columns)}: {fault}") from None
        return replace(dialogue, messages=dialogue.messages[:-1]) if self.is_inference and is_answered else dialogue

    def check_rows(self, table: Table) -> None:
        for row in range(len(table)):
            self.read_dialogue(table, row)

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """The conversations, cut at max_length. For inference each prompt in full.

        Two more arrays: answers, true for the tokens to learn [T], and dropped, the number of sequences that have no such token
        within max_length.
        """
        rows: list[int] = []
        sequences: list[chat.MarkedTokens] = []
        num_truncated = num_dropped = 0
        for row in range(len(table)):
            for ids, is_answer in self.encode_row(table, row, tokenizer):
                if self.is_inference:
                    rows.append(row)
                    sequences.append((ids, is_answer))
                    continue
                num_truncated += len(ids) > max_length
                if is_answer[1:max_length].any():  # the first token has none before it that it could be predicted from
                    rows.append(row)
                    sequences.append((ids[:max_length], is_answer[:max_length]))
                else:
                    num_dropped += 1
        lengths = [len(ids) for ids, _ in sequences]
        return {
            "input_ids": np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in sequences)]).astype(np.int32),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "truncated": np.array(num_truncated),
            "examples": np.array(rows, dtype=np.int64),
            "answers": np.concatenate([np.empty(0, bool), *(is_answer for _, is_answer in sequences)]),
            "dropped": np.array(num_dropped),
        }

    def encode_row(self, table: Table, row: int, tokenizer: Any) -> list[chat.MarkedTokens]:
        """The tokens of a row's conversation, as one sequence or one for each answer. For inference its prompt."""
        dialogue, location = self.read_dialogue(table, row), table.where(row)
        if not self.is_inference:
            return chat.encode_conversation(tokenizer, dialogue, location)
        if dialogue.uses_tools:
            chat.check_tools(tokenizer, dialogue, location)
        prompt = chat.render(tokenizer, dialogue, location, add_prompt=True)
        ids = chat.tokenize_rendered(tokenizer, prompt)
        return [(ids, np.zeros(len(ids), dtype=bool))]

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Ragged:
        """The tokens of answers, IGNORED elsewhere. InputError if there are none."""
        if not len(arrays["examples"]):
            raise InputError("data.max_length: is too small: no conversation has an answer within it")
        return Ragged(values=np.where(arrays["answers"], arrays["input_ids"], IGNORED), offsets=arrays["offsets"])

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The number of conversations that were cut or left out, the share of the tokens that are learned, and the template."""
        num_learned, num_tokens = int(np.sum(features.extras["answers"])), int(features.offsets[-1])
        num_dropped = int(features.extras["dropped"])
        cut = f"{features.num_truncated:,} training conversations are longer and were cut"
        if num_dropped:
            cut += f"; {num_dropped:,} have no answer within them and are left out"
        return [
            ("input", f"at most {max_length} tokens; {cut}"),
            ("answers", f"{num_learned:,} of {num_tokens:,} tokens are learned ({num_learned / num_tokens:.0%})"),
            ("template", "task.chat_template" if self.template else "the tokenizer's own"),
        ]


@dataclass(frozen=True, kw_only=True)
class AnswerScoring(CausalScoring):
    """Token metrics of the answers; predictions are answers."""

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """`{answer}` to the last user message of each row."""
        for generated in outputs:
            yield {"answer": generated.strip()}


@dataclass(frozen=True, kw_only=True)
class Instruction(Task):
    """Instruction tuning.

    Args:
        template: The chat template of task.chat_template; "" for the tokenizer's own.
        max_target_length: Most tokens that are generated.
    """

    Settings = Settings
    auto_classes = ("AutoModelForCausalLM",)

    template: str
    max_target_length: int

    @classmethod
    def make_columns(cls, config: RunConfig) -> ConversationColumns:
        takes = "takes one column of messages, or two: prompts and answers"
        check_columns(config, task_name="instruction tuning", most=2, takes=takes)
        return ConversationColumns(names=config.data.text_columns)

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Instruction":
        """Reads the template's file, and nothing of the table. InputError if the file cannot be read."""
        path = cast(Settings, config.task).chat_template
        return cls.from_state(config, {"template": read_template(path) if path is not None else ""})

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Instruction":
        settings, columns = cast(Settings, config.task), cls.make_columns(config)
        template = state.get("template", "")
        return cls(
            problem="instruction",
            pipeline_tag="text-generation",
            head=HeadSpec(auto_class=cls.auto_classes[0]),
            columns=columns,
            encoding=InstructionEncoding(columns=columns.names, template=template),
            objective=TokenObjective(is_causal=True, label_smoothing=config.train.label_smoothing),
            scoring=AnswerScoring(max_target_length=settings.max_target_length),
            template=template,
            max_target_length=settings.max_target_length,
        )

    def state_dict(self) -> dict[str, Any]:
        """The template, which the run's numbers depend on."""
        return {"template": self.template}

    def prepare_tokenizer(self, tokenizer: Any) -> None:
        """Gives the tokenizer the template. InputError if there is none."""
        if self.template:
            tokenizer.chat_template = self.template
        if not isinstance(tokenizer.chat_template, str):
            raise InputError(
                "task.chat_template (None): is needed: this backbone's tokenizer has no chat template; name a file with one "
                "(Jinja), such as ChatML's"
            )

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Gives the tokenizer the template, and the model greedy generation that ends with the answer. InputError if there is
        no template, or if the model is not causal."""
        self.prepare_tokenizer(tokenizer)
        end_ids = add_turn_end(get_end_ids(model, tokenizer), tokenizer)
        set_greedy_generation(model, tokenizer, end_ids=end_ids, max_new_tokens=self.max_target_length)
        check_is_causal(model)

    def describe_for_card(self) -> str:
        return (
            "answering instructions.\nThe tokenizer's chat template makes conversations texts: "
            '`pipeline("text-generation", model)([{"role": "user", "content": "..."}])` answers greedily, in at most '
            f"{self.max_target_length} tokens. generation_config.json has these settings."
        )


def read_template(path: str) -> str:
    """Returns the text of a template's file. Raises InputError if it cannot be read or is empty."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"task.chat_template ({path}): cannot be read: {reason}") from None
    require(bool(text.strip()), "task.chat_template", path, "is empty")
    return text


def add_turn_end(end_ids: EndIds, tokenizer: Any) -> EndIds:
    """Adds to the ids that end a text the special token that ends an answer in the chat template, if it is missing."""
    ids: list[int] = []
    if isinstance(end_ids, int):
        ids = [end_ids]
    elif end_ids is not None:
        ids = list(end_ids)
    messages: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    tokens, is_answer = chat.encode_by_prefixes(tokenizer, Dialogue(messages=messages), "task.chat_template")[0]
    if is_answer.any():
        last = int(tokens[is_answer][-1])
        if last in chat.collect_special_ids(tokenizer) and last not in ids:
            ids.append(last)
    if len(ids) == 1:
        return ids[0]
    return ids or None
