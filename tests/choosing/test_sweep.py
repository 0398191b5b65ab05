"""Sweeps: a trial is a normal run, the worse ones are left early, and a kill changes nothing."""

import contextlib
import io
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.configs import make_small_config
from support.script_server import ScriptServer
from support.shell import Shell

from hf_finetune.choosing.sweep import DEFAULTS, SweepResult, sweep
from hf_finetune.choosing.trials import make_trial, run_trial
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.run import checkpoint
from hf_finetune.run.folder import acquire_folder, release_folder
from hf_finetune.system.errors import FolderInUseError, InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]
SEARCH = """trials: 4
train.learning_rate: {log_uniform: [1e-4, 1e-2]}
freeze.layers: {choice: [1, 0]}
"""
SETTINGS = {**DEFAULTS, "name": "sweep", "freeze.embeddings": True, "cache.activations": "auto"}


@pytest.fixture
def search(tmp_path: Path) -> str:
    """The file of a small search."""
    path = tmp_path / "search.yaml"
    path.write_text(SEARCH, encoding="utf-8")
    return str(path)


@dataclass(frozen=True)
class Finished:
    """A finished sweep: its settings, the file of its search, its result, and the lines that it printed."""

    base: RunConfig
    search: Path
    result: SweepResult
    lines: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]) -> Finished:
    """A sweep of four trials, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("finished") / "my files"
    folder.mkdir()
    base, search = make_small_config(folder, backbones("bert"), **SETTINGS), folder / "search.yaml"
    search.write_text(SEARCH, encoding="utf-8")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        result = sweep(base, str(search))
    return Finished(base, search, result, output.getvalue().splitlines())


def read_weights(folder: Path) -> dict[str, Any]:
    """The weights of an exported model."""
    return load_file(folder / "model" / "model.safetensors")


def test_a_trial_has_the_numbers_of_the_same_run_alone(finished: Finished, tmp_path: Path) -> None:
    result = finished.result
    assert [(len(trial.rungs), trial.status) for trial in result.trials] == [
        (3, "finished"),
        *[(1, "left")] * 3,
    ]
    assert [rung["update"] for rung in result.trials[0].rungs] == [2, 6, 16]

    # The best one was left twice. Alone, without its sweep, its config gives the same history and weights
    config = load_config(
        {}, ["--config", str(result.best_dir / "config.yaml"), "--output_dir", str(tmp_path / "alone")]
    )
    alone = finetune(config)
    results = json.loads((result.best_dir / "results.json").read_text(encoding="utf-8"))
    assert alone.results["history"] == results["history"]
    assert len(results["history"]) == 8
    for split in ("validation", "test"):
        assert alone.results[split] == results[split]
    ours, theirs = read_weights(result.best_dir), read_weights(alone.run_dir)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)

    printed = finished.lines
    place = ["--output_dir", finished.base.output_dir, "--name", "sweep-best"]
    command = ["hf-finetune", "train", "--config", str(result.best_dir / "config.yaml"), *place]
    assert shlex.split(printed[-1]) == ["repeat", *command]
    assert any(line.split()[:1] == [result.trials[-1].name] and "2/16" in line for line in printed)
    assert "trial-01.log" in {path.name for path in result.best_dir.parent.iterdir()}


def test_a_sweep_that_is_over_runs_nothing_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    base, search = finished.base, finished.search
    monkeypatch.setattr("hf_finetune.choosing.workers.run_trial", lambda *_, **__: pytest.fail("a trial ran again"))
    assert sweep(base, str(search)) == finished.result
    other = replace(base, train=replace(base.train, batch_size=4))
    with pytest.raises(InputError, match=r"sweep of other settings: train\.batch_size \(was 8, now 4\)"):
        sweep(other, str(search))
    other = replace(base, train=replace(base.train, epochs=3), data=replace(base.data, max_length=8))
    with pytest.raises(InputError, match=r"data\.max_length \(was None, now 8\), train\.epochs \(was 2, now 3\)"):
        sweep(other, str(search))
    path = Path(base.data.train[0])
    content = path.read_text(encoding="utf-8")
    path.write_text(content + content.splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"the sweep of other inputs: data\.train: has other content now"):
        sweep(base, str(search))
    path.write_text(content, encoding="utf-8")
    search.with_name("other.yaml").write_text(SEARCH.replace("[1, 0]", "[0]"), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"sweep of other settings: freeze\.layers\.choice \(was \[1, 0\], now \[0\]\)"
    ):
        sweep(base, str(search.with_name("other.yaml")))


@pytest.mark.slow
def test_a_trial_that_diverges_is_the_last(
    make_config: MakeConfig, search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "losses_of_a_sweep.py").write_text(
        "def broken(outputs, batch):\n    return outputs.sum() * float('nan'), len(outputs)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    Path(search).write_text("trials: 3\ntrain.loss: {choice: ['losses_of_a_sweep:broken', null]}\n", encoding="utf-8")
    result = sweep(make_config(**SETTINGS, seed=1), search)
    statuses = {(trial.settings["train.loss"] is None, trial.status) for trial in result.trials}
    assert statuses == {(True, "finished"), (True, "left"), (False, "diverged")}
    assert [trial.status for trial in result.trials] == ["finished", "left", "diverged"]


@pytest.mark.slow
def test_a_trial_whose_settings_cannot_be_used_is_the_last(make_config: MakeConfig, search: str) -> None:
    """The model has two blocks. A sweep whose first trial fails has nothing that works."""
    base = make_config(**SETTINGS, seed=2)
    Path(search).write_text("trials: 4\nhalving: false\nfreeze.layers: {choice: [1, 7]}\n", encoding="utf-8")
    result = sweep(base, search)
    assert {(trial.settings["freeze.layers"], trial.status) for trial in result.trials} == {
        (1, "finished"),
        (7, "failed"),
    }
    assert result.trials[-1].status == "failed"
    assert "freeze.layers (7)" in result.trials[-1].error
    assert sweep(base, search) == result
    Path(search).write_text("trials: 4\nfreeze.layers: {choice: [7, 8]}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"freeze\.layers \([78]\)"):
        sweep(replace(base, name="other"), search)


@pytest.mark.slow
def test_values_that_do_not_go_with_each_other_are_a_trial_that_failed(make_config: MakeConfig, search: str) -> None:
    """Each value alone is right, so that the search is: only some batches are multiples of some micro-batches."""
    base = make_config(**SETTINGS, seed=3)
    Path(search).write_text(
        "trials: 6\nhalving: false\ntrain.optimizer: {choice: [adamw, schedule_free_adamw]}\n"
        "train.schedule: {choice: [constant, linear]}\n",
        encoding="utf-8",
    )
    result = sweep(replace(base, train=replace(base.train, schedule="constant")), search)
    statuses = {(*trial.settings.values(), trial.status) for trial in result.trials}
    assert ("schedule_free_adamw", "linear", "failed") in statuses
    assert result.trials[0].status == "finished"


def test_a_folder_that_another_process_uses_is_not_a_trial_that_failed(make_config: MakeConfig, search: str) -> None:
    base = make_config(**SETTINGS, seed=4)
    text = "trials: {count}\nhalving: false\nseed: {{int_uniform: [0, 999]}}\n"
    Path(search).write_text(text.format(count=1), encoding="utf-8")
    sweep(base, search)
    Path(search).write_text(text.format(count=2), encoding="utf-8")
    lock = acquire_folder(base.run_dir / "trials" / "trial-02")
    with pytest.raises(FolderInUseError):
        sweep(base, search)
    release_folder(lock)
    assert [trial.status for trial in sweep(base, search).trials] == ["finished", "finished"]


def test_a_metric_that_is_nan_is_never_the_best(
    make_config: MakeConfig,
    search: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "metric_of_a_sweep.py").write_text(
        "import os\ndef odd(inputs):\n    return float(os.environ['ODD'])\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"evaluation.metrics": ["metric_of_a_sweep:odd"], "evaluation.metric": "odd", "train.epochs": 1}
    base = make_config(**SETTINGS | settings)

    def run_next(config: RunConfig, **options: Any) -> Any:
        monkeypatch.setenv("ODD", "0.5" if config.name == "trial-02" else "nan")
        return run_trial(config, **options)

    monkeypatch.setattr("hf_finetune.choosing.workers.run_trial", run_next)
    Path(search).write_text("trials: 2\nhalving: false\nseed: {int_uniform: [0, 999]}\n", encoding="utf-8")
    result = sweep(base, search)
    assert [trial.name for trial in result.trials] == ["trial-02", "trial-01"]
    printed = capsys.readouterr().out
    assert "\nwarning: trial-01: odd is nan and cannot choose the best checkpoint" in printed
    assert "warning: trial-02" not in printed
    assert "\nwarning: odd is nan" in (base.run_dir / "trials" / "trial-01.log").read_text(encoding="utf-8")
    assert "NaN" not in (base.run_dir / "sweep.json").read_text(encoding="utf-8")
    assert sweep(base, search).best_dir == result.best_dir
    # A trial that ended before it was noted is read from its results, in which nan is null
    assert math.isnan(run_trial(make_trial(base, "trial-01", result.trials[1].settings)).best["odd"])
    monkeypatch.setattr("hf_finetune.choosing.workers.run_trial", run_trial)
    monkeypatch.setenv("ODD", "nan")
    Path(search).write_text("trials: 1\nseed: {choice: [1]}\n", encoding="utf-8")
    with pytest.raises(InputError, match="odd is nan in all trials"):
        sweep(replace(base, name="other"), search)


def test_folders_of_others_are_left_alone(
    make_config: MakeConfig, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_config(**SETTINGS)
    base.run_dir.mkdir(parents=True)
    (base.run_dir / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(there is no sweep.json\); choose another name"):
        sweep(base, search)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"each has one process"):
        sweep(base, search)


# --- the command ----------------------------------------------------------------------------------------------------

# Kills the process after a save, before its trial is noted in sweep.json
KILL = """
import os, signal
from hf_finetune.run import saving
save, saved = saving.save_run, []
def save_and_die(run, progress):
    file = save(run, progress)
    saved.append(file)
    if len(saved) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return file
