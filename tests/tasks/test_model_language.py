"""Language modelling: blocks that lose nothing, the model's own loss, masks of (seed, epoch, example), written text."""

import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F

from hf_finetune.config.sections import ModelConfig, RunConfig
from hf_finetune.data import sources
from hf_finetune.data.encoding import encoding_key
from hf_finetune.data.features import Features, Ragged, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.export.predict import Predictor
from hf_finetune.model import backbone, heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import TASKS, build, form_of, losses
from hf_finetune.tasks.model_language import CausalLanguageModel, MaskedLanguageModel, choose
from hf_finetune.tasks.text import packing
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
ENDING, MASK, PAD = 3, 4, 0  # ids of the tiny tokenizer
LINES = ["the cat", "", "a big dog here now", "fish", "", "one red bird then"]


@pytest.fixture
def lm(make_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    """`lm(**settings)`: a config on text files of a few lines."""

    def make(lines: list[str] | None = None, **settings: Any) -> RunConfig:
        for split in ("train", "validation", "test"):
            text = "\n".join(lines or LINES * 8) + "\n"
            (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
            settings.setdefault(f"data.{split}", [str(tmp_path / f"{split}.txt")])
        return make_config(**{"data.label_column": None, "data.max_length": 8, **settings})

    return make


def pieces_tokenizer() -> Any:
    """A WordPiece tokenizer of letters: each word is as many pieces as it has letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    entries = [*tiny.SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({each: place for place, each in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def features_of(config: RunConfig, tokenizer: Any, split: str = "train", length: int = 8) -> tuple[Any, Features]:
    """The task and its features of a split."""
    form = form_of("language_modelling", config)
    table = read_table(getattr(config.data, split), config.data, f"data.{split}", form)
    task = build("language_modelling", config, table)
    arrays = task.tokenize(table, tokenizer, length)
    return task, make_features(arrays, task.labels(table, arrays))


def sequences(features: Features) -> list[list[int]]:
    """The ids of each feature."""
    return [features.inputs["input_ids"][start:end].tolist() for start, end in
            zip(features.offsets[:-1], features.offsets[1:], strict=True)]  # fmt: skip


def model_of(family: str, seed: int = 0) -> Any:
    """A small random language model."""
    torch.manual_seed(seed)
    kind = transformers.AutoModelForCausalLM if family in ("gpt2", "llama") else transformers.AutoModelForMaskedLM
    return kind.from_config(tiny.make_config(family)).eval()


# --- the sum of the loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("at_once", [2**24, 64])
def test_token_entropy_is_torchs_cross_entropy_with_its_gradient(
    monkeypatch: pytest.MonkeyPatch, seed: int, smoothing: float, at_once: int
) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) < 0.3] = -100
    ours = torch.randn(3, 7, 11, generator=generator, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    total, count = losses.token_entropy(ours, labels, smoothing)
    expected = F.cross_entropy(theirs.reshape(-1, 11), labels.reshape(-1), reduction="sum", label_smoothing=smoothing)
    assert count == int((labels != -100).sum())
    torch.testing.assert_close(total, expected)
    (total / 3).backward()
    (expected / 3).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_token_entropy_of_16_bit_logits_is_computed_in_32() -> None:
    logits = torch.randn(5, 13).bfloat16().requires_grad_()
    total, _ = losses.token_entropy(logits, torch.arange(5))
    torch.testing.assert_close(total, F.cross_entropy(logits.detach().float(), torch.arange(5), reduction="sum"))
    total.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_token_entropy_of_nothing_is_zero_with_a_gradient() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    total, count = losses.token_entropy(logits, torch.full((4,), -100))
    total.backward()
    assert (float(total.detach()), count) == (0.0, 0.0)
    assert not logits.grad.any()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "modernbert", "deberta-v2"])
def test_the_loss_is_the_models_own(lm: MakeConfig, backbones: Callable[..., Path], family: str) -> None:
    config = lm(**{"model.backbone": str(backbones(family)), "task.objective": "auto", "data.max_length": 16})
    task, features = features_of(config, tiny.make_tokenizer(), length=16)
    model, rows = model_of(family), np.arange(len(features))
    batch = task.prepare(collate(features, rows, PAD), features, model, 1)
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        total, count = task.loss(outputs, batch)
        own = model(**batch.inputs, labels=batch.labels.long()).loss
    torch.testing.assert_close(total / count, own)
    if task.problem == "causal":
        assert count == sum(len(ids) - 1 for ids in sequences(features))  # T - 1 targets a block
    kept = task.keep(outputs, batch)
    values = task.metrics("perplexity", kept, features, None, rows)
    assert values["perplexity"] == pytest.approx(math.exp(own.item()), rel=1e-5)
    targets = task.targets(batch)
    is_right = (outputs.argmax(-1) == targets)[targets != -100]
    assert values["token_accuracy"] == pytest.approx(is_right.float().mean().item())
    assert all(array.shape == (3,) for array in kept)  # never [T, V]


def test_perplexity_of_no_target_is_nan_and_of_too_much_infinite(lm: MakeConfig) -> None:
    task = CausalLanguageModel.from_facts(lm(), {})
    rows = np.arange(1)
    assert math.isnan(task.metrics("perplexity", [np.zeros(3)], None, None, rows)["perplexity"])
    assert task.metrics("perplexity", [np.array([9000.0, 0, 1])], None, None, rows)["perplexity"] == math.inf


# --- blocks ---------------------------------------------------------------------------------------------------------


def test_blocks_of_a_text_file_hold_its_whole_text_in_order(lm: MakeConfig, backbones: Callable[..., Path]) -> None:
    config = lm(**{"model.backbone": str(backbones("gpt2"))})
    tokenizer = tiny.make_tokenizer()
    _, features = features_of(config, tokenizer)
    text = Path(config.data.train[0]).read_text(encoding="utf-8")
    begin, expected = [2], tokenizer(text, add_special_tokens=False)["input_ids"]
    found = sequences(features)
    assert [each for ids in found for each in ids] == begin + expected
    assert {len(ids) for ids in found[:-1]} == {8}
    assert 0 < len(found[-1]) < 8  # the tail is kept
    assert len(features.labels) == len(found)
    assert features.num_truncated == 0


def test_a_file_in_chunks_has_the_same_tokens(
    lm: MakeConfig, backbones: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lm(**{"model.backbone": str(backbones("gpt2"))})
    _, whole = features_of(config, tiny.make_tokenizer())
    monkeypatch.setattr(packing, "CHUNK_CHARACTERS", 10)
    _, chunked = features_of(config, tiny.make_tokenizer())
    assert sequences(whole) == sequences(chunked)
    assert whole.example_indices.tolist() == chunked.example_indices.tolist()


def test_a_blocks_example_is_the_line_that_it_begins_in(lm: MakeConfig, backbones: Callable[..., Path]) -> None:
    lines = ["the cat", "", "a big dog here now", "fish here"]
    config = lm(lines, **{"model.backbone": str(backbones("gpt2")), "data.max_length": 4})
    _, features = features_of(config, tiny.make_tokenizer(), length=4)
    # [CLS] the cat a | big dog here now | fish here
    assert features.example_indices.tolist() == [0, 2, 3]


def test_rows_of_a_table_and_files_are_divided_by_the_end_token(
    lm: MakeConfig, backbones: Callable[..., Path], tmp_path: Path
) -> None:
    table = tiny.write_jsonl(tmp_path / "a.jsonl", [{"text": "the cat"}, {"text": " "}, {"text": "a dog\nfish"}])
    (tmp_path / "b.txt").write_text("one\nbird\n", encoding="utf-8")
    config = lm(**{"model.backbone": str(backbones("bert")), "data.train": [str(table), str(tmp_path / "b.txt")],
                   "data.max_length": 64})  # fmt: skip
    tokenizer = tiny.make_tokenizer()
    _, features = features_of(config, tokenizer, length=64)
    words = tokenizer.convert_ids_to_tokens(sequences(features)[0])
    assert words == ["[CLS]", "the", "cat", "[SEP]", "a", "dog", "fish", "[SEP]", "one", "bird", "[SEP]"]
    assert features.extras["words"].tolist() == [-1, 0, 1, -1, 2, 3, 4, -1, 5, 6, -1]


@pytest.mark.parametrize(("family", "ends"), [("gpt2", [3]), ("bert", [])])
def test_without_packing_each_text_stands_alone_and_none_is_lost(
    lm: MakeConfig, backbones: Callable[..., Path], family: str, ends: list[int]
) -> None:
    config = lm(**{"model.backbone": str(backbones(family)), "task.packing": "none", "data.max_length": 4})
    tokenizer = tiny.make_tokenizer()
    _, features = features_of(config, tokenizer, length=4)
    found = sequences(features)
    by_line: dict[int, list[int]] = {}
    for row, ids in zip(features.example_indices.tolist(), found, strict=True):
        assert 0 < len(ids) <= 4
        by_line.setdefault(row, []).extend(ids if family == "gpt2" else ids[1:-1])
    lines = LINES * 8
    assert sorted(by_line) == [row for row, line in enumerate(lines) if line]
    for row, ids in by_line.items():
        text = tokenizer(lines[row], add_special_tokens=False)["input_ids"]
        assert ids == ([2, *text, *ends] if family == "gpt2" else text)


def test_masked_blocks_stand_between_special_tokens(lm: MakeConfig) -> None:
    _, features = features_of(lm(), tiny.make_tokenizer())
    assert all(ids[0] == 2 and ids[-1] == 3 and len(ids) <= 8 for ids in sequences(features))
    inner = [each for ids in sequences(features) for each in ids[1:-1]]
    assert inner == tiny.make_tokenizer()("\n".join(LINES * 8), add_special_tokens=False)["input_ids"]


def test_splits_are_taken_from_the_end_of_a_file_and_fewer_lines_from_its_beginning(lm: MakeConfig) -> None:
    lines = [f"line {number}" for number in range(40)]
    config = lm(lines, **{"data.validation": [], "data.test": [], "data.max_train_examples": 5})
    splits = load_splits(config.data, 0, form_of("language_modelling", config))
    assert splits.train.columns["text"] == lines[:5]
    assert splits.validation.lines[-1] - splits.validation.lines[0] == len(splits.validation) - 1
    assert splits.validation.columns["text"] + splits.test.columns["text"] == lines[32:] or (
        splits.test.columns["text"] + splits.validation.columns["text"] == lines[32:]
    )


def test_the_kept_encoding_tells_files_apart(lm: MakeConfig, tmp_path: Path) -> None:
    config = lm(["the cat", "a dog"])
    form = form_of("language_modelling", config)
    for name, text in (("one.txt", "the cat\n"), ("two.txt", "a dog\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [{"text": "the cat"}, {"text": "a dog"}]
    places = [config.data.train, (str(tmp_path / "one.txt"), str(tmp_path / "two.txt")),
              (str(tiny.write_jsonl(tmp_path / "rows.jsonl", rows)),)]  # fmt: skip
    tables = [read_table(place, config.data, "data.train", form) for place in places]
    task = build("language_modelling", config, tables[0])
    assert all(table.columns == tables[0].columns for table in tables)
    assert len({encoding_key(task, table, tiny.make_tokenizer(), 8) for table in tables}) == 3


# --- masks ----------------------------------------------------------------------------------------------------------


def masked_features(count: int = 400, length: int = 40, seed: int = 0) -> Features:
    """Features of random ordinary tokens between special ones."""
    ids = np.random.default_rng(seed).integers(5, len(tiny.VOCABULARY), (count, length)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    words = np.where(ids < 5, -1, np.arange(count * length).reshape(count, length)).astype(np.int32)
    offsets = np.arange(count + 1) * length
    return Features(
        inputs={"input_ids": ids.reshape(-1)}, offsets=offsets, num_truncated=0,
        labels=Ragged(values=ids.reshape(-1), offsets=offsets),
        extras={"words": words.reshape(-1), "mask_token": np.array(MASK), "random_tokens": np.arange(5, len(tiny.VOCABULARY))},
    )  # fmt: skip


@pytest.fixture
def masked(lm: MakeConfig) -> MaskedLanguageModel:
    """The masked task of seed 0."""
    return MaskedLanguageModel.from_facts(lm(), {})


def drawn(
    task: MaskedLanguageModel, features: Features, rows: list[int], view: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of rows in a view."""
    batch = task.prepare(collate(features, np.array(rows), PAD), features, None, view)
    assert batch.labels is not None
    return batch.inputs["input_ids"], batch.labels


def test_masks_are_a_function_of_seed_view_and_example(masked: MaskedLanguageModel) -> None:
    features = masked_features(8)
    ids, labels = drawn(masked, features, list(range(8)), 1)
    for rows in ([3], [7, 3, 0], list(range(8))):  # whatever they are with
        some_ids, some_labels = drawn(masked, features, rows, 1)
        assert torch.equal(some_ids, ids[rows])
        assert torch.equal(some_labels, labels[rows])
    for other in (drawn(masked, features, list(range(8)), 2), drawn(masked, features, list(range(8)), 0),
                  drawn(dataclasses.replace(masked, mask_seed=1), features, list(range(8)), 1)):  # fmt: skip
        assert not torch.equal(other[1], labels)


def test_eight_in_ten_are_masked_one_is_another_one_itself(masked: MaskedLanguageModel) -> None:
    features = masked_features()
    original = torch.from_numpy(features.inputs["input_ids"].reshape(400, 40).astype(np.int64))
    for view in (0, 1, 5):
        ids, labels = drawn(masked, features, list(range(400)), view)
        chosen = labels != -100
        assert chosen.sum(1).tolist() == [6] * 400  # 15 % of 38, rounded
        assert torch.equal(labels[chosen], original[chosen])
        assert torch.equal(ids[~chosen], original[~chosen])
        assert not chosen[:, [0, -1]].any()  # special tokens never
        shown, right = ids[chosen], original[chosen]
        assert (shown == MASK).float().mean() == pytest.approx(0.8, abs=0.03)
        assert (shown == right).float().mean() == pytest.approx(0.1, abs=0.03)
        others = shown[(shown != MASK) & (shown != right)]
        assert len(others) / len(shown) == pytest.approx(0.1, abs=0.03)
        assert int(others.min()) >= 5  # no special token stands for another
        assert len(set(others.tolist())) > 20


def test_all_positions_are_as_likely(masked: MaskedLanguageModel) -> None:
    features = masked_features(2000, 12)
    _, labels = drawn(masked, features, list(range(2000)), 3)
    share = (labels != -100).float().mean(0)[1:-1]
    assert share.min() > 0.16
    assert share.max() < 0.24  # 2 of 10


@pytest.mark.parametrize("seed", range(5))
def test_whole_words_are_taken_whole(seed: int) -> None:
    words = np.array([-1, 0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, -1])
    chosen = choose(np.random.default_rng(seed), words, 0.5, whole=True)
    taken = set(words[chosen].tolist())
    assert sorted(chosen.tolist()) == [place for place, word in enumerate(words) if word in taken]
    assert 0 < len(chosen) <= 6
    assert choose(np.random.default_rng(seed), np.array([-1, 7, 7, 7, 8, 8, 8, 8]), 0.1, whole=True).tolist() == [
        1,
        2,
        3,
    ]
    for whole in (True, False):
        assert not len(choose(np.random.default_rng(seed), np.array([-1, -1]), 0.5, whole=whole))
        assert len(choose(np.random.default_rng(seed), np.array([-1, 0]), 0.01, whole=whole)) == 1  # one at least


def test_whole_words_of_a_text_come_from_the_tokenizer(lm: MakeConfig) -> None:
    lines = ["house cat", "x a dog"] * 12
    config = lm(lines, **{"task.whole_word_masks": True, "task.mask_fraction": 0.4})
    task, features = features_of(config, pieces_tokenizer(), length=32)
    assert features.extras["words"][:13].tolist() == [-1, *[0] * 5, *[1] * 3, 2, 3, *[4] * 2]
    for view in range(5):
        _, labels = drawn(task, features, list(range(len(features))), view)
        for row in range(len(features)):
            start, end = features.offsets[row], features.offsets[row + 1]
            words, chosen = features.extras["words"][start:end], (labels[row] != -100).numpy()[: end - start]
            assert chosen.any()
            for word in set(words[chosen].tolist()):
                assert chosen[words == word].all()


def test_the_prefix_of_masked_inputs_is_not_cached(lm: MakeConfig) -> None:
    config = lm(**{"freeze.embeddings": True, "freeze.layers": 1, "cache.activations": "on"})
    with pytest.raises(InputError, match=r"cache.activations \(on\): the masks are drawn anew"):
        finetune(config, task_name="language_modelling")


# --- which objective ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "asked", "problem", "reason"),
    [("gpt2", "auto", "causal", "the backbone is a GPT2Model"), ("llama", "auto", "causal", "the backbone is a LlamaModel"),
     ("bert", "auto", "masked", "the backbone is a BertModel"), ("bert", "masked", "masked", "as task.objective says")],
)  # fmt: skip
def test_the_objective_is_what_the_backbone_is_made_for(
    lm: MakeConfig, backbones: Callable[..., Path], family: str, asked: str, problem: str, reason: str
) -> None:
    config = lm(**{"model.backbone": str(backbones(family)), "task.objective": asked})
    task, features = features_of(config, tiny.make_tokenizer())
    assert (task.problem, task.reason) == (problem, reason)
    assert task.name == f"{problem}_language_modelling"
    assert dict(task.describe(features, None, 8))["objective"] == f"{problem}: {reason}"
    assert TASKS[task.name].from_table(config, None).name == task.name  # its own key names it


def test_a_backbone_that_cannot_be_read_is_the_loaders_error(lm: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        finetune(lm(**{"model.backbone": str(tmp_path / "none")}), task_name="language_modelling")


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("gpt2", {"task.objective": "masked"}, r"task.objective \(masked\): gpt2 models are made for causal"),
        ("t5", {}, "t5 models are made for neither causal nor masked"),
        ("bert", {"task.objective": "causal"}, "reads in both directions"),
        (
            "gpt2",
            {"task.mask_fraction": 0.3},
            r"task.mask_fraction \(0.3\): causal language modelling has no such setting",
        ),
        ("bert", {"task.max_target_length": 5}, r"task.max_target_length \(5\): masked language modelling has no such"),
        ("bert", {"data.label_column": "topic"}, r"data.label_column \(topic\): language modelling has no labels"),
        ("bert", {"data.text_columns": ["text", "more"]}, r"data.text_columns .*takes one column"),
        (
            "bert",
            {"evaluation.metric": "f1"},
            r"evaluation.metric \(f1\): masked_language_modelling has loss, perplexity",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    lm: MakeConfig, backbones: Callable[..., Path], family: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        finetune(lm(**{"model.backbone": str(backbones(family)), **settings}), task_name="language_modelling")


def test_text_that_is_none_is_refused_with_its_line(
    lm: MakeConfig, backbones: Callable[..., Path], tmp_path: Path
) -> None:
    def refused(rows: list[Any], family: str = "bert", **settings: Any) -> str:
        path = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": row} for row in rows])
        config = lm(**{"model.backbone": str(backbones(family)), "data.train": [str(path)], **settings})
        with pytest.raises(InputError) as caught:
            features_of(config, settings.get("tokenizer") or tiny.make_tokenizer())
        return str(caught.value)

    assert "rows.jsonl:2: text is null" in refused(["a", None])
    assert "rows.jsonl:1: text is a int, not a string" in refused([7])
    assert "rows.jsonl:1: there is no text in text of all 2 rows" in refused(["", "  \n"])


def test_tokenizers_that_cannot_do_it_are_refused(lm: MakeConfig, backbones: Callable[..., Path]) -> None:
    model = model_of("bert")
    config = lm(**{"task.whole_word_masks": True})
    task = MaskedLanguageModel.from_facts(config, {})
    without = tiny.make_tokenizer()
    without.mask_token = None
    with pytest.raises(InputError, match="its tokenizer has no mask token"):
        task.prepare_model(model, without)

    class Slow:
        is_fast, mask_token_id = False, MASK

    with pytest.raises(InputError, match=r"task.whole_word_masks \(True\).*not a fast one"):
        task.prepare_model(model, Slow())
    undivided = tiny.make_tokenizer()
    undivided.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("#", "isolated")
    with pytest.raises(InputError, match="does not divide a text into words"):
        features_of(config, undivided)
    endless = tiny.make_tokenizer()
    endless.eos_token = endless.sep_token = None
    with pytest.raises(InputError, match="no end token"):
        features_of(lm(**{"task.packing": "none", "model.backbone": str(backbones("gpt2"))}), endless)
    bare = tiny.make_tokenizer()
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    with pytest.raises(InputError, match="one token, so that nothing follows"):
        features_of(lm(["cat"], **{"model.backbone": str(backbones("gpt2"))}), bare)


# --- use ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`trained("gpt2")`: the run folder of a small model of a family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            from hf_finetune.config.loading import load_config

            folder = tmp_path_factory.mktemp(f"lm-{family}")
            (folder / "train.txt").write_text("\n".join(LINES * 20) + "\n", encoding="utf-8")
            tokenizer = tiny.make_tokenizer()
            if family in ("gpt2", "llama"):  # a text is gone on from, so nothing may end it
                post = processors.TemplateProcessing(single="[CLS] $A", pair="$A $B", special_tokens=[("[CLS]", 2)])
                tokenizer.backend_tokenizer.post_processor = post
            tiny.make_backbone(folder / "backbone", family)
            tokenizer.save_pretrained(folder / "backbone")
            config = load_config(
                {"output_dir": str(folder), "name": "run", "model.backbone": str(folder / "backbone"),
                 "data.train": [str(folder / "train.txt")], "data.label_column": None, "data.max_length": 16,
                 "train.epochs": 4, "train.learning_rate": 1e-2, "train.batch_size": 4, "train.precision": "fp32",
                 "tracking.trackers": [], **({"task.max_target_length": 6} if family in ("gpt2", "llama") else {})},
                [],
            )  # fmt: skip
            assert config is not None
            made[family] = finetune(config, task_name="language_modelling").run_dir
        return made[family]

    return make


PROMPTS = ["the", "a big dog here", "one red", "fish", "the cat a big dog", "now"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_text_written_in_a_batch_is_that_written_alone_and_the_pipelines(
    trained: Callable[[str], Path], family: str
) -> None:
    predictor = Predictor.from_pretrained(str(trained(family)))
    rows = [{"text": prompt} for prompt in PROMPTS]
    together = list(predictor.predict(rows))
    assert together == [next(iter(predictor.predict([row]))) for row in rows]
    pipe = transformers.pipeline("text-generation", model=str(trained(family) / "model"))
    for row in together:
        (found,) = pipe(row["text"], do_sample=False)  # its length is the exported one
        assert found["generated_text"] == row["text"] + row["continuation"]
    assert len({row["continuation"] for row in together}) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(trained(family) / "model")
    assert model.generation_config.max_new_tokens == 6
    assert not model.generation_config.do_sample


def test_a_prompt_longer_than_the_positions_is_cut_at_its_beginning(trained: Callable[[str], Path]) -> None:
    predictor = Predictor.from_pretrained(str(trained("gpt2")))
    words = " ".join(["fish cat"] * 40 + PROMPTS[1:2] * 20)
    (whole,) = predictor.predict([{"text": words}])
    last = words.split()[-60:]  # 66 positions, 6 of them to be written
    ids = torch.tensor([predictor.tokenizer.convert_tokens_to_ids(last)])
    written = predictor.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert (
        whole["continuation"].split() == predictor.tokenizer.decode(written[0, 60:], skip_special_tokens=True).split()
    )


def test_masks_are_filled_as_the_pipeline_does(trained: Callable[[str], Path]) -> None:
    run = trained("bert")
    predictor = Predictor.from_pretrained(str(run))
    texts = ["the [MASK]", "a [MASK] dog [MASK] now", "[MASK]"]
    rows = list(predictor.predict([{"text": text} for text in texts]))
    assert [row["text"] for row in rows] == texts
    assert [len(row["fills"]) for row in rows] == [1, 2, 1]
    pipe = transformers.pipeline("fill-mask", model=str(run / "model"))
    for row in rows:
        found = pipe(row["text"])
        for ours, theirs in zip(row["fills"], found if len(row["fills"]) > 1 else [found], strict=True):
            assert [each["token"] for each in ours] == [each["token_str"] for each in theirs]
            assert [each["score"] for each in ours] == pytest.approx([each["score"] for each in theirs], rel=1e-4)
    longer = " ".join(["the cat"] * 12 + ["[MASK]"])  # two windows of 16 tokens
    assert len(next(iter(predictor.predict([{"text": longer}])))["fills"]) == 1


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_evaluate_gives_the_runs_own_numbers(trained: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    run = trained(family)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    lines = (LINES * 20)[-24:]  # test, then validation: a fifth of 120 lines
    for split, part in (("test", lines[:12]), ("validation", lines[12:])):
        path = tmp_path / f"{split}.txt"
        path.write_text("\n".join(part) + "\n", encoding="utf-8")
        predictor = Predictor.from_pretrained(str(run))
        values = predictor.evaluate(predictor.read(str(path), needs_labels=True))
        assert values == pytest.approx(results[split], rel=1e-5), split
    assert results["metric"] == "perplexity"


def test_what_is_asked_must_have_something_to_say(trained: Callable[[str], Path]) -> None:
    causal, mask = (Predictor.from_pretrained(str(trained(family))) for family in ("gpt2", "bert"))
    with pytest.raises(InputError, match="row 2: text is empty; there is nothing to go on from"):
        causal.predict([{"text": "a"}, {"text": " "}])
    with pytest.raises(InputError, match=r"row 1: text has no \[MASK\], where the model fills in"):
        mask.predict([{"text": "the cat"}])
    for predictor in (causal, mask):
        with pytest.raises(InputError, match="--text: takes one text, not 2"):
            predictor.task.row_of_texts(["a", "b"])
        assert "language modelling" in predictor.task.card()


# --- GGUF -----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: Any) -> None:
    """A llama model as GGUF holds it, in fp32, with a byte-level tokenizer of the tiny words."""
    import gguf

    config, out = model.config, gguf.GGUFWriter(path, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tiny.VOCABULARY)
    out.add_token_types([3] * 5 + [1] * (len(tiny.VOCABULARY) - 5))
    out.add_token_scores([0.0] * len(tiny.VOCABULARY))
    out.add_bos_token_id(2)
    out.add_eos_token_id(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        for kind, count in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:  # as llama.cpp's convert_hf_to_gguf.py permutes them
                array = (
                    array.reshape(count, 2, len(array) // count // 2, *array.shape[1:])
                    .swapaxes(1, 2)
                    .reshape(array.shape)
                )
        found = names.get_name(name, try_suffixes=(".weight",))
        out.add_tensor(found, np.ascontiguousarray(array))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_gguf_file_is_a_backbone(lm: MakeConfig, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = model_of("llama", seed=3)
    path = tmp_path / "model.gguf"
    write_gguf(path, model)
    config = lm(**{"model.backbone": str(path)})
    task, _ = features_of(config, tiny.make_tokenizer())
    assert task.reason == "the backbone is a llama"
    tokenizer = backbone.load_tokenizer(config.model)
    assert tokenizer.convert_tokens_to_ids("hammer") == tiny.VOCABULARY.index("hammer")
    loaded = backbone.load_backbone(config.model, task.head, tokenizer)
    assert not loaded.new_parameters - {"lm_head.weight"}
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits)
        loaded.model.save_pretrained(tmp_path / "saved")  # which refuses what it holds for quantized
        saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(saved(ids).logits, model(ids).logits)


def test_a_gguf_file_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(
        InputError, match=r"model.backbone .*model.gguf\): a GGUF file is read by the package gguf: pip install"
    ):
        backbone.load_tokenizer(ModelConfig(backbone=str(tmp_path / "model.gguf")))
