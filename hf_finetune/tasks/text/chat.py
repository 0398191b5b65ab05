"""Conversations to tokens by a chat template, with the tokens of the answers marked.

T tokens.
"""

import json
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_finetune.data.features import Array
from hf_finetune.system.errors import InputError, first_line
from hf_finetune.system.limited import LimitedFunction, LimitError
from hf_finetune.tasks.text.dialogues import Dialogue, Message

MarkedTokens = tuple[Array, Array]  # token ids [T] int32; true for the tokens of an answer [T]

# Characters that a template may write: these, and this number of times the JSON of the conversation and its tools
FREE_CHARACTERS, MOST_EXPANSION = 1_000_000, 20

SECONDS_TO_RENDER = 30.0  # one conversation; it takes less than a millisecond

# Template and renderer of each tokenizer
RENDERERS: weakref.WeakKeyDictionary[Any, tuple[Any, LimitedFunction]] = weakref.WeakKeyDictionary()

Prefix = tuple[int, bool]  # the number of messages, and whether to add the generation prompt

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")  # a template with this tag marks the answers itself


def render(tokenizer: Any, dialogue: Dialogue, location: str, *, add_prompt: bool = False) -> str:
    """Writes a conversation by the tokenizer's chat template. Raises InputError, naming `location`, if the template refuses it.

    add_prompt: end with the words that open the assistant's answer (the template's generation prompt).
    """
    return render_prefixes(tokenizer, dialogue, location, [(len(dialogue.messages), add_prompt)])[0]


def render_prefixes(tokenizer: Any, dialogue: Dialogue, location: str, prefixes: Sequence[Prefix]) -> list[str]:
    """Writes the first messages of a conversation as render(), for each of `prefixes`: how many, and add_prompt."""
    texts, reason = call_template(
        tokenizer, location, apply_template, list_forms(dialogue.messages), dialogue.tools, list(prefixes)
    )
    if len(texts) == len(prefixes):
        return list(texts)
    uses = " (it has tool calls)" if dialogue.uses_tools else ""
    raise InputError(f"{location}: the chat template does not take this conversation{uses}: {reason}")


def call_template(tokenizer: Any, location: str, apply: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what apply_template() or mark_by_template() returns, within limits. InputError, naming `location`, beyond them."""
    try:
        return find_renderer(tokenizer)(apply, *arguments)
    except LimitError as error:
        raise InputError(
            f"{location}: the chat template {error}; task.chat_template can name a file with another one"
        ) from None
    except RuntimeError as error:
        raise InputError(f"{location}: the chat template does not take this conversation: {error}") from None


def find_renderer(tokenizer: Any) -> LimitedFunction:
    """Returns the function that renders with the tokenizer's template: in a process of its own, with limits, since a template may
    come with a model, and may loop for ever or make a text of any length."""
    template, renderer = RENDERERS.get(tokenizer, (None, None))
    if renderer is None or template != tokenizer.chat_template:
        own = weakref.ref(tokenizer)
        renderer = LimitedFunction(lambda apply, *arguments: apply(own, *arguments), seconds=SECONDS_TO_RENDER)
        RENDERERS[tokenizer] = (tokenizer.chat_template, renderer)
    return renderer


def apply_template(
    tokenizer: Callable[[], Any], forms: list[list[Message]], tools: list[Any] | None, prefixes: list[Prefix]
) -> tuple[list[str], str]:
    """Returns what the template writes of the prefixes of a conversation, each in the first of its forms that it takes. The texts
    end at a prefix that it refuses; the second value is the reason, or ""."""
    limit = FREE_CHARACTERS + MOST_EXPANSION * len(json.dumps([forms[-1], tools], default=str))
    texts: list[str] = []
    for count, add_prompt in prefixes:
        reason = ""
        for messages in forms:
            try:
                text = tokenizer().apply_chat_template(
                    messages[:count], tools=tools, tokenize=False, add_generation_prompt=add_prompt
                )
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  a template's expressions can raise any error
                reason = reason or first_line(error)
                continue
            if len(text) > limit:
                return texts, f"it writes {len(text):,} characters"
            texts.append(text)
            break
        else:
            return texts, reason
    return texts, ""


def mark_by_template(tokenizer: Callable[[], Any], messages: list[Message], tools: list[Any] | None) -> MarkedTokens:
    """Returns the tokens of a conversation, with those marked that the template writes between its tags `generation`."""
    encoded = tokenizer().apply_chat_template(
        messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    return np.array(encoded["input_ids"], dtype=np.int32), np.array(encoded["assistant_masks"], dtype=bool)


def list_forms(messages: Sequence[Message]) -> list[list[Message]]:
    """Returns the messages; if tools are called, also with arguments that are JSON, which is all that some templates write."""
    forms = [list(messages)]
    if any("tool_calls" in message for message in messages):
        forms.append([write_arguments(message) if "tool_calls" in message else message for message in messages])
    return forms


def write_arguments(message: Message) -> Message:
    """Returns a message in which the arguments of tool calls are JSON."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def check_tools(tokenizer: Any, dialogue: Dialogue, location: str) -> None:
    """Raises InputError, naming `location`, if the template leaves out the tools, a call or the result of one."""
    full_text = render(tokenizer, dialogue, location)

    def is_written(messages: Sequence[Message], tools: list[Any] | None) -> bool:
        try:
            return render(tokenizer, Dialogue(messages=list(messages), tools=tools), location) != full_text
        except InputError:  # the template takes no conversation without it
            return True

    messages, tools = dialogue.messages, dialogue.tools
    faults = []
    if tools and not is_written(messages, None):
        faults.append("the descriptions of tools")
    for number, message in enumerate(messages):
        if "tool_calls" in message:
            without = {name: value for name, value in message.items() if name != "tool_calls"}
            kind = "the tool calls"
        elif message["role"] == "tool":
            without, kind = {**message, "content": f"{message['content']}."}, "the result"
        else:
            continue
        if not is_written([*messages[:number], without, *messages[number + 1 :]], tools):
            faults.append(f"{kind} of message {number + 1}")
    if faults:
        raise InputError(
            f"{location}: the chat template does not write {faults[0]}; task.chat_template can name a file with one that does"
        )


def tokenize_rendered(tokenizer: Any, text: str) -> Array:
    """Returns the token ids of a text that a template wrote. The template wrote the special tokens too [T] int32."""
    return np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)