saving.save_run = save_and_die
"""
WORDS = (
    "sweep classify --search search.yaml --output_dir {out} --data.train train.jsonl --data.max_length 16 --train.epochs 1 "
    "--train.precision fp32 --tracking.trackers [] --train.batch_size 8 --freeze.layers 1"
)


@pytest.fixture(scope="module")
def warm_shell(
    script_server: ScriptServer, tmp_path_factory: pytest.TempPathFactory, backbones: Callable[..., Path]
) -> Shell:
    """A folder with data and a search."""
    made = Shell(script_server, tmp_path_factory.mktemp("sweep"), backbones("bert"))
    (made.folder / "search.yaml").write_text(
        "trials: 3\ntrain.learning_rate: {log_uniform: [1e-4, 1e-2]}\n", encoding="utf-8"
    )
    return made


def run_sweep(shell: Shell, out: str, code: str = "") -> int:
    """Runs the command. Returns its exit code."""
    words = WORDS.format(out=out).split()
    environment = {"HF_FINETUNE_CACHE": str(shell.folder / "cache")}
    return shell.server.run(
        shell.script, [code, *words, "--model.backbone", str(shell.backbone)], shell.folder, environment
    )


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The trials in sweep.json, without their seconds."""
    trials = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["trials"]
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


@pytest.mark.processes
def test_a_killed_sweep_ends_as_one_that_was_not(warm_shell: Shell) -> None:
    assert run_sweep(warm_shell, "calm") == 0
    output = (warm_shell.folder / "stdout").read_text(encoding="utf-8")
    assert "3 trials in calm/train-sweep; settings are chosen by Optuna" in output
    assert "--config calm/train-sweep/trials/" in output
    assert run_sweep(warm_shell, "killed", KILL.format(number=2)) == -9
    left = read_trials(warm_shell.folder / "killed" / "train-sweep")
    assert [(len(trial["rungs"]), trial["status"]) for trial in left] == [(1, "left"), (0, "new")]
    assert run_sweep(warm_shell, "killed") == 0
    calm, killed = (warm_shell.folder / name / "train-sweep" for name in ("calm", "killed"))
    assert read_trials(calm) == read_trials(killed)
    for name in ("trial-01", "trial-02", "trial-03"):
        ours, theirs = (
            checkpoint.load_checkpoint(
                folder
                / "trials"
                / name
                / "checkpoints"
                / str(checkpoint.find_last(folder / "trials" / name / "checkpoints"))
            )
            for folder in (calm, killed)
        )
        assert all((ours["model_state_dict"][key] == value).all() for key, value in theirs["model_state_dict"].items())


@pytest.mark.processes
def test_errors_of_the_command(warm_shell: Shell) -> None:
    for words, message in (
        ("sweep classify --data.train train.jsonl", "error: --search (nothing): name the file"),
        ("sweep classify --search search.yaml --quiet", "error: --quiet: is for hf-finetune train with one run"),
        ("sweep classify --search a b --data.train train.jsonl", "error: --search (a b): takes one value"),
        ("sweep classify --search search.yaml --train.epoch 1", "there is no such setting; did you mean train.epochs?"),
        ("sweep clasify --search search.yaml", "error: task.kind (clasify): must be one of classify, tag"),
    ):
        code, _, errors = warm_shell.run("", *words.split())
        assert code == 2
        assert message in errors
    code, output, _ = warm_shell.run("", "sweep", "--help")
    assert code == 0
    assert "train.learning_rate: {log_uniform: [1e-5, 1e-3]}" in output
