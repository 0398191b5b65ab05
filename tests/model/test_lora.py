"""LoRA through peft: where adapters go, that nothing else of training changes, and folders that other programs load."""

import copy
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny
from support.runs import assert_same_tensors, load_last_checkpoint, run_until

from hf_finetune import Predictor, cli
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import AdapterConfig, FreezeConfig, RunConfig
from hf_finetune.export import hub
from hf_finetune.export.materialize import materialize
from hf_finetune.forward import cached, dropout
from hf_finetune.forward.plan import find_forward_plan
from hf_finetune.model import backbone, freezing, lora, structure
from hf_finetune.model.backbone import Backbone
from hf_finetune.model.lora import PREFIX
from hf_finetune.run.setup import make_freeze_plan
from hf_finetune.system.errors import InputError
from hf_finetune.train import RunResult, finetune

MakeConfig = Callable[..., RunConfig]
LORA = {"adapter.kind": "lora", "adapter.rank": 4, "freeze.layers": 1, "train.learning_rate": 2e-2}
ROW = {"text": "a red cat"}


def make(family: str = "bert", layers: int = 2, frozen: int | str = 1, seed: int = 0, **settings: Any) -> Backbone:
    """Returns a small classifier with adapters above `frozen` blocks and a new head."""
    model = tiny.make_model(family, layers=layers)
    new = frozenset(name for name in structure.analyze_structure(model).rest.get("head", ()))
    loaded = Backbone(model=model, tokenizer=None, source="-", place="-", new_parameters=new)
    return lora.add_adapters(loaded, AdapterConfig(kind="lora", **settings), FreezeConfig(layers=frozen), seed)


def plan(loaded: Backbone, frozen: int | str = 1) -> freezing.FreezePlan:
    """Freezes all but the adapters and the head, and returns the plan."""
    loaded.model.requires_grad_(True)
    return make_freeze_plan(loaded, FreezeConfig(layers=frozen), structure.analyze_structure(loaded.model))


def list_layers(loaded: Backbone) -> list[str]:
    """Returns the names of the linear layers with adapters."""
    return sorted({name.partition(".lora_")[0] for name in loaded.adapter_parameters})


# --- where they go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "frozen", "inside"),
    [
        ("bert", 1, r"^bert\.encoder\.layer\.[12]\."),
        ("bert", 0, r"^bert\.encoder\.layer\.[012]\."),
        ("deberta-v2", 2, r"^deberta\.encoder\.layer\.2\."),
        ("modernbert", "2/3", r"^model\.layers\.2\."),
        ("llama", -1, r"^model\.layers\.2\."),
        ("gpt2", 1, r"^transformer\.h\.[12]\."),
        ("t5", 2, r"^transformer\.(encoder\.block\.2|decoder\.block\.[012])\."),
        ("bart", "all", r"^model\.decoder\.layers\.[01]\."),
        ("albert", 0, r"^albert\.encoder\.albert_layer_groups\.0\."),
    ],
)
def test_all_linear_layers_above_the_frozen_blocks_have_one_and_nothing_else_trains(
    family: str, frozen: int | str, inside: str
) -> None:
    bare = tiny.make_model(family, layers=3)
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    expected = [name for name, part in bare.named_modules() if isinstance(part, kinds) and re.match(inside, name)]
    assert len(expected) >= 4
    loaded = make(family, 3, frozen)
    assert list_layers(loaded) == sorted(expected)
    found = plan(loaded, frozen)
    assert found.trainable == loaded.adapter_parameters | loaded.new_parameters
    assert found.num_prefix_blocks >= 0
    assert type(loaded.model) is type(bare)
    before = bare.state_dict()  # under its own names, and untouched
    now = {name.replace(".base_layer.", "."): tensor for name, tensor in loaded.model.state_dict().items()}
    assert before.keys() == {name for name in now if "lora_" not in name}
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [
        ("bert", ("query", "value"), ["attention.self.query", "attention.self.value"]),
        ("bert", ("attention.output.dense",), ["attention.output.dense"]),
        ("gpt2", ("c_proj",), ["attn.c_proj", "mlp.c_proj"]),
    ],
)
def test_targets_are_names_or_the_ends_of_names(family: str, targets: tuple[str, ...], expected: list[str]) -> None:
    layers = list_layers(make(family, targets=targets))
    assert [name.split(".1.")[1] for name in layers] == expected


