"""The columns of files of conversations and instructions, read with the recipe's columns."""

from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from support import tiny

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig
from hf_finetune.data.memory import read_memory
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.instruct import Instruction, Settings
from hf_finetune.tasks.text.dialogues import Dialogue

QUESTION, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "dog"}
SYSTEM = {"role": "system", "content": "be short"}
BEFORE = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
TALK = [QUESTION, ANSWER]
SHAREGPT = [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "dog"}]
PARTS = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in TALK]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def make_config(*columns: str) -> RunConfig:
    """Returns a config that is never run, by default with the recipe's column."""
    data = DataConfig(train=("-",), text_columns=columns or ("messages",), label_column=None)
    return RunConfig(model=ModelConfig(backbone="-"), data=data, task=Settings(kind="instruct"))


def read_rows(folder: Path, rows: list[dict[str, Any]], *columns: str, needs_labels: bool = True) -> Table:
    """Returns the table of rows that were written as JSON lines."""
    config, path = make_config(*columns), tiny.write_jsonl(folder / "a.jsonl", rows)
    spec = Instruction.make_columns(config).spec
    return read_table([str(path)], config.data, "data.train", spec, needs_labels=needs_labels)


def list_dialogues(table: Table, *columns: str, is_inference: bool = False) -> list[Dialogue]:
    """Returns the conversation of each row."""
    encoding = Instruction.from_state(make_config(*columns), {}).encoding
    encoding = encoding.for_inference(None) if is_inference else encoding
    return [encoding.read_dialogue(table, row) for row in range(len(table))]


FORMS: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    "messages": ({"messages": TALK}, TALK, ""),
    "parts": ({"messages": PARTS}, TALK, "messages have content that is a list of parts, joined with a line break"),
    "sharegpt": ({"conversations": SHAREGPT}, TALK, "messages have from and value, as ShareGPT writes them"),
    "sharegpt with system": ({"conversations": SHAREGPT, "system": "be short"}, [SYSTEM, *TALK], "the column conversations"),
    "from in messages": ({"messages": SHAREGPT}, TALK, "messages have from and value, as ShareGPT writes them"),
    "conversation": ({"conversation": TALK}, TALK, "conversations are in the column conversation"),
    "alpaca": ({"instruction": "the", "input": "cat", "output": "dog"}, [{**QUESTION, "content": "the\ncat"}, ANSWER],
               "the user's message is instruction and input, on a new line, the answer is output"),
    "alpaca without input": ({"instruction": "the cat", "input": "", "output": "dog"}, TALK, "instruction and input"),
    "two columns": ({"instruction": "the cat", "output": "dog"}, TALK, "the user's message is instruction, the answer is output"),
    "dolly": ({"instruction": "the", "context": "cat", "response": "dog"}, [{**QUESTION, "content": "the\ncat"}, ANSWER],
              "the user's message is instruction and context, on a new line, the answer is response"),
    "alpaca with history": (
        {"instruction": "the cat", "output": "dog", "system": "be short", "history": [["one", "two"]]},
        [SYSTEM, *BEFORE, *TALK], "the answer is output; before them system and history"),
    "prompt": ({"prompt": "the cat", "completion": "dog"}, TALK, "the user's message is prompt, the answer is completion"),
    "prompt of messages": ({"prompt": [SYSTEM, QUESTION], "completion": [ANSWER]}, [SYSTEM, *TALK], "the answer is completion"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_and_said(tmp_path: Path, name: str) -> None:
    """From JSON lines, a frame, a data set, dicts; and from a csv file as pandas writes it."""
    row, messages, note = FORMS[name]
    rows, expected = [row] * 2, [Dialogue(messages=messages)] * 2
    table = read_rows(tmp_path, rows)
    assert list_dialogues(table) == expected
    assert tuple(table.columns) == ("messages",)
    assert (note in "; ".join(table.notes)) if note else table.notes == ()
    config = make_config()
    spec = Instruction.make_columns(config).spec
    for given in (rows, pandas.DataFrame(rows), datasets.Dataset.from_list(rows)):
        assert list_dialogues(read_memory(given, "train", config.data, spec)) == expected
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert list_dialogues(read_table([str(tmp_path / "a.csv")], config.data, "data.train", spec)) == expected


@pytest.mark.parametrize("name", FORMS)
def test_prompts_are_the_same_with_and_without_their_answer(tmp_path: Path, name: str) -> None:
    row, messages, _ = FORMS[name]
    open_row = {column: value for column, value in row.items() if column not in ("output", "response", "completion")}
    for given in (row, open_row):
        table = read_rows(tmp_path, [given], needs_labels=False)
        assert list_dialogues(table, is_inference=True) == [Dialogue(messages=messages[:-1])]


def test_rows_of_the_recipes_column_stay_as_they_are(tmp_path: Path) -> None:
    table = read_rows(tmp_path, [{"messages": TALK, "conversations": SHAREGPT, "prompt": "a", "chosen": "b"}])
    assert list(table.columns["messages"]) == [TALK]
    assert table.notes == ()


def test_tools_go_with_their_conversation(tmp_path: Path) -> None:
    table = read_rows(tmp_path, [{"messages": TALK, "tools": TOOLS}, {"messages": TALK, "tools": None}])
    assert list_dialogues(table) == [Dialogue(messages=TALK, tools=TOOLS), Dialogue(messages=TALK)]
    named = read_rows(tmp_path, [{"talk": TALK, "tools": TOOLS, "prompt": "x"}], "talk")
    assert list_dialogues(named, "talk") == [Dialogue(messages=TALK, tools=TOOLS)]


def test_two_named_columns_may_hold_messages(tmp_path: Path) -> None:
    rows = [{"prompt": [SYSTEM, QUESTION], "chosen": [ANSWER]}, {"prompt": "the cat", "chosen": "dog"}]
    table = read_rows(tmp_path, rows, "prompt", "chosen")
    assert [talk.messages for talk in list_dialogues(table, "prompt", "chosen")] == [[SYSTEM, *TALK], TALK]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "the cat", "chosen": "dog", "rejected": "saw"},
         r"a.jsonl:1: has two answers to a prompt, chosen and another, .* data.text_columns \[prompt, chosen\]"),
        ({"text": "the cat"}, r"a.jsonl:1: no column 'messages' \(columns: text\); see data.text_columns"),
        ({"instruction": "the cat"}, "a.jsonl:1: messages: the last message is not the assistant's, so there is no answer"),
        ({"instruction": "the cat", "output": ""}, "a.jsonl:1: messages: message 2, the assistant's, has no text"),
        ({"instruction": None, "output": "dog"}, "a.jsonl:1: messages: is null"),
        ({"conversations": [*SHAREGPT, SHAREGPT[0]]}, "the last message is not the assistant's"),
        ({"conversations": [{"from": "gpt", "value": "dog"}]}, "message 1 is the assistant's, but it is the user's turn"),
    ],
)  # fmt: skip
def test_rows_without_a_conversation_are_refused_with_their_line(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list_dialogues(read_rows(tmp_path, [row]))
