"""The model folder: what is in it, what its card says, and that transformers alone gives the same answers from it."""

import json
import math
import stat
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from support import tiny
from support.configs import make_small_config

from hf_finetune.config.sections import (
    CacheConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    HubConfig,
    ModelConfig,
    RunConfig,
    to_dict,
)
from hf_finetune.export import card as card_module
from hf_finetune.export import model_folder
from hf_finetune.export.card import describe_foreign_code, find_data_name, hide_folders
from hf_finetune.export.predict import Predictor
from hf_finetune.model.lineage import Lineage
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import write_atomically
from hf_finetune.tasks.class_scoring import ClassificationScoring
from hf_finetune.tasks.classify import Classification
from hf_finetune.train import RunResult, finetune

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
LABELS = ["animals", "food", "tools"]
PROBLEMS = ("single_label", "multi_label", "regression")
METRICS = {
    "single_label": ["accuracy", "f1_macro"],
    "multi_label": ["f1_micro", "f1_macro", "exact_match"],
    "regression": ["pearson", "spearman", "mse"],
}
MAX_LENGTH = 16  # tokens


SETTINGS = {
    "train.epochs": 12,
    "model.dropout": 0.0,
    "freeze.embeddings": True,
    "data.max_length": MAX_LENGTH,
}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]
) -> Iterator[Callable[[str], tuple[RunConfig, RunResult]]]:
    """`runs("single_label")`: the config and the result of a finished run, which is made once."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, tuple[RunConfig, RunResult]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_FINETUNE_CACHE", str(folder / "cache"))

        def run(problem: str) -> tuple[RunConfig, RunResult]:
            if problem not in made:
                config = make_small_config(folder, backbones("bert"), problem, name=f"a-{problem}", **SETTINGS)
                made[problem] = config, finetune(config)
            return made[problem]

        yield run


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_model_folder_holds_weights_tokenizer_card_and_nothing_else(runs: Any, problem: str) -> None:
    _, result = runs(problem)
    assert {path.name for path in result.model_dir.iterdir()} == FILES
    assert {path.name for path in result.run_dir.iterdir()} == {
        "checkpoints", "config.yaml", "data.json", "environment.json", "inputs.json", "metrics.jsonl", "model", "results.json",
        "scored", "seen_rows.npz",
    }  # fmt: skip


def test_every_file_of_the_folder_is_as_readable_as_any_other(runs: Any) -> None:
    _, result = runs("single_label")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in result.model_dir.iterdir()}
    (result.run_dir.parent / "ordinary").write_text("", encoding="utf-8")
    assert modes == {stat.S_IMODE((result.run_dir.parent / "ordinary").stat().st_mode)}


def test_reading_the_umask_does_not_change_it() -> None:
    import os

    before = os.umask(0o027)
    try:
        assert model_folder.read_umask() == 0o027
        assert model_folder.read_umask() == 0o027
    finally:
        os.umask(before)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_labels_and_problem_stand_in_the_config_as_transformers_names_them(runs: Any, problem: str) -> None:
    _, result = runs(problem)
    config = json.loads((result.model_dir / "config.json").read_text(encoding="utf-8"))
    names = ["score"] if problem == "regression" else LABELS
    assert config["id2label"] == {str(number): name for number, name in enumerate(names)}
    assert config["label2id"] == {name: number for number, name in enumerate(names)}
    assert config["problem_type"] == ("regression" if problem == "regression" else f"{problem}_classification")
    assert config["hf_finetune"]["text_columns"] == ["text"]
    assert config["hf_finetune"]["label_column"] == "label"
    assert result.results["labels"] == names


def test_the_weights_are_those_of_the_best_checkpoint_and_the_frozen_ones_the_backbones(runs: Any) -> None:
    config, result = runs("single_label")
    weights = load_file(result.model_dir / "model.safetensors")
    (best,) = (result.run_dir / "checkpoints").glob(f"ckpt_*_update{result.results['best']['update']:06d}_*.pt")
    saved = torch.load(best, weights_only=True)["model_state_dict"]
    assert set(weights) == set(saved)
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    backbone = load_file(Path(config.model.backbone) / "model.safetensors")
    for name, tensor in backbone.items():
        assert torch.equal(weights[f"bert.{name}"], tensor) == name.startswith("embeddings.")


def test_the_tokenizer_cuts_where_training_did(runs: Any) -> None:
    _, result = runs("single_label")
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.model_dir)
    assert tokenizer.model_max_length == MAX_LENGTH
    assert len(tokenizer("cat " * 50, truncation=True)["input_ids"]) == MAX_LENGTH


def test_on_a_cpu_the_reloaded_model_differs_by_nothing(runs: Any) -> None:
    assert [runs(problem)[1].results["reload_difference"] for problem in PROBLEMS] == [0.0] * 3


# --- transformers' own pipeline -------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_pipeline_on_the_folder_gives_the_answers_of_the_predictor(runs: Any, problem: str) -> None:
    _, result = runs(problem)
    texts = [row["text"] for row in tiny.make_rows(9, seed=7, problem=problem)] + ["cat dog " * 40]
    ours = list(Predictor.from_pretrained(str(result.run_dir)).predict([{"text": text} for text in texts]))
    pipe = transformers.pipeline("text-classification", model=str(result.model_dir), device="cpu")
    theirs = pipe(texts, top_k=None, truncation=True)
    for row, answer in zip(ours, theirs, strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer}
        if problem == "regression":
            assert scores == {"score": pytest.approx(row["score"], abs=1e-5)}
            continue
        assert scores == pytest.approx(row["probabilities"], abs=1e-5)
        if problem == "single_label":
            assert answer[0]["label"] == row["label"]
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        else:
            assert row["labels"] == [name for name in LABELS if scores[name] > 0.5]
    if problem == "single_label":
        assert len({row["label"] for row in ours}) > 1


# --- the card -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_cards_metadata_are_the_test_metrics_and_read_back(runs: Any, problem: str) -> None:
    config, result = runs(problem)
    data = ModelCard.load(result.model_dir / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["hf-finetune", problem]
    assert data.base_model is None  # a folder of this machine
    assert data.datasets is None
    assert data.model_name == config.name
    measured = {entry.metric_type: entry.metric_value for entry in data.eval_results}
    finite = {name: round(result.results["test"][name], 4) for name in METRICS[problem]}
    assert measured == finite
    assert {(entry.dataset_name, entry.dataset_split) for entry in data.eval_results} == {
        (f"train-{problem}.jsonl", "test")
    }


@pytest.mark.slow
def test_the_cards_text_states_metrics_data_freeze_plan_and_settings(runs: Any) -> None:
    config, result = runs("single_label")
    card, results = (result.model_dir / "README.md").read_text(encoding="utf-8"), result.results
    for split in ("validation", "test"):
        for name, value in results[split].items():
            assert f"| {split} | {name} | {value:.4f} |" in card
    best = results["best"]
    assert f"The best checkpoint (epoch {best['epoch']}, update {best['update']}) was chosen by accuracy" in card
    assert "3 labels: animals, food, tools." in card
    assert "`train-single_label.jsonl`: 60 training, 24 validation and 24 test examples." in card
    assert f"Inputs have at most {MAX_LENGTH} tokens." in card
    assert "| embeddings | 3,456 | frozen |" in card
    assert "| blocks 0-1 | 17,088 | trains |" in card
    total, trainable = results["parameters"]["total"], results["parameters"]["trainable"]
    assert f"{trainable:,} of {total:,} parameters trained" in card
    assert "trust_remote_code`:" not in card

    shown = yaml.safe_load(card.partition("## Settings\n\n```yaml\n")[2].partition("```")[0])
    own = to_dict(config)
    assert shown.pop("output_dir") == "outputs"
    assert shown["model"].pop("backbone") == Path(own["model"].pop("backbone")).name
    for split in ("train", "validation", "test"):
        assert shown["data"].pop(split) == [Path(path).name for path in own["data"].pop(split)]
    del own["output_dir"]
    assert shown == own


def test_without_a_test_split_the_card_gives_the_validation_metrics(
    backbones: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"data.test": [], "data.test_fraction": 0, "train.max_updates": 2}
    result = finetune(make_small_config(tmp_path, backbones("bert"), **SETTINGS | settings))
    entries = ModelCard.load(result.model_dir / "README.md").data.eval_results
    assert {(entry.metric_type, entry.dataset_split) for entry in entries} == {
        ("accuracy", "validation"), ("f1_macro", "validation"),
    }  # fmt: skip


def make_run(**sections: Any) -> Any:
    """As much of a TrainingRun as the card's metadata need."""
    defaults = {
        "model": ModelConfig(backbone="someone/backbone"),
        "data": DataConfig(train=("t.csv",)),
        "task": Classification.Settings(kind="classify"),
    }
    config = RunConfig(**defaults | sections)
    return SimpleNamespace(
        config=config,
        backbone=SimpleNamespace(lineage=Lineage(base=config.model.backbone)),
        task=SimpleNamespace(
            problem="single_label",
            pipeline_tag="text-classification",
            library_name="transformers",
            scoring=ClassificationScoring(problem="single_label", label_names=()),
        ),
    )