@pytest.mark.parametrize(
    ("targets", "frozen", "message"),
    [
        (("quary",), 1, "adapter.targets (quary): names nothing in the blocks above freeze.layers; their linear layers "
         "are called query, key, value, dense"),
        (("query", "LayerNorm"), 1, "adapter.targets (LayerNorm): is a LayerNorm; LoRA is for linear layers: query, key, value, "
         "dense"),
        (("attention",), 1, "adapter.targets (attention): is a BertAttention; LoRA is for linear layers: query, key, value, "
         "dense"),
        (("classifier",), 1, "adapter.targets (classifier): names nothing in the blocks"),
        ((), "all", "freeze.layers (all): leaves no block for the adapters of adapter.kind (lora); freeze fewer"),
    ],
)  # fmt: skip
def test_targets_that_name_no_linear_layer_are_errors(
    targets: tuple[str, ...], frozen: int | str, message: str
) -> None:
    with pytest.raises(InputError) as error:
        make(targets=targets, frozen=frozen)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter.rank": 0}, "adapter.rank (0): must be at least 1"),
        ({"adapter.alpha": 0}, "adapter.alpha (0): must be at least 1"),
        ({"adapter.dropout": 1.0}, "adapter.dropout (1.0): must be in [0, 1)"),
        ({"adapter.targets": [""]}, "adapter.targets (['']): must not have an empty name"),
        ({"adapter.kind": "none", "adapter.merge": True}, "adapter.merge (True): must be used with adapter.kind lora"),
        ({"freeze.unfreeze": [{"epoch": 2, "layers": 0}]}, "freeze.unfreeze ([{'epoch': 2, 'layers': 0}]): must "
         "not be used with adapter.kind lora: pretrained weights stay frozen"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(
            {"task.kind": "classify", "model.backbone": "-", "data.train": ["-"], "adapter.kind": "lora", **settings}
        )


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        InputError, match=r"^adapter.kind \(lora\): needs the package peft: pip install 'hf-finetune\[lora\]'$"
    ):
        make()


def test_a_new_parameter_of_the_model_itself_is_refused() -> None:
    model = tiny.make_model()
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    assert lora.find_modules_to_save(model, ["classifier.weight", "classifier.bias"]) == ["classifier"]
    assert lora.find_modules_to_save(model, ["bert.pooler.dense.bias"]) == ["bert.pooler.dense"]  # with its old weight
    with pytest.raises(InputError, match=r"^adapter.kind \(lora\): scale is new and belongs to no module"):
        lora.find_modules_to_save(model, ["scale", "classifier.weight", "classifier.bias"])


def test_first_values_are_a_function_of_the_seed_and_change_no_output() -> None:
    def first(seed: int) -> dict[str, torch.Tensor]:
        loaded = make(seed=seed)
        return {name: loaded.model.get_parameter(name).detach() for name in sorted(loaded.adapter_parameters)}

    one, again, other = first(1), first(1), first(2)
    assert_same_tensors(one, again)
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
    batch = structure.make_probe_batch(tiny.make_model(), 5)
    with torch.no_grad():
        assert torch.equal(make().model.eval()(**batch).logits, tiny.make_model()(**batch).logits)


def test_the_freeze_table_shows_adapters_apart_from_what_trains_in_full() -> None:
    rows = plan(make(layers=4, frozen=2, rank=4), 2).table()
    each = 4 * (4 * (32 + 32) + 2 * (32 + 64))  # rank x (inputs + outputs): attention's four, the MLP's two
    assert [row[::2] for row in rows] == [
        ("embeddings", "frozen"), ("blocks 0-1", "frozen"), ("blocks 2-3", f"{2 * each:,} of adapters train"),
        ("pooler", "frozen"), ("head", "trains"),
    ]  # fmt: skip


