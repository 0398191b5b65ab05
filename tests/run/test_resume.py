"""Training on: a run that was finished, stopped or killed continues with another length."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs import (
    CutOffError,
    assert_same_tensors,
    load_exported_weights,
    load_last_checkpoint,
    read_untimed_metrics,
    run_recipe,
    run_until,
)
from support.script_server import ScriptServer

from hf_finetune.config.sections import RunConfig
from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import Classification
from hf_finetune.train import finetune

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
CONSTANT = {"train.schedule": "constant", "train.warmup_fraction": 0.0}
UPDATES = 8  # of one epoch: 60 examples in batches of 8


def assert_same_run(ours: RunConfig, theirs: RunConfig) -> None:
    """Two runs have the same exported weights, last checkpoint, progress and training metrics, bit for bit."""
    assert_same_tensors(load_exported_weights(ours.run_dir), load_exported_weights(theirs.run_dir))
    one, other = load_last_checkpoint(ours.run_dir), load_last_checkpoint(theirs.run_dir)
    assert one.pop("run")["progress"] == other.pop("run")["progress"]
    assert_same_tensors(one, other)
    first, second = (
        [row for row in read_untimed_metrics(run.run_dir) if "test/loss" not in row] for run in (ours, theirs)
    )
    assert first == second
    one, other = (json.loads((run.run_dir / "results.json").read_text()) for run in (ours, theirs))
    for key in ("best", "validation", "test", "history", "updates", "length"):
        assert one[key] == other[key]


def test_a_checkpoint_that_is_older_than_an_entry_of_the_task_state_is_resumed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.3 did not record whether lists of labels have places."""
    whole = make_config("multi_label", name="whole")
    finetune(whole)
    config, state_dict = make_config("multi_label"), Classification.state_dict
    with monkeypatch.context() as patch:
        patch.setattr(
            Classification,
            "state_dict",
            lambda task: {key: value for key, value in state_dict(task).items() if key != "has_places"},
        )
        run_until(config, UPDATES, monkeypatch)
        assert "has_places" not in load_last_checkpoint(config.run_dir)["run"]["task_state"]
    finetune(config)
    assert "has_places" in load_last_checkpoint(config.run_dir)["run"]["task_state"]
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))


