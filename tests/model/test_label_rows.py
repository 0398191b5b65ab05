"""A pretrained head gives its rows to the labels with the same names, and to no others."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny

from hf_finetune.config.sections import ModelConfig
from hf_finetune.model import backbone
from hf_finetune.model.backbone import Backbone
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.tasks.classify import make_config_entries
from hf_finetune.tasks.text.label_index import spell_label

OLD = ("ABBR", "DESC", "HUM", "LOC")
KINDS = {"sequence": "AutoModelForSequenceClassification", "token": "AutoModelForTokenClassification"}


def save_trained(folder: Path, family: str, labels: Sequence[str], kind: str = "sequence", **entries: Any) -> Path:
    """Saves a model of a family with a head for these labels, and its tokenizer."""
    torch.manual_seed(3)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    config = tiny.make_config(family, num_labels=len(labels), **names, **entries)
    model = getattr(transformers, KINDS[kind]).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(folder)
    tiny.make_tokenizer(ends_only=family in ("t5", "bart")).save_pretrained(folder)
    return folder


def load(
    folder: Path, labels: Sequence[str], kind: str = "sequence", problem: str = "single_label", seed: int = 0
) -> Backbone:
    """Loads the model with a head for other labels, as a run does."""
    torch.manual_seed(seed)
    head = HeadSpec(
        auto_class=KINDS[kind],
        config_entries=make_config_entries(problem, labels),
        has_labels=True,
        spell_label=partial(spell_label, names=labels),
    )
    config = ModelConfig(backbone=str(folder))
    return backbone.load_backbone(config, head, backbone.load_tokenizer(config))


def find_rows(before: Any, after: Any, count_before: int, count_after: int) -> dict[str, list[int | None]]:
    """For each parameter with a row a label: which old row each new row equals, None if none."""
    old, found = dict(before.named_parameters()), {}
    for name, tensor in after.named_parameters():
        if len(tensor) == count_after and len(old[name]) == count_before and "embed" not in name:
            matches = [[number for number, other in enumerate(old[name]) if torch.equal(row, other)] for row in tensor]
            found[name] = [rows[0] if rows else None for rows in matches]
    return found


@pytest.mark.parametrize(
    "family", ["bert", "distilbert", "roberta", "deberta-v2", "gpt2", "llama", "t5", "bart", "albert"]
)
@pytest.mark.parametrize(
    ("new", "rows", "line"),
    [
        (OLD, [0, 1, 2, 3], "reused: the backbone's labels are the same 4"),
        (("LOC", "HUM", "DESC", "ABBR"), [3, 2, 1, 0], "4 of 4 labels reused by name, in another order"),
        (("DESC", "HUM", "LOC", "ZZZ"), [1, 2, 3, None], "3 of 4 labels reused by name, 1 new (ZZZ); 1 of the backbone's labels "
         "dropped (ABBR)"),
        (("HUM", "LOC"), [2, 3], "2 of 2 labels reused by name; 2 of the backbone's labels dropped (ABBR, DESC)"),
        ((*OLD, "NEW"), [0, 1, 2, 3, None], "4 of 5 labels reused by name, 1 new (NEW)"),
        (("a", "b", "c", "d"), [None] * 4, "new: the backbone's head has other labels (ABBR, DESC, HUM, LOC)"),
        (("a", "b"), [None] * 2, "new: the backbone's head has other labels (ABBR, DESC, HUM, LOC)"),
    ],
    ids=["same", "moved", "shifted", "fewer", "more", "renamed", "renamed-fewer"],
)  # fmt: skip
def test_rows_go_by_name(tmp_path: Path, family: str, new: tuple[str, ...], rows: list[int | None], line: str) -> None:
    folder = save_trained(tmp_path, family, OLD)
    loaded = load(folder, new)
    before = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    found = find_rows(before, loaded.model, len(OLD), len(new))
    weights = {name: numbers for name, numbers in found.items() if name.endswith("weight")}
    assert len(weights) == 1
    assert list(weights.values()) == [rows]
    # A new bias may be 0, as are all of a new head
    biases = [numbers for name, numbers in found.items() if name.endswith("bias")]
    assert all(number in (None, row) for numbers in biases for number, row in zip(numbers, rows, strict=True))
    assert loaded.head_line == line
    assert loaded.new_parameters == (frozenset() if list(rows) == [0, 1, 2, 3] else frozenset(found))
    assert tuple(loaded.model.config.id2label.values()) == new
    assert loaded.model.config.label2id == {name: number for number, name in enumerate(new)}
    old = dict(before.named_parameters())
    others = [name for name, _ in loaded.model.named_parameters() if name not in found]
    assert all(torch.equal(old[name], tensor) for name, tensor in loaded.model.named_parameters() if name in others)


@pytest.mark.parametrize("new", [("DESC", "HUM", "LOC", "ZZZ"), ("a", "b", "c", "d"), ("HUM", "ZZZ"), ("a", "b")])
def test_new_rows_depend_on_the_seed_alone(tmp_path: Path, new: tuple[str, ...]) -> None:
    folder = save_trained(tmp_path, "bert", OLD)
    first, again, other = (load(folder, new, seed=seed).model.classifier.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.detach()[-1].std() == pytest.approx(0.02, rel=0.5)  # BertConfig.initializer_range


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1", "LABEL_2"), ("LABEL_0", "LABEL_1")])
def test_a_head_without_names_is_new(tmp_path: Path, labels: tuple[str, ...]) -> None:
    loaded = load(save_trained(tmp_path, "bert", labels), ("a", "b", "c"))
    assert loaded.head_line == f"new: the labels of the backbone's head have no names ({', '.join(labels)})"
    assert loaded.new_parameters == {"classifier.weight", "classifier.bias"}
    assert not loaded.model.classifier.bias.any()


def test_a_name_that_the_head_has_twice_is_new(tmp_path: Path) -> None:
    loaded = load(save_trained(tmp_path, "bert", ("a", "b", "a")), ("a", "b", "c"))
    assert loaded.head_line.startswith("1 of 3 labels reused by name, 2 new (a, c)")


def test_numbers_and_labels_do_not_share_a_head(tmp_path: Path) -> None:
    number = save_trained(tmp_path / "number", "bert", ("score",), problem_type="regression")
    assert load(number, ("score",), problem="regression").head_line == "reused: one number"
    assert not load(number, ("score",), problem="regression").new_parameters
    assert load(number, ("a", "b")).head_line == "new: the backbone's head predicts a number"
    labels = save_trained(tmp_path / "labels", "bert", ("a", "b"))
    assert load(labels, ("score",), problem="regression").head_line == "new: the backbone's head predicts labels (a, b)"


def test_labels_of_another_problem_are_reused_with_a_word(tmp_path: Path) -> None:
    folder = save_trained(tmp_path, "bert", ("a", "b", "c"), problem_type="multi_label_classification")
    loaded = load(folder, ("a", "b"))
    assert loaded.head_line.endswith("; it was trained on multi_label problems, and this one is single_label")
    assert load(folder, ("x", "y")).head_line == "new: the backbone's head has other labels (a, b, c)"


def test_tags_go_by_their_full_names(tmp_path: Path) -> None:
    old, new = ("O", "B-PER", "I-PER"), ("O", "B-PER", "I-PER", "E-PER", "S-PER")
    folder = save_trained(tmp_path, "distilbert", old, "token")
    loaded = load(folder, new, "token")
    before = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    assert find_rows(before, loaded.model, 3, 5)["classifier.weight"] == [0, 1, 2, None, None]
    assert loaded.head_line == "3 of 5 labels reused by name, 2 new (E-PER, S-PER)"


def test_another_kind_of_head_and_no_head_are_new_without_a_line(
    tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    folder = save_trained(tmp_path, "bert", OLD, "token")
    for source in (folder, backbones("bert")):
        loaded = load(source, ("a", "b"))
        assert loaded.head_line == ""
        assert {"classifier.weight", "classifier.bias"} <= loaded.new_parameters


def test_a_config_that_promises_a_head_is_not_believed(tmp_path: Path, backbones: Callable[..., Path]) -> None:
    """The files of a model without a head, under the config of a classifier."""
    folder = save_trained(tmp_path, "bert", OLD)
    (folder / "model.safetensors").write_bytes((backbones("bert") / "model.safetensors").read_bytes())
    loaded = load(folder, OLD)
    assert loaded.head_line == ""
    assert {"classifier.weight", "classifier.bias"} <= loaded.new_parameters


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("11.0", "2.0", "3.0"), ("2", "3", "11")),
        (("True", "False"), ("false", "true")),
        (("pos ", " neg"), ("neg", "pos")),
        (("the\u0301", "caf\u00e9"), ("caf\u00e9", "th\u00e9")),
    ],
)
@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_labels_are_found_in_another_form(
    tmp_path: Path, old: tuple[str, ...], new: tuple[str, ...], problem: str
) -> None:
    folder = save_trained(tmp_path, "bert", old)
    loaded = load(folder, new, problem=problem)
    before = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    places = [[spell_label(name, new) for name in old].index(name) for name in new]
    assert find_rows(before, loaded.model, len(old), len(new))["classifier.weight"] == places
    assert loaded.head_line.startswith(f"{len(new)} of {len(new)} labels reused by name")
    assert tuple(loaded.model.config.id2label.values()) == new
    assert loaded.model.config.problem_type == f"{problem}_classification"


def test_a_label_that_is_none_of_the_names_stays_as_it_is() -> None:
    assert spell_label("Positive", ("positive", "negative")) == "Positive"
    assert spell_label("2.0", ("1.5", "2.0")) == "2.0"


@pytest.mark.parametrize(
    "auto_class", ["AutoModelForTokenClassification", "AutoModelForQuestionAnswering", "AutoModel"]
)
def test_the_problem_of_the_backbone_is_not_kept_by_other_tasks(tmp_path: Path, auto_class: str) -> None:
    folder = save_trained(tmp_path, "bert", OLD, problem_type="multi_label_classification")
    config = ModelConfig(backbone=str(folder))
    loaded = backbone.load_backbone(config, HeadSpec(auto_class=auto_class), backbone.load_tokenizer(config))
    assert loaded.model.config.problem_type is None
    loaded.model.save_pretrained(tmp_path / "out")
    assert "multi_label" not in (tmp_path / "out" / "config.json").read_text()
