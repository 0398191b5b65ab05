"""train.head_start: a new head starts with a layer that is fitted in closed form."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tagged
from support.runs import (
    assert_same_tensors,
    compute_update,
    load_exported_weights,
    read_metrics,
    read_untimed_metrics,
    run_recipe,
    run_until,
)
from support.script_server import ScriptServer

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import IGNORED
from hf_finetune.run.folder import open_run
from hf_finetune.run.head_start import MOST_GROWTH, choose_features, compute_inputs, count_most_targets, start_head
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun, evaluate_split
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
MakeRun = Callable[..., TrainingRun]
# What a small random model tells classes apart by is lost in dropout
RIDGE = {"train.head_start": "ridge", "model.dropout": 0.0}


@pytest.fixture
def without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs of a small random model hardly differ, so that only very large weights tell its classes apart."""
    monkeypatch.setattr("hf_finetune.run.head_start.MOST_GROWTH", 1e9)


def copy_head(run: TrainingRun) -> dict[str, torch.Tensor]:
    """The weights of the last layer."""
    layer = run.train_state.model.classifier
    return {"weight": layer.weight.detach().clone(), "bias": layer.bias.detach().clone()}


@pytest.mark.usefixtures("without_limit")
@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_the_first_evaluation_is_better_and_nothing_else_changes(
    make_run: MakeRun, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(problem, **RIDGE)
    before, others = evaluate_split(run, "train"), run.train_state.model.state_dict()
    others = {name: value.clone() for name, value in others.items() if not name.startswith("classifier.")}
    start_head(run)
    after = evaluate_split(run, "train")
    assert after["loss"] < 0.9 * before["loss"]
    assert all(torch.equal(run.train_state.model.state_dict()[name], value) for name, value in others.items())
    name = "squared error" if problem == "regression" else "cross entropy"
    assert f"head        fitted to 60 training examples in closed form; {name} of" in capsys.readouterr().out


def test_without_the_setting_the_head_stays_random(make_run: MakeRun) -> None:
    run = make_run()
    before = copy_head(run)
    start_head(run)
    assert_same_tensors(copy_head(run), before)


def test_class_weights_and_the_weights_of_windows_count(make_run: MakeRun) -> None:
    """A layer that is fitted with other weights is another one; with the weight of one label it predicts that label more."""
    plain, heavy = (
        make_run(**RIDGE | {"task.class_weights": weights, "model.dropout": 0.2}) for weights in ([], ["food=30"])
    )
    windows = make_run(**RIDGE, **{"task.long_texts": "windows", "data.max_length": 8})
    biases = []
    for run in (plain, heavy, windows):
        start_head(run)
        biases.append(run.train_state.model.classifier.bias.softmax(-1)[run.task.label_names.index("food")])
    assert biases[1] > biases[0] + 0.3
    features = windows.features["train"]
    assert features.weights is not None
    assert len(features) > 60
    fitted = copy_head(windows)
    others = dataclasses.replace(features, weights=np.linspace(0.1, 2, len(features)))
    start_head(dataclasses.replace(windows, features={**windows.features, "train": others}))
    assert not torch.equal(copy_head(windows)["weight"], fitted["weight"])


def test_the_layer_is_fitted_to_what_it_gets_in_training(make_run: MakeRun) -> None:
    """Without dropout, this model tells its classes apart by directions in which its outputs hardly differ; the large weights of
    such a fit would make a loss of thousands of the first update, whose dropout is noise in these directions."""
    run = make_run(**RIDGE | {"model.dropout": 0.2})
    start_head(run)
    loss, _ = compute_update(run)
    assert loss < 1.3 * np.log(3)


def test_the_weights_are_at_most_five_times_as_large_as_random_ones(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    growths = []
    for most in (MOST_GROWTH, 1e9):
        monkeypatch.setattr("hf_finetune.run.head_start.MOST_GROWTH", most)
        run = make_run(**RIDGE)
        before = copy_head(run)["weight"].norm(dim=1).mean()
        start_head(run)
        growths.append(float(copy_head(run)["weight"].norm(dim=1).mean() / before))
    assert growths[0] == pytest.approx(MOST_GROWTH)
    assert growths[1] > 2 * MOST_GROWTH


def test_a_tagger_starts_with_a_fitted_layer(make_config: MakeConfig, tmp_path: Path) -> None:
    run = make_tagger(make_config, tmp_path)
    before = evaluate_split(run, "train")
    start_head(run)
    assert evaluate_split(run, "train")["loss"] < 0.7 * before["loss"]


def test_the_words_of_a_tagger_come_from_everywhere_and_no_more_are_computed(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_tagger(make_config, tmp_path)
    features, layer = run.features["train"], run.train_state.model.classifier
    targets = run.task.objective.linear_targets
    assert targets is not None
    counts = (features.get_targets(np.arange(len(features))) != IGNORED).sum(-1)
    monkeypatch.setattr("hf_finetune.run.head_start.MOST_TARGETS", int(counts.sum()) // 4)
    most = count_most_targets(layer)
    indices = choose_features(features, targets, most=most, seed=0)
    assert counts[indices].sum() - counts.max() < most <= counts[indices].sum()
    assert indices.min() < len(features) // 4 < 3 * len(features) // 4 < indices.max()
    assert indices.tolist() != choose_features(features, targets, most=most, seed=1).tolist()
    assert len(compute_inputs(run, layer, indices)) == counts[indices].sum()
    start_head(run)


def test_a_layer_of_many_labels_is_fitted_to_fewer_examples(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For 10,000 labels and 2,048 examples, the fit would take minutes and over 1 GB."""
    assert count_most_targets(torch.nn.Linear(4, 900)) > 2048
    assert count_most_targets(torch.nn.Linear(4, 10_000)) == 200
    monkeypatch.setattr("hf_finetune.run.head_start.MOST_OUTPUTS", 3 * 20)
    start_head(make_run("multi_label", **RIDGE))
    assert "head        fitted to 20 training examples" in capsys.readouterr().out


def make_tagger(make_config: MakeConfig, folder: Path) -> TrainingRun:
    """A run of the task tag that is ready for update 0."""
    files = tagged.write_splits(folder)
    backbone = make_config().model.backbone
    texts = {"data.text_columns": ["tokens"], "data.label_column": "tags", "model.backbone": backbone}
    config = load_config(
        {
            "task.kind": "tag",
            "name": "tags",
            "output_dir": str(folder),
            "train.precision": "fp32",
            **texts,
            **files,
            **RIDGE,
        }
    )
    with open_run(config) as runtime:
        return set_up(config, runtime, Clock())


def test_cached_activations_give_the_same_layer(make_config: MakeConfig) -> None:
    heads = []
    for cache in ("off", "on"):
        settings = {"name": cache, "cache.activations": cache, "train.max_updates": 1, "train.learning_rate": 1e-9}
        settings |= {"cache.precision": "fp32"}
        config = make_config(**RIDGE, **settings, **{"freeze.embeddings": True, "freeze.layers": 1})
        finetune(config)
        heads.append(load_exported_weights(config.run_dir)["classifier.weight"])
    torch.testing.assert_close(*heads, rtol=1e-2, atol=1e-2)


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A moving average of the weights starts at the fitted ones."""
    settings = {**RIDGE, "checkpoint.every": 2, "train.ema_decay": 0.9, "train.epochs": 1}
    whole, cut = (make_config(**settings, name=name) for name in ("whole", "cut"))
    finetune(whole)
    run_until(cut, 4, monkeypatch)
    capsys.readouterr()
    finetune(cut)
    assert "fitted to" not in capsys.readouterr().out
    assert_same_tensors(load_exported_weights(cut.run_dir), load_exported_weights(whole.run_dir))
    assert read_untimed_metrics(cut.run_dir)[-1] == read_untimed_metrics(whole.run_dir)[-1]


@pytest.mark.processes
def test_two_processes_fit_the_same_layer(make_config: MakeConfig, script_server: ScriptServer, tmp_path: Path) -> None:
    settings = {**RIDGE, "train.max_updates": 2, "train.dropout_masks": "stateless"}
    alone, together = (make_config(**settings, name=name) for name in ("alone", "together"))
    finetune(alone)
    done = run_recipe(script_server, 2, together, {}, tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [
        [row["train/loss"] for row in read_metrics(each.run_dir) if "train/loss" in row] for each in (alone, together)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    weights = [load_exported_weights(each.run_dir)["classifier.weight"] for each in (alone, together)]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-4)
    assert weights[1].std() > 3 * 0.02  # the deviation of random weights


def test_a_head_that_was_trained_before_stays(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_config(name="first", **{"train.max_updates": 1})
    finetune(first)
    second = {"start_from": str(first.run_dir), "train.learning_rate": 1e-9, "train.max_updates": 1}
    finetune(make_config(name="second", **RIDGE, **second))
    assert "head        keeps its weights, which were trained before" in capsys.readouterr().out
    weights = [load_exported_weights(first.run_dir.parent / name)["classifier.weight"] for name in ("first", "second")]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("without_limit")
def test_the_head_of_a_model_with_adapters_is_fitted(make_run: MakeRun) -> None:
    run = make_run(**RIDGE, **{"adapter.kind": "lora"})
    before = evaluate_split(run, "train")
    start_head(run)
    assert evaluate_split(run, "train")["loss"] < 0.9 * before["loss"]


def own_loss(outputs: Any, batch: Any) -> Any:
    return outputs.square().sum(), float(len(outputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze.patterns": ["classifier"]}, "freeze.patterns freezes the layer classifier; set none"),
        ({"train.loss": f"{__name__}:own_loss"}, "is not for a loss of your own"),
        (
            {"task.kind": "model_language", "data.text_columns": ["text"], "data.label_column": None},
            "is for the tasks classify and tag; model_language has no linear layer that predicts labels",
        ),
    ],
)
def test_what_cannot_be_fitted_is_an_error(make_config: MakeConfig, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^train.head_start \\(ridge\\): .*{message}"):
        finetune(make_config(**RIDGE, **settings))


def test_a_head_without_a_last_linear_layer_is_an_error(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_finetune.run.head_start.find_linear_head", lambda model: None)
    with pytest.raises(InputError, match="has no linear layer whose outputs are its logits"):
        make_run(**RIDGE)
