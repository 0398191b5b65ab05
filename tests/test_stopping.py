"""Signals stop a run in training, in an evaluation and while activations are captured. The run is saved, the exit code is 75, and
the resumed run ends with the results of an uninterrupted one."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import (
    TORCHRUN,
    assert_same_tensors,
    load_exported_weights,
    read_untimed_metrics,
    run_recipe,
    start_recipe,
    write_options,
)
from support.script_server import ScriptServer, is_running

from hf_finetune.cache import capture, layout, listing, store
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.checkpoint import find_newest_intact, read_manifests
from hf_finetune.system.errors import StoppedError
from hf_finetune.system.signals import EXIT_TRY_AGAIN, StopSignals
from hf_finetune.train import finetune
from hf_finetune.training.evaluation import ModelRunner
from hf_finetune.training.loop import train_steps

pytestmark = pytest.mark.processes

MakeConfig = Callable[..., RunConfig]
RECIPE = Path(__file__).parents[1] / "recipes" / "classify.py"
SETTINGS: dict[str, Any] = {"evaluation.every": 4, "checkpoint.every": 8, "train.patience": 10}
FROZEN: dict[str, Any] = {"freeze.embeddings": True, "freeze.layers": 1}
STATELESS: dict[str, Any] = {"model.dropout": 0.1, "train.dropout_masks": "stateless"}


def run_until_signal(config: RunConfig, number: signal.Signals) -> None:
    """Runs until this signal stops the run. The signal's handler must be the earlier one again."""
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=number.name):
        finetune(config)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("update", "number"),
    [(1, signal.SIGHUP), (4, signal.SIGINT), (5, signal.SIGUSR1), (8, signal.SIGQUIT), (16, signal.SIGTERM)],
)
def test_a_signal_in_training_loses_nothing(
    make_config: MakeConfig,
    make_finished: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    update: int,
    number: signal.Signals,
) -> None:
    """Between updates, when an evaluation is due (4), at the end of an epoch (8), after the last update (16)."""
    uninterrupted, config = make_finished(**SETTINGS), make_config(**SETTINGS)

    def signalled(*arguments: Any, **options: Any) -> Any:
        for step in train_steps(*arguments, **options):
            if step.number == update:
                os.kill(os.getpid(), number)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.train.train_steps", signalled)
        run_until_signal(config, number)
    (newest,) = [manifest for manifest in read_manifests(config.run_dir / "checkpoints") if manifest.update == update]
    assert newest.value is None  # the evaluation that is due at this update is still to come
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(uninterrupted.run_dir))
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(uninterrupted.run_dir)
    updates, expected = (
        [manifest.update for manifest in read_manifests(part.run_dir / "checkpoints")]
        for part in (config, uninterrupted)
    )
    assert updates == expected


def test_the_error_of_a_stopped_run_says_what_is_saved_and_how_to_continue(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def signalled(*arguments: Any, **options: Any) -> Any:
        for step in train_steps(*arguments, **options):
            stop()
            yield step

    def read_message(name: str, replacement: Any, config: RunConfig) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(f"hf_finetune.train.{name}", replacement)
            with pytest.raises(KeyboardInterrupt) as stopped:
                finetune(config)
        return str(stopped.value)

    config = make_config()
    again = "run the same command, program or notebook cell again"
    message = read_message("set_up", stop, config)
    assert message == f"SIGINT: there was nothing to save yet; {again} to start from the beginning"
    for resume, way in (("auto", again), ("never", "set checkpoint.resume to auto")):
        message = read_message("train_steps", signalled, make_config(**{"checkpoint.resume": resume}))
        (last,) = (config.run_dir / "checkpoints").glob("*.pt")
        assert message == f"SIGINT: the run is saved up to {last}; {way} to continue from it"


def test_a_signal_in_an_evaluation_stops_it(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, **FROZEN, "cache.activations": "on"}
    uninterrupted = make_config(**settings, name="uninterrupted")
    finetune(uninterrupted)
    config = make_config(**settings)
    evaluate, calls = ModelRunner.run, []

    def signalled(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # that of the preflight check, after update 4, after update 8
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "run", signalled)
        run_until_signal(config, signal.SIGTERM)
    assert len(calls) == 3
    newest = read_manifests(config.run_dir / "checkpoints")[-1]
    assert (newest.update, newest.value) == (8, None)
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(uninterrupted.run_dir))
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(uninterrupted.run_dir)


