"""Checkpoints that a run refuses to resume from, what the preflight check writes, and the seconds by phase."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import assert_same_tensors, load_exported_weights

from hf_finetune.config.sections import RunConfig
from hf_finetune.run import checkpoint, resume
from hf_finetune.run.training_run import PHASES, Clock, count_state_bytes
from hf_finetune.system import processes
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
STANDS_STILL = {"train.epochs": 2, "train.learning_rate": 1e-9, "train.head_learning_rate": 1e-9}


def test_a_checkpoint_of_another_package_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    torch.save({"epoch": 1, "model_state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="is not a checkpoint of hf-finetune"):
        finetune(make_config(**{"checkpoint.resume": str(tmp_path / "other.pt")}))


def test_other_data_under_the_same_name_are_refused(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**{"checkpoint.every": 2})
    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.run.resume.load_best_weights", lambda *_: pytest.fail("stopped before the export"))
        with pytest.raises(pytest.fail.Exception):
            finetune(config)
    path = Path(config.data.validation[0])
    path.write_text(path.read_text(encoding="utf-8").replace("the ", "a "), encoding="utf-8")
    with pytest.raises(InputError, match=r"was made from other data \(validation differs\)"):
        finetune(config)


def test_a_best_checkpoint_that_is_gone_at_the_end_is_an_error(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_finetune.run.checkpoint.find_intact", lambda *_: None)
    with pytest.raises(InputError, match=r"the best checkpoint .* is missing or damaged"):
        finetune(make_config())


@pytest.mark.parametrize(
    ("settings", "is_loaded"),
    [({"train.epochs": 1}, False), ({"train.epochs": 1, "train.ema_decay": 0.5}, True), (STANDS_STILL, True)],
)
def test_the_best_checkpoint_is_loaded_at_the_end_if_the_model_has_other_weights(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], is_loaded: bool
) -> None:
    """Of two epochs with the same accuracy, the first is the best."""
    loaded: list[str] = []
    load_weights = resume.load_weights
    monkeypatch.setattr(resume, "load_weights", lambda *args: (loaded.append(args[2]), load_weights(*args))[1])
    config = make_config(**settings)
    results = finetune(config).results
    best = checkpoint.find_intact(config.run_dir / "checkpoints", results["best"]["update"])
    assert best is not None
    assert loaded == ([best.name] if is_loaded else [])
    exported = load_exported_weights(config.run_dir)
    assert_same_tensors(dict(exported), checkpoint.load_checkpoint(best)["model_state_dict"])


def test_a_distributed_type_that_is_not_supported_is_refused(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SUPPORTED_TYPES", ())
    with pytest.raises(InputError, match="accelerate's NO is not supported"):
        finetune(make_config())


@pytest.mark.parametrize(
    ("settings", "num_bytes"),
    [
        ({}, 8),
        ({"train.optimizer": "sgd"}, 0),
        ({"train.optimizer": "lion", "train.ema_decay": 0.9}, 8),
        ({"train.optimizer": "schedule_free_sgd", "train.schedule": "constant"}, 8),
        ({"train.optimizer": "my_module:build"}, 8),
    ],
)
def test_the_preflight_check_writes_what_a_checkpoint_has(
    make_config: MakeConfig, settings: dict[str, Any], num_bytes: float
) -> None:
    """State of the optimizer, and the weights that train if others are evaluated, for each trained parameter."""
    assert count_state_bytes(make_config(**settings).train) == num_bytes


# --- seconds --------------------------------------------------------------------------------------------------------


def test_a_phase_within_another_pauses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock(began=90.0)
    now += 1
    with clock("train"):
        now += 2
        with clock("save"):
            now += 4
        now += 8
        assert (clock.measure("train"), clock.measure("save")) == (10.0, 4.0)
    now += 16
    seconds = clock.report()
    assert {phase: value for phase, value in seconds.items() if value} == {
        "start": 27.0,
        "train": 10.0,
        "save": 4.0,
        "total": 41.0,
    }


def test_nothing_counts_as_the_start_after_it(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    phases, switch = list[str](), Clock.switch
    monkeypatch.setattr(Clock, "switch", lambda clock, phase: (phases.append(phase), switch(clock, phase))[1])
    finetune(make_config(**{"train.epochs": 2, "freeze.layers": 2, "freeze.unfreeze": [{"epoch": 2, "layers": 1}]}))
    after_start = [phase for before, phase in pairwise(phases) if before == "start"]
    assert after_start == ["train"]  # at once after all is loaded; when it ends, results.json is written


def test_every_second_of_a_run_is_in_a_phase(make_config: MakeConfig) -> None:
    began = time.perf_counter() - 50
    results = finetune(make_config(), began=began).results
    seconds = results["seconds"]
    assert tuple(seconds) == (*PHASES, "total")
    assert sum(seconds[phase] for phase in PHASES) == pytest.approx(seconds["total"], abs=0.1)
    assert 50 < seconds["total"] <= time.perf_counter() - began + 0.01
    assert seconds["start"] > 50
    assert all(seconds[phase] > 0 for phase in PHASES if phase not in ("encode", "cache"))
    parts = results["freeze_plan"]
    assert sum(part["trainable"] for part in parts) == results["parameters"]["trainable"]
    assert results["greater_is_better"] is True
    assert 50 < results["seconds_to_first_update"] < seconds["total"] - seconds["evaluate"] - seconds["export"]
