"""recipes/classify.py end to end on small made data: all problems, exact resume, exact files, exact reload."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny
from support.runs import (
    BIN,
    TORCHRUN,
    assert_same_tensors,
    kill_recipe,
    launch,
    load_exported_weights,
    load_last_checkpoint,
    read_untimed_metrics,
    run_recipe,
    run_until,
)
from support.script_server import ScriptServer

from hf_finetune.config.sections import RunConfig
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    ("problem", "pair", "metric", "least"),
    [
        ("single_label", False, "accuracy", 0.9),
        ("single_label", True, "accuracy", 0.6),
        ("multi_label", False, "f1_micro", 0.9),
        ("regression", False, "pearson", 0.8),
    ],
)
def test_every_problem_learns_and_leaves_the_promised_files(
    make_config: MakeConfig, problem: str, pair: bool, metric: str, least: float
) -> None:
    config = make_config(
        problem,
        pair,
        **{"train.epochs": 24, "model.dropout": 0.0, "tracking.trackers": ["tensorboard"]},
    )
    result = finetune(config)
    assert result.results["metric"] == metric
    assert result.results["test"][metric] >= least
    rows = read_untimed_metrics(config.run_dir)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert sum(losses[-4:]) < sum(losses[:4]) * 0.7
    assert {"events" if "tfevents" in path.name else path.name for path in config.run_dir.iterdir()} == {
        "config.yaml", "data.json", "environment.json", "inputs.json", "metrics.jsonl", "events", "validation", "checkpoints",
        "model", "results.json", "scored", "seen_rows.npz",
    }  # fmt: skip
    assert {path.name for path in (config.run_dir / "model").iterdir()} == MODEL_FILES
    assert result.results["reload_difference"] == 0.0
    assert result.results["examples"] == {"train": 60, "validation": 24, "test": 24}


@pytest.mark.parametrize(
    "family", ["roberta", "distilbert", "deberta-v2", "modernbert", "albert", "gpt2", "llama", "t5", "bart"]
)
def test_families_train_frozen_and_reload_equal(
    make_config: MakeConfig, backbones: Callable[..., Path], family: str
) -> None:
    layers = "all" if family == "albert" else 1
    config = make_config(**{"model.backbone": str(backbones(family)), "freeze.embeddings": True,
                            "freeze.layers": layers, "train.max_updates": 6})  # fmt: skip
    result = finetune(config)
    assert result.results["reload_difference"] <= 1e-5
    assert 0 < result.results["parameters"]["trainable"] < result.results["parameters"]["total"]


def test_a_checkpoint_opens_with_plain_torch(make_config: MakeConfig) -> None:
    config = make_config(**{"freeze.embeddings": True, "freeze.layers": 1})
    run_dir = finetune(config).run_dir
    path = sorted((run_dir / "checkpoints").glob("*.pt"))[-1]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run_dir / "model")
    frozen = ("bert.embeddings.", "bert.encoder.layer.0.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    c = torch.load(path, weights_only=True)
    model.load_state_dict(c["model_state_dict"])
    groups = [{"params": []} for _ in c["optimizer_state_dict"]["param_groups"]]
    sizes = [len(group["params"]) for group in c["optimizer_state_dict"]["param_groups"]]
    assert sum(sizes) == len(trainable)
    for group, size in zip(groups, sizes, strict=True):
        group["params"] = [trainable.pop(0) for _ in range(size)]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(c["optimizer_state_dict"])
    assert (c["epoch"], c["update"]) == (2, 16)
    assert path.name.startswith(
        f"ckpt_epoch0002_update000016_loss{c['loss']:.4f}_accuracy{c['metrics']['accuracy']:.4f}"
    )
    assert c["loss"] == c["metrics"]["loss"]


@pytest.mark.parametrize("stops", [(1,), (3,), (8,), (9,), (15,), (16,), (2, 5, 8, 13)])
def test_a_stopped_run_ends_with_the_same_bits(
    make_config: MakeConfig,
    make_finished: MakeConfig,
    stops: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropout on, 16 updates in 2 epochs, a checkpoint at every second update, stopping points at epoch ends too."""
    settings = {"checkpoint.every": 2, "evaluation.every": 4, "train.micro_batch_size": 3, "tracking.log_every": 3,
                "train.patience": 10}  # fmt: skip
    whole = make_finished(**settings)
    config = make_config(**settings)
    for stop in stops:
        run_until(config, stop, monkeypatch)
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))
    ours, theirs = load_last_checkpoint(config.run_dir), load_last_checkpoint(whole.run_dir)
    assert ours.pop("run")["progress"] == theirs.pop("run")["progress"]
    assert_same_tensors(ours, theirs)
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(whole.run_dir)


