"""Conversations in the forms of files: the same messages, and what is not a conversation."""

import json
from typing import Any

import pytest
from support.chat_templates import MESSAGES

from hf_finetune.tasks.text.dialogues import Dialogue, DialogueError, read_dialogue

QUESTION, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "dog"}
TALK = [QUESTION, ANSWER]
CALL = {"name": "f", "arguments": {"a": 1}}
CALLED = {"type": "function", "function": CALL}


@pytest.mark.parametrize(
    "value",
    [
        TALK,
        tuple(TALK),
        json.dumps(TALK),
        str(TALK),
        {"messages": TALK, "tools": None},
        [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "dog"}],
        [{"from": "user", "value": "the cat", "role": None}, {"from": "assistant", "value": "dog", "content": None}],
        [{"role": "human", "content": "the cat"}, {"role": "model", "content": "dog"}],
        [{"role": "user", "content": [{"type": "text", "text": "the cat"}]}, {"role": "assistant", "content": ["dog"]}],
        [{**QUESTION, "tool_calls": None}, {**ANSWER, "tool_calls": []}],
    ],
)
def test_every_form_is_the_same_conversation(value: Any) -> None:
    assert read_dialogue(value) == Dialogue(messages=TALK)


def test_parts_are_joined_with_a_line_break() -> None:
    parts = [{"type": "text", "text": "the", "image_url": None}, {"type": "text", "text": "cat"}]
    assert read_dialogue([{"role": "user", "content": parts}]).messages == [{"role": "user", "content": "the\ncat"}]


@pytest.mark.parametrize(
    "call",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "assistant", "tool_calls": json.dumps([CALLED])},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"from": "function_call", "value": json.dumps(CALL)},
    ],
)
def test_every_form_of_a_call_is_the_same(call: Any) -> None:
    for role in ("tool", "observation", "function"):
        dialogue = read_dialogue([QUESTION, call, {"from": role, "value": "42"}, ANSWER])
        assert dialogue.messages == [
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [CALLED]},
            {"role": "tool", "content": "42"},
            ANSWER,
        ]
        assert dialogue.uses_tools


def test_several_results_and_what_else_a_message_holds_are_kept() -> None:
    call = {"role": "assistant", "content": "wait", "tool_calls": [{**CALLED, "id": "7"}, {**CALLED, "id": "8"}]}
    results = [{"role": "tool", "content": text, "tool_call_id": number} for text, number in (("42", "7"), ("", "8"))]
    talk = [MESSAGES[0], QUESTION, call, *results, {**ANSWER, "weight": 0, "name": "bot"}, QUESTION, ANSWER]
    assert read_dialogue(talk).messages == talk
    assert not read_dialogue(TALK).uses_tools
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (tools, json.dumps(tools), str(tools), [json.dumps(tools[0])]):
        assert read_dialogue({"messages": TALK, "tools": given}) == Dialogue(messages=TALK, tools=tools)
    assert read_dialogue({"messages": TALK, "tools": tools}).uses_tools


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (None, "is null; takes"),
        ([], "is empty; takes"),
        ("hello", "is a str, not a list of messages; takes"),
        (7, "is an int, not a list of messages; takes"),
        (["hello"], "message 1 has no role and content"),
        ([{"role": "user"}], "message 1 has no role and content"),
        (
            [QUESTION, {"role": "tool", "content": "x"}],
            "message 2 is the result of a tool; it must follow a message of the assistant",
        ),
        ([QUESTION, {"role": "assistant", "content": " "}], "message 2, the assistant's, has no text"),
        ([QUESTION, {"role": "assistant", "content": None}], "message 2, the assistant's, has no text"),
        ([QUESTION, MESSAGES[0], ANSWER], "message 2 is a system message; only the first message may be one"),
        ([ANSWER], "message 1 is the assistant's, but it is the user's turn"),
        ([QUESTION, QUESTION, ANSWER], "message 2 is the user's, but it is the assistant's turn"),
        ([MESSAGES[0]], "has only a system message"),
        (["hello", ANSWER], "message 1 has no role and content"),
        ([{"content": "x"}], "message 1 has no role and content"),
        (
            [{"role": "narrator", "content": "x"}],
            "message 1 has the role 'narrator'; takes system, user, assistant, tool",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "message 1 has a part of the type 'image_url'",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": 5}]}],
            "message 1 has a part of the type 'text' that is not a text",
        ),
        ([{"role": "user", "content": 5}], "message 1: content is an int, not a text or a list of parts"),
        ([{**QUESTION, "weight": 0.5}], "message 1 has the weight 0.5; takes 0"),
        ([QUESTION, {"role": "assistant", "tool_calls": "x"}], "message 2: tool_calls is a str, not a list of calls"),
        ([QUESTION, {"role": "assistant", "tool_calls": [{"id": "1"}]}], "message 2: a tool call has no name"),
        ([QUESTION, {"from": "function_call", "value": "f()"}], "message 2: a tool call has no name"),
        ({"messages": TALK, "tools": "f"}, "tools is a str, not a list of the descriptions of tools"),
    ],
)
def test_what_is_not_a_conversation_is_refused(messages: Any, fault: str) -> None:
    with pytest.raises(DialogueError) as caught:
        read_dialogue(messages)
    assert str(caught.value).startswith(fault)


def test_a_conversation_may_end_anywhere() -> None:
    for number in range(2, len(MESSAGES) + 1):
        assert read_dialogue(MESSAGES[:number]).messages == MESSAGES[:number]
