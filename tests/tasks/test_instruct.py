"""Instruction tuning: the loss on answers alone, found by the chat template; conversations that cannot be used; answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.export.predict import Predictor
from hf_finetune.model import heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import build, form_of
from hf_finetune.tasks.instruct import spans, writer
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
COUNTS = {"train": 48, "validation": 16, "test": 16}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TAGGED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Only the last answer is written with its thoughts, as Qwen3's template does it
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "one and one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and one?"},
    {"role": "assistant", "content": "three it is"},
]
ASKED, ANSWERED = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "dog"}


def letters(template: str) -> Any:
    """A tokenizer of single bytes with ChatML's tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    made.chat_template = template
    return made


def learned(template: str, messages: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Of each feature the whole text, and the stretches of it that are learned."""
    tokenizer = letters(template)
    result = []
    for ids, answers in spans(tokenizer, messages, writer(tokenizer, lambda: "here")):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], answers.astype(int), [0]])))
        parts = [tokenizer.decode(ids[start:end].tolist()) for start, end in edges.reshape(-1, 2)]
        result.append((tokenizer.decode(ids.tolist()), parts))
    return result


@pytest.mark.parametrize("template", [CHATML, TAGGED])
def test_answers_are_learned_to_the_token_that_ends_them_and_nothing_else(template: str) -> None:
    ((text, parts),) = learned(template, MESSAGES)
    assert parts == ["two<|im_end|>", "three it is<|im_end|>"]
    assert text == letters(template).apply_chat_template(MESSAGES, tokenize=False)


def test_an_answer_that_the_template_writes_otherwise_later_is_a_feature_of_its_own() -> None:
    found = learned(THINKING, MESSAGES)
    assert [parts for _, parts in found] == [["<think></think>two<|im_end|>"], ["<think></think>three it is<|im_end|>"]]
    assert [text.count("<|im_start|>") for text, _ in found] == [3, 5]
    assert found[1][0].count("<think>") == 1  # as it is asked: what was said before is without thoughts


def test_an_answer_with_the_words_of_the_prompt_is_still_told_apart() -> None:
    messages = [
        {"role": "user", "content": "assistant\ntwo"},
        {"role": "assistant", "content": "user\nassistant\ntwo\n\n"},
    ]
    ((_, parts),) = learned(CHATML, messages)
    assert parts == ["user\nassistant\ntwo\n\n<|im_end|>"]


def test_a_template_whose_prompt_is_no_beginning_of_its_answers_is_refused() -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ 'answer: ' }}{% endif %}"
    )
    with pytest.raises(InputError, match="an answer does not begin where the template's generation prompt ends"):
        learned(template, MESSAGES)


def test_what_a_template_refuses_is_said_with_the_line() -> None:
    with pytest.raises(InputError, match="here: the chat template does not take this conversation: no system"):
        learned("{{ raise_exception('no system') }}", MESSAGES)


@pytest.fixture
def chat(make_config: MakeConfig, backbones: Callable[..., Path], tmp_path: Path) -> MakeConfig:
    """`chat(rows, **settings)`: a config on these rows, or on those of the recipe's case."""

    def make(rows: list[Any] | None = None, **settings: Any) -> RunConfig:
        made = tiny.write_conversations(tmp_path, COUNTS)
        if rows is not None:
            made["data.train"] = [str(tiny.write_jsonl(tmp_path / "rows.jsonl", rows))]
        base = {"model.backbone": str(backbones("llama")), "data.text_columns": ["messages"], "data.label_column": None,
                "task.max_target_length": 5}  # fmt: skip
        return make_config(**{**made, **base, **settings})

    return make


def prepared(config: RunConfig, length: int = 32) -> tuple[Any, Any, Any]:
    """Task, tokenizer and features of the training rows."""
    table = read_table(config.data.train, config.data, "data.train", form_of("instruction", config))
    task, tokenizer = build("instruction", config, table), tiny.make_tokenizer()
    tokenizer.chat_template = task.template
    arrays = task.tokenize(table, tokenizer, length)
    return task, tokenizer, make_features(arrays, task.labels(table, arrays))


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_models_own_of_the_answers_labels(chat: MakeConfig, seed: int) -> None:
    task, tokenizer, features = prepared(chat())
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny.make_config("llama")).eval()
    rows = np.random.default_rng(seed).permutation(len(features))[:8]
    batch = collate(features, rows, 0)
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        total, count = task.loss(outputs, batch)
        own = model(**batch.inputs, labels=batch.labels.long()).loss
    torch.testing.assert_close(total / count, own)
    # each answer is a word and the end token; nothing else is learned
    answers = sum(list(ids).count(3) for ids in batch.inputs["input_ids"].tolist())
    assert count == 2 * answers
    for ids, labels in zip(batch.inputs["input_ids"], batch.labels, strict=True):
        kept = tokenizer.decode(ids[labels != -100])
        assert kept.split()[1::2] == ["[SEP]"] * (len(kept.split()) // 2)


def test_prompts_and_completions_are_conversations_of_one_turn(chat: MakeConfig) -> None:
    rows = [{"prompt": "the cat", "completion": "dog"}, {"prompt": "a saw", "completion": "drill"}]
    columns = {"data.text_columns": ["prompt", "completion"]}
    _, _, pairs = prepared(chat(rows, **columns))
    asked = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    _, _, messages = prepared(chat([{"messages": each} for each in asked]))
    assert pairs.inputs["input_ids"].tolist() == messages.inputs["input_ids"].tolist()
    assert pairs.labels.values.tolist() == messages.labels.values.tolist()


def test_long_conversations_are_cut_and_those_without_an_answer_left_out_and_counted(chat: MakeConfig) -> None:
    long = {"role": "user", "content": " ".join(["the"] * 30)}
    rows = [[ASKED, ANSWERED], [ASKED, ANSWERED, long, ANSWERED], [long, ANSWERED]]
    task, _, features = prepared(chat([{"messages": row} for row in rows]), length=12)
    assert features.examples.tolist() == [0, 1]
    assert (features.num_truncated, int(features.extras["dropped"])) == (2, 1)
    assert features.lengths.tolist() == [6, 12]
    said = dict(task.describe(features, None, 12))
    assert said["input"].endswith(
        "2 training conversations are longer and were cut; 1 have no answer within them and are left out"
    )
    assert said["answers"] == "4 of 18 tokens are learned (22%)"
    with pytest.raises(InputError, match=r"data.max_length \(8\): no conversation has an answer within so many tokens"):
        prepared(chat([{"messages": rows[2]}]), length=8)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (None, "is null"),
        ([], "is empty; takes"),
        ("hello", "is no list of messages"),
        (["hello"], "message 1 has no role and content"),
        ([{"role": "user"}], "message 1 has no role and content"),
        ([ASKED, {"role": "tool", "content": "x"}], "message 2 has the role 'tool'; takes system, user, assistant"),
        ([ASKED, {"role": "assistant", "content": " "}], "message 2, the assistant's, has no text"),
        ([ASKED, {"role": "assistant", "content": None}], "message 2, the assistant's, has no text"),
        ([ASKED, MESSAGES[0], ANSWERED], "message 2 is the system's; it takes the first place or none"),
        ([ANSWERED], "message 1 is the assistant's where the user's turn is"),
        ([ASKED, ASKED, ANSWERED], "message 2 is the user's where the assistant's turn is"),
        ([MESSAGES[0]], "has a system message only"),
        ([ASKED], "the last message is not the assistant's, so there is no answer to learn"),
        ([ASKED, ANSWERED, ASKED], "the last message is not the assistant's"),
    ],
)
def test_rows_that_are_no_conversation_are_refused_with_their_line(chat: MakeConfig, messages: Any, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        prepared(chat([{"messages": [ASKED, ANSWERED]}, {"messages": messages}]))
    assert "rows.jsonl:2: messages: " in str(caught.value)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.chat_template": None}, r"task.chat_template \(None\): this backbone's tokenizer has no chat template"),
        (
            {"task.chat_template": "nowhere.jinja"},
            r"task.chat_template \(nowhere.jinja\): cannot be read: No such file",
        ),
        ({"data.text_columns": ["a", "b", "c"]}, "data.text_columns .*takes one column of messages, or two"),
        ({"data.label_column": "answer"}, r"data.label_column \(answer\): instruction tuning has no labels"),
        ({"task.packing": "none"}, r"task.packing \(none\): instruction has no such setting"),
    ],
)
def test_settings_that_do_not_fit_are_refused(chat: MakeConfig, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finetune(chat(**settings), task_name="instruction")


def test_an_empty_template_and_a_broken_one_are_refused(chat: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    for text, message in ((" \n", "is empty"), ("{% for %}", "the chat template does not take")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            finetune(chat(**{"task.chat_template": str(path)}), task_name="instruction")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small model that has learned to answer; its template's file is gone."""
    from hf_finetune.config.loading import load_config

    folder = tmp_path_factory.mktemp("instruction")
    made = tiny.write_conversations(folder, COUNTS)
    config = load_config(
        {**made, "output_dir": str(folder), "name": "run", "data.text_columns": ["messages"], "data.label_column": None,
         "model.backbone": str(tiny.make_backbone(folder / "backbone", "llama")), "train.epochs": 20, "data.max_length": 32,
         "train.learning_rate": 1e-2, "train.batch_size": 8, "train.precision": "fp32", "tracking.trackers": [],
         "task.max_target_length": 5},
        [],
    )  # fmt: skip
    assert config is not None
    run_dir = finetune(config, task_name="instruction").run_dir
    Path(made["task.chat_template"]).unlink()
    return run_dir


def test_answers_are_the_pipelines_and_mostly_right(trained: Path) -> None:
    predictor = Predictor.from_pretrained(str(trained))
    rows = tiny.make_conversations(16, seed=9)
    found = [row["answer"] for row in predictor.predict(rows)]
    pipe = transformers.pipeline("text-generation", model=str(trained / "model"))
    for answer, row in zip(found, rows, strict=True):
        (given,) = pipe(row["messages"][:-1])  # greedily and so long as the exported folder says
        assert given["generated_text"][-1] == {"role": "assistant", "content": answer}
    right = [answer.strip() == row["messages"][-1]["content"] for answer, row in zip(found, rows, strict=True)]
    assert sum(right) >= 12
    # An open conversation is answered as one whose answer is known; what is said is one user's message
    assert [row["answer"] for row in predictor.predict([{"messages": row["messages"][:-1]} for row in rows])] == found
    assert predictor.task.row_of_texts(["the cat"]) == {"messages": [ASKED]}
    with pytest.raises(InputError, match="--text: takes one user's message, not 2"):
        predictor.task.row_of_texts(["a", "b"])
    assert "answering instructions" in predictor.task.card()


def test_evaluate_gives_the_runs_own_numbers_and_the_export_holds_no_path(trained: Path) -> None:
    import json

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
    assert list(both.predict([{"prompt": "the cat"}])) == list(one.predict([{"messages": [ASKED]}]))
    assert both.task.row_of_texts(["the cat"]) == {"prompt": "the cat"}
    with pytest.raises(InputError, match="row 1: prompt, completion: message 1, the user's, has no text"):
        both.predict([{"prompt": " "}])


def test_the_token_that_ends_a_turn_ends_what_is_written(chat: MakeConfig) -> None:
    task, _, _ = prepared(chat())
    tokenizer = letters(CHATML)
    end, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert task.end_ids(end, tokenizer) == end
    assert task.end_ids(start, tokenizer) == [start, end]
    assert task.end_ids([7, end], tokenizer) == [7, end]
    assert task.end_ids(None, tokenizer) == end
