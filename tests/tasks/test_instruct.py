"""Instruction tuning: the loss on answers alone, conversations that cannot be used, generated answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from support.chat_templates import CHATML, make_byte_tokenizer

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import IGNORED, Features, Padding, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.export.predict import Predictor
from hf_finetune.export.prediction_rows import iterate_predictions
from hf_finetune.model import heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.instruct import Instruction, add_turn_end
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
COUNTS = {"train": 48, "validation": 16, "test": 16}
QUESTION, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "dog"}


@pytest.fixture
def chat(make_config: MakeConfig, backbones: Callable[..., Path], tmp_path: Path) -> MakeConfig:
    """`chat(rows, **settings)`: a config on these rows, or on those of the recipe's case."""

    def make(rows: list[Any] | None = None, **settings: Any) -> RunConfig:
        files = tiny.write_conversations(tmp_path, COUNTS)
        if rows is not None:
            files["data.train"] = [str(tiny.write_jsonl(tmp_path / "rows.jsonl", rows))]
        defaults = {
            "task.kind": "instruct",
            "model.backbone": str(backbones("llama")),
            "data.text_columns": ["messages"],
            "data.label_column": None,
            "task.max_target_length": 5,
        }
        return make_config(**{**files, **defaults, **settings})

    return make


def encode(config: RunConfig, length: int = 32) -> tuple[Instruction, Any, Features]:
    """Task, tokenizer and features of the training rows."""
    spec = Instruction.make_columns(config).spec
    table = read_table(config.data.train, config.data, "data.train", spec)
    task, tokenizer = Instruction.from_table(config, table), tiny.make_tokenizer()
    tokenizer.chat_template = task.template
    arrays = task.encoding.tokenize(table, tokenizer, length)
    return task, tokenizer, make_features(arrays, task.encoding.labels(table, arrays))


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_models_own_on_the_answers(chat: MakeConfig, seed: int) -> None:
    task, tokenizer, features = encode(chat())
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny.make_config("llama")).eval()
    indices = np.random.default_rng(seed).permutation(len(features))[:8]
    batch = collate(features, indices, Padding(0))
    assert batch.labels is not None
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        total, count = task.objective.loss(outputs, batch)
        own = model(**batch.inputs, labels=batch.labels.long()).loss
    torch.testing.assert_close(total / count, own)
    # Each answer is a word and the end token. Nothing else is learned
    num_answers = sum(list(ids).count(3) for ids in batch.inputs["input_ids"].tolist())
    assert count == 2 * num_answers
    for ids, labels in zip(batch.inputs["input_ids"], batch.labels, strict=True):
        words = tokenizer.decode(ids[labels != IGNORED]).split()
        assert words[1::2] == ["[SEP]"] * (len(words) // 2)


def test_prompts_and_completions_are_conversations_of_one_turn(chat: MakeConfig) -> None:
    rows = [{"prompt": "the cat", "completion": "dog"}, {"prompt": "a saw", "completion": "drill"}]
    columns = {"data.text_columns": ["prompt", "completion"]}
    _, _, pairs = encode(chat(rows, **columns))
    conversations = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    _, _, messages = encode(chat([{"messages": conversation} for conversation in conversations]))
    assert pairs.inputs["input_ids"].tolist() == messages.inputs["input_ids"].tolist()
    assert pairs.labels.values.tolist() == messages.labels.values.tolist()


def test_long_conversations_are_cut_and_those_without_an_answer_are_left_out(chat: MakeConfig) -> None:
    long = {"role": "user", "content": " ".join(["the"] * 30)}
    rows = [[QUESTION, ANSWER], [QUESTION, ANSWER, long, ANSWER], [long, ANSWER]]
    task, _, features = encode(chat([{"messages": row} for row in rows]), length=12)
    assert features.example_indices.tolist() == [0, 1]
    assert (features.num_truncated, int(features.extras["dropped"])) == (2, 1)
    assert features.lengths.tolist() == [6, 12]
    lines = dict(task.encoding.describe(features, None, 12))
    assert lines["input"].endswith(
        "2 training conversations are longer and were cut; 1 have no answer within them and are left out"
    )
    assert lines["answers"] == "4 of 18 tokens are learned (22%)"
    with pytest.raises(InputError, match=r"data.max_length: is too small: no conversation has an answer within it"):
        encode(chat([{"messages": rows[2]}]), length=8)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (None, "is null"),
        ([QUESTION, QUESTION, ANSWER], "message 2 is the user's, but it is the assistant's turn"),
        ([QUESTION], "the last message is not the assistant's, so there is no answer to learn"),
        ([QUESTION, ANSWER, QUESTION], "the last message is not the assistant's"),
    ],
)
def test_rows_that_are_not_conversations_are_refused_with_their_line(
    chat: MakeConfig, messages: Any, fault: str
) -> None:
    with pytest.raises(InputError) as caught:
        encode(chat([{"messages": [QUESTION, ANSWER]}, {"messages": messages}]))
    assert f"rows.jsonl:2: messages: {fault}" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"task.chat_template": None},
            r"task.chat_template \(None\): is needed: this backbone's tokenizer has no chat template",
        ),
        (
            {"task.chat_template": "nowhere.jinja"},
            r"task.chat_template \(nowhere.jinja\): cannot be read: No such file",
        ),
        ({"data.text_columns": ["a", "b", "c"]}, "data.text_columns .*takes one column of messages, or two"),
        (
            {"data.label_column": "answer"},
            r"data.label_column \(answer\): must be null: instruction tuning has no labels",
        ),
        ({"task.packing": "none"}, r"task.packing \(none\): instruct has no such setting"),
        ({"task.max_target_length": 0}, r"task.max_target_length \(0\): must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(chat: MakeConfig, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finetune(chat(**settings))


def test_an_empty_template_and_a_broken_one_are_refused(chat: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    for text, message in ((" \n", "is empty"), ("{% for %}", "the chat template does not take")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            finetune(chat(**{"task.chat_template": str(path)}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small model that has learned to answer. The file of its template is deleted."""
    folder = tmp_path_factory.mktemp("instruct")
    files = tiny.write_conversations(folder, COUNTS)
    settings = {
        **files,
        "task.kind": "instruct",
        "output_dir": str(folder),
        "data.text_columns": ["messages"],
        "data.label_column": None,
        "model.backbone": str(tiny.make_backbone(folder / "backbone", "llama")),
        "train.epochs": 20,
        "data.max_length": 32,
        "train.learning_rate": 1e-2,
        "train.batch_size": 8,
        "train.precision": "fp32",
        "tracking.trackers": [],
        "task.max_target_length": 5,
    }
    run_dir = finetune(load_config(settings, [])).run_dir
    Path(files["task.chat_template"]).unlink()
    return run_dir


@pytest.mark.slow
def test_answers_are_the_pipelines_and_mostly_correct(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    rows = tiny.make_conversations(16, seed=9)
    answers = [row["answer"] for row in predictor.predict(rows)]
    pipe = transformers.pipeline("text-generation", model=str(trained / "model"))
    for answer, row in zip(answers, rows, strict=True):
        (reply,) = pipe(row["messages"][:-1])  # greedy, with the length of the exported generation settings
        assert reply["generated_text"][-1] == {"role": "assistant", "content": answer}
    is_correct = [answer == row["messages"][-1]["content"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(is_correct) >= 12
    # A conversation without its last answer is answered in the same way
    open_rows = [{"messages": row["messages"][:-1]} for row in rows]
    assert [row["answer"] for row in predictor.predict(open_rows)] == answers


def test_other_forms_are_predicted_and_evaluated_as_messages_are(trained: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    rows = tiny.make_conversations(4, seed=9)
    names = {"user": "human", "assistant": "gpt"}
    sharegpt = [
        {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]} for row in rows
    ]
    assert predictor.predict(sharegpt) == predictor.predict(rows)
    assert predictor.evaluate(sharegpt) == predictor.evaluate(rows)
    path = tiny.write_jsonl(tmp_path / "sharegpt.jsonl", sharegpt)
    assert list(iterate_predictions(predictor, str(path))) == predictor.predict(rows)
    alpaca = [{"instruction": "the cat", "output": "dog"}, {"instruction": "the dog", "input": None, "output": "cat"}]
    messages = [
        {"messages": [{**QUESTION, "content": row["instruction"]}, {**ANSWER, "content": row["output"]}]}
        for row in alpaca
    ]
    assert predictor.predict(alpaca) == predictor.predict(messages)
    assert predictor.evaluate(alpaca) == predictor.evaluate(messages)


def test_a_text_on_the_command_line_is_one_user_message(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    assert predictor.task.columns.make_row(["the cat"]) == {"messages": [QUESTION]}
    with pytest.raises(InputError, match="--text: takes one user message, not 2"):
        predictor.task.columns.make_row(["a", "b"])
    assert "answering instructions" in predictor.task.describe_for_card()


def test_evaluate_gives_the_runs_own_numbers_and_the_export_holds_no_path(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    results = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    values = predictor.evaluate(predictor.read(str(trained.parent / "test.jsonl"), needs_labels=True))
    assert values == pytest.approx(results["test"], rel=1e-5)
    assert results["test"]["token_accuracy"] > 0.7
    for name in ("config.json", "README.md"):
        assert str(trained.parent) not in (trained / "model" / name).read_text(encoding="utf-8")


def test_prompts_alone_can_be_predicted(trained: Path) -> None:
    both = Predictor.from_pretrained(str(trained), text_columns=("prompt", "completion"))
    one = Predictor.from_pretrained(str(trained))
    assert list(both.predict([{"prompt": "the cat"}])) == list(one.predict([{"messages": [QUESTION]}]))
    assert both.task.columns.make_row(["the cat"]) == {"prompt": "the cat"}
    with pytest.raises(InputError, match=r"rows\[0\]: prompt, completion: message 1, the user's, has no text"):
        both.predict([{"prompt": " "}])


def test_the_token_that_ends_an_answer_ends_generation() -> None:
    tokenizer = make_byte_tokenizer(CHATML)
    end, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert add_turn_end(end, tokenizer) == end
    assert add_turn_end([end], tokenizer) == end
    assert add_turn_end(start, tokenizer) == [start, end]
    assert add_turn_end([7, end], tokenizer) == [7, end]
    assert add_turn_end(None, tokenizer) == end
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert add_turn_end(None, tokenizer) is None


def test_the_state_is_the_template(chat: MakeConfig) -> None:
    config = chat()
    task = Instruction.from_table(config, None)
    assert task.state_dict() == {"template": task.template}
    assert task.template
    assert Instruction.from_state(config, task.state_dict()) == task
