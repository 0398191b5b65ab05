"""Conversations to tokens: which tokens are answers, by several chat templates; what is not a conversation."""

from typing import Any

import numpy as np
import pytest
from support.chat_templates import CHATML, MESSAGES, TAGGED, THINKING, make_byte_tokenizer

from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.chat import describe_fault, encode_conversation

QUESTION, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "dog"}


def find_answers(template: str, messages: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """For each sequence its text, and the parts of it that are answers."""
    tokenizer = make_byte_tokenizer(template)
    sequences = []
    for ids, is_answer in encode_conversation(tokenizer, messages, "here"):
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


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (None, "is null; takes"),
        ([], "is empty; takes"),
        ("hello", "is a str, not a list of messages; takes"),
        (7, "is an int, not a list of messages; takes"),
        (["hello"], "message 1 has no role and content"),
        ([{"role": "user"}], "message 1 has no role and content"),
        ([QUESTION, {"role": "tool", "content": "x"}], "message 2 has the role 'tool'; takes system, user, assistant"),
        ([QUESTION, {"role": "assistant", "content": " "}], "message 2, the assistant's, has no text"),
        ([QUESTION, {"role": "assistant", "content": None}], "message 2, the assistant's, has no text"),
        ([QUESTION, MESSAGES[0], ANSWER], "message 2 is a system message; only the first message may be one"),
        ([ANSWER], "message 1 is the assistant's, but it is the user's turn"),
        ([QUESTION, QUESTION, ANSWER], "message 2 is the user's, but it is the assistant's turn"),
        ([MESSAGES[0]], "has only a system message"),
    ],
)
def test_the_fault_of_what_is_not_a_conversation(messages: Any, fault: str) -> None:
    assert describe_fault(messages).startswith(fault)


def test_a_conversation_has_no_fault() -> None:
    for number in range(2, len(MESSAGES) + 1):
        assert describe_fault(MESSAGES[:number]) == ""
