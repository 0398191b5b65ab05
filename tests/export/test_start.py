"""Runs that begin from earlier ones: from a run, a checkpoint, a model folder, an adapter; and chains of tasks."""

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny
from support.configs import make_small_config
from support.runs import (
    assert_same_tensors,
    load_exported_weights,
    load_last_checkpoint,
    read_untimed_metrics,
    run_recipe,
    run_until,
)
from support.script_server import ScriptServer

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.export.materialize import START_FOLDER, materialize
from hf_finetune.export.predict import Predictor
from hf_finetune.export.start import find_start
from hf_finetune.run.folder import read_config_file
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
ONE_UPDATE = {
    "train.max_updates": 1,
    "train.warmup_fraction": 0.0,
    "train.learning_rate": 1e-9,
}  # shows the weights at the start


def read_first_loss(run_dir: Path) -> float:
    """The training loss of update 1: that of the weights that the run began from."""
    return float(read_untimed_metrics(run_dir)[0]["train/loss"])


def load_encoder(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the model in a folder without its head."""
    model = transformers.AutoModel.from_pretrained(folder)
    return {name: tensor for name, tensor in model.state_dict().items() if "pooler" not in name}


def assert_begins_with(run_dir: Path, source: Path) -> None:
    """The encoder that a run of ONE_UPDATE exported is that of the source; a learning rate of 1e-9 moves no weight further."""
    ours, theirs = load_encoder(run_dir / "model"), load_encoder(source)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-8, rtol=0) for name in ours)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> RunConfig:
    """A finished run on three labels, which it has learned."""
    folder = tmp_path_factory.mktemp("first")
    settings = {"train.epochs": 24, "checkpoint.keep_last": 99, "cache.dir": str(folder / "cache"), "name": "first"}
    config = make_small_config(folder, backbones("bert"), **settings)
    assert finetune(config).results["validation"]["accuracy"] == 1.0
    return config


def rename_labels(config: RunConfig, folder: Path, names: dict[str, str]) -> dict[str, Any]:
    """Settings that name the run's data with other labels; a label without a new name is left out."""
    settings: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in Path(getattr(config.data, split)[0]).read_text().splitlines()]
        renamed = [{**row, "label": names[row["label"]]} for row in rows if row["label"] in names]
        settings[f"data.{split}"] = [str(tiny.write_jsonl(folder / f"renamed-{split}.jsonl", renamed))]
    return settings


# --- what start_from may be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["start_from", "model.backbone"])
@pytest.mark.parametrize("inside", ["", "model"])
def test_a_run_or_model_folder(
    make_config: MakeConfig, first: RunConfig, key: str, inside: str, tmp_path: Path
) -> None:
    config = make_config(**{key: str(first.run_dir / inside)}, **ONE_UPDATE, name="second")
    finetune(config)
    assert_begins_with(config.run_dir, first.run_dir / "model")
    ours, theirs = load_exported_weights(config.run_dir), load_exported_weights(first.run_dir)
    assert torch.allclose(ours["classifier.weight"], theirs["classifier.weight"], atol=1e-8)
    recorded = read_config_file(config.run_dir)
    assert recorded["start_from"] == config.start_from
    assert recorded["model"]["backbone"] == config.model.backbone
    assert not (config.run_dir / START_FOLDER).exists()


def test_what_is_printed_and_recorded(
    make_config: MakeConfig, first: RunConfig, capsys: pytest.CaptureFixture[str], backbones: Callable[..., Path]
) -> None:
    second = make_config(start_from=str(first.run_dir), **ONE_UPDATE, name="second")
    third = make_config(start_from=str(second.run_dir), **ONE_UPDATE, name="third")
    finetune(second)
    capsys.readouterr()
    finetune(third)
    printed = capsys.readouterr().out
    assert f"backbone    {second.run_dir}/model" in printed
    assert f"from start_from ({second.run_dir}), which replaces model.backbone" in printed
    assert f"{backbones('bert').name}, fine-tuned before: first (classify), then second (classify)" in printed
    assert "head        reused: the backbone's labels are the same 3" in printed
    card = (third.run_dir / "model" / "README.md").read_text()
    assert f"`{backbones('bert').name}` fine-tuned with hf-finetune" in card
    assert "It had been fine-tuned before this: first (classify), then second (classify)." in card
    recorded = json.loads((third.run_dir / "model" / "config.json").read_text())["hf_finetune"]
    assert [run["name"] for run in recorded["runs"]] == ["first", "second", "third"]
    assert recorded["token_limit"] == 64


