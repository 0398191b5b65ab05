"""What trains, what is constant, and what `inspect` prints about it, in every family of tests/support/tiny.py."""

import copy
import csv
import dataclasses
import io
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from torch import nn

from hf_finetune.config.sections import DataConfig, FreezeConfig, ModelConfig, RunConfig
from hf_finetune.data.features import Features, Padding
from hf_finetune.model import freezing, parameter_table, structure
from hf_finetune.model.backbone import set_dropout
from hf_finetune.model.freezing import FreezePlan
from hf_finetune.system.errors import InputError
from hf_finetune.system.limited import HAS_LIMITS
from hf_finetune.system.processes import SingleProcess
from hf_finetune.tasks.classify import Classification
from hf_finetune.tasks.classify_columns import Settings
from hf_finetune.training.evaluation import ModelRunner

LAYERS = 3
IDS = torch.tensor([[5, 6, 7, 8, 9, 3], [25, 10, 11, 12, 30, 3]])

# family -> part -> parameters of the transformers model, by the starts of their names
HEAD = ("classifier.",)
BERT_PARTS = {
    "embeddings": ("bert.embeddings.",),
    "blocks": "bert.encoder.layer",
    "pooler": ("bert.pooler.",),
    "head": HEAD,
}
ROBERTA_PARTS = {"embeddings": ("roberta.embeddings.",), "blocks": "roberta.encoder.layer", "head": HEAD}
LLAMA_PARTS = {
    "embeddings": ("model.embed_tokens.",), "blocks": "model.layers", "norm": ("model.norm.",), "head": ("score.",),
}  # fmt: skip
PARTS: dict[str, dict[str, Any]] = {
    "bert": BERT_PARTS,
    "roberta": ROBERTA_PARTS,
    "xlm-roberta": ROBERTA_PARTS,
    "camembert": ROBERTA_PARTS,
    "distilbert": {
        "embeddings": ("distilbert.embeddings.",),
        "blocks": "distilbert.transformer.layer",
        "head": ("pre_classifier.", "classifier."),
    },
    "electra": {
        "embeddings": ("electra.embeddings.", "electra.embeddings_project."),
        "blocks": "electra.encoder.layer",
        "head": HEAD,
    },
    "deberta-v2": {
        # rel_embeddings feed every block, and conv mixes the embeddings into the output of block 0
        "embeddings": ("deberta.embeddings.", "deberta.encoder.rel_embeddings.", "deberta.encoder.conv."),
        "blocks": "deberta.encoder.layer",
        "head": ("pooler.", "classifier."),
    },
    "mpnet": {
        "embeddings": ("mpnet.embeddings.", "mpnet.encoder.relative_attention_bias."),
        "blocks": "mpnet.encoder.layer",
        "head": HEAD,
    },
    "modernbert": {
        "embeddings": ("model.embeddings.",),
        "blocks": "model.layers",
        "final_norm": ("model.final_norm.",),
        "head": ("head.", "classifier."),
    },
    "albert": {
        "embeddings": ("albert.embeddings.", "albert.encoder.embedding_hidden_mapping_in."),
        "blocks": "albert.encoder.albert_layer_groups",
        "pooler": ("albert.pooler.",),
        "head": HEAD,
    },
    "gpt2": {
        "embeddings": ("transformer.wte.", "transformer.wpe."),
        "blocks": "transformer.h",
        "ln_f": ("transformer.ln_f.",),
        "head": ("score.",),
    },
    "llama": LLAMA_PARTS,
    "qwen2": LLAMA_PARTS,
    "qwen3": LLAMA_PARTS,
    "t5": {
        "embeddings": ("transformer.shared.",),
        "blocks": "transformer.encoder.block",
        "encoder": ("transformer.encoder.final_layer_norm.",),
        "decoder": ("transformer.decoder.",),
        "head": ("classification_head.",),
    },
    "bart": {
        "embeddings": ("model.shared.", "model.encoder.embed_positions.", "model.encoder.layernorm_embedding."),
        "blocks": "model.encoder.layers",
        "decoder": ("model.decoder.",),
        "head": ("classification_head.",),
    },
}
FAMILIES = sorted(tiny.FAMILIES)
LAYERED = [family for family in FAMILIES if family != "albert"]
DEPTHS = [(family, count) for family in LAYERED for count in (0, 1, 2, 3)] + [("albert", 0), ("albert", 1)]