def test_a_last_save_that_was_killed_is_completed(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No later save removes the older checkpoints, or what the killed one was writing."""
    settings = {"checkpoint.every": 3, "train.max_updates": UPDATES}
    complete, config = make_config(name="complete", **settings), make_config(**settings)
    finetune(complete)
    write_references = checkpoint.write_references

    def cut_off(folder: Path, last: checkpoint.Manifest, best_update: int | None) -> None:
        if last.update == UPDATES:
            (folder / ".references.json.writing").touch()
            raise CutOffError
        write_references(folder, last, best_update)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_references", cut_off)
        with pytest.raises(CutOffError):
            finetune(config)
    folders = [run.run_dir / "checkpoints" for run in (config, complete)]
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert len(names[0] - names[1]) == 3  # an older checkpoint, its manifest, and the file that was being written
    assert checkpoint.read_references(folders[0])["last"] != checkpoint.find_last(folders[0])
    finetune(config)
    assert [{path.name for path in folder.iterdir()} for folder in folders] == [names[1], names[1]]
    assert checkpoint.read_references(folders[0]) == checkpoint.read_references(folders[1])


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"cache.activations": "on", "freeze.embeddings": True, "freeze.layers": 1, "model.dropout": 0.1},
        {"checkpoint.content": "trainable", "freeze.embeddings": True, "freeze.layers": 2,
         "freeze.unfreeze": [{"epoch": 3, "layers": 1}, {"epoch": 4, "layers": 0}]},
        {"train.ema_decay": 0.9, "export.average": "last:3", "train.optimizer": "lion", "train.learning_rate": 2e-4},
    ],
    ids=["plain", "cached", "stages", "averages"],
)  # fmt: skip
def test_two_more_epochs_after_three_equal_five(
    make_config: MakeConfig, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**CONSTANT, **extra}
    whole = make_config(**settings, **{"train.epochs": 5}, name="whole")
    finetune(whole)
    finetune(make_config(**settings, **{"train.epochs": 3}))
    capsys.readouterr()
    longer = make_config(**settings, **{"train.epochs": 5})
    run_until(longer, 4 * UPDATES, monkeypatch)  # results.json is still that of three epochs
    assert "constant schedule over 40 updates instead of 24; update 25 has 100% of the peak" in capsys.readouterr().out
    finetune(longer)
    assert_same_run(longer, whole)
    capsys.readouterr()
    finetune(longer)
    assert "is finished, there is nothing to train" in capsys.readouterr().out


def test_more_epochs_on_two_processes(make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer) -> None:
    whole = make_config(**CONSTANT, **{"train.epochs": 3}, name="whole")
    longer = make_config(**CONSTANT, **{"train.epochs": 2})
    for config, epochs in ((whole, 3), (longer, 2), (longer, 3)):
        done = run_recipe(script_server, 2, config, {"train.epochs": epochs}, tmp_path)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert_same_run(longer, whole)


def test_a_decaying_schedule_is_continued_over_the_new_length(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train.schedule": "linear", "train.warmup_fraction": 0.0}
    finetune(make_config(**settings, **{"train.epochs": 3}))
    longer = make_config(**settings, **{"train.epochs": 5})
    finetune(longer)
    assert "linear schedule over 40 updates instead of 24; update 25 has 40% of the peak" in capsys.readouterr().out
    rates = [row["train/learning_rate/backbone"] for row in read_untimed_metrics(longer.run_dir) if "train/loss" in row]
    assert rates[UPDATES * 3 - 1] == pytest.approx(2e-3 / 24)
    assert rates[UPDATES * 3 :] == pytest.approx([2e-3 * (1 - update / 40) for update in range(24, 40)])


def test_a_killed_run_may_end_earlier_and_its_end_is_evaluated(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(make_config(**{"checkpoint.every": 4}), 12, monkeypatch)
    shorter = make_config(**{"checkpoint.every": 4, "train.max_updates": 12})
    results = finetune(shorter).results
    assert [row["update"] for row in results["history"]] == [8, 12]
    assert results["updates"] == 12


def test_fewer_epochs_than_were_trained_are_refused(make_config: MakeConfig) -> None:
    config = make_config(**{"train.epochs": 2})
    finetune(config)
    before = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match=r"train.epochs \(1\): means 8 updates, .* has trained 16 updates \(epoch 2\)"
    ) as one:
        finetune(make_config(**{"train.epochs": 1}))
    assert f"set name to run-2 and start_from to {config.run_dir}" in str(one.value)
    with pytest.raises(InputError, match=r"train.max_updates \(9\): means 9 updates"):
        finetune(make_config(**{"train.epochs": 2, "train.max_updates": 9}))
    assert {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()} == before


def test_a_run_that_stopped_early_trains_on_with_more_patience_only(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**CONSTANT, "train.min_delta": 0.5, "evaluation.metric": "loss"}
    first = finetune(make_config(**settings, **{"train.patience": 1, "train.epochs": 4})).results
    assert first["stopped_early"]
    assert first["updates"] == 2 * UPDATES
    with pytest.raises(
        InputError, match=r"train.epochs \(6\): early stopping ended this run after 16 updates: loss did"
    ):
        finetune(make_config(**settings, **{"train.patience": 1, "train.epochs": 6}))
    patient = make_config(**settings, **{"train.patience": 2, "train.epochs": 4})
    finetune(patient)
    whole = make_config(**settings, **{"train.patience": 2, "train.epochs": 4}, name="whole")
    finetune(whole)
    assert_same_run(patient, whole)
    assert "is finished" not in capsys.readouterr().out


def test_more_patience_reaches_the_stage_that_starts_where_the_run_had_stopped(make_config: MakeConfig) -> None:
    settings = {**CONSTANT, "train.min_delta": 0.5, "evaluation.metric": "loss", "freeze.layers": 2, "train.epochs": 4,
                "freeze.unfreeze": [{"epoch": 3, "layers": 0}]}  # fmt: skip
    finetune(make_config(**settings, **{"train.patience": 1}))
    patient, whole = (make_config(**settings, **{"train.patience": 9}, name=name) for name in ("run", "whole"))
    finetune(patient)
    finetune(whole)
    assert_same_run(patient, whole)
