"""Conversations to tokens by a chat template, with the tokens of the answers marked.

T tokens.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.data.table import describe_value
from hf_finetune.system.errors import InputError

Message = dict[str, str]  # role and content

MarkedTokens = tuple[Array, Array]  # token ids [T] int32; true for the tokens of an answer [T]

ROLES = ("system", "user", "assistant")

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")  # a template with this tag marks the answers itself


def describe_fault(messages: Any) -> str:
    """Says why a value is not a conversation, or returns "" if it is one.

    A conversation is a list of messages: at most one system message, which comes first, then user and assistant in turns.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        fault = describe_value(messages, "a list of messages")
        return f'is {fault}; takes [{{"role": "user", "content": ...}}, {{"role": "assistant", "content": ...}}]'
    num_turns = 0
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
                return f"message {number} is a system message; only the first message may be one"
            continue
        expected = ROLES[1 + num_turns % 2]
        if role != expected:
            return f"message {number} is the {role}'s, but it is the {expected}'s turn; they take turns, the user first"
        num_turns += 1
    return "" if num_turns else "has only a system message"


def render(tokenizer: Any, messages: Sequence[Message], location: str, *, add_prompt: bool = False) -> str:
    """Writes messages by the tokenizer's chat template. Raises InputError, naming `location`, if the template refuses them.

    add_prompt: end with the words that open the assistant's answer (the template's generation prompt).
    """
    import jinja2

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_prompt))
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{location}: the chat template does not take this conversation: {reason}") from None


def tokenize_rendered(tokenizer: Any, text: str) -> Array:
    """Returns the token ids of a text that a template wrote. The template wrote the special tokens too [T] int32."""
    return np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)


def encode_conversation(tokenizer: Any, messages: Sequence[Message], location: str) -> list[MarkedTokens]:
    """Returns the tokens of a conversation with its answers marked.

    Some templates write an earlier turn differently once other turns follow. Then there is one entry for each answer, with the
    messages before it.

    Raises InputError, naming `location`, if the template refuses the conversation.
    """
    if GENERATION_TAG.search(tokenizer.chat_template) and tokenizer.is_fast:
        render(tokenizer, messages, location)  # raises the InputError
        encoded = tokenizer.apply_chat_template(list(messages), return_dict=True, return_assistant_tokens_mask=True)
        ids = np.array(encoded["input_ids"], dtype=np.int32)
        return [(ids, np.array(encoded["assistant_masks"], dtype=bool))]
    return encode_by_prefixes(tokenizer, messages, location)


def encode_by_prefixes(tokenizer: Any, messages: Sequence[Message], location: str) -> list[MarkedTokens]:
    """Does the same without the template's help: an answer lies between what the template writes of the messages before it and
    of those up to it."""
    full_text = render(tokenizer, messages, location)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    begins = [render(tokenizer, messages[:number], location, add_prompt=True) for number in answers]
    ends = [render(tokenizer, messages[: number + 1], location) for number in answers]
    if all(full_text.startswith(text) for text in (*begins, *ends)):
        return [mark_answers(tokenizer, full_text, begins, ends)]
    for begin, end in zip(begins, ends, strict=True):
        if not end.startswith(begin):
            raise InputError(
                "task.chat_template: an answer does not begin where the template's generation prompt ends; mark the answers in "
                "the template with {% generation %} and {% endgeneration %}"
            )
    return [mark_answers(tokenizer, end, [begin], [end]) for begin, end in zip(begins, ends, strict=True)]


def mark_answers(tokenizer: Any, full_text: str, begins: Sequence[str], ends: Sequence[str]) -> MarkedTokens:
    """Returns the token ids of `full_text`, and a mask of the answer tokens.

    An answer reaches from the end of each text in `begins` to the end of its counterpart in `ends`, without whitespace after the
    end-of-turn token.
    """
    ids = tokenize_rendered(tokenizer, full_text)
    is_answer = np.zeros(len(ids), dtype=bool)
    special_ids = collect_special_ids(tokenizer)
    for begin, end in zip(begins, ends, strict=True):
        start = count_common_tokens(tokenize_rendered(tokenizer, begin), ids)
        stop = len(ids) if end == full_text else count_common_tokens(tokenize_rendered(tokenizer, end), ids)
        backwards = range(stop - 1, start - 1, -1)
        last = next((position for position in backwards if int(ids[position]) in special_ids), stop - 1)
        if not tokenizer.decode(ids[last + 1 : stop].tolist()).strip():
            stop = last + 1
        is_answer[start:stop] = True
    return ids, is_answer


def collect_special_ids(tokenizer: Any) -> set[int]:
    """Returns the ids of tokens that are not text: special tokens, and tokens that were added to the vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def count_common_tokens(one: Array, other: Array) -> int:
    """Returns the number of tokens that two sequences have in common from their beginning."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
