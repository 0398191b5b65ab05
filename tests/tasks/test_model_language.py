"""Language modelling: blocks that lose nothing, the model's own loss, masks of (seed, epoch, feature), generated text."""

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
from support.gguf_files import write_gguf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import ModelConfig, RunConfig
from hf_finetune.data.encoding import make_encoding_key
from hf_finetune.data.features import IGNORED, Features, Padding, Ragged, collate, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.export.predict import Predictor
from hf_finetune.model import backbone, heads
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.masked_language import MaskedEncoding
from hf_finetune.tasks.model_language import LanguageModelling
from hf_finetune.tasks.text import packing
from hf_finetune.tasks.tokens import TokenObjective, get_targets
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
MASK, PAD = 4, 0  # ids of the tiny tokenizer
LINES = ["the cat", "", "a big dog here now", "fish", "", "one red bird then"]


@pytest.fixture
def lm(make_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    """`lm(**settings)`: a config on text files of a few lines."""

    def make(lines: list[str] | None = None, **settings: Any) -> RunConfig:
        for split in ("train", "validation", "test"):
            text = "\n".join(lines or LINES * 8) + "\n"
            (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
            settings.setdefault(f"data.{split}", [str(tmp_path / f"{split}.txt")])
        return make_config(
            **{"task.kind": "model_language", "data.label_column": None, "data.max_length": 8, **settings}
        )

    return make


def make_letter_tokenizer() -> Any:
    """A WordPiece tokenizer of letters: each letter of a word is one token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    entries = [*tiny.SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def encode(config: RunConfig, tokenizer: Any, length: int = 8) -> tuple[LanguageModelling, Features]:
    """The task, and the features of its training rows."""
    spec = LanguageModelling.make_columns(config).spec
    table = read_table(config.data.train, config.data, "data.train", spec)
    task = LanguageModelling.from_table(config, table)
    arrays = task.encoding.tokenize(table, tokenizer, length)
    return task, make_features(arrays, task.encoding.labels(table, arrays))


def get_sequences(features: Features) -> list[list[int]]:
    """The ids of each feature."""
    ids, offsets = features.inputs["input_ids"], features.offsets
    return [ids[offsets[number] : offsets[number + 1]].tolist() for number in range(len(features))]


def make_model(family: str, seed: int = 0) -> Any:
    """A small random language model."""
    torch.manual_seed(seed)
    kind = transformers.AutoModelForCausalLM if family in ("gpt2", "llama") else transformers.AutoModelForMaskedLM
    return kind.from_config(tiny.make_config(family)).eval()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "modernbert", "deberta-v2"])
def test_the_loss_is_the_models_own(lm: MakeConfig, backbones: Callable[..., Path], family: str) -> None:
    config = lm(**{"model.backbone": str(backbones(family)), "task.objective": "auto", "data.max_length": 16})
    task, features = encode(config, tiny.make_tokenizer(), length=16)
    model, indices = make_model(family), np.arange(len(features))
    batch = task.encoding.prepare(collate(features, indices, Padding(PAD)), features, model, 1)
    assert batch.labels is not None
    with torch.no_grad():
        outputs = heads.run_model(model, batch.inputs)
        total, count = task.objective.loss(outputs, batch)
        own = model(**batch.inputs, labels=batch.labels.long()).loss
    torch.testing.assert_close(total / count, own)
    if task.problem == "causal":
        assert count == sum(len(ids) - 1 for ids in get_sequences(features))  # T - 1 targets a block
    reduced = task.scoring.reduce(outputs, batch)
    values = task.scoring.compute_metrics("perplexity", reduced, features, None, indices)
    assert values["perplexity"] == pytest.approx(math.exp(own.item()), rel=1e-5)
    targets = get_targets(batch, is_causal=task.problem == "causal")
    is_correct = (outputs.argmax(-1) == targets)[targets != IGNORED]
    assert values["token_accuracy"] == pytest.approx(is_correct.float().mean().item())
    assert all(array.shape == (3,) for array in reduced)  # never [T, V]


# --- blocks ---------------------------------------------------------------------------------------------------------


def test_blocks_of_a_text_file_hold_all_its_text_in_order(lm: MakeConfig, backbones: Callable[..., Path]) -> None:
    config = lm(**{"model.backbone": str(backbones("gpt2"))})
    tokenizer = tiny.make_tokenizer()
    _, features = encode(config, tokenizer)
    text = Path(config.data.train[0]).read_text(encoding="utf-8")
    begin, expected = [2], tokenizer(text, add_special_tokens=False)["input_ids"]
    sequences = get_sequences(features)
    assert [token for ids in sequences for token in ids] == begin + expected
    assert {len(ids) for ids in sequences[:-1]} == {8}
    assert 0 < len(sequences[-1]) < 8  # the rest is kept
    assert len(features.labels) == len(sequences)
    assert features.num_truncated == 0


def test_a_file_in_chunks_has_the_same_tokens(
    lm: MakeConfig, backbones: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lm(**{"model.backbone": str(backbones("gpt2"))})
    _, whole = encode(config, tiny.make_tokenizer())
    monkeypatch.setattr(packing, "CHUNK_CHARACTERS", 10)
    _, chunked = encode(config, tiny.make_tokenizer())
    assert get_sequences(whole) == get_sequences(chunked)
    assert whole.example_indices.tolist() == chunked.example_indices.tolist()


def test_the_example_of_a_block_is_the_line_of_its_first_token(lm: MakeConfig, backbones: Callable[..., Path]) -> None:
    lines = ["the cat", "", "a big dog here now", "fish here"]
    config = lm(lines, **{"model.backbone": str(backbones("gpt2")), "data.max_length": 4})
    _, features = encode(config, tiny.make_tokenizer(), length=4)
    # [CLS] the cat a | big dog here now | fish here
    assert features.example_indices.tolist() == [0, 2, 3]


def test_there_is_an_end_token_between_rows_and_files(
    lm: MakeConfig, backbones: Callable[..., Path], tmp_path: Path
) -> None:
    table = tiny.write_jsonl(tmp_path / "a.jsonl", [{"text": "the cat"}, {"text": " "}, {"text": "a dog\nfish"}])
    (tmp_path / "b.txt").write_text("one\nbird\n", encoding="utf-8")
    config = lm(**{"model.backbone": str(backbones("bert")), "data.train": [str(table), str(tmp_path / "b.txt")],
                   "data.max_length": 64})  # fmt: skip
    tokenizer = tiny.make_tokenizer()
    _, features = encode(config, tokenizer, length=64)
    words = tokenizer.convert_ids_to_tokens(get_sequences(features)[0])
    assert words == ["[CLS]", "the", "cat", "[SEP]", "a", "dog", "fish", "[SEP]", "one", "bird", "[SEP]"]
    assert features.extras["word_indices"].tolist() == [-1, 0, 1, -1, 2, 3, 4, -1, 5, 6, -1]


@pytest.mark.parametrize(("family", "ends"), [("gpt2", [3]), ("bert", [])])
def test_without_packing_each_text_has_its_own_examples_and_none_is_lost(
    lm: MakeConfig, backbones: Callable[..., Path], family: str, ends: list[int]
) -> None:
    config = lm(**{"model.backbone": str(backbones(family)), "task.packing": "none", "data.max_length": 4})
    tokenizer = tiny.make_tokenizer()
    _, features = encode(config, tokenizer, length=4)
    sequences = get_sequences(features)
    by_line: dict[int, list[int]] = {}
    for row, ids in zip(features.example_indices.tolist(), sequences, strict=True):
        assert 0 < len(ids) <= 4
        by_line.setdefault(row, []).extend(ids if family == "gpt2" else ids[1:-1])
    lines = LINES * 8
    assert sorted(by_line) == [row for row, line in enumerate(lines) if line]
    for row, ids in by_line.items():
        text = tokenizer(lines[row], add_special_tokens=False)["input_ids"]
        assert ids == ([2, *text, *ends] if family == "gpt2" else text)


def test_masked_blocks_are_between_special_tokens(lm: MakeConfig) -> None:
    _, features = encode(lm(), tiny.make_tokenizer())
    assert all(ids[0] == 2 and ids[-1] == 3 and len(ids) <= 8 for ids in get_sequences(features))
    inner = [token for ids in get_sequences(features) for token in ids[1:-1]]
    assert inner == tiny.make_tokenizer()("\n".join(LINES * 8), add_special_tokens=False)["input_ids"]


def test_splits_are_taken_from_the_end_of_a_file_and_fewer_lines_from_its_beginning(lm: MakeConfig) -> None:
    lines = [f"line {number}" for number in range(40)]
    config = lm(lines, **{"data.validation": [], "data.test": [], "data.max_train_examples": 5})
    splits = load_splits(config.data, 0, LanguageModelling.make_columns(config).spec)
    assert splits.train.columns["text"] == lines[:5]
    assert splits.validation.lines[-1] - splits.validation.lines[0] == len(splits.validation) - 1
    assert splits.test is not None
    validation, test = list(splits.validation.columns["text"]), list(splits.test.columns["text"])
    assert lines[32:] in (validation + test, test + validation)


def test_the_key_of_the_cache_depends_on_the_files_of_the_rows(lm: MakeConfig, tmp_path: Path) -> None:
    config = lm(["the cat", "a dog"])
    spec = LanguageModelling.make_columns(config).spec
    for name, text in (("one.txt", "the cat\n"), ("two.txt", "a dog\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [{"text": "the cat"}, {"text": "a dog"}]
    locations = [
        config.data.train,
        (str(tmp_path / "one.txt"), str(tmp_path / "two.txt")),
        (str(tiny.write_jsonl(tmp_path / "rows.jsonl", rows)),),
    ]
    tables = [read_table(location, config.data, "data.train", spec) for location in locations]
    encoding = LanguageModelling.from_table(config, tables[0]).encoding
    assert all(table.columns == tables[0].columns for table in tables)
    assert len({make_encoding_key(encoding, table, tiny.make_tokenizer(), 8) for table in tables}) == 3


# --- masks ----------------------------------------------------------------------------------------------------------


def make_masked_features(count: int = 400, length: int = 40, seed: int = 0) -> Features:
    """Features of random ordinary tokens between special ones."""
    ids = np.random.default_rng(seed).integers(5, len(tiny.VOCABULARY), (count, length)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    words = np.where(ids < 5, -1, np.arange(count * length).reshape(count, length)).astype(np.int32)
    offsets = np.arange(count + 1) * length
    return Features(
        inputs={"input_ids": ids.reshape(-1)},
        offsets=offsets,
        num_truncated=0,
        labels=Ragged(values=ids.reshape(-1), offsets=offsets),
        extras={
            "word_indices": words.reshape(-1),
            "mask_token_id": np.array(MASK),
            "replacement_ids": np.arange(5, len(tiny.VOCABULARY)),
        },
    )


@pytest.fixture
def masked() -> MaskedEncoding:
    """An encoding with the masks of seed 0."""
    return MaskedEncoding(
        text="text", packing="blocks", joins_lines=True, mask_fraction=0.15, whole_word_masks=False, mask_seed=0
    )


def draw(
    encoding: MaskedEncoding, features: Features, indices: list[int], epoch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of features in an epoch."""
    batch = encoding.prepare(collate(features, np.array(indices), Padding(PAD)), features, None, epoch)
    assert batch.labels is not None
    return batch.inputs["input_ids"], batch.labels


def test_masks_are_a_function_of_seed_epoch_and_feature(masked: MaskedEncoding) -> None:
    features = make_masked_features(8)
    everything = list(range(8))
    ids, labels = draw(masked, features, everything, 1)
    for indices in ([3], [7, 3, 0], everything):  # in whatever batch
        some_ids, some_labels = draw(masked, features, indices, 1)
        assert torch.equal(some_ids, ids[indices])
        assert torch.equal(some_labels, labels[indices])
    other_seed = dataclasses.replace(masked, mask_seed=1)
    for other in (
        draw(masked, features, everything, 2),
        draw(masked, features, everything, 0),
        draw(other_seed, features, everything, 1),
    ):
        assert not torch.equal(other[1], labels)


def test_a_batch_without_labels_has_no_masks(masked: MaskedEncoding) -> None:
    features = dataclasses.replace(make_masked_features(2), labels=None)
    batch = collate(features, np.arange(2), Padding(PAD))
    assert masked.prepare(batch, features, None, 0) is batch


def test_labels_are_the_original_tokens_and_special_tokens_are_never_chosen(masked: MaskedEncoding) -> None:
    features = make_masked_features()
    original = torch.from_numpy(features.inputs["input_ids"].reshape(400, 40).astype(np.int64))
    for epoch in (0, 1, 5):
        ids, labels = draw(masked, features, list(range(400)), epoch)
        chosen = labels != IGNORED
        assert chosen.sum(1).tolist() == [6] * 400  # 15 % of 38, rounded
        assert torch.equal(labels[chosen], original[chosen])
        assert torch.equal(ids[~chosen], original[~chosen])
        assert not chosen[:, [0, -1]].any()
        shown, target = ids[chosen], original[chosen]
        assert (shown == MASK).float().mean() == pytest.approx(0.8, abs=0.03)
        assert (shown == target).float().mean() == pytest.approx(0.1, abs=0.03)
        others = shown[(shown != MASK) & (shown != target)]
        assert len(others) / len(shown) == pytest.approx(0.1, abs=0.03)
        assert int(others.min()) >= 5  # no special token replaces another
        assert len(set(others.tolist())) > 20


def test_all_positions_are_equally_probable(masked: MaskedEncoding) -> None:
    features = make_masked_features(2000, 12)
    _, labels = draw(masked, features, list(range(2000)), 3)
    share = (labels != IGNORED).float().mean(0)[1:-1]
    assert share.min() > 0.16
    assert share.max() < 0.24  # 2 of 10


def test_whole_words_of_a_text_come_from_the_tokenizer(lm: MakeConfig) -> None:
    lines = ["house cat", "x a dog"] * 12
    config = lm(lines, **{"task.whole_word_masks": True, "task.mask_fraction": 0.4})
    task, features = encode(config, make_letter_tokenizer(), length=32)
    word_indices = features.extras["word_indices"]
    assert word_indices[:13].tolist() == [-1, *[0] * 5, *[1] * 3, 2, 3, *[4] * 2]
    for epoch in range(5):
        _, labels = draw(task.encoding, features, list(range(len(features))), epoch)
        for number in range(len(features)):
            start, end = features.offsets[number], features.offsets[number + 1]
            words, chosen = word_indices[start:end], (labels[number] != IGNORED).numpy()[: end - start]
            assert chosen.any()
            for word in set(words[chosen].tolist()):
                assert chosen[words == word].all()


def test_masked_inputs_cannot_be_cached(lm: MakeConfig) -> None:
    config = lm(**{"freeze.embeddings": True, "freeze.layers": 1, "cache.activations": "on"})
    with pytest.raises(InputError, match=r"cache.activations \(on\): the masks are drawn again"):
        finetune(config)


# --- which objective ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "requested", "objective", "reason"),
    [
        ("gpt2", "auto", "causal", "the backbone is a GPT2Model"),
        ("llama", "auto", "causal", "the backbone is a LlamaModel"),
        ("bert", "auto", "masked", "the backbone is a BertModel"),
        ("bert", "masked", "masked", "set by task.objective"),
    ],
)
def test_the_objective_is_the_one_that_the_backbone_was_made_for(
    lm: MakeConfig, backbones: Callable[..., Path], family: str, requested: str, objective: str, reason: str
) -> None:
    config = lm(**{"model.backbone": str(backbones(family)), "task.objective": requested})
    task, features = encode(config, tiny.make_tokenizer())
    assert task.problem == objective
    assert dict(task.encoding.describe(features, None, 8))["objective"] == f"{objective}: {reason}"
    assert task.head.auto_class == {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}[objective]
    assert task.objective == TokenObjective(is_causal=objective == "causal")


def test_the_state_holds_the_objective_and_the_seed_of_the_masks(lm: MakeConfig) -> None:
    masked = LanguageModelling.from_table(lm(seed=7), None)
    assert masked.state_dict() == {"objective": "masked", "mask_seed": 7}
    restored = LanguageModelling.from_state(lm(seed=8), masked.state_dict())
    assert restored.encoding == dataclasses.replace(masked.encoding, reason="")
    causal = LanguageModelling.from_state(lm(), {"objective": "causal"})
    assert causal.state_dict() == {"objective": "causal"}


@pytest.mark.parametrize(
    ("architectures", "objective"),
    [
        (["GPT2LMHeadModel"], "causal"),
        (["LlamaForCausalLM"], "causal"),
        (["BertLMHeadModel"], "causal"),
        (["BertForMaskedLM"], "masked"),
    ],
)
def test_the_objective_of_a_model_made_elsewhere_is_that_of_its_head(architectures: list[str], objective: str) -> None:
    state = LanguageModelling.read_state(transformers.PretrainedConfig(architectures=architectures))
    assert state == {"objective": objective}


def test_a_backbone_that_cannot_be_read_is_reported_when_it_is_loaded(lm: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        finetune(lm(**{"model.backbone": str(tmp_path / "none")}))


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("gpt2", {"task.objective": "masked"}, r"task.objective \(masked\): must be causal for gpt2 models, or auto"),
        ("t5", {}, "must be a causal or a masked language model; t5 models are neither"),
        ("bert", {"task.objective": "causal"}, "reads in both directions"),
        (
            "gpt2",
            {"task.mask_fraction": 0.3},
            r"task.mask_fraction \(0.3\): has no meaning in causal language modelling",
        ),
        (
            "llama",
            {"task.whole_word_masks": True},
            r"task.whole_word_masks \(True\): has no meaning in causal language modelling",
        ),
        (
            "bert",
            {"task.max_target_length": 5},
            r"task.max_target_length \(5\): has no meaning in masked language modelling",
        ),
        (
            "bert",
            {"data.label_column": "topic"},
            r"data.label_column \(topic\): must be null: language modelling has no labels",
        ),
        ("bert", {"data.text_columns": ["text", "more"]}, r"data.text_columns .*takes one column"),
        ("bert", {"evaluation.metric": "f1"}, r"evaluation.metric \(f1\): must be one of loss, perplexity"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    lm: MakeConfig, backbones: Callable[..., Path], family: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        finetune(lm(**{"model.backbone": str(backbones(family)), **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.mask_fraction": 1.0}, r"task.mask_fraction \(1.0\): must be in \(0, 1\)"),
        ({"task.mask_fraction": 0.0}, r"task.mask_fraction \(0.0\): must be in \(0, 1\)"),
        ({"task.max_target_length": 0}, r"task.max_target_length \(0\): must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(lm: MakeConfig, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lm(**settings)


def test_a_value_that_is_not_a_text_is_refused_with_its_line(
    lm: MakeConfig, backbones: Callable[..., Path], tmp_path: Path
) -> None:
    def find_error(rows: list[Any]) -> str:
        path = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"text": row} for row in rows])
        config = lm(**{"model.backbone": str(backbones("bert")), "data.train": [str(path)]})
        with pytest.raises(InputError) as caught:
            encode(config, tiny.make_tokenizer())
        return str(caught.value)

    assert "rows.jsonl:2: text is null" in find_error(["a", None])
    assert "rows.jsonl:1: text is an int, not a string" in find_error([7])
    assert "rows.jsonl:1: the column text has no text in any of its 2 rows" in find_error(["", "  \n"])


def test_tokenizers_without_the_tokens_that_masks_need_are_refused(lm: MakeConfig) -> None:
    model = make_model("bert")
    config = lm(**{"task.whole_word_masks": True})
    task = LanguageModelling.from_state(config, {"objective": "masked"})
    without = tiny.make_tokenizer()
    without.mask_token = None
    with pytest.raises(InputError, match="its tokenizer has no mask token"):
        task.prepare_model(model, without)

    class Slow:
        is_fast, mask_token_id = False, MASK

    with pytest.raises(InputError, match=r"task.whole_word_masks \(True\): needs a backbone with a fast tokenizer"):
        task.prepare_model(model, Slow())
    undivided = tiny.make_tokenizer()
    undivided.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("#", "isolated")
    with pytest.raises(InputError, match=r"task.whole_word_masks \(True\): .*divides a text into words"):
        encode(config, undivided)


def test_texts_that_cannot_be_divided_or_continued_are_refused(lm: MakeConfig, backbones: Callable[..., Path]) -> None:
    gpt2 = {"model.backbone": str(backbones("gpt2"))}
    endless = tiny.make_tokenizer()
    endless.eos_token = endless.sep_token = None
    with pytest.raises(InputError, match="no end token"):
        encode(lm(**{"task.packing": "none", **gpt2}), endless)
    bare = tiny.make_tokenizer()
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    with pytest.raises(InputError, match="the text has one token, so there is no next token to predict"):
        encode(lm(["cat"], **gpt2), bare)


# --- use ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`trained("gpt2")`: the run folder of a small model of a family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(f"lm-{family}")
            (folder / "train.txt").write_text("\n".join(LINES * 20) + "\n", encoding="utf-8")
            tokenizer = tiny.make_tokenizer()
            if family in ("gpt2", "llama"):  # texts are continued, so no token may end them
                post = processors.TemplateProcessing(single="[CLS] $A", pair="$A $B", special_tokens=[("[CLS]", 2)])
                tokenizer.backend_tokenizer.post_processor = post
            tiny.make_backbone(folder / "backbone", family)
            tokenizer.save_pretrained(folder / "backbone")
            settings = {
                "task.kind": "model_language",
                "output_dir": str(folder),
                "model.backbone": str(folder / "backbone"),
                "data.train": [str(folder / "train.txt")],
                "data.label_column": None,
                "data.max_length": 16,
                "train.epochs": 4,
                "train.learning_rate": 1e-2,
                "train.batch_size": 4,
                "train.precision": "fp32",
                "tracking.trackers": [],
            }
            if family in ("gpt2", "llama"):
                settings["task.max_target_length"] = 6
            made[family] = finetune(load_config(settings, [])).run_dir
        return made[family]

    return make


PROMPTS = ["the", "a big dog here", "one red", "fish", "the cat a big dog", "now"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_text_generated_in_a_batch_equals_text_generated_alone_and_by_the_pipeline(
    trained: Callable[[str], Path], family: str
) -> None:
    predictor = Predictor.from_pretrained(str(trained(family)))
    rows = [{"text": prompt} for prompt in PROMPTS]
    together = list(predictor.predict(rows))
    assert together == [next(iter(predictor.predict([row]))) for row in rows]
    pipe = transformers.pipeline("text-generation", model=str(trained(family) / "model"))
    for row in together:
        (answer,) = pipe(row["text"], do_sample=False)  # its length is in the exported generation settings
        assert answer["generated_text"] == row["text"] + row["continuation"]
    assert len({row["continuation"] for row in together}) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(trained(family) / "model")
    assert model.generation_config.max_new_tokens == 6
    assert not model.generation_config.do_sample


def test_a_prompt_longer_than_the_positions_is_cut_at_its_beginning(trained: Callable[[str], Path]) -> None:
    predictor = Predictor.from_pretrained(str(trained("gpt2")))
    words = " ".join(["fish cat"] * 40 + PROMPTS[1:2] * 20)
    (whole,) = predictor.predict([{"text": words}])
    last = words.split()[-60:]  # 66 positions, 6 of them for generated tokens
    ids = torch.tensor([predictor.tokenizer.convert_tokens_to_ids(last)])
    generated = predictor.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert (
        whole["continuation"].split() == predictor.tokenizer.decode(generated[0, 60:], skip_special_tokens=True).split()
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
        answer = pipe(row["text"])
        by_mask = answer if len(row["fills"]) > 1 else [answer]
        for ours, theirs in zip(row["fills"], by_mask, strict=True):
            assert [fill["token"] for fill in ours] == [fill["token_str"] for fill in theirs]
            assert [fill["score"] for fill in ours] == pytest.approx([fill["score"] for fill in theirs], rel=1e-4)
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


def test_a_text_without_words_or_masks_cannot_be_predicted(trained: Callable[[str], Path]) -> None:
    causal, masked = (Predictor.from_pretrained(str(trained(family))) for family in ("gpt2", "bert"))
    with pytest.raises(InputError, match=r"rows\[1\]: text is empty; the model needs a text to continue"):
        causal.predict([{"text": "a"}, {"text": " "}])
    with pytest.raises(InputError, match=r"rows\[0\]: text has no \[MASK\], the mask token to fill in"):
        masked.predict([{"text": "the cat"}])
    for predictor in (causal, masked):
        with pytest.raises(InputError, match="--text: takes one text, not 2"):
            predictor.task.columns.make_row(["a", "b"])
        assert "language modelling" in predictor.task.describe_for_card()


def test_a_model_made_elsewhere_is_a_language_model(backbones: Callable[..., Path], tmp_path: Path) -> None:
    for family, problem in (("gpt2", "causal"), ("bert", "masked")):
        make_model(family).save_pretrained(tmp_path / family)
        tiny.make_tokenizer().save_pretrained(tmp_path / family)
        task = Predictor.from_pretrained(str(tmp_path / family)).task
        assert isinstance(task, LanguageModelling)
        assert task.problem == problem


# --- GGUF -----------------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_a_backbone(lm: MakeConfig, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = make_model("llama", seed=3)
    path = tmp_path / "model.gguf"
    write_gguf(path, model)
    config = lm(**{"model.backbone": str(path)})
    task, features = encode(config, tiny.make_tokenizer())
    assert ("objective", "causal: the backbone is a LlamaForCausalLM") in task.encoding.describe(features, None, 8)
    tokenizer = backbone.load_tokenizer(config.model)
    assert tokenizer.convert_tokens_to_ids("hammer") == tiny.VOCABULARY.index("hammer")
    loaded = backbone.load_backbone(config.model, task.head, tokenizer)
    assert not loaded.new_parameters
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits)
        loaded.model.save_pretrained(tmp_path / "saved")  # which refuses what it holds for quantized
        saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(saved(ids).logits, model(ids).logits)


def test_a_gguf_file_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(
        InputError, match=r"model.backbone .*model.gguf\): a GGUF file needs the package gguf: pip install"
    ):
        backbone.load_tokenizer(ModelConfig(backbone=str(tmp_path / "model.gguf")))
