"""A dry run writes nothing, and says what the run then takes."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.configs import make_small_config
from support.shell import Shell

from hf_finetune.choosing import measurement
from hf_finetune.choosing.dry_run import dry_run
from hf_finetune.choosing.live_tensors import measure_activations
from hf_finetune.choosing.plan import MemoryRoom, suggest_for_disk, suggest_for_memory
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.training_run import PHASES
from hf_finetune.system.errors import InputError
from hf_finetune.train import finetune

MakeConfig = Callable[..., RunConfig]


def list_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files and folders."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("activations", ["on", "off", "auto"])
def test_nothing_is_written_and_the_numbers_are_those_of_the_run(
    backbones: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activations: str
) -> None:
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path / "cache"))
    config = make_small_config(
        tmp_path, backbones("bert"), **{"cache.activations": activations, "freeze.embeddings": True, "freeze.layers": 1}
    )
    before = list_files(tmp_path)
    plan = dry_run(config)
    assert list_files(tmp_path) == before
    assert plan.advice == ()
    assert {*plan.seconds} == {*PHASES, "total"}
    assert plan.seconds["total"] == pytest.approx(sum(plan.seconds[phase] for phase in PHASES))
    results = finetune(config).results
    assert plan.updates == results["updates"]
    assert plan.cache[0].startswith(activations) or activations == "auto"
    trained = 4 * results["parameters"]["trainable"]
    assert plan.memory["trainable"] == plan.memory["gradients"] == trained
    assert plan.memory["frozen"] == 4 * results["parameters"]["total"] - trained
    assert 2 * trained <= plan.memory["optimizer"] <= 2 * trained + 1000
    assert plan.memory["peak"] >= sum(plan.memory[kind] for kind in ("frozen", "trainable", "gradients", "activations"))
    (stored,) = [*(tmp_path / "cache").rglob("activations.bin")] or [None]
    assert plan.disk["activations"] == (stored.stat().st_size if stored else 0)
    assert plan.disk["model"] == pytest.approx(
        (config.run_dir / "model" / "model.safetensors").stat().st_size, rel=0.05
    )
    after = list_files(tmp_path)
    again = dry_run(dataclasses.replace(config, name="again"))
    assert list_files(tmp_path) == after
    assert again.disk["activations"] == 0  # the activations are there
    assert (again.cache[0][:2] == "on") == (stored is not None)


def test_activations_are_what_autograd_keeps() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    with measure_activations(model) as live:
        for _ in range(2):
            model(torch.randn(16, 4)).sum().backward()
    assert live.peak == 4 * 16 * (4 + 8)  # the input, and the output of tanh, which both keep it
    assert live.num_bytes == 0


def test_a_run_that_does_not_fit_into_memory_is_measured_with_smaller_batches(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**{"train.batch_size": 8, "cache.activations": "off"})
    fitting = dry_run(config)
    monkeypatch.setattr(measurement, "find_free_memory", lambda device: fitting.memory["activations"] // 2)
    (advice,) = dry_run(config).advice
    assert advice.startswith("memory: the activations of 8 examples take ")
    size = int(advice.rpartition("set train.micro_batch_size to ")[2].split()[0])
    assert size in (2, 4)
    smaller = dry_run(dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch_size=size)))
    assert smaller.advice == ()
    assert smaller.memory["activations"] <= fitting.memory["activations"] // 2


def test_advice_has_the_setting_and_the_numbers(make_config: MakeConfig) -> None:
    config = make_config()
    room = MemoryRoom(free=1_000_000_000, per_example=300_000_000, asked=8, fitting=3)
    assert suggest_for_memory({}, room, config.train) == [
        "memory: the activations of 8 examples take 2,400 MB, and 1,000 MB are free; set train.micro_batch_size to 2 (600 MB)"
    ]
    by_tokens = dataclasses.replace(config.train, micro_batch_tokens=4096, micro_batch_size=None)
    (advice,) = suggest_for_memory({}, room, by_tokens)
    assert "set train.micro_batch_tokens to null, and train.micro_batch_size to 2" in advice
    memory = {"gradients": 4_000_000_000, "optimizer": 8_000_000_000}
    (advice,) = suggest_for_memory(memory, dataclasses.replace(room, fitting=0), config.train)
    assert "adapter.kind to lora: gradients and optimizer take 12,000 MB now" in advice
    assert suggest_for_memory({}, dataclasses.replace(room, fitting=8), config.train) == []
    kept = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, keep_last=5))
    disk = {"checkpoints": 600, "model": 50, "activations": 900_000_000, "encoded text": 1}
    assert suggest_for_disk(disk, 2_000_000_000, 100, kept) == []
    (advice,) = suggest_for_disk(disk, 500_000_000, 100_000_000, kept)
    assert advice.startswith(
        "disk: 1,000 MB are needed, and 500 MB are free; set cache.activations to off (900 MB less), or "
    )
    assert "checkpoint.keep_last and checkpoint.keep_best to 1 (up to 400 MB less)" in advice
    assert "checkpoint.content to trainable" in advice


def test_a_stream_has_no_end_to_plan_for(make_config: MakeConfig) -> None:
    config = make_config()
    streamed = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, streaming=True),
        train=dataclasses.replace(config.train, max_updates=2),
    )
    with pytest.raises(InputError, match=r"^data\.streaming \(true\): a dry run cannot tell"):
        dry_run(streamed)


@pytest.mark.processes
def test_the_command_prints_a_table_or_json_and_makes_no_run(shell: Shell) -> None:
    code, output, errors = shell.train("", "planned", "--dry-run")
    assert (code, errors) == (0, "")
    for text in ("dry run: ", "memory", "activations", "disk", "checkpoints", "time", "total", "it fits"):
        assert text in output
    code, output, _ = shell.train("", "planned", "--dry-run", "--json")
    assert code == 0
    plan = json.loads(output)
    assert plan["fits"] is True
    assert {"memory", "disk", "seconds", "cache", "updates", "advice"} <= {*plan}
    assert "planned" not in os.listdir(shell.folder / "out")
