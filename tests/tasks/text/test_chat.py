"""Conversations to tokens: which tokens are answers, by several chat templates; what is not a conversation."""

from typing import Any

import numpy as np
import pytest
from support.chat_templates import CHATML, MESSAGES, TAGGED, THINKING, make_byte_tokenizer

from hf_finetune.system.errors import InputError
from hf_finetune.system.limited import HAS_LIMITS
from hf_finetune.tasks.text import chat
from hf_finetune.tasks.text.chat import encode_conversation
from hf_finetune.tasks.text.dialogues import read_dialogue

QUESTION, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "dog"}


def find_answers(template: str, messages: Any) -> list[tuple[str, list[str]]]:
    """For each sequence its text, and the parts of it that are answers."""
    tokenizer = make_byte_tokenizer(template)
    sequences = []
    for ids, is_answer in encode_conversation(tokenizer, read_dialogue(messages), "here"):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], is_answer.astype(int), [0]])))
        parts = [tokenizer.decode(ids[start:end].tolist()) for start, end in edges.reshape(-1, 2)]
        sequences.append((tokenizer.decode(ids.tolist()), parts))
    return sequences


@pytest.mark.parametrize("template", [CHATML, TAGGED])
def test_answers_reach_to_the_token_that_ends_them(template: str) -> None:
    ((text, parts),) = find_answers(template, MESSAGES)
    assert parts == ["two<|im_end|>", "three it is<|im_end|>"]
    assert text == make_byte_tokenizer(template).apply_chat_template(MESSAGES, tokenize=False)


def test_an_answer_that_the_template_changes_later_has_a_sequence_of_its_own() -> None:
    sequences = find_answers(THINKING, MESSAGES)
    assert [parts for _, parts in sequences] == [
        ["<think></think>two<|im_end|>"],
        ["<think></think>three it is<|im_end|>"],
    ]
    assert [text.count("<|im_start|>") for text, _ in sequences] == [3, 5]
    assert sequences[1][0].count("<think>") == 1  # earlier answers have no thoughts, as in inference


@pytest.mark.skipif(not HAS_LIMITS, reason="there are no limits on this system")
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            r"took more than 0\.5 seconds",
        ),
        ("{{ 'a' * 10**10 }}", "takes more than 1,000 MB of memory"),
        ("{{ '%10000000000d' % 1 }}", "takes more than 1,000 MB of memory"),
        ("{{ 10 ** (10 ** 10) }}", r"took more than 0\.5 seconds"),
        ("{{ 'a' * 10**7 }}", r"does not take this conversation: it writes 10,000,"),
        ("{{ messages[0].content.__class__.__mro__ }}", "does not take this conversation: access to attribute"),
        ("{{ 1 / 0 }}", "does not take this conversation: division by zero"),
    ],
)
def test_a_template_that_does_not_end_or_fills_the_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    if "seconds" in reason:
        monkeypatch.setattr(chat, "SECONDS_TO_RENDER", 0.5)
    for hostile in (template, template + CHATML, template + "{% generation %}{% endgeneration %}"):
        with pytest.raises(InputError, match=rf"^here: the chat template {reason}"):
            find_answers(hostile, MESSAGES)


MARK = chat.mark_by_template


def mark_by_endless_template(tokenizer: Any, *arguments: Any) -> Any:
    """As mark_by_template(), with a template that has become endless since it was rendered the first time."""
    tokenizer().chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    return MARK(tokenizer, *arguments)