def test_a_metric_that_is_nan_is_left_out_of_the_metadata() -> None:
    results = {"test": {"loss": 0.5, "accuracy": 0.75, "roc_auc": math.nan}, "validation": {}}
    (entry,) = card_module.make_metadata(make_run(), results).eval_results
    assert (entry.metric_type, entry.metric_value) == ("accuracy", 0.75)


def test_a_backbone_and_data_of_the_hub_are_named_for_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    results = {"test": {"accuracy": 0.75}}
    data = DataConfig(dataset="someone/texts")
    metadata = card_module.make_metadata(make_run(data=data), results).to_dict()
    assert (metadata["base_model"], metadata["datasets"]) == ("someone/backbone", ["someone/texts"])
    (tmp_path / "someone" / "backbone").mkdir(parents=True)  # now it means the folder
    assert "base_model" not in card_module.make_metadata(make_run(data=data), results).to_dict()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (DataConfig(train=("/somewhere/private/reviews.csv", "more.csv")), "reviews.csv"),
        (DataConfig(train=("package://corpus/news/data",)), "corpus"),
        (DataConfig(dataset="someone/texts"), "someone/texts"),
        (DataConfig(dataset="/somewhere/private/texts"), "texts"),
    ],
)
def test_the_data_are_named_without_their_folders(data: DataConfig, name: str) -> None:
    assert find_data_name(make_run(data=data).config) == name