def test_the_length_that_an_earlier_run_cut_at_does_not_bind(make_config: MakeConfig) -> None:
    short = make_config(**ONE_UPDATE, **{"data.max_length": 8}, name="short")
    finetune(short)
    assert Predictor.from_pretrained(str(short.run_dir)).max_length == 8
    config = make_config(start_from=str(short.run_dir), **ONE_UPDATE)
    finetune(config)
    assert Predictor.from_pretrained(str(config.run_dir)).max_length == 64


@pytest.mark.parametrize("content", ["full", "trainable"])
def test_a_checkpoint_is_made_into_a_model_once(
    make_config: MakeConfig, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"checkpoint.content": content, "freeze.embeddings": True, "freeze.layers": 1, "checkpoint.keep_last": 9}
    first = make_config(**settings, name="first")
    finetune(first)
    path = next((first.run_dir / "checkpoints").glob("*update000008*.pt"))
    again = {"start_from": str(path), "train.schedule": "constant", "checkpoint.every": 2, **settings}
    whole = make_config(**again, name="whole")
    finetune(whole)
    config = make_config(**again, name="second")
    run_until(config, 5, monkeypatch)
    shutil.rmtree(first.run_dir)  # the run needs it no more
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))
    start = next(path for path in (config.run_dir / START_FOLDER).iterdir() if path.is_dir())
    saved = load_last_checkpoint(whole.run_dir)
    assert saved["update"] == 16
    assert Predictor.from_pretrained(str(start)).predict([{"text": "the cat"}])
    # A moved run's checkpoint still finds it
    moved = shutil.move(config.run_dir, tmp_path / "moved")
    last = sorted((Path(moved) / "checkpoints").glob("*.pt"))[-1]
    out = materialize(last, tmp_path / "out")
    assert torch.equal(
        transformers.AutoModelForSequenceClassification.from_pretrained(out).classifier.weight,
        load_last_checkpoint(Path(moved))["model_state_dict"]["classifier.weight"],
    )


def test_a_checkpoint_begins_where_it_was_saved(make_config: MakeConfig, first: RunConfig) -> None:
    path = next((first.run_dir / "checkpoints").glob("*update000016*.pt"))
    config = make_config(start_from=str(path), **ONE_UPDATE, name="second")
    finetune(config)
    saved = torch.load(path, weights_only=True)["model_state_dict"]
    ours = load_exported_weights(config.run_dir)
    assert all(torch.allclose(ours[name], tensor, atol=1e-8, rtol=0) for name, tensor in saved.items())


@pytest.mark.parametrize("source", ["run", "checkpoint"])
def test_an_adapter_is_merged(make_config: MakeConfig, source: str) -> None:
    pytest.importorskip("peft")
    adapter = {"adapter.kind": "lora", "train.epochs": 2, "train.learning_rate": 1e-2, "checkpoint.keep_last": 9}
    first = make_config(**adapter, name="first")
    finetune(first)
    best = json.loads((first.run_dir / "checkpoints/references.json").read_text())["best"]
    start = first.run_dir if source == "run" else first.run_dir / "checkpoints" / best
    config = make_config(start_from=str(start), **ONE_UPDATE, name="second")
    finetune(config)
    rows = [{"text": row["text"]} for row in tiny.make_rows(9)]
    for ours, theirs in zip(
        *(Predictor.from_pretrained(str(run.run_dir)).predict(rows) for run in (config, first)), strict=True
    ):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
    assert not (config.run_dir / "model" / "adapter_config.json").exists()
    if source == "run":
        with pytest.raises(
            InputError, match="holds an adapter alone; to begin from it and its model, set start_from to it"
        ):
            finetune(make_config(**{"model.backbone": str(start)}, name="third"))


