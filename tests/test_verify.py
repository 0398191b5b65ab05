"""hf-finetune verify-resume: it finds equal runs equal, and different runs different."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.runs import run_until, start_verify_resume
from support.script_server import ScriptServer

from hf_finetune import verify
from hf_finetune.config.sections import RunConfig
from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune
from hf_finetune.verify import (
    ProcessResult,
    compare,
    count_lost_updates,
    list_saved_checkpoints,
    run_and_kill,
    verify_resume,
)

pytestmark = pytest.mark.processes

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_like_one_that_was_not_killed(
    make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer, processes: int
) -> None:
    config, kills = make_config(**{"model.dropout": 0.1, "freeze.embeddings": True}), 3 - processes
    words = ["--updates", "10", "--kills", str(kills), "--processes", str(processes)]
    started = start_verify_resume(script_server, config, tmp_path, words)
    assert started.wait(300) == 0, started.read("stderr")
    shown = started.read()
    assert f"{kills} kills, " in shown
    assert "0 saved updates lost" in shown
    assert " 0 differ" in shown
    assert shown.endswith("OK: the killed run ended with the same weights\n")


def test_a_kill_reaches_processes_in_other_sessions() -> None:
    """As those of torchrun: one that lives on would hold the run's folder, and the pipe that is read here."""
    child = "import time; print('begun', flush=True); time.sleep(60); print('lives', flush=True)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    result = run_and_kill([sys.executable, "-c", code], lambda line: 0.0)
    assert result.was_killed
    assert result.returncode == -signal.SIGKILL
    assert result.lines == ("begun",)


def test_runs_that_differ_are_found(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = make_config(name="ours"), make_config(name="theirs", seed=1)
    for config in (ours, theirs):
        finetune(config)
    comparison = compare(ours.run_dir, theirs.run_dir)
    assert comparison.num_different > 10
    assert comparison.largest > 1e-3
    same = compare(ours.run_dir, ours.run_dir)
    assert (same.num_different, same.largest) == (0, 0.0)
    assert same.num_tensors > 60


def test_a_difference_is_exit_code_1(make_config: MakeConfig, tmp_path: Path, script_server: ScriptServer) -> None:
    different = "verify.compare = lambda *_: verify.Comparison(num_tensors=5, num_different=1, largest=1e-6)"
    words = ["--updates", "2", "--kills", "1"]
    assert start_verify_resume(script_server, make_config(), tmp_path, words, different).wait(100) == 1


def test_a_saved_update_that_is_gone_is_counted(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    run_until(config, 8, monkeypatch)
    name = checkpoint.read_references(config.run_dir / "checkpoints")["last"]
    result = ProcessResult(lines=("run x", f"saved {name}", "saved by the bell"), returncode=-9, was_killed=True)
    assert list_saved_checkpoints(result) == [name]
    assert count_lost_updates(config.run_dir, result) == 0
    (config.run_dir / "checkpoints" / str(name)).write_bytes(b"")
    assert count_lost_updates(config.run_dir, result) == 8


def test_the_entire_process_group_is_killed(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; c = subprocess.Popen(['sleep', '60'])"
    code += "; print('child', c.pid, flush=True); time.sleep(60)"
    result = run_and_kill([sys.executable, "-c", code], lambda line: 0.1 if line.startswith("child") else None)
    assert result.was_killed
    assert result.returncode == -9
    pid = int(result.lines[0].split()[1])
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert state in ("", "Z") or state.startswith("Z")
    assert os.getpid() != pid


def test_settings_that_fail_are_reported(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="verify-resume: the run failed with exit code 2: error: "):
        verify_resume("classify", ["--train.epochs", "0"], updates=4, kills=1, processes=1, seed=0)
    with pytest.raises(InputError, match="must be above 0 and below --updates"):
        verify_resume("classify", [], updates=4, kills=4, processes=1, seed=0)


def test_tensors_are_collected_from_nested_dicts_and_lists() -> None:
    content = {"a": [torch.ones(1), {"b": torch.zeros(2)}], "c": 3}
    assert set(verify.collect_tensors(content)) == {"/a/0", "/a/1/b"}
