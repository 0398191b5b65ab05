"""Conversations as files have them, made into messages: dicts of role and content, with tool calls and what else they hold.

A file may have messages of role and content, of from and value (ShareGPT), or an instruction and its answer (Alpaca).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_finetune.data.literals import read_literal
from hf_finetune.data.table import describe_value

Message = dict[str, Any]  # role, content, and what else the file gives

ROLES = ("system", "user", "assistant", "tool")

# Names of roles in ShareGPT's files and those of LLaMA-Factory
OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
TAKES = '[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]'


class DialogueError(Exception):
    """Says what is wrong with a conversation."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A conversation: its messages, and the descriptions of the tools that the assistant may call."""

    messages: list[Message]
    tools: list[Any] | None = None

    @property
    def uses_tools(self) -> bool:
        """True if there are tools, calls or results of them."""
        return bool(self.tools) or any(
            message["role"] == "tool" or "tool_calls" in message for message in self.messages
        )


def read_dialogue(value: Any) -> Dialogue:
    """Returns the conversation in the cell of a table: a list of messages; or a dict of messages, tools and the system's text.
    Each may be written as JSON. Raises DialogueError if it is anything else.

    A conversation has at most one system message, which comes first; then user and assistant take turns. Results of tools follow
    the assistant's message.
    """
    tools = system = None
    if isinstance(value, Mapping) and "messages" in value:
        tools, system, value = value.get("tools"), value.get("system"), value["messages"]
    value = read_literal(value) if isinstance(value, str) and read_literal(value) is not None else value
    if not isinstance(value, (list, tuple)) or not value:
        raise DialogueError(f"is {describe_value(value, 'a list of messages')}; takes {TAKES}")
    start = [{"role": "system", "content": system}] if system else []
    messages = [read_message(message, number) for number, message in enumerate([*start, *value], 1)]
    check_turns(messages)
    return Dialogue(messages=messages, tools=read_tools(tools))


def read_message(message: Any, number: int) -> Message:
    """Returns a message with role and content. What the file gives besides stays, but for null. number: Its place, from 1."""
    if not isinstance(message, Mapping):
        raise DialogueError(f"message {number} has no role and content")
    given = {name: value for name, value in message.items() if value is not None}
    name, content = given.pop("role", given.pop("from", None)), given.pop("content", given.pop("value", None))
    calls = read_json(given.pop("tool_calls", None)) or None
    if "function_call" in given:  # OpenAI's older form
        calls = [given.pop("function_call")]
    if name == "function_call":
        calls, content = [content], None
    if name is None or not (calls or "content" in message or "value" in message):
        raise DialogueError(f"message {number} has no role and content")
    role = OTHER_ROLES.get(str(name).lower(), name)
    if role not in ROLES:
        raise DialogueError(f"message {number} has the role {name!r}; takes {', '.join(ROLES)}")
    if calls:
        given["tool_calls"] = read_calls(calls, number)
    if given.get("weight", 1) not in (0, 1):
        raise DialogueError(f"message {number} has the weight {given['weight']}; takes 0 (it is not learned) and 1")
    content = join_parts(content, number)
    if not content.strip() and role != "tool" and not given.get("tool_calls"):
        raise DialogueError(f"message {number}, the {role}'s, has no text")
    return {"role": role, "content": content, **given}


def join_parts(content: Any, number: int) -> str:
    """Returns the content of a message as a text. The parts of a list are joined with a line break."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, (list, tuple)):
        raise DialogueError(f"message {number}: content is {describe_value(content, 'a text or a list of parts')}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text" or not isinstance(text, str):
            raise DialogueError(
                f"message {number} has a part of the type {kind!r} that is not a text; only texts are learned"
            )
        texts.append(text)
    return "\n".join(texts)


def read_calls(calls: Any, number: int) -> list[Any]:
    """Returns the tool calls of a message, as templates take them: with arguments that are a dict."""
    if not isinstance(calls, (list, tuple)):
        raise DialogueError(f"message {number}: tool_calls is {describe_value(calls, 'a list of calls')}")
    made = []
    for call in map(read_json, calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not function.get("name"):
            raise DialogueError(f"message {number}: a tool call has no name; takes {{function: {{name, arguments}}}}")
        function = {**function, "arguments": read_json(function.get("arguments") or {})}
        more = {name: value for name, value in call.items() if value is not None} if "function" in call else {}
        made.append({"type": "function", **more, "function": function})
    return made


def read_tools(tools: Any) -> list[Any] | None:
    """Returns the descriptions of tools, which may be written as text; None if there are none."""
    literal = read_literal(tools) if isinstance(tools, str) else None
    tools = tools if literal is None else literal
    if not tools:
        return None
    if not isinstance(tools, (list, tuple)):
        raise DialogueError(f"tools is {describe_value(tools, 'a list of the descriptions of tools')}")
    return [read_json(tool) for tool in tools]


def read_json(value: Any) -> Any:
    """Returns the value that a text is the JSON of; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def check_turns(messages: Sequence[Message]) -> None:
    """Raises DialogueError at the first message that is not the turn of its role, or if there is only a system message."""
    expected = "user"
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role == "system":
            if number > 1:
                raise DialogueError(f"message {number} is a system message; only the first message may be one")
            continue
        before = messages[number - 2]["role"] if number > 1 else ""
        if role == "tool" and before in ("assistant", "tool"):
            expected = "assistant"
            continue
        if role == "tool":
            raise DialogueError(f"message {number} is the result of a tool; it must follow a message of the assistant")
        if role != expected:
            turn = f"it is the {expected}'s turn; they take turns, the user first"
            raise DialogueError(f"message {number} is the {role}'s, but {turn}")
        expected = "assistant" if role == "user" else "user"
    if messages[-1]["role"] == "system":
        raise DialogueError("has only a system message")