def test_adapters_on_a_head_whose_rows_moved(make_config: MakeConfig, first: RunConfig, tmp_path: Path) -> None:
    """The adapter's folder must hold the head: that of its model has the rows in another order."""
    pytest.importorskip("peft")
    names = {"animals": "z_animals", "food": "food", "tools": "animals"}
    data = rename_labels(first, tmp_path, names)
    config = make_config(start_from=str(first.run_dir), **data, **{"adapter.kind": "lora"}, name="second")
    results = finetune(config).results  # the reload is compared
    assert results["labels"] == ["animals", "food", "z_animals"]


def test_a_killed_run_begins_with_the_same_head(
    make_config: MakeConfig, first: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A new head depends on the seed alone, also if the checkpoint was made into a model by an earlier call."""
    path = next((first.run_dir / "checkpoints").glob("*update000016*.pt"))
    data = rename_labels(first, tmp_path, {"animals": "a", "food": "b", "tools": "c"})
    config = make_config(start_from=str(path), **data, name="second")
    run_until(config, 1, monkeypatch)  # before its first checkpoint
    rows = read_untimed_metrics(config.run_dir)
    finetune(config)
    assert read_untimed_metrics(config.run_dir)[0] == rows[0]
    assert rows[0]["train/loss"] > math.log(3) / 2


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_run_may_not_begin_from_itself(first: RunConfig) -> None:
    for start in (first.run_dir, first.run_dir / "model", next((first.run_dir / "checkpoints").glob("*.pt"))):
        checkpoints = dataclasses.replace(first.checkpoint, resume="never")
        config = dataclasses.replace(first, start_from=str(start), checkpoint=checkpoints)
        with pytest.raises(InputError, match=r"start_from \(.*\): is in the folder of this run, which continues if"):
            finetune(config)


def test_a_run_without_a_finished_model_names_its_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = make_config(name="killed")
    run_until(killed, 8, monkeypatch)
    with pytest.raises(
        InputError, match="without a finished model; to begin from its last checkpoint, set start_from"
    ) as one:
        finetune(make_config(start_from=str(killed.run_dir), name="second"))
    finetune(make_config(start_from=str(one.value).rpartition(" ")[2], name="second", **ONE_UPDATE))
    with pytest.raises(
        InputError, match=r"model.backbone .*: is a file; to begin from a checkpoint, set start_from to it"
    ):
        finetune(make_config(**{"model.backbone": str(one.value).rpartition(" ")[2]}, name="third"))
    with pytest.raises(
        InputError, match=r"another config: seed .* set name to killed-2 and start_from to \S*ckpt_epoch"
    ):
        finetune(make_config(name="killed", seed=3))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("./nowhere", "there is no such folder, and it is not asked for on the Hub"),
        ("~/nowhere", "there is no such folder, and it is not asked for on the Hub"),
        ("a/b/c", "there is no such folder, and it is not asked for on the Hub"),
        ("{outputs}/frist", "there is no such folder, and it is not asked for on the Hub"),
        ("{outputs}/x.gguf", "there is no such folder, and it is not asked for on the Hub"),
        ("{outputs}", "holds no model: there is no config.json"),
        ("{outputs}/notes.txt", "has no readable manifest"),
        ("", "must not be empty"),
    ],
)
def test_starts_that_cannot_be(make_config: MakeConfig, start: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=message) as error:
        finetune(make_config(start_from=start.format(outputs=tmp_path / "outputs")))
    assert str(error.value).startswith("start_from (")


def test_a_run_resumes_with_the_start_that_it_had(make_config: MakeConfig, first: RunConfig, tmp_path: Path) -> None:
    config = make_config(start_from=str(first.run_dir), **ONE_UPDATE, name="second")
    finetune(config)
    copy = shutil.copytree(first.run_dir, tmp_path / "copy")
    with pytest.raises(InputError, match=r"made with another config: start_from \(was .*first, now .*copy\)"):
        finetune(make_config(start_from=str(copy), **ONE_UPDATE, name="second"))
    # model.backbone has no effect next to start_from
    longer = {**ONE_UPDATE, "train.max_updates": 3}
    finetune(make_config(start_from=str(first.run_dir), **longer, name="second", **{"model.backbone": "another"}))


# --- chains ---------------------------------------------------------------------------------------------------------


def test_the_same_labels_begin_where_the_run_ended(make_config: MakeConfig, first: RunConfig) -> None:
    config = make_config(start_from=str(first.run_dir), **ONE_UPDATE, name="second")
    finetune(config)
    assert read_first_loss(config.run_dir) < 0.5


def test_renamed_labels_begin_with_a_new_head(make_config: MakeConfig, first: RunConfig, tmp_path: Path) -> None:
    """As many labels by other names, in another order: the head by place would be worse than none."""
    data = rename_labels(first, tmp_path, {"animals": "C_living", "food": "A_eaten", "tools": "B_used"})
    config = make_config(start_from=str(first.run_dir), **data, **ONE_UPDATE, name="second")
    finetune(config)
    assert read_first_loss(config.run_dir) == pytest.approx(math.log(3), abs=0.1)
    assert_begins_with(config.run_dir, first.run_dir / "model")


def test_a_new_head_is_not_the_one_that_the_first_run_drew(
    make_config: MakeConfig, first: RunConfig, tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    """Both runs have the same seed. The trained features agree with the head that the first run drew, row by row."""
    drawn = make_config(**ONE_UPDATE, name="drawn")
    finetune(drawn)
    data = rename_labels(first, tmp_path, {"animals": "a", "food": "b", "tools": "c"})
    config = make_config(start_from=str(first.run_dir), **data, **ONE_UPDATE, name="second")
    finetune(config)
    rows = [load_exported_weights(run.run_dir)["classifier.weight"] for run in (drawn, config)]
    cosines = torch.nn.functional.cosine_similarity(rows[0][:, None], rows[1][None], dim=-1)
    assert cosines.abs().max() < 0.7


def test_shifted_labels_keep_their_rows(make_config: MakeConfig, first: RunConfig, tmp_path: Path) -> None:
    """A label is gone, another one is new, and the others stand at other places."""
    data = rename_labels(first, tmp_path, {"animals": "zoo", "food": "food", "tools": "tools"})
    config = make_config(start_from=str(first.run_dir), **data, **ONE_UPDATE, name="second")
    results = finetune(config).results
    assert results["labels"] == ["food", "tools", "zoo"]
    ours, theirs = load_exported_weights(config.run_dir), load_exported_weights(first.run_dir)
    assert torch.allclose(ours["classifier.weight"][:2], theirs["classifier.weight"][1:], atol=1e-8)
    predicted = Predictor.from_pretrained(str(config.run_dir)).predict([{"text": "the bread"}, {"text": "one saw"}])
    assert [row["label"] for row in predicted] == ["food", "tools"]


def test_fewer_labels_keep_what_was_learned(make_config: MakeConfig, first: RunConfig, tmp_path: Path) -> None:
    data = rename_labels(first, tmp_path, {"food": "food", "tools": "tools"})
    config = make_config(start_from=str(first.run_dir), **data, **ONE_UPDATE, name="second")
    assert finetune(config).results["validation"]["accuracy"] == 1.0
    assert read_first_loss(config.run_dir) < 0.4


def make_task_config(folder: Path, kind: str, backbone: Path, rows: list[dict[str, Any]], **settings: Any) -> RunConfig:
    """A config of another task on these rows."""
    path = tiny.write_jsonl(folder / f"{settings['name']}.jsonl", rows)
    defaults = {"task.kind": kind, "output_dir": str(folder / "outputs"), "data.train": [str(path)], "train.precision": "fp32",
                "model.backbone": str(backbone), "tracking.trackers": [], "tracking.log_every": 1, "train.batch_size": 8,
                "train.epochs": 1, "train.learning_rate": 2e-3, "data.max_length": 32}  # fmt: skip
    return load_config(defaults | settings)


@pytest.mark.parametrize(("family", "objective"), [("bert", "masked"), ("llama", "causal")])
def test_language_modelling_then_classification(
    make_config: MakeConfig, backbones: Callable[..., Path], tmp_path: Path, family: str, objective: str
) -> None:
    texts = [{"text": row["text"]} for row in tiny.make_rows(60)]
    domain = make_task_config(tmp_path, "model_language", backbones(family), texts, name="domain", **{"data.label_column": None,
                              "task.objective": objective})  # fmt: skip
    finetune(domain)
    config = make_config(start_from=str(domain.run_dir), **ONE_UPDATE, name="topics")
    finetune(config)
    assert_begins_with(config.run_dir, domain.run_dir / "model")
    before, after = load_encoder(backbones(family)), load_encoder(domain.run_dir / "model")
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert read_first_loss(config.run_dir) == pytest.approx(math.log(3), abs=0.15)


def test_embedding_then_classification(make_config: MakeConfig, backbones: Callable[..., Path], tmp_path: Path) -> None:
    pairs = [{"anchor": row["text"], "positive": tiny.make_rows(60, seed=1)[number]["text"]} for number, row in
             enumerate(tiny.make_rows(60))]  # fmt: skip
    vectors = make_task_config(tmp_path, "embed", backbones("bert"), pairs, name="vectors", **{"data.label_column": None,
                               "data.text_columns": ["anchor", "positive"]})  # fmt: skip
    finetune(vectors)
    config = make_config(start_from=str(vectors.run_dir), **ONE_UPDATE, name="topics")
    finetune(config)
    assert_begins_with(config.run_dir, vectors.run_dir / "model")


def test_tagging_in_another_scheme(
    backbones: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [" ".join(pair).split() for pair in itertools.product(tiny.FILLER[:6], tiny.FILLER[6:11])]
    rows = [{"tokens": [*pair, "cat", "dog", "saw"], "tags": ["O", "O", "B-animal", "I-animal", "O"]} for pair in words]
    tags = (["B-animal", "E-animal", "S-tool"], ["B-animal", "I-animal", "E-animal"])
    other = [{**row, "tags": ["O", "O", *tags[number % 2]]} for number, row in enumerate(rows)]
    assert {tag for row in other for tag in row["tags"]} > {"O", "B-animal", "I-animal"}
    columns = {"data.text_columns": ["tokens"], "data.label_column": "tags", "data.validation_fraction": 0.2}
    first = make_task_config(
        tmp_path, "tag", backbones("bert"), rows, name="iob", **columns, **{"task.tag_scheme": "IOB2"}
    )
    finetune(first)
    config = make_task_config(tmp_path, "tag", backbones("bert"), other, name="bioes", start_from=str(first.run_dir), **columns,
                              **ONE_UPDATE, **{"task.tag_scheme": "BIOES"})  # fmt: skip
    capsys.readouterr()
    finetune(config)
    assert "labels reused by name" in capsys.readouterr().out
    models = [
        transformers.AutoModelForTokenClassification.from_pretrained(run.run_dir / "model") for run in (first, config)
    ]
    for tag, row in models[0].config.label2id.items():
        new = models[1].config.label2id[tag]
        assert torch.allclose(models[0].classifier.weight[row], models[1].classifier.weight[new], atol=1e-8)
    assert_begins_with(config.run_dir, first.run_dir / "model")


OWN_TASK = """
from hf_finetune.tasks.classify import Classification

class MyTask(Classification):
    pass
"""


def test_a_task_of_ones_own_gives_weights_and_is_not_imported(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_start_task.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    own = make_config(**{"task.kind": "own_start_task:MyTask", "checkpoint.keep_last": 9}, name="own")
    finetune(own)
    (tmp_path / "own_start_task.py").write_text("raise SystemExit('was imported')")
    monkeypatch.delitem(__import__("sys").modules, "own_start_task")
    config = make_config(start_from=str(own.run_dir), **ONE_UPDATE, name="second")
    finetune(config)
    assert_begins_with(config.run_dir, own.run_dir / "model")
    path = next((own.run_dir / "checkpoints").glob("*.pt"))
    with pytest.raises(
        InputError, match=r"its task is the class own_start_task:MyTask, which is imported only if you name it"
    ):
        find_start(make_config(start_from=str(path), name="third"))


def test_a_checkpoint_is_made_into_a_model_for_two_processes(
    make_config: MakeConfig, first: RunConfig, tmp_path: Path, script_server: ScriptServer
) -> None:
    path = next((first.run_dir / "checkpoints").glob("*update000016*.pt"))
    data = rename_labels(first, tmp_path, {"animals": "a", "food": "food", "tools": "c"})
    alone = make_config(start_from=str(path), **data, name="alone")
    finetune(alone)
    together = make_config(start_from=str(path), **data, name="together")
    done = run_recipe(script_server, 2, together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert "head        1 of 3 labels reused by name, 2 new (a, c)" in done.stdout
    ours, theirs = (read_untimed_metrics(run.run_dir) for run in (together, alone))
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