@pytest.mark.skipif(not HAS_LIMITS, reason="there are no limits on this system")
def test_a_template_that_marks_its_answers_has_limits_each_time_it_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rendered twice, and need not do the same twice: it may choose at random."""
    monkeypatch.setattr(chat, "SECONDS_TO_RENDER", 0.5)
    monkeypatch.setattr(chat, "mark_by_template", mark_by_endless_template)
    with pytest.raises(InputError, match=r"^here: the chat template took more than 0\.5 seconds"):
        find_answers(TAGGED, MESSAGES)


def test_a_template_that_is_changed_is_rendered_as_it_is_now() -> None:
    tokenizer = make_byte_tokenizer(CHATML)
    dialogue = read_dialogue(MESSAGES)
    assert "system" in chat.render(tokenizer, dialogue, "here")
    tokenizer.chat_template = "{{ messages | length }}"
    assert chat.render(tokenizer, dialogue, "here") == "5"


def test_an_answer_with_the_words_of_the_prompt_is_marked_correctly() -> None:
    messages = [
        {"role": "user", "content": "assistant\ntwo"},
        {"role": "assistant", "content": "user\nassistant\ntwo\n\n"},
    ]
    ((_, parts),) = find_answers(CHATML, messages)
    assert parts == ["user\nassistant\ntwo\n\n<|im_end|>"]


def test_a_template_whose_generation_prompt_does_not_begin_its_answers_is_refused() -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ 'answer: ' }}{% endif %}"
    )
    with pytest.raises(InputError, match="an answer does not begin where the template's generation prompt ends"):
        find_answers(template, MESSAGES)


def test_a_conversation_that_the_template_refuses_is_an_error_with_its_line() -> None:
    with pytest.raises(InputError, match="here: the chat template does not take this conversation: no system"):
        find_answers("{{ raise_exception('no system') }}", MESSAGES)


# --- tools ----------------------------------------------------------------------------------------------------------

CALL = {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = [
    {"role": "user", "content": "1 and 1?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "two"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
# As in Qwen's templates: the tools in a system message, a call as JSON
QWEN = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
JSON_ONLY = QWEN.replace("call.function.arguments | tojson", "call.function.name + call.function.arguments")


def encode(template: str, messages: Any, tools: Any = None) -> list[tuple[str, list[str]]]:
    """As find_answers(), for conversations with tools."""
    return find_answers(template, {"messages": messages, "tools": tools})


def test_calls_are_answers_and_results_are_not() -> None:
    for tools in (None, TOOLS):
        ((text, parts),) = encode(QWEN, CALLING, tools)
        assert parts == ['<call>add {"a": 1}</call><|im_end|>', "two<|im_end|>"]
        assert "tool\n2<|im_end|>" in text
        assert ('{"type": "function", "function": {"name": "add", "parameters": {}}}' in text) == bool(tools)


def test_arguments_may_be_json_for_the_data_and_for_the_template() -> None:
    written = {**CALL, "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [CALLING[0], {"role": "assistant", "tool_calls": [written]}, *CALLING[2:]]
    assert encode(QWEN, messages) == encode(QWEN, CALLING)
    ((_, parts),) = encode(JSON_ONLY, CALLING)
    assert parts[0] == '<call>add add{"a": 1}</call><|im_end|>'


@pytest.mark.parametrize(
    ("template", "messages", "tools", "message"),
    [
        (CHATML, CALLING, None, "here: the chat template does not write the tool calls of message 2; task.chat_template can"),
        (CHATML, CALLING[:1] + CALLING[3:], TOOLS, "here: the chat template does not write the descriptions of tools"),
        ("{% for m in messages if m.role != 'tool' %}" + QWEN.partition("{% for m in messages %}")[2], CALLING, None,
         "here: the chat template does not write the result of message 3"),
        ("{{ raise_exception('only user and assistant') }}", CALLING, None,
         r"here: the chat template does not take this conversation \(it has tool calls\): only user and assistant"),
    ],
)  # fmt: skip
def test_what_the_template_leaves_out_is_an_error(template: str, messages: Any, tools: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(template, messages, tools)


def test_answers_with_the_weight_0_are_not_learned() -> None:
    weighted = [{**message, "weight": 0} if message["content"] == "two" else message for message in MESSAGES]
    for template in (CHATML, TAGGED):
        ((text, parts),) = find_answers(template, weighted)
        assert parts == ["three it is<|im_end|>"]
        assert text == find_answers(template, MESSAGES)[0][0]
    assert [parts for _, parts in find_answers(THINKING, weighted)] == [["<think></think>three it is<|im_end|>"]]
    last_only = TAGGED.replace("message.role == 'assistant' %}", "message.role == 'assistant' and loop.last %}")
    with pytest.raises(
        InputError, match="here: has answers with the weight 0, but the chat template marks 1 parts as 2"
    ):
        find_answers(last_only, weighted)