def test_early_stopping_survives_a_resume(
    make_config: MakeConfig, make_finished: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"train.epochs": 30, "train.patience": 3, "train.min_delta": 0.5, "evaluation.metric": "loss"}
    whole = make_finished(**settings)
    results = json.loads((whole.run_dir / "results.json").read_text())
    assert results["stopped_early"]
    assert results["updates"] < 30 * 8
    config = make_config(**settings)
    run_until(config, results["updates"] - 9, monkeypatch)
    finetune(config)
    assert json.loads((config.run_dir / "results.json").read_text())["updates"] == results["updates"]
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))


def test_a_finished_run_says_so_and_trains_nothing(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config()
    first = finetune(config)
    before = {path: path.stat().st_mtime_ns for path in config.run_dir.rglob("*")}
    capsys.readouterr()
    again = finetune(config)
    assert "is finished" in capsys.readouterr().out
    assert again.results == first.results
    after = {path: path.stat().st_mtime_ns for path in config.run_dir.rglob("*")}
    assert {path for path in before if path.is_file()} == {path for path in after if path.is_file()}
    assert all(after[path] == before[path] for path in before if path.is_file())


def test_a_half_written_checkpoint_is_passed_over(
    make_config: MakeConfig, make_finished: MakeConfig, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = {"checkpoint.every": 2, "checkpoint.keep_last": 3}
    whole = make_finished(**settings)
    config = make_config(**settings)
    run_until(config, 7, monkeypatch)
    newest = max((config.run_dir / "checkpoints").glob("*update000006*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    finetune(config)
    assert "skipped: " in capsys.readouterr().out
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))


def test_resume_from_a_path(make_config: MakeConfig, make_finished: MakeConfig) -> None:
    """Of another run of the same config: under another name the best checkpoint so far comes along."""
    settings = {"checkpoint.every": 4, "checkpoint.keep_last": 9}
    whole = make_finished(**settings)
    path = next((whole.run_dir / "checkpoints").glob("*update000012*.pt"))
    with pytest.raises(InputError, match=r"made with another config: train.weight_decay \(was 0.01, now 0.5\)"):
        finetune(make_config(**settings, **{"checkpoint.resume": str(path), "train.weight_decay": 0.5}))
    config = make_config(**settings, **{"checkpoint.resume": str(path)})
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))
    with pytest.raises(InputError, match="no such file; must be auto, never, or the path of a checkpoint"):
        finetune(make_config(**settings, **{"checkpoint.resume": "nowhere.pt", "name": "third"}))


def test_resume_never_starts_anew_and_keeps_the_old_run_aside(make_config: MakeConfig) -> None:
    whole = make_config(name="whole")
    finetune(whole)
    before = {path.name: path.read_bytes() for path in (whole.run_dir / "checkpoints").iterdir()}
    with pytest.raises(InputError, match="no such file or folder"):
        finetune(make_config(**{"checkpoint.resume": "never", "name": "whole", "data.test": ["nowhere.csv"]}))
    assert before.keys() == {path.name for path in (whole.run_dir / "checkpoints").iterdir()}
    finetune(make_config(**{"checkpoint.resume": "never", "name": "whole"}))
    aside = whole.run_dir.with_name("whole.1")
    assert before == {path.name: path.read_bytes() for path in (aside / "checkpoints").iterdir()}
    assert_same_tensors(load_exported_weights(whole.run_dir), load_exported_weights(aside))


