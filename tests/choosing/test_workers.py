"""Trials at the same time: the numbers are those of one after the other, and no process outlives the program."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from hf_finetune.choosing.sweep import DEFAULTS, sweep
from hf_finetune.choosing.trials import make_trial
from hf_finetune.choosing.workers import WorkerGoneError, choose_parallel, make_environment, make_sendable, open_runner
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.checkpoint import read_manifests
from hf_finetune.system.errors import DivergedError, InputError

MakeConfig = Callable[..., RunConfig]
SETTINGS = {**DEFAULTS, "name": "sweep", "freeze.embeddings": True, "freeze.layers": 1, "train.epochs": 1}
SEARCH = "trials: 4\nhalving: {halving}\ntrain.learning_rate: {{log_uniform: [1e-4, 1e-2]}}\n"


def write_search(folder: Path, *, halving: bool) -> str:
    """The file of a search of four trials, which are all drawn at random."""
    path = folder / "search.yaml"
    path.write_text(SEARCH.format(halving=str(halving).lower()), encoding="utf-8")
    return str(path)


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The trials in sweep.json, without their seconds."""
    trials = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["trials"]
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


@pytest.mark.processes
def test_trials_at_the_same_time_are_those_of_one_after_the_other(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # whose number changes the last digits
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "queue.py").write_text("raise RuntimeError('a file of the current folder was imported')\n")
    monkeypatch.chdir(tmp_path / "here")
    base, search = make_config(**SETTINGS), write_search(tmp_path, halving=True)
    alone = sweep(base, search)
    together = sweep(replace(base, name="together"), search, parallel=2)
    assert read_trials(base.run_dir) == read_trials(base.run_dir.with_name("together"))
    assert [trial.name for trial in alone.trials] == [trial.name for trial in together.trials]
    assert "4 trials, 2 at the same time, in" in capsys.readouterr().out

    # The processes stay for all of it: no error of a trial ends one
    with open_runner(2) as runner:
        for name, change in (("bad", {"freeze.layers": 7}), ("good", {})):
            runner.start(name, make_trial(base, name, change), share=0.1)
        assert not runner.has_room
        reached = dict(runner.wait() for _ in range(2))
        assert isinstance(reached["bad"], InputError)
        assert "freeze.layers (7)" in str(reached["bad"])
        assert reached["good"].results is None
        runner.start("good", make_trial(base, "good", {}))
        assert runner.wait()[1].results is not None
        runner.start("lost", make_trial(base, "lost", {"train.epochs": 1000}))
        for worker in runner.workers:
            os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(WorkerGoneError, match="ended with status -9, such as for want of memory"):
            runner.wait()


COMMAND = [sys.executable, "-m", "hf_finetune", "sweep", "classify", "--parallel", "2", "--search"]


@contextlib.contextmanager
def start_sweep(base: RunConfig, search: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command of a sweep of two trials at the same time, once both train."""
    given = [
        f"--name={base.name}",
        f"--output_dir={base.output_dir}",
        f"--model.backbone={base.model.backbone}",
        f"--data.train={base.data.train[0]}",
        f"--data.validation={base.data.validation[0]}",
        "--freeze.layers=1",
        "--train.batch_size=8",
        "--data.max_length=16",
        "--checkpoint.every=1",
        "--evaluation.every=50",
        "--tracking.trackers=[]",
    ]
    process = subprocess.Popen(
        [*COMMAND, search, *given, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    runs = [base.run_dir / "trials" / f"trial-0{number}" / "metrics.jsonl" for number in (1, 2)]
    try:
        until(lambda: all(path.exists() and path.stat().st_size for path in runs), process)
        yield process
    finally:
        process.kill()
        process.communicate()


def until(is_true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Waits for a condition."""
    end = time.monotonic() + 120
    while not is_true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.processes
def test_a_signal_saves_all_trials_and_a_kill_leaves_no_process(make_config: MakeConfig, tmp_path: Path) -> None:
    base, search = make_config(**SETTINGS), write_search(tmp_path, halving=False)
    with start_sweep(base, search, "--train.epochs=200") as process:
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 75
        assert (
            "stopped by SIGTERM: all trials are saved; run the same command, program or notebook cell again" in errors
        )
        assert "Traceback" not in errors
        assert not any(psutil.pid_exists(worker.pid) for worker in workers)
    saved = {name: count_saved(base, name) for name in ("trial-01", "trial-02")}
    assert all(saved.values())

    # The same command continues; killed, it takes its processes with it, which save what they have
    with start_sweep(base, search, "--train.epochs=200") as process:
        workers = psutil.Process(process.pid).children()
        until(lambda: all(count_saved(base, name) > number for name, number in saved.items()), process)
        process.kill()
        until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))
    assert all(trial["status"] == "new" for trial in read_trials(base.run_dir))


def count_saved(base: RunConfig, name: str) -> int:
    """The newest update that a trial has saved; 0 if there is none."""
    folder = base.run_dir / "trials" / name / "checkpoints"
    return max((manifest.update for manifest in read_manifests(folder)), default=0)


def test_each_process_has_a_gpu_or_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("hf_finetune.choosing.workers.count_cores", lambda: 8)
    assert choose_parallel(None) == 1
    assert choose_parallel(3) == 3
    assert make_environment(1, 3)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert make_environment(1, 3)["OMP_NUM_THREADS"] == "5"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_parallel(None) == 2
    with pytest.raises(InputError, match=r"--parallel \(3\): there are 2 GPUs"):
        choose_parallel(3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [make_environment(number, 2)["CUDA_VISIBLE_DEVICES"] for number in range(2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,3")
    assert [make_environment(number, 2)["CUDA_VISIBLE_DEVICES"] for number in range(2)] == ["6", "3"]


class PickyError(Exception):
    """One that cannot be made again from its arguments."""

    def __init__(self, *, response: str) -> None:
        super().__init__(response)


def test_errors_of_a_worker_reach_the_program() -> None:
    assert str(make_sendable(error := InputError("wrong"))) == "wrong"
    assert not hasattr(error, "__notes__")
    try:
        raise ValueError("odd")
    except ValueError as plain:
        (note,) = make_sendable(plain).__notes__
    assert "test_errors_of_a_worker_reach_the_program" in note
    try:
        raise PickyError(response="503")
    except PickyError as picky:
        sent = make_sendable(picky)
    assert isinstance(sent, RuntimeError)
    assert "PickyError: 503" in str(sent)


def test_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--parallel \(0\): must be at least 1"):
        choose_parallel(0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="each has one process"):
        choose_parallel(None)


def test_in_this_process_an_error_is_returned_or_raised_alike(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: BaseException) -> None:
        def run(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("hf_finetune.choosing.workers.run_trial", run)

    base = make_config(**SETTINGS)
    with open_runner(1) as runner:
        fail(DivergedError("inf"))
        runner.start(0, base)
        assert isinstance(runner.wait()[1], DivergedError)
        fail(WorkerGoneError("gone"))
        runner.start(0, base)
        with pytest.raises(WorkerGoneError):
            runner.wait()