def test_the_card_shows_no_folder_of_the_machine(runs: Any) -> None:
    config, result = runs("single_label")
    folders = {str(Path(config.output_dir).parent), str(Path(config.model.backbone).parent)}
    for path in (*result.model_dir.iterdir(), result.run_dir / "results.json"):  # all that a push would send
        assert not [folder for folder in folders if folder.encode() in path.read_bytes()]


def test_paths_on_the_machine_are_shown_by_their_last_part_and_all_else_as_it_is() -> None:
    data = DataConfig(dataset="/home/me/set", train=("/home/me/*.csv", "here/a.csv", "package://corpus/x"))
    backbone = ModelConfig(backbone="/home/me/backbone")
    resume, cache = CheckpointConfig(resume="/home/me/ckpt.pt"), CacheConfig(dir="/home/me/activations")
    shown = hide_folders(make_run(data=data, model=backbone, checkpoint=resume, cache=cache).config)
    assert shown.cache.dir == "activations"
    assert shown.data.dataset == "set"
    assert shown.data.train == ("*.csv", "here/a.csv", "package://corpus/x")
    assert (shown.model.backbone, shown.checkpoint.resume) == ("backbone", "ckpt.pt")
    plain = make_run(output_dir="outputs").config
    assert hide_folders(plain) == plain
    assert (
        "base_model" not in card_module.make_metadata(make_run(model=backbone), {"test": {"accuracy": 1.0}}).to_dict()
    )
    assert "datasets" not in card_module.make_metadata(make_run(data=data), {"test": {"accuracy": 1.0}}).to_dict()


HOSTILE_LABELS = {
    "animals": "<script>alert(1)</script>",
    "food": "[x](javascript:alert(1))",
    "tools": "a\n# heading\n---\n```\n<b>",
}


