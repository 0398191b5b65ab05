"""The precision and the threads of a run; processes that agree and gather; errors on all processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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
        raise InputError("wrong")

    with processes.start(3, "fp32", tmp_path) as runtime:
        drawn = torch.rand(1)
        runtime.say("a line")
        assert runtime.on_main(lambda: [1]) == [1]
        with pytest.raises(InputError, match="wrong"):
            runtime.on_main(fail)
        assert runtime.agree(False, True) == (False, True)
        assert runtime.gather(7) == [7]
        assert not runtime.is_asked_to_stop()
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert capsys.readouterr().out == "a line\n"
    assert runtime.precision == "fp32"
    assert processes.peak_memory_mb(torch.device("cpu")) > 1
