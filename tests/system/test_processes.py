"""The precision and the threads of a run; processes that agree and gather; errors on all processes."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.runs import TORCHRUN
from support.script_server import ScriptServer

from hf_finetune.system import processes
from hf_finetune.system.errors import InputError, StoppedError
from hf_finetune.system.processes import SingleProcess


def test_the_precision_is_chosen_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert processes.choose_precision("auto") == ("bf16", "this CPU has AMX")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert processes.choose_precision("auto")[0] == "fp32"
    assert processes.choose_precision("bf16") == ("bf16", "set by train.precision")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert processes.choose_precision("auto") == ("bf16", "set by accelerate's mixed_precision")
    with pytest.raises(InputError, match=r"train.precision \(fp16\): needs a GPU"):
        processes.choose_precision("fp16")


def test_a_launcher_that_sets_one_thread_gets_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for variable in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert processes.use_all_cores(accelerator) == ()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "raised to 3" in processes.use_all_cores(accelerator)[0]
    assert chosen == [3]


def test_a_single_process_agrees_with_itself() -> None:
    single = SingleProcess(device=torch.device("cpu"))
    assert (single.process, single.num_processes, single.is_asked_to_stop()) == (0, 1, False)
    assert single.agree(True, False) == (True, False)
    assert single.gather("value") == ["value"]
    assert isinstance(single.stopped_error(), StoppedError)


def test_a_run_prints_seeds_and_raises_the_errors_of_its_main_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise InputError("wrong", "one", "another")

    with processes.start(3, "fp32", tmp_path, 30) as runtime:
        drawn = torch.rand(1)
        runtime.say("a line")
        assert runtime.on_main(lambda: [1]) == [1]
        with pytest.raises(InputError, match=r"wrong\n  one\n  another"):
            runtime.on_main(fail)
        assert runtime.agree(False, True) == (False, True)
        assert runtime.gather(7) == [7]
        assert not runtime.is_asked_to_stop()
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert capsys.readouterr().out == "a line\n"
    assert runtime.precision == "fp32"
    assert runtime.accelerator.ddp_handler.gradient_as_bucket_view
    assert processes.peak_memory_mb(torch.device("cpu")) > 1


# torchrun ends the other process as soon as one exits with an error, so each waits for the line of the other
PROGRAM = """
import os
import sys
import time
from pathlib import Path
from hf_finetune import finetune
from support import tiny

def look(update, model):
    if update.number == 2 and sys.argv[1] == "raise":
        raise ValueError("from the program")

for name in ("one", "two"):
    run = finetune("classify", train=tiny.make_rows(40), on_update=look, settings={
        "name": name, "model.backbone": sys.argv[2], "data.max_length": 16, "freeze.layers": 1, "train.max_updates": 3,
        "train.batch_size": 8, "tracking.trackers": [], "train.precision": "fp32"})
    print("trained", name, run.results["processes"], flush=True)
Path(f"printed-{os.environ['RANK']}").touch()
while len(list(Path().glob("printed-*"))) < 2:
    time.sleep(0.01)
sys.exit(3 if sys.argv[1] == "exit" else 0)
"""

PATHS = os.pathsep.join(str(Path(__file__).parents[number]) for number in (2, 1))


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(("way", "exit_code"), [("end", 0), ("exit", 3), ("raise", 1)])
def test_a_program_of_two_runs_on_two_processes_ends_with_its_own_exit_code(
    tmp_path: Path, backbones: Callable[..., Path], script_server: ScriptServer, way: str, exit_code: int
) -> None:
    """Also to the end of Python, when the libraries are taken down."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    words = [way, str(backbones("bert"))]
    started = script_server.start(program, words, tmp_path, {"PYTHONPATH": PATHS}, ranks=2, finalizes=True)
    assert started.wait(100, kills=False) == exit_code, started.read("stderr")
    assert started.codes == [exit_code] * 2
    assert_ended(way, started.read() + started.read("stderr"))


@pytest.mark.slow
@pytest.mark.processes
def test_a_program_of_two_runs_under_torchrun_ends_with_its_own_exit_code(
    tmp_path: Path, backbones: Callable[..., Path]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        [*TORCHRUN, str(program), "exit", str(backbones("bert"))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    codes = {int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", output)}
    assert 3 in codes
    assert codes <= {3, -15}  # torchrun ends the other process if it is still there
    assert_ended("exit", output)


def assert_ended(way: str, output: str) -> None:
    """The output is that of two processes that ended in this way."""
    assert "terminate called" not in output
    assert output.count("trained two 2") == (0 if way == "raise" else 2)
    assert ("ValueError: from the program" in output) == (way == "raise")