def test_what_comes_from_data_is_text_in_the_card(backbones: Callable[..., Path], tmp_path: Path) -> None:
    """The attack: labels and file names made headings, links, open fences and HTML."""
    from markdown_it import MarkdownIt

    for seed, name in enumerate(("train", "held```\n# out")):
        rows = [{**row, "label": HOSTILE_LABELS[row["label"]]} for row in tiny.make_rows(30, seed=seed)]
        tiny.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    train, test = (str(tmp_path / f"{name}.jsonl") for name in ("train", "held```\n# out"))
    data = {"data.train": [test], "data.validation": [train], "data.test": [train], "train.max_updates": 1}
    result = finetune(make_small_config(tmp_path, backbones("bert"), **SETTINGS | data))
    card = (result.model_dir / "README.md").read_text(encoding="utf-8")
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings == ["run", "Results", "Data", "Trained parameters", "Settings"]
    inside = [child.type for token in tokens for child in token.children or []]
    assert not {"html_inline", "link_open", "image"} & set(inside)
    assert not {"html_block", "hr"} & {token.type for token in tokens}
    assert [token.info for token in tokens if token.type == "fence"] == ["python", "yaml"]
    assert body.rstrip().endswith("one process.")


def test_the_card_names_code_that_the_run_trusted() -> None:
    run = make_run()
    trusting = make_run(model=ModelConfig(backbone="someone/backbone", trust_remote_code=True)).config
    assert "runs Python code of the backbone's repository" in describe_foreign_code(trusting, run.task)
    assert describe_foreign_code(run.config, run.task) == ""
    evaluation = EvaluationConfig(metric="accuracy", metrics=("someone/kappa", "my:f"), trust_metric_code=True)
    card = describe_foreign_code(make_run(evaluation=evaluation).config, run.task)
    assert card.startswith("\nThe code of `someone/kappa` is not of hf-finetune: ")


def test_the_card_loads_the_model_by_its_name_on_the_hub_where_it_has_one(
    backbones: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"hub.repo_id": "someone/clf", "train.max_updates": 2}
    result = finetune(make_small_config(tmp_path, backbones("bert"), **SETTINGS | settings))
    assert 'from_pretrained("someone/clf")' in (result.model_dir / "README.md").read_text(encoding="utf-8")
    assert make_run(hub=HubConfig(repo_id="someone/clf")).config.hub.push is False


# --- the reload check -----------------------------------------------------------------------------------------------


def change_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.bias"][0] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_labels(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.replace("animals", "beasts"), encoding="utf-8")


def change_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"cheese"', '"cheddar"'), encoding="utf-8")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (change_weight, "the reloaded model's outputs differ from the trained one's by [0-9.e-]+$"),
        (spoil_weight, "the reloaded model's outputs differ from the trained one's by nan$"),
        (change_labels, r"the reloaded labels \('beasts', 'food', 'tools'\) are not the trained ones"),
        (change_tokenizer, "the reloaded tokenizer has another vocabulary"),
    ],
)
def test_a_folder_that_does_not_give_the_trained_model_back_is_an_error_and_the_run_not_finished(
    backbones: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[Path], None],
    message: str,
) -> None:
    config = make_small_config(tmp_path, backbones("bert"), **SETTINGS, **{"train.max_updates": 2})
    real = write_atomically

    def write_card_and_tamper(path: Path, content: bytes) -> None:
        real(path, content)
        tamper(path.parent)

    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "write_atomically", write_card_and_tamper)
        with pytest.raises(InputError, match=message):
            finetune(config)
    assert not (config.run_dir / "results.json").exists()

    result = finetune(config)  # and the same command repairs it
    assert result.results["status"] == "finished"
    assert result.results["reload_difference"] == 0
    assert {path.name for path in result.model_dir.iterdir()} == FILES


def test_a_difference_within_the_tolerance_of_a_gpu_is_accepted(
    backbones: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model_folder.compute_outputs
    shifts = iter((0.0, 3e-5, 0.0, 3e-3))

    def compute_shifted_outputs(*arguments: Any) -> Any:
        return real(*arguments) + np.float32(next(shifts))

    monkeypatch.setattr(model_folder, "compute_outputs", compute_shifted_outputs)
    settings = {**SETTINGS, "train.max_updates": 2}
    close = finetune(make_small_config(tmp_path, backbones("bert"), name="close", **settings))
    assert close.results["reload_difference"] == pytest.approx(3e-5, rel=0.1)
    with pytest.raises(InputError, match=r"differ from the trained one's by 0\.003"):
        finetune(make_small_config(tmp_path, backbones("bert"), name="far", **settings))
