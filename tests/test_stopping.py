"""Signals: noticed in training, evaluation and capture, saved at one update, exit code 75, and nothing else than the result
that the run would have had."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import TORCHRUN, assert_same_tensors, launch, load_exported_weights, read_untimed_metrics

from hf_finetune.cache import layout, listing, store
from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.checkpoint import read_manifests
from hf_finetune.system.errors import StoppedError
from hf_finetune.system.signals import EXIT_TRY_AGAIN, StopSignals
from hf_finetune.train import finetune
from hf_finetune.training.loop import train_steps

MakeConfig = Callable[..., RunConfig]
RECIPE = Path(__file__).parents[1] / "recipes" / "classify.py"
SETTINGS: dict[str, Any] = {"evaluation.every": 4, "checkpoint.every": 8, "train.patience": 10}
FROZEN: dict[str, Any] = {"freeze.embeddings": True, "freeze.layers": 1}
STATELESS: dict[str, Any] = {"model.dropout": 0.1, "train.dropout_masks": "stateless"}


def stopped_by(config: RunConfig, number: signal.Signals) -> None:
    """Runs, and is stopped by the signal, which is given back its handler."""
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=number.name):
        finetune(config)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("update", "number"),
    [(1, signal.SIGTERM), (4, signal.SIGINT), (5, signal.SIGUSR1), (8, signal.SIGTERM), (16, signal.SIGTERM)],
)
def test_a_signal_in_training_costs_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, update: int, number: signal.Signals
) -> None:
    """Between updates, where an evaluation is due (4), at the end of an epoch (8), after the last update (16)."""
    whole = make_config(**SETTINGS, name="whole")
    finetune(whole)
    config = make_config(**SETTINGS)

    def signalled(*arguments: Any, **options: Any) -> Any:
        for step in train_steps(*arguments, **options):
            if step.number == update:
                os.kill(os.getpid(), number)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.train.train_steps", signalled)
        stopped_by(config, number)
    (newest,) = [each for each in read_manifests(config.run_dir / "checkpoints") if each.update == update]
    assert newest.value is None  # what is due at this update is still to come
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(whole.run_dir)
    assert [each.update for each in read_manifests(config.run_dir / "checkpoints")] == [
        each.update for each in read_manifests(whole.run_dir / "checkpoints")
    ]


def test_a_signal_in_an_evaluation_is_heeded_there(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_finetune.run import training_run as job
    from hf_finetune.training import evaluation

    settings = {**SETTINGS, **FROZEN, "cache.activations": "on"}
    whole = make_config(**settings, name="whole")
    finetune(whole)
    config = make_config(**settings)
    evaluate, calls = evaluation.run_evaluation, []

    def signalled(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # the rehearsal's, after update 4, after update 8
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job, "evaluate", signalled)
        stopped_by(config, signal.SIGTERM)
    assert read_manifests(config.run_dir / "checkpoints")[-1].update == 8
    finetune(config)
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))
    assert read_untimed_metrics(config.run_dir) == read_untimed_metrics(whole.run_dir)


def test_a_signal_in_a_capture_is_heeded_there(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from hf_finetune.cache import capture as capture_module

    monkeypatch.setattr(layout, "CHUNK_TOKENS", 64)
    settings = {**SETTINGS, **FROZEN, "cache.activations": "on", "cache.dir": str(tmp_path / "cache")}
    config, capture, calls = make_config(**settings), capture_module.capture_chunk, []

    def signalled(*arguments: Any) -> bytes:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return capture(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(capture_module, "capture_chunk", signalled)
        stopped_by(config, signal.SIGUSR1)
    assert len(calls) == 3
    (entry,) = listing.list_entries(tmp_path / "cache" / "activations")
    assert entry.is_partial
    kept = len(store.read_journals(entry.folder))
    assert kept == 3
    counted: list[int] = []
    monkeypatch.setattr(capture_module, "capture_chunk", lambda *arguments: counted.append(1) or capture(*arguments))
    finetune(config)
    assert len(counted) > 0
    (entry,) = listing.list_entries(tmp_path / "cache" / "activations")
    assert listing.find_damage(entry) is None
    assert len(counted) + kept == len(entry.manifest["digests"])


def start(words: list[str], config: RunConfig, folder: Path) -> "subprocess.Popen[str]":
    """The recipe's own file in a process group of its own, its output in one pipe."""
    path = folder / f"{config.name}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return subprocess.Popen(
        [*words, str(RECIPE), "--config", str(path)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_line(process: "subprocess.Popen[str]", beginning: str) -> None:
    """Reads until such a line."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"ended with {process.wait()} before a line beginning with {beginning!r}")


def test_a_process_ends_with_75_within_seconds_and_goes_on(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = {"train.epochs": 40, "checkpoint.every": 1000, "evaluation.every": 1000}
    whole = make_config(**settings, name="whole")
    finetune(whole)
    config = make_config(**settings)
    process = start([sys.executable], config, tmp_path)
    wait_for_line(process, "update 7/")
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == EXIT_TRY_AGAIN == 75
    assert time.monotonic() - began < 10
    assert "SIGTERM: saving, then stopping" in output
    assert "saved ckpt_" in output
    assert "stopped (SIGTERM); the same command goes on" in output
    done = launch([sys.executable], config, {}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming after update" in done.stdout
    assert_same_tensors(load_exported_weights(config.run_dir), load_exported_weights(whole.run_dir))


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    signals = StopSignals()
    signals.ends_at_once = False
    with signals.install():
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == "SIGTERM"
        signal.raise_signal(signal.SIGTERM)  # the same one, that came twice
        assert killed == []
        signals.received_at -= 2
        signal.raise_signal(signal.SIGTERM)
        assert killed == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_before_there_is_anything_to_save_a_signal_ends_at_once(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("went on")

    config = make_config()
    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.data.splits.load_splits", signalled)
        stopped_by(config, signal.SIGINT)
    assert not config.run_dir.exists()
    finetune(config)


@pytest.mark.parametrize("to", ["torchrun", "one worker"])
def test_two_processes_agree_to_stop_and_three_go_on(make_config: MakeConfig, tmp_path: Path, to: str) -> None:
    """Stopped on two processes, finished on three: over the same examples in the same batches."""
    settings = {
        **STATELESS,
        "train.epochs": 12,
        "checkpoint.every": 1000,
        "evaluation.every": 24,
        "train.batch_size": 7,
    }
    whole = make_config(**settings, name="whole")
    finetune(whole)
    config = make_config(**settings, name="together")
    process = start(TORCHRUN, config, tmp_path)
    wait_for_line(process, "update 6/")
    if to == "torchrun":
        process.send_signal(signal.SIGTERM)
    else:
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(found.stdout.split()[-1]), signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert "saved ckpt_" in output, output
    (saved,) = read_manifests(config.run_dir / "checkpoints")
    assert 6 <= saved.update < 108
    done = launch([*TORCHRUN[:-1], "3"], config, {"train.micro_batch_size": 2}, tmp_path)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert f"resuming after update {saved.update}" in done.stdout
    for ours, theirs in zip(read_untimed_metrics(config.run_dir), read_untimed_metrics(whole.run_dir), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_checkpoint_every_so_many_minutes(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("hf_finetune.train.time", SimpleNamespace(monotonic=lambda: next(clock) * 60.0))
    finetune(make_config(**{"checkpoint.every": 1000, "checkpoint.every_minutes": 5, "evaluation.every": 1000}))
    saved = [line.split("_update")[1][:6] for line in capsys.readouterr().out.splitlines() if line.startswith("saved ")]
    assert len(saved) >= 3
    assert saved[-1] == "000016"
