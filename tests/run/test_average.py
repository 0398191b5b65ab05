"""export.average: the mean of the last or the best checkpoints is exported, whatever interrupted the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import (
    assert_same_tensors,
    load_exported_weights,
    read_untimed_metrics,
    run_recipe,
    run_until,
)
from support.script_server import ScriptServer

from hf_finetune.config.sections import ExportConfig, RunConfig
from hf_finetune.run import checkpoint
from hf_finetune.run.average import load_average
from hf_finetune.run.results import describe_average
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune
from hf_finetune.training.progress import Progress, choose_averaged_updates

MakeConfig = Callable[..., RunConfig]
NAN = float("nan")


def read_results(config: RunConfig) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((config.run_dir / "results.json").read_text(encoding="utf-8"))
    return results


def average_of(config: RunConfig, updates: list[int]) -> dict[str, torch.Tensor]:
    """The mean of the weights of the checkpoints of these updates."""
    contents = []
    for update in updates:
        path = checkpoint.find_intact(config.run_dir / "checkpoints", update)
        assert path is not None
        contents.append(checkpoint.load_checkpoint(path)["model_state_dict"])
    return {
        name: (sum(content[name].double() for content in contents) / len(contents)).float()  # type: ignore[union-attr]
        for name, tensor in contents[0].items()
        if tensor.is_floating_point()
    }


@pytest.mark.parametrize(
    ("average", "greater_is_better", "values", "updates"),
    [
        ("none", True, (0.1, 0.2), ()),
        ("last:2", True, (0.9, 0.1, 0.2), (2, 3)),
        ("last:5", True, (0.9, 0.1, 0.2), (1, 2, 3)),
        ("best:2", True, (0.9, 0.1, 0.2), (1, 3)),
        ("best:2", False, (0.9, 0.1, 0.2), (2, 3)),
        ("best:2", True, (0.5, 0.9, 0.5, 0.5), (1, 2)),
        ("best:3", True, (NAN, 0.1, NAN, 0.2), (2, 4)),
        ("last:1", True, (0.9, 0.1), (2,)),
        ("last:3", True, (), ()),
    ],
)
def test_what_is_averaged_follows_from_the_evaluations(
    average: str, greater_is_better: bool, values: tuple[float, ...], updates: tuple[int, ...]
) -> None:
    history = [{"update": number, "accuracy": value} for number, value in enumerate(values, 1)]
    export = ExportConfig(average=average)
    chosen = choose_averaged_updates(history, export, metric="accuracy", greater_is_better=greater_is_better)
    assert chosen == updates


@pytest.mark.slow
@pytest.mark.parametrize("average", ["last:3", "best:2"])
def test_the_mean_of_checkpoints_is_exported(
    make_config: MakeConfig, average: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**{"export.average": average, "evaluation.every": 3, "evaluation.metric": "loss"})
    finetune(config)
    output, results = capsys.readouterr().out, read_results(config)
    updates = results["average"]["updates"]
    count = int(average[-1])
    assert len(updates) == count
    if average == "last:3":
        assert updates == [12, 15, 16]
    expected = average_of(config, updates)
    exported = load_exported_weights(config.run_dir)
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items() if name in exported)
    assert results["average"]["value"] == results["validation"]["loss"] != results["best"]["value"]
    kept = {manifest.update for manifest in checkpoint.read_manifests(config.run_dir / "checkpoints")}
    assert kept == {*updates, results["best"]["update"], 16}
    shown = ", ".join(map(str, updates))
    assert f"model/ is the mean of {count} checkpoints (updates {shown}): loss on validation" in output
    assert f"the best single one has {results['best']['value']:.4f} (update {results['best']['update']})" in output
    assert f"export      the mean of the {average[:4]} {count} evaluated checkpoints" in output
    card = (config.run_dir / "model" / "README.md").read_text(encoding="utf-8")
    assert f"The weights are the mean of {count} checkpoints (updates {shown})" in card
    finetune(config)
    assert f"of the mean of {count} checkpoints {results['average']['value']:.4f}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("average", ["last:3", "best:2"])
@pytest.mark.parametrize(
    "extra",
    [
        {"train.ema_decay": 0.5, "checkpoint.every_minutes": 1e-9},
        {
            "checkpoint.content": "trainable",
            "freeze.embeddings": True,
            "freeze.layers": 1,
            "freeze.unfreeze": [{"epoch": 2, "layers": 0}],
        },
    ],
)
def test_an_interrupted_run_exports_the_same_mean(
    make_config: MakeConfig, average: str, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves at other times than evaluations, as those of every_minutes here, are never averaged."""
    settings = {"export.average": average, "evaluation.every": 3, "checkpoint.every": 4}
    uninterrupted = make_config(**settings, **extra | {"checkpoint.every_minutes": None}, name="uninterrupted")
    config = make_config(**settings, **extra)
    finetune(uninterrupted)
    for stop in (4, 7, 13):
        run_until(config, stop, monkeypatch)
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(uninterrupted.run_dir))
    assert read_results(config)["average"] == read_results(uninterrupted)["average"]
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(uninterrupted.run_dir)


@pytest.mark.slow
@pytest.mark.processes
def test_a_mean_on_two_processes(make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer) -> None:
    settings = {"export.average": "last:2"}
    alone, together = make_config(**settings, name="alone"), make_config(**settings, name="together")
    finetune(alone)
    done = run_recipe(script_server, 2, together, {}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    ours, theirs = read_results(together)["average"], read_results(alone)["average"]
    assert ours.pop("value") == pytest.approx(theirs.pop("value"), abs=1e-5)
    assert ours == theirs


@pytest.mark.slow
def test_the_checkpoints_come_along_if_the_run_resumes_from_another_folder(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"export.average": "last:3", "evaluation.every": 4}
    first = make_config(**settings, name="first")
    run_until(first, 12, monkeypatch)
    last = checkpoint.find_intact(first.run_dir / "checkpoints", 12)
    second = make_config(**settings, **{"checkpoint.resume": str(last)}, name="second")
    finetune(second)
    finetune(first)
    assert read_results(second)["average"] == read_results(first)["average"]
    assert read_results(second)["average"]["updates"] == [8, 12, 16]
    assert_same_tensors(load_exported_weights(second.run_dir), load_exported_weights(first.run_dir))


@pytest.mark.slow
def test_a_checkpoint_that_is_missing_is_left_out_and_named(
    make_config: MakeConfig, make_run: Callable[..., TrainingRun]
) -> None:
    settings = {"export.average": "last:2"}
    config = make_config(**settings)
    finetune(config)
    run = make_run(**settings)
    history = ({"update": 4, "accuracy": 0.1}, {"update": 8, "accuracy": 0.2}, {"update": 16, "accuracy": 0.3})
    averaged = load_average(run, Progress(history=history[::2]))
    assert averaged is not None
    assert (averaged.updates, averaged.missing) == ((16,), (4,))
    results = read_results(config)
    lines = describe_average(results | {"average": results["average"] | {"missing": [4, 8]}})
    assert lines[1] == "left out, because their checkpoints are missing or damaged: updates 4, 8"
    with pytest.raises(
        InputError, match=r"export\.average \(last:2\): .* has none of the checkpoints of updates 4, 5 any more"
    ):
        load_average(run, Progress(history=({"update": 4, "accuracy": 0.1}, {"update": 5, "accuracy": 0.2})))