def test_a_signal_in_a_capture_stops_it(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layout, "CHUNK_TOKENS", 64)
    settings = {**SETTINGS, **FROZEN, "cache.activations": "on", "cache.dir": str(tmp_path / "cache")}
    config, capture_chunk, calls = make_config(**settings), capture.capture_chunk, []

    def signalled(*arguments: Any) -> bytes:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return capture_chunk(*arguments)

    def counting(*arguments: Any) -> bytes:
        counted.append(1)
        return capture_chunk(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(capture, "capture_chunk", signalled)
        run_until_signal(config, signal.SIGUSR1)
    assert len(calls) == 3
    (entry,) = listing.list_entries(tmp_path / "cache" / "activations")
    assert entry.is_partial
    num_kept = len(store.read_journals(entry.folder))
    assert num_kept == 3
    counted: list[int] = []
    monkeypatch.setattr(capture, "capture_chunk", counting)
    finetune(config)
    assert len(counted) > 0
    (entry,) = listing.list_entries(tmp_path / "cache" / "activations")
    assert listing.find_damage(entry) is None
    assert len(counted) + num_kept == len(entry.manifest["digests"])


def start_torchrun(config: RunConfig, folder: Path) -> "subprocess.Popen[str]":
    """Starts the recipe's file on two processes, with all output in one pipe."""
    return subprocess.Popen(
        [*TORCHRUN, str(RECIPE), *write_options(config, {}, folder)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_line(process: "subprocess.Popen[str]", beginning: str) -> None:
    """Reads the output until a line with this beginning."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"ended with {process.wait()} before a line beginning with {beginning!r}")


def test_a_process_ends_with_75_within_seconds_and_is_resumed(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer
) -> None:
    settings = {"train.epochs": 12, "checkpoint.every": 1000, "evaluation.every": 1000}
    uninterrupted = make_config(**settings, name="uninterrupted")
    finetune(uninterrupted)
    config = make_config(**settings)
    process = start_recipe(script_server, 1, config, {}, tmp_path)
    process.wait_for_line("update 7/")
    os.kill(process.processes[0], signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(30) == EXIT_TRY_AGAIN == 75
    assert time.monotonic() - began < 10
    output = process.read() + process.read("stderr")
    assert "SIGTERM: saving, then stopping" in output
    assert "saved ckpt_" in output
    assert re.search(r"^stopped by SIGTERM: the run is saved up to \S+\.pt; run the same command", output, re.MULTILINE)
    done = run_recipe(script_server, 1, config, {}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming after update" in done.stdout
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(uninterrupted.run_dir))


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    signals = StopSignals()
    signals.ends_at_once = False
    with signals.install():
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == "SIGTERM"
        signal.raise_signal(signal.SIGTERM)  # the same signal, delivered twice
        assert killed == []
        signals.received_at -= 2
        signal.raise_signal(signal.SIGTERM)
        assert killed == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_ends_a_run_at_once_if_there_is_nothing_to_save(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("was not stopped")

    config = make_config()
    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.run.setup.load_splits", signalled)
        run_until_signal(config, signal.SIGINT)
    assert not config.run_dir.exists()
    finetune(config)


@pytest.mark.parametrize("receiver", ["torchrun", "one worker"])
def test_two_processes_agree_to_stop_and_three_resume(
    make_config: MakeConfig, make_finished: MakeConfig, tmp_path: Path, script_server: ScriptServer, receiver: str
) -> None:
    """Stopped on two processes, finished on three, with the same examples in the same batches."""
    settings = {
        **STATELESS,
        "train.epochs": 12,
        "checkpoint.every": 1000,
        "evaluation.every": 24,
        "train.batch_size": 7,
    }
    uninterrupted, config = make_finished(**settings), make_config(**settings, name="together")
    if receiver == "torchrun":
        launcher = start_torchrun(config, tmp_path)
        wait_for_line(launcher, "update 6/")
        launcher.send_signal(signal.SIGTERM)
        output, _ = launcher.communicate(timeout=60)
    else:
        workers = start_recipe(script_server, 2, config, {}, tmp_path)
        workers.wait_for_line("update 6/")
        os.kill(workers.processes[1], signal.SIGUSR1)
        assert workers.wait(60, kills=False) == EXIT_TRY_AGAIN
        assert workers.codes == [EXIT_TRY_AGAIN] * 2
        output = workers.read()
    assert "saved ckpt_" in output, output
    (saved,) = read_manifests(config.run_dir / "checkpoints")
    assert 6 <= saved.update < 108
    done = run_recipe(script_server, 3, config, {"train.micro_batch_size": 2}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert f"resuming after update {saved.update}" in done.stdout
    for ours, theirs in zip(
        read_untimed_metrics(config.run_dir), read_untimed_metrics(uninterrupted.run_dir), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_a_process_that_is_stopped_is_named_and_the_run_ends(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer
) -> None:
    """SIGSTOP, as of a machine that is suspended or cannot be reached. The others waited without a word."""
    config = make_config(**{"train.epochs": 4000, "checkpoint.every": 4, "run.patience_minutes": 0.1})
    both = start_recipe(script_server, 2, config, {}, tmp_path)
    both.wait_for_line("saved ckpt_")
    first, second = both.processes
    os.kill(second, signal.SIGSTOP)
    began = time.monotonic()
    while is_running(first) and time.monotonic() - began < 40:
        time.sleep(0.1)
    assert 5 < time.monotonic() - began < 30
    os.kill(second, signal.SIGKILL)
    both.wait(60, kills=False)
    assert both.codes == [EXIT_TRY_AGAIN, -signal.SIGKILL]
    lines = (both.read() + both.read("stderr")).splitlines()
    (warning,) = [line for line in lines if line.startswith("warning: waiting for")]
    name = f"process 1 of 2 ({socket.gethostname()} process {second})"
    assert warning.startswith(
        f"warning: waiting for {name}, which has given no sign of life for 3 s. This process is at "
    )
    assert re.search(r"at \w+\(\) in \w+\(\) \(\w+/\w+\.py, line \d+\)\. The run ends after 0\.1 minutes", warning)
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert error.startswith(
        f"error: {name} has given no sign of life for 0.1 minutes (run.patience_minutes): the run ends"
    )
    path, skipped = find_newest_intact(config.run_dir / "checkpoints")
    assert path is not None
    assert skipped == []


def test_checkpoints_by_minutes(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("hf_finetune.train.time", SimpleNamespace(monotonic=lambda: next(clock) * 60.0))
    finetune(make_config(**{"checkpoint.every": 1000, "checkpoint.every_minutes": 5, "evaluation.every": 1000}))
    saved = [line.split("_update")[1][:6] for line in capsys.readouterr().out.splitlines() if line.startswith("saved ")]
    assert len(saved) >= 3
    assert saved[-1] == "000016"