# --- what does not change ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("family", "targets"),
    [("bert", ()), ("bert", ("query", "dense")), ("bert", ("dense",)), ("deberta-v2", ()), ("distilbert", ()),
     ("llama", ()), ("modernbert", ()), ("t5", ())],
)  # fmt: skip
def test_a_forward_plan_changes_nothing_of_a_model_with_trained_adapters(
    family: str, targets: tuple[str, ...], seed: int
) -> None:
    """It is found when adapters are new, and holds once they are trained."""
    frozen = "all" if family == "t5" else 1
    loaded = make(family, layers=3, frozen=frozen, targets=targets)
    found = plan(loaded, frozen)
    with lora.with_random_adapters(loaded):
        forward_plan, reason = find_forward_plan(loaded.model, found)
    assert reason == ""
    assert bool(forward_plan.first_token) == (family not in ("llama", "t5"))
    torch.manual_seed(seed)
    parameters = [loaded.model.get_parameter(name) for name in sorted(found.trainable)]
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0.0, 0.3)
    batch = structure.make_probe_batch(loaded.model, 9)
    assert forward_plan.cached is not None
    with torch.no_grad():
        states = forward_plan.cached.compute_activations(batch)
    expected = loaded.model(**batch).logits
    gradients = torch.autograd.grad(expected.square().sum(), parameters)
    with forward_plan.active(states):
        logits = loaded.model(**batch).logits
        mine = torch.autograd.grad(logits.square().sum(), parameters)
    assert cached.is_close(logits.detach(), expected.detach(), 1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for one, other in zip(mine, gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * largest


def test_random_adapters_change_the_output_and_are_taken_out_again() -> None:
    loaded = make()
    before = copy.deepcopy(loaded.model.state_dict())
    batch = structure.make_probe_batch(loaded.model, 5)
    with torch.no_grad(), lora.with_random_adapters(loaded):
        logits = loaded.model(**batch).logits
    with torch.no_grad():
        assert float((logits - loaded.model(**batch).logits).abs().max()) > 1e-4
    assert_same_tensors(dict(loaded.model.state_dict()), dict(before))


def test_dropout_of_a_block_with_adapters_stays_on_in_its_layers_without_adapters() -> None:
    """If only the attention of a block has adapters, the MLP is frozen, but its dropout is part of training the block."""
    loaded = make(layers=3, frozen=1, targets=("query",))
    plan(loaded)
    freezing.set_train_mode(loaded.model, freezing.find_eval_modules(loaded.model, has_adapters=True))
    blocks = loaded.model.bert.encoder.layer
    assert [block.output.dropout.training for block in blocks] == [False, True, True]
    assert not loaded.model.bert.embeddings.dropout.training
    masks = dropout.choose_masks(
        "stateless", 0, loaded.model, freezing.find_eval_modules(loaded.model, has_adapters=True)
    )
    assert masks.is_stateless


@pytest.mark.slow
@pytest.mark.parametrize("content", ["full", "trainable"])
def test_a_stopped_run_ends_with_the_same_bits(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    settings = {**LORA, "adapter.dropout": 0.2, "checkpoint.every": 2, "checkpoint.content": content}
    whole, cut = (make_config(**settings, name=name) for name in ("whole", "cut"))
    finetune(whole)
    run_until(cut, 5, monkeypatch)
    finetune(cut)
    ours, theirs = load_last_checkpoint(cut.run_dir), load_last_checkpoint(whole.run_dir)
    for key in ("model_state_dict", "optimizer_state_dict", "metrics", "loss"):
        assert_same_tensors(ours[key], theirs[key], key)
    assert sum("lora_" in name for name in ours["model_state_dict"]) == 12
    assert any("base_layer" in name for name in ours["model_state_dict"]) == (content == "full")
    tensors = [load_file(each.run_dir / "model" / "adapter_model.safetensors") for each in (cut, whole)]
    assert_same_tensors(*tensors)


def test_a_run_cannot_resume_with_adapters_in_other_blocks(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(make_config(**LORA, **{"checkpoint.every": 1}), 2, monkeypatch)
    message = r"^freeze.layers \(0\): ckpt_\S+ has its adapters above 1; to train on from its weights, begin a new run"
    with pytest.raises(InputError, match=message):
        finetune(make_config(**LORA | {"freeze.layers": 0}))
    with pytest.raises(InputError, match=r"adapter.rank \(was 4, now 2\)"):
        finetune(make_config(**LORA | {"adapter.rank": 2}))


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> tuple[RunConfig, RunResult]:
    """A finished run with adapters on three classes, and its result."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(backbones("bert"), folder / "base")
    defaults: dict[str, Any] = {
        "output_dir": str(folder / "outputs"), "model.backbone": str(folder / "base"), "train.epochs": 2,
        "train.batch_size": 8, "tracking.trackers": [], "train.precision": "fp32", "cache.activations": "off",
    }  # fmt: skip
    for seed, split in enumerate(("train", "validation", "test")):
        defaults[f"data.{split}"] = [str(tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_rows(30, seed=seed)))]
    config = load_config({"task.kind": "classify"} | defaults | LORA)
    return config, finetune(config)


def inputs(folder: Path) -> Any:
    """Returns two tokenized texts."""
    return transformers.AutoTokenizer.from_pretrained(folder)(
        [ROW["text"], "one old saw there"], return_tensors="pt", padding=True
    )


def by_hand(config: RunConfig) -> torch.Tensor:
    """Returns the logits of the pretrained model with W + alpha / rank B A in place of W, from the adapter's file."""
    folder = config.run_dir / "model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(config.model.backbone, num_labels=3)
    tensors = {
        name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.endswith("lora_A.weight"):
                stem = name.removesuffix(".lora_A.weight")
                model.get_parameter(f"{stem}.weight").add_(tensors[f"{stem}.lora_B.weight"] @ tensor, alpha=16 / 4)
            elif "lora_" not in name:
                model.get_parameter(name).copy_(tensor)
        return model.eval()(**inputs(folder)).logits


def test_the_folder_holds_the_adapter_the_tokenizer_and_the_config(trained: tuple[RunConfig, RunResult]) -> None:
    config, result = trained
    folder = result.model_dir
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "config/config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == config.model.backbone
    assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (4, 16, "SEQ_CLS")
    assert settings["modules_to_save"] == ["classifier"]
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert result.results["reload_difference"] <= 1e-6
    assert result.results["parameters"]["trainable"] == 4 * (4 * 64 + 2 * 96) + 3 * 33


def test_transformers_and_peft_load_it_and_compute_the_same(
    trained: tuple[RunConfig, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = trained
    folder, expected = result.model_dir, by_hand(trained[0])
    whole = transformers.AutoConfig.from_pretrained(folder, subfolder="config")
    kind = transformers.AutoModelForSequenceClassification
    loaded = {
        "transformers": kind.from_pretrained(folder, config=whole),
        "PeftModel": peft.PeftModel.from_pretrained(kind.from_pretrained(config.model.backbone, config=whole), folder),
        "AutoPeftModel": peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3),
    }
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "model")
    shutil.copytree(config.model.backbone, "base")
    snippet = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(snippet, names)
    loaded["card"] = names["model"]
    for name, model in loaded.items():
        with torch.no_grad():
            assert float((model.eval()(**inputs(folder)).logits - expected).abs().max()) <= 1e-5, name
    predicted = transformers.pipeline("text-classification", model=names["model"], tokenizer=names["tokenizer"])(
        ROW["text"]
    )
    (row,) = Predictor.from_pretrained(str(config.run_dir)).predict([ROW])
    assert predicted == [{"label": row["label"], "score": pytest.approx(row["probabilities"][row["label"]], abs=1e-6)}]
    assert row["label"] in tiny.CLASSES


def test_a_checkpoint_loads_into_a_model_with_layers_of_peft(
    trained: tuple[RunConfig, RunResult],
) -> None:
    config, result = trained
    model = transformers.AutoModelForSequenceClassification.from_pretrained(config.model.backbone, num_labels=3)
    settings = peft.LoraConfig.from_pretrained(result.model_dir)
    settings.modules_to_save = None
    peft.inject_adapter_in_model(settings, model)
    assert (
        str(model.load_state_dict(load_last_checkpoint(config.run_dir)["model_state_dict"]))
        == "<All keys matched successfully>"
    )


def test_predict_and_evaluate_give_the_runs_own_numbers(trained: tuple[RunConfig, RunResult]) -> None:
    config, result = trained
    for location in (config.run_dir, result.model_dir):
        predictor = Predictor.from_pretrained(str(location))
        values = predictor.evaluate(predictor.read(config.data.test[0], needs_labels=True))
        assert values == pytest.approx(result.results["test"], abs=1e-6)


def test_a_merged_model_loads_without_peft_and_is_the_same(
    trained: tuple[RunConfig, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """adapter.merge may change when a run resumes: only the export depends on it."""
    config, _ = trained
    merging = dataclasses.replace(
        config, adapter=dataclasses.replace(config.adapter, merge=True), output_dir=str(tmp_path)
    )
    shutil.copytree(config.run_dir, merging.run_dir)
    (merging.run_dir / "results.json").unlink()
    result = finetune(merging)
    assert {path.name for path in result.model_dir.glob("*.safetensors")} == {"model.safetensors"}
    assert not list(result.model_dir.rglob("adapter*"))
    monkeypatch.setattr("transformers.models.auto.auto_factory.is_peft_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: False)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(result.model_dir)
    with torch.no_grad():
        assert float((model(**inputs(result.model_dir)).logits - by_hand(config)).abs().max()) <= 1e-5
    assert result.results["test"] == pytest.approx(trained[1].results["test"], abs=1e-6)
    assert 'AutoModelForSequenceClassification.from_pretrained("model")' in (result.model_dir / "README.md").read_text()


def test_merging_in_16_bit_differs_by_rounding_only(make_config: MakeConfig) -> None:
    settings = {"adapter.merge": True, "train.precision": "bf16", "train.max_updates": 4}
    result = finetune(make_config(**LORA, **settings))
    assert 0 < result.results["reload_difference"] < 0.05


@pytest.mark.parametrize("merge", [False, True])
def test_materialize_makes_the_folder_that_the_run_exports(
    make_config: MakeConfig, tmp_path: Path, merge: bool
) -> None:
    config = make_config(**LORA, **{"adapter.merge": merge, "checkpoint.content": "trainable", "train.max_updates": 4})
    result = finetune(config)
    path = next((config.run_dir / "checkpoints").glob(f"*update{result.results['best']['update']:06d}*.pt"))
    out = materialize(path, tmp_path / "out")
    (weights,) = (path.name for path in out.glob("*.safetensors"))
    assert weights == ("model.safetensors" if merge else "adapter_model.safetensors")
    assert_same_tensors(load_file(out / weights), load_file(result.model_dir / weights))
    assert "library_name: " + ("transformers" if merge else "peft") in (out / "README.md").read_text()


def test_inspect_shows_the_adapters_of_a_run_and_of_settings(
    trained: tuple[RunConfig, RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = trained
    assert cli.main(["inspect", str(config.run_dir), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["entries"]}
    stem = "bert.encoder.layer.1.attention.self.query"
    assert (rows[f"{stem}.lora_A.default.weight"]["shape"], rows[f"{stem}.lora_A.default.weight"]["state"]) == (
        [4, 32],
        "trains",
    )
    assert rows[f"{stem}.base_layer.weight"]["state"] == "frozen"
    assert rows["classifier.weight"]["state"] == "trains"
    assert cli.main(["inspect", config.model.backbone, "--adapter.kind", "lora", "--adapter.rank", "4",
                     "--freeze.layers", "1", "--adapter.targets", "query"]) == 0  # fmt: skip
    assert re.search(r"block 1 +\d[\d,]* +256 of adapters train", capsys.readouterr().out)
    assert cli.main(["inspect", str(config.run_dir), "--adapter.kind", "lora"]) == 2
    assert "has an adapter already" in capsys.readouterr().err
    assert cli.main(["inspect", config.model.backbone, "--adapter.rank", "4"]) == 2
    assert "adapter.rank (4): must be used with adapter.kind lora" in capsys.readouterr().err


def test_pushed_files_name_no_folder_of_this_machine(trained: tuple[RunConfig, RunResult]) -> None:
    folder = trained[1].model_dir
    pushed = json.loads(bytes(hub.prepare_content(folder / "adapter_config.json", "user/name")))  # type: ignore[arg-type]
    assert pushed["base_model_name_or_path"] == "base"
    assert pushed["r"] == 4
    card = bytes(hub.prepare_content(folder / "README.md", "user/name")).decode()  # type: ignore[arg-type]
    assert 'load_adapter("user/name")' in card
    assert 'AutoConfig.from_pretrained("user/name", subfolder="config")' in card
    assert str(folder.parent) not in card


def copied(trained: tuple[RunConfig, RunResult], out: Path, **settings: Any) -> Path:
    """Copies the adapter's folder, with other entries in adapter_config.json."""
    shutil.copytree(trained[1].model_dir, out)
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return out


def test_adapters_that_cannot_be_used_are_errors(
    trained: tuple[RunConfig, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbones: Callable[..., Path],
) -> None:
    lost = copied(trained, tmp_path / "lost", base_model_name_or_path="/no/such/folder")
    with pytest.raises(
        InputError, match=r"^\S+lost: its pretrained model \(/no/such/folder\): there is no such folder"
    ):
        Predictor.from_pretrained(str(lost))
    other = copied(trained, tmp_path / "other", peft_type="IA3")
    with pytest.raises(InputError, match=r"other: holds an adapter of kind IA3, not LORA$"):
        lora.load_any_model(str(other))
    strange = copied(trained, tmp_path / "strange")
    tensors = load_file(strange / "adapter_model.safetensors")
    save_file(
        {name.replace("layer.1", "layer.7"): tensor for name, tensor in tensors.items()},
        strange / "adapter_model.safetensors",
    )
    with pytest.raises(
        InputError, match=r"strange: its adapter does not fit \S+: only one of them has bert.encoder.layer.7"
    ):
        lora.load_any_model(str(strange))
    broken = copied(trained, tmp_path / "broken")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"^MODEL \(\S+broken\): the adapter in this folder cannot be loaded"):
        lora.load_any_model(str(broken))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"needs the package peft: pip install 'hf-finetune\[lora\]'$"):
        Predictor.from_pretrained(str(trained[0].run_dir))


def test_a_package_is_named_by_its_path_and_by_its_name_in_the_config(
    trained: tuple[RunConfig, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = trained
    package = tmp_path / "site" / "carried_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copytree(config.model.backbone, package / "bert")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    source = "package://carried_weights/bert"
    renamed = dataclasses.replace(
        config, name="package", output_dir=str(tmp_path), model=dataclasses.replace(config.model, backbone=source),
        train=dataclasses.replace(config.train, max_updates=2),
    )  # fmt: skip
    folder = finetune(renamed).model_dir
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(package / "bert")
    assert 'files("carried_weights") / "bert"' in (folder / "README.md").read_text()
    assert transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, config=transformers.AutoConfig.from_pretrained(folder, subfolder="config")
    )
    pushed = json.loads(bytes(hub.prepare_content(folder / "adapter_config.json", "user/name")))  # type: ignore[arg-type]
    assert pushed["base_model_name_or_path"] == source
    moved = copied((config, RunResult(run_dir=folder.parent, model_dir=folder, results={})), tmp_path / "moved",
                   base_model_name_or_path="/elsewhere/bert")  # fmt: skip
    assert lora.load_any_model(str(moved)).source == source


def test_an_adapter_of_another_program_is_loaded_with_the_config_of_its_pretrained_model(
    tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    base = str(backbones("llama"))
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "theirs")
    loaded = lora.load_model(
        str(tmp_path / "theirs"), "AutoModelForCausalLM", lora.load_config(str(tmp_path / "theirs"))
    )
    assert loaded.config.model_type == "llama"
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 2
    assert backbone.holds_model(tmp_path / "theirs")
    assert not os.path.exists(tmp_path / "theirs" / "config.json")