def test_a_best_checkpoint_that_is_damaged_counts_no_more(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found out before training, not after; the run still ends with a model."""
    config = make_config(**{"checkpoint.every": 2, "evaluation.every": 2, "checkpoint.keep_last": 9})
    run_until(config, 9, monkeypatch)
    best = load_last_checkpoint(config.run_dir)["run"]["progress"]["best_update"]
    for path in (config.run_dir / "checkpoints").glob(f"*update{best:06d}*.pt"):
        path.write_bytes(b"damaged")
    result = finetune(config)
    assert "and is ignored" in capsys.readouterr().out or best == 8
    assert (result.model_dir / "model.safetensors").exists()


@pytest.mark.parametrize("limit", [{"size": 1}, {"size": 3}, {"size": 8}, {"tokens": 25}, {"tokens": 1}])
@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_numbers_do_not_depend_on_the_micro_batch(make_config: MakeConfig, limit: dict[str, int], problem: str) -> None:
    """Dropout on: masks belong to examples, not to places in a batch."""
    settings = {
        "model.dropout": 0.1,
        "train.max_updates": 12,
        "train.batch_size": 8,
        "train.dropout_masks": "stateless",
    }
    reference = make_config(problem, **settings, name="reference")
    finetune(reference)
    config = make_config(problem, **settings, **{f"train.micro_batch_{key}": value for key, value in limit.items()})
    finetune(config)
    for ours, theirs in zip(read_untimed_metrics(config.run_dir), read_untimed_metrics(reference.run_dir), strict=True):
        # A correlation of predictions that are all but constant, as after few updates, magnifies their last bits
        ours = {key: value for key, value in ours.items() if not key.endswith(("pearson", "spearman"))}
        assert ours == pytest.approx({key: theirs[key] for key in ours}, abs=1e-5)


ACCELERATE = [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]


def launcher_words(launcher: str) -> list[str]:
    """The command that starts two processes; accelerate is given a free port, so that tests can run side by side."""
    if launcher == "torchrun":
        return TORCHRUN
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return [*ACCELERATE, str(probe.getsockname()[1])]


@pytest.mark.parametrize(("launcher", "problem"), [("torchrun", "single_label"), ("accelerate", "multi_label")])
def test_two_processes_give_the_numbers_of_one(
    make_config: MakeConfig, tmp_path: Path, launcher: str, problem: str
) -> None:
    """60 rows in batches of 7, the last of 4; with micro-batches of 3 one process has a shorter share."""
    settings = {"model.dropout": 0.1, "train.dropout_masks": "stateless", "train.batch_size": 7, "checkpoint.every": 5,
                "train.micro_batch_size": 3, "freeze.embeddings": True}  # fmt: skip
    alone = make_config(problem, **settings, name="alone")
    finetune(alone)
    together = make_config(problem, **settings, name="together")
    done = launch(launcher_words(launcher), together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert "x 2 processes" in done.stdout
    assert done.stdout.count("freeze plan") == 1
    assert json.loads((together.run_dir / "results.json").read_text())["processes"] == 2
    for ours, theirs in zip(read_untimed_metrics(together.run_dir), read_untimed_metrics(alone.run_dir), strict=True):
        exact = {key for key in ours if key.startswith("validation/") and key != "validation/loss"}
        assert {key: ours[key] for key in exact} == {key: theirs[key] for key in exact}
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_run_of_two_processes_goes_on_with_one(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model.dropout": 0.1, "train.dropout_masks": "stateless", "checkpoint.every": 2}
    whole = make_config(**settings, name="whole")
    finetune(whole)
    config = make_config(**settings)
    run_until(config, 6, monkeypatch)
    done = run_recipe(script_server, 2, config, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert "resuming after update 4" in done.stdout or "resuming after update 6" in done.stdout
    ours, theirs = load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)


def test_processes_that_do_not_know_of_each_other_are_refused(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "3")
        with pytest.raises(InputError, match="WORLD_SIZE is 3, but this process is not connected"):
            finetune(make_config())
    finetune(make_config(**{"train.max_updates": 1}))


def test_a_killed_run_goes_on_to_the_same_bits(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer
) -> None:
    """A real SIGKILL from outside, in the middle of training."""
    settings = {"train.epochs": 6, "checkpoint.every": 3}
    whole = make_config(**settings, name="whole")
    finetune(whole)
    config = make_config(**settings)
    kill_recipe(script_server, config, tmp_path)
    assert not (config.run_dir / "results.json").exists()
    assert list((config.run_dir / "checkpoints").glob("*.pt"))
    done = run_recipe(script_server, 1, config, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert "resuming after update" in done.stdout
    assert_same_tensors(
        load_last_checkpoint(config.run_dir)["model_state_dict"],
        load_last_checkpoint(whole.run_dir)["model_state_dict"],
    )


def test_nothing_is_left_in_the_default_generator(make_config: MakeConfig) -> None:
    """Law 4: evaluating more often changes no trained number."""
    often = make_config(**{"evaluation.every": 1, "name": "often"})
    finetune(often)
    seldom = make_config(name="seldom")
    finetune(seldom)
    assert_same_tensors(
        load_last_checkpoint(often.run_dir)["model_state_dict"],
        load_last_checkpoint(seldom.run_dir)["model_state_dict"],
    )


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_finetune.tasks.class_scoring import ClassificationObjective

    original, calls = ClassificationObjective.sum_loss, []

    def broken(self: ClassificationObjective, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        total = original(self, logits, batch)
        calls.append(None)
        return total * float("nan") if torch.is_grad_enabled() and logits.requires_grad and len(calls) > 8 else total

    monkeypatch.setattr(ClassificationObjective, "sum_loss", broken)
    config = make_config(**{"checkpoint.every": 1})
    with pytest.raises(InputError, match=r"update \d+: the loss \(nan\) is not finite; .*train-single_label.jsonl:\d+"):
        finetune(config)
    assert all(
        torch.isfinite(tensor).all() for tensor in load_last_checkpoint(config.run_dir)["model_state_dict"].values()
    )


def test_a_run_that_saved_nothing_may_be_begun_again_with_other_settings(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a loss that was not finite at update 1, when the message says to lower the learning rate."""
    run_until(make_config(), 1, monkeypatch)
    lower = finetune(make_config(**{"train.learning_rate": 1e-4}))
    assert read_untimed_metrics(lower.run_dir)[0]["update"] == 1
    with pytest.raises(InputError, match=r"another config: train.learning_rate \(was 0.0001, now 0.002\)"):
        finetune(make_config())


def test_rows_without_labels_of_the_made_data_are_learnable() -> None:
    """The made data hold what the tests above rely on: classes in equal numbers, and no label's words in another's."""
    rows = tiny.make_rows(60)
    assert {row["label"] for row in rows} == set(tiny.CLASSES)
    for row in rows:
        others = {word for name, words in tiny.CLASSES.items() if name != row["label"] for word in words.split()}
        assert not others & set(row["text"].split())


def test_a_head_for_the_same_labels_in_another_order_is_trained_on(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """posneg: the labels of the backbone's head are stored as pos, neg, and those of the data sort as neg, pos."""
    first = finetune(make_config(name="first", **{"train.epochs": 12, "model.dropout": 0.0}))
    before = first.results["test"]["accuracy"]
    names = json.loads((first.run_dir / "model" / "config.json").read_text())["id2label"]
    backbone, order = tmp_path / "moved", [2, 0, 1]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(first.run_dir / "model")
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order].clone())
    moved = {place: f" {names[str(row)]}" for place, row in enumerate(order)}
    model.config.id2label, model.config.label2id = moved, {name: place for place, name in moved.items()}
    model.config.hf_finetune = None
    model.save_pretrained(backbone)
    transformers.AutoTokenizer.from_pretrained(first.run_dir / "model").save_pretrained(backbone)
    capsys.readouterr()
    config = make_config(name="second", **{"model.backbone": str(backbone), "train.max_updates": 2, "train.learning_rate": 1e-9,
                                           "train.head_learning_rate": 1e-9, "model.dropout": 0.0})  # fmt: skip
    second = finetune(config)
    assert second.results["test"]["accuracy"] == before >= 0.9
    assert "3 of 3 labels reused by name, in another order" in capsys.readouterr().out
    exported = json.loads((second.run_dir / "model" / "config.json").read_text())
    assert (exported["id2label"], exported["problem_type"]) == (names, "single_label_classification")