def make_dropping(family: str, probability: float = 0.4) -> Any:
    """A model of a family in which all dropout has this probability."""
    config = tiny.make_config(family, layers=LAYERS, num_labels=3)
    set_dropout(config, probability)
    for name in ("encoder_layerdrop", "decoder_layerdrop"):  # leaves out entire blocks
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return tiny.make_model(family, layers=LAYERS, **{k: v for k, v in vars(config).items() if "drop" in k})


def make_frozen(family: str, model: Any, **settings: Any) -> FreezePlan:
    """Freezes the model as the settings say, and puts it into train mode."""
    plan = freezing.apply_freezing(model, FreezeConfig(**settings))
    freezing.set_train_mode(model, freezing.find_eval_modules(model))
    return plan


def forward(model: Any, *, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def boundary_outputs(
    model: Any, count: int, *, seeds: tuple[int, ...]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Returns the input of block `count` (the output of the last block if there is none), and the logits, for each seed."""
    _, stack = structure.find_stack(model)
    values: list[torch.Tensor] = []

    def keep_input(_: nn.Module, arguments: Any, keywords: Any) -> None:
        values.append((arguments[0] if arguments else keywords["hidden_states"]).detach().clone())

    def keep_output(_: nn.Module, arguments: Any, output: Any) -> None:
        values.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    if count < len(stack):
        handle = stack[count].register_forward_pre_hook(keep_input, with_kwargs=True)
    else:
        handle = stack[-1].register_forward_hook(keep_output)
    boundary, logits = [], []
    for seed in seeds:
        values.clear()
        logits.append(forward(model, seed=seed).detach())
        boundary.append(values[-1] if count == len(stack) else values[0])  # a shared block runs several times
    handle.remove()
    return boundary, logits


# --- structure --------------------------------------------------------------------------------------------------------


def test_every_family_has_its_parts_listed_here() -> None:
    assert set(PARTS) == set(tiny.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_parameter_is_in_exactly_one_part(family: str) -> None:
    model = tiny.make_model(family, layers=LAYERS)
    parts = structure.analyze_structure(model).parts()
    listed = [name for names in parts.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert next(iter(parts)) == "embeddings"
    assert list(parts)[-1] == "head"


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_those_of_the_family(family: str) -> None:
    model = tiny.make_model(family, layers=LAYERS)
    names = [name for name, _ in model.named_parameters()]
    expected = dict(PARTS[family])
    stack = expected.pop("blocks")
    parts = structure.analyze_structure(model)

    assert parts.stack_name == stack
    assert len(parts.blocks) == (1 if family == "albert" else LAYERS)
    assert parts.shared == (family == "albert")
    for number, block in enumerate(parts.blocks):
        assert sorted(block) == sorted(name for name in names if name.startswith(f"{stack}.{number}."))
    found = {"embeddings": parts.embeddings, **parts.rest}
    assert {part: sorted(members) for part, members in found.items()} == {
        part: sorted(name for name in names if name.startswith(beginnings)) for part, beginnings in expected.items()
    }
    assert parts.unused == ()


def test_a_parameter_that_no_output_depends_on_is_unused_and_does_not_train() -> None:
    model = tiny.make_model("bert")
    model.bert.never_run = nn.Linear(2, 2)
    plan = freezing.apply_freezing(model, FreezeConfig())
    assert plan.structure.unused == ("bert.never_run.weight", "bert.never_run.bias")
    assert plan.frozen == {"bert.never_run.weight", "bert.never_run.bias"}
    assert not model.bert.never_run.weight.requires_grad
    assert plan.table()[-1] == ("unused", 6, "frozen")


def test_a_model_without_a_stack_of_blocks_is_an_error() -> None:
    model = tiny.make_model("bert")
    model.bert.encoder.layer = nn.Sequential(*model.bert.encoder.layer)
    with pytest.raises(InputError, match="freeze: BertForSequenceClassification has no stack of blocks"):
        structure.analyze_structure(model)


def test_a_stack_that_no_forward_runs_is_an_error() -> None:
    model = tiny.make_model("bert")
    model.spare = nn.ModuleList([nn.Linear(500, 500), nn.Linear(500, 500)])  # heavier than the real one
    with pytest.raises(InputError, match="does not run its stack spare"):
        structure.analyze_structure(model)


def test_analyzing_and_freezing_change_no_mode_weight_or_hook() -> None:
    model = tiny.make_model("bert").train()
    before = copy.deepcopy(model.state_dict())
    freezing.apply_freezing(model, FreezeConfig(embeddings=True))
    freezing.find_eval_modules(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- what is frozen stays, the rest trains --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_updates_change_every_trainable_parameter_and_no_bit_of_a_frozen_one(family: str) -> None:
    model = make_dropping(family, 0.1)
    count = 1 if family == "albert" else 2
    plan = make_frozen(family, model, embeddings=True, layers=count)
    expected = {*plan.structure.embeddings, *(name for block in plan.structure.blocks[:count] for name in block)}
    assert plan.frozen == expected
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == expected

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for seed in (1, 2):  # twice: some biases get their first gradient from the new weights
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(model, seed=seed), torch.tensor([0, 2])).backward()
        optimizer.step()

    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(before) - expected
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name in expected)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(("family", "count"), DEPTHS)
def test_the_prefix_is_constant_in_training_while_the_blocks_above_drop_out(family: str, count: int) -> None:
    model = make_dropping(family)
    plan = make_frozen(family, model, embeddings=True, layers=count)
    assert plan.num_prefix_blocks == count

    boundary, logits = boundary_outputs(model, count, seeds=(1, 2))
    assert torch.equal(boundary[0], boundary[1])
    without_dropout_above = {"gpt2", "llama", "qwen2", "qwen3"}  # no dropout above their blocks
    if not (family in without_dropout_above and count == LAYERS):
        assert not torch.equal(logits[0], logits[1])

    model.eval()
    (evaluated,), _ = boundary_outputs(model, count, seeds=(3,))
    assert torch.equal(boundary[0], evaluated)  # constant, and the pretrained model's own value


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("llama", "qwen2", "qwen3")])
def test_if_the_embeddings_train_nothing_is_constant_and_their_dropout_is_on(family: str) -> None:
    model = make_dropping(family)
    plan = make_frozen(family, model, layers=1)
    assert plan.num_prefix_blocks == -1
    boundary, _ = boundary_outputs(model, 0, seeds=(1, 2))
    assert not torch.equal(boundary[0], boundary[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_trainable_blocks_and_head_stays_on(family: str) -> None:
    model = make_dropping(family)
    count = 0 if family == "albert" else 1
    make_frozen(family, model, embeddings=True, layers=count)
    _, stack = structure.find_stack(model)
    above = [module for block in stack[count:] for module in block.modules()]
    above += [
        module
        for name, child in model.named_children()
        if name != model.base_model_prefix
        for module in child.modules()
    ]
    assert above
    assert all(module.training for module in above)
    assert not any(module.training for block in stack[:count] for module in block.modules())


def test_frozen_modules_are_in_eval_mode_after_every_set_train_mode() -> None:
    model = make_dropping("bert")
    freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=2))
    eval_modules = freezing.find_eval_modules(model)
    frozen = [model.bert.embeddings, *model.bert.encoder.layer[:2]]
    for _ in range(2):
        model.train()
        assert all(module.training for module in model.modules())
        freezing.set_train_mode(model, eval_modules)
        assert not any(module.training for part in frozen for module in part.modules())
        assert all(module.training for module in model.bert.encoder.layer[2].modules())
        assert model.classifier.training
        model.eval()


def test_dropout_between_a_frozen_word_embedding_and_a_trainable_norm_stays_on() -> None:
    model = make_dropping("bert")
    plan = make_frozen("bert", model, patterns=("word_embeddings",))
    assert plan.num_prefix_blocks == -1
    assert model.bert.embeddings.dropout.training
    assert not model.bert.embeddings.word_embeddings.training


def test_an_evaluation_restores_the_mode_of_every_module() -> None:
    model = make_dropping("bert")
    make_frozen("bert", model, embeddings=True, layers=1)
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    features = Features(
        inputs={"input_ids": IDS.flatten().numpy().astype(np.int32)},
        offsets=np.array([0, 6, 12]),
        labels=np.array([0, 1]),
        num_truncated=0,
    )
    config = RunConfig(
        model=ModelConfig(backbone="-"),
        data=DataConfig(train=("-",), text_columns=("text",), label_column="label"),
        task=Settings(kind="classify"),
    )
    task = Classification.from_state(config, {"problem": "single_label", "labels": ("a", "b", "c")})
    runner = ModelRunner(
        model=model,
        tokenizer=None,
        task=task,
        features=features,
        processes=SingleProcess(device=torch.device("cpu")),
        padding=Padding(0),
        batch_size=2,
    )
    indices = np.arange(2)
    first = runner.compute_outputs(indices)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert np.array_equal(first.outputs, runner.compute_outputs(indices).outputs)

    objective = dataclasses.replace(task.objective, label_smoothing=9)  # type: ignore[type-var]
    wrong = dataclasses.replace(runner, task=dataclasses.replace(task, objective=objective))
    with pytest.raises(RuntimeError, match="label_smoothing"):
        wrong.compute_outputs(indices)
    assert {name: module.training for name, module in model.named_modules()} == modes


# --- what freeze.layers and freeze.patterns mean --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "value", "count"),
    [
        (6, 0, 0), (6, 4, 4), (6, 6, 6), (6, -1, 5), (6, -6, 0), (6, "all", 6), (6, "2/3", 4), (6, "0/1", 0),
        (6, "6/6", 6), (3, "1/2", 2), (3, "1/3", 1), (4, "1/3", 1), (12, "2/3", 8), (1, "1/3", 0),
    ],
)  # fmt: skip
def test_freeze_layers_counts_blocks_from_the_bottom(depth: int, value: int | str, count: int) -> None:
    model = tiny.make_model("bert", layers=depth)
    plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=value))
    assert plan.num_prefix_blocks == count
    frozen = [name for name in plan.frozen if ".layer." in name]
    assert {int(name.split(".layer.")[1].split(".")[0]) for name in frozen} == set(range(count))


@pytest.mark.parametrize("value", [4, -4])
def test_more_blocks_than_there_are_is_an_error(value: int) -> None:
    with pytest.raises(InputError, match=rf"freeze\.layers \({value}\): this backbone has 3 blocks$"):
        freezing.apply_freezing(tiny.make_model("bert", layers=3), FreezeConfig(layers=value))


@pytest.mark.parametrize(("value", "frozen"), [("all", True), ("3/3", True), (1, True), (0, False), ("0/3", False)])
def test_all_or_nothing_of_alberts_shared_block_is_frozen(value: int | str, frozen: bool) -> None:
    plan = freezing.apply_freezing(tiny.make_model("albert", layers=3), FreezeConfig(layers=value))
    assert set(plan.structure.blocks[0]) & plan.frozen == (set(plan.structure.blocks[0]) if frozen else set())


@pytest.mark.parametrize("value", ["2/3", 2, -2])
def test_a_part_of_alberts_shared_block_is_an_error_that_says_why(value: int | str) -> None:
    with pytest.raises(InputError, match=r"freeze\.layers .*one shared block many times.*\"all\".*none of it"):
        freezing.apply_freezing(tiny.make_model("albert", layers=3), FreezeConfig(layers=value))


def test_patterns_freeze_what_they_match_anywhere_in_a_name() -> None:
    model = tiny.make_model("bert")
    plan = freezing.apply_freezing(model, FreezeConfig(patterns=(r"LayerNorm", r"layer\.1\..*query\.weight$")))
    expected = {name for name, _ in model.named_parameters() if "LayerNorm" in name}
    expected.add("bert.encoder.layer.1.attention.self.query.weight")
    assert plan.frozen == expected


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match=r"freeze\.patterns \(encoder\.h\.0\): matches no parameter \(.*bert\.emb"):
        freezing.apply_freezing(tiny.make_model("bert"), FreezeConfig(patterns=("LayerNorm", "encoder.h.0")))


@pytest.mark.skipif(not HAS_LIMITS, reason="there are no limits on this system")
@pytest.mark.parametrize("pattern", [r"(\w+\.?)+!", r"((.*)*)*x!"])
def test_a_pattern_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr(freezing, "SECONDS_TO_MATCH", 0.5)
    message = rf"^freeze\.patterns \({re.escape(pattern)}\): took more than 0\.5 seconds to match the names; write it"
    with pytest.raises(InputError, match=message):
        freezing.apply_freezing(tiny.make_model("bert"), FreezeConfig(patterns=("LayerNorm", pattern)))


@pytest.mark.parametrize(
    "settings", [{"patterns": (".",)}, {"embeddings": True, "layers": "all", "patterns": ("pooler|class",)}]
)
def test_freezing_everything_is_an_error_and_changes_nothing(settings: dict[str, Any]) -> None:
    model = tiny.make_model("bert")
    with pytest.raises(InputError, match="everything would be frozen, the head too"):
        freezing.apply_freezing(model, FreezeConfig(**settings))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_blocks_above_trainable_ones_are_frozen_but_not_a_prefix() -> None:
    model = make_dropping("bert")
    plan = make_frozen("bert", model, embeddings=True, patterns=(r"layer\.2\.",))
    assert plan.num_prefix_blocks == 0
    assert not any(module.training for module in model.bert.encoder.layer[2].modules())
    assert all(module.training for module in model.bert.encoder.layer[1].modules())


# --- plan and inspect -----------------------------------------------------------------------------------------------


def test_the_plan_counts_every_parameter_once() -> None:
    model = tiny.make_model("t5", layers=LAYERS)  # three names for one embedding
    plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=2))
    assert plan.num_total == sum(parameter.numel() for parameter in model.parameters())
    assert plan.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(size for _, size, _ in plan.table()) == plan.num_total


def test_the_plans_table_joins_blocks_that_are_alike_and_shows_what_trains() -> None:
    model = tiny.make_model("bert", layers=5)
    config = FreezeConfig(embeddings=True, layers=2, patterns=(r"layer\.4\..*\.query\.",))
    plan = freezing.apply_freezing(model, config)
    table = {part: (size, state) for part, size, state in plan.table()}
    block = sum(parameter.numel() for parameter in model.bert.encoder.layer[0].parameters())
    assert list(table) == ["embeddings", "blocks 0-1", "blocks 2-3", "block 4", "pooler", "head"]
    assert table["blocks 0-1"] == (2 * block, "frozen")
    assert table["blocks 2-3"] == (2 * block, "trains")
    assert table["block 4"] == (block, f"{block - 32 * 32 - 32:,} train")
    text = plan.describe().splitlines()
    assert text[0].split() == ["embeddings", f"{table['embeddings'][0]:,}", "frozen"]
    assert text[-1].split()[:4] == ["total", f"{plan.num_total:,}", f"{plan.num_trainable:,}", "train"]


def test_the_plan_counts_by_part_for_the_results() -> None:
    model = tiny.make_model("bert", layers=5)
    plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=2, patterns=(r"layer\.4\..*\.query\.",)))
    rows = {row["part"]: (row["parameters"], row["trainable"]) for row in plan.count_by_part()}
    block = sum(parameter.numel() for parameter in model.bert.encoder.layer[0].parameters())
    assert list(rows) == ["embeddings", *(f"block {number}" for number in range(5)), "pooler", "head"]
    assert [rows[f"block {number}"] for number in (1, 2, 4)] == [(block, 0), (block, block), (block, block - 32 * 33)]
    assert [sum(column) for column in zip(*rows.values(), strict=True)] == [plan.num_total, plan.num_trainable]


@pytest.fixture
def inspected() -> tuple[Any, FreezePlan, list[dict[str, Any]]]:
    """A T5, which has tied embeddings, with a buffer; its plan and its rows."""
    model = tiny.make_model("t5", layers=2)
    model.register_buffer("scale", torch.zeros((), dtype=torch.float16))
    plan = freezing.apply_freezing(model, FreezeConfig(embeddings=True, layers=1))
    return model, plan, parameter_table.make_rows(model, plan)


def test_inspect_has_one_row_for_each_entry_of_the_state_dict(inspected: Any) -> None:
    model, plan, rows = inspected
    assert [row["name"] for row in rows] == list(model.state_dict())
    for row, tensor in zip(rows, model.state_dict().values(), strict=True):
        assert row["shape"] == list(tensor.shape)
        assert f"torch.{row['dtype']}" == str(tensor.dtype)
        assert row["bytes"] == tensor.nbytes
    by_name = {row["name"]: row for row in rows}
    tied = "frozen, tied to transformer.shared.weight"
    assert by_name["transformer.shared.weight"]["state"] == "frozen"
    for side in ("encoder", "decoder"):
        row = by_name[f"transformer.{side}.embed_tokens.weight"]
        assert (row["state"], row["part"]) == (tied, "embeddings")
    assert (by_name["scale"]["state"], by_name["scale"]["part"]) == ("buffer", "buffers")
    assert by_name["transformer.encoder.block.0.layer.0.SelfAttention.q.weight"]["state"] == "frozen"
    assert by_name["transformer.encoder.block.1.layer.0.SelfAttention.q.weight"]["part"] == "block 1"
    assert by_name["classification_head.out_proj.weight"]["state"] == "trains"

    own = [row for row in rows if row["state"] in ("trains", "frozen")]
    assert sum(row["bytes"] for row in own) == 4 * plan.num_total
    assert sum(row["bytes"] for row in own if row["state"] == "trains") == 4 * plan.num_trainable


def test_inspect_as_json_reads_back_to_the_rows_and_the_plan(inspected: Any) -> None:
    _, plan, rows = inspected
    read = json.loads(parameter_table.format_rows(rows, plan, "json"))
    assert read["entries"] == rows
    assert read["parameters"] == {"total": plan.num_total, "trainable": plan.num_trainable}
    assert [(part["part"], part["parameters"], part["state"]) for part in read["parts"]] == plan.table()


def test_inspect_as_csv_reads_back_to_the_rows(inspected: Any) -> None:
    _, plan, rows = inspected
    read = list(csv.DictReader(io.StringIO(parameter_table.format_rows(rows, plan, "csv"))))
    for row in read:
        row["shape"] = [int(size) for size in row["shape"].split("x") if size]  # type: ignore[assignment]
        row["bytes"] = int(row["bytes"])  # type: ignore[assignment]
    assert read == rows


def test_inspect_as_a_table_has_every_entry_and_the_totals_by_part(inspected: Any) -> None:
    _, plan, rows = inspected
    entries, _, totals = parameter_table.format_rows(rows, plan, "table").partition("\n\nby part:\n")
    header, *lines = entries.splitlines()
    assert header.split() == ["name", "shape", "dtype", "bytes", "state"]
    for line, row in zip(lines, rows, strict=True):
        shape = "x".join(map(str, row["shape"])) or "scalar"
        assert line.split(maxsplit=4) == [row["name"], shape, row["dtype"], f"{row['bytes']:,}", row["state"]]
    assert totals == plan.describe()