def encode_conversation(tokenizer: Any, dialogue: Dialogue, location: str) -> list[MarkedTokens]:
    """Returns the tokens of a conversation with its answers marked. Answers with the weight 0 are not.

    Some templates write an earlier turn differently once other turns follow. Then there is one entry for each answer, with the
    messages before it.

    Raises InputError, naming `location`, if the template refuses the conversation, or leaves out tool calls.
    """
    if dialogue.uses_tools:
        check_tools(tokenizer, dialogue, location)
    if not (GENERATION_TAG.search(tokenizer.chat_template) and tokenizer.is_fast):
        return encode_by_prefixes(tokenizer, dialogue, location)
    render(tokenizer, dialogue, location)  # raises the InputError
    ids, is_answer = call_template(tokenizer, location, mark_by_template, dialogue.messages, dialogue.tools)
    answers = [message for message in dialogue.messages if message["role"] == "assistant"]
    if not all(map(is_learned, answers)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], is_answer, [0]]).astype(np.int8))).reshape(-1, 2)
        if len(edges) != len(answers):
            raise InputError(
                f"{location}: has answers with the weight 0, but the chat template marks {len(edges)} parts as "
                f"{len(answers)} answers; take a template without {{% generation %}}"
            )
        for message, (start, stop) in zip(answers, edges, strict=True):
            is_answer[start:stop] = is_learned(message)
    return [(ids, is_answer)]


def is_learned(message: Message) -> bool:
    """True for an answer that has no weight, or the weight 1, as in OpenAI's files."""
    return bool(message.get("weight", 1))


def encode_by_prefixes(tokenizer: Any, dialogue: Dialogue, location: str) -> list[MarkedTokens]:
    """Does the same without the template's help: an answer lies between what the template writes of the messages before it and
    of those up to it."""
    messages = dialogue.messages

    answers = [
        number for number, message in enumerate(messages) if message["role"] == "assistant" and is_learned(message)
    ]
    before, after = [(number, True) for number in answers], [(number + 1, False) for number in answers]
    full_text, *others = render_prefixes(tokenizer, dialogue, location, [(len(messages), False), *before, *after])
    begins, ends = others[: len(answers)], others[len(answers) :]
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
