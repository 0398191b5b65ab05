"""Starting, killing and comparing whole runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hf_finetune.config.loading import to_yaml
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.parts import NO_PARTS, Parts
from hf_finetune.run.training_run import TrainingRun
from hf_finetune.train import finetune, finish_update
from hf_finetune.training.gradient_cache import UpdatePasses
from hf_finetune.training.loop import accumulate_gradients
from hf_finetune.training.train_state import UpdateBatch
from support.script_server import Scripts, ScriptServer

BIN = Path(sys.executable).parent
RECIPE = Path(__file__).parents[2] / "recipes" / "classify.py"
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2"]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_untimed_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without the values that depend on the clock, the memory, or how a batch is divided."""
    return [
        {
            key: value
            for key, value in row.items()
            if key != "time" and not key.endswith(("per_second", "_mb", "padding_share"))
        }
        for row in read_metrics(run_dir)
    ]


def load_exported_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights of the exported model, loaded by transformers."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run_dir / "model")
    weights: dict[str, torch.Tensor] = model.state_dict()
    return weights


def load_last_checkpoint(run_dir: Path) -> dict[str, Any]:
    """The newest checkpoint, opened with torch.load."""
    path = max((run_dir / "checkpoints").glob("*.pt"), key=lambda path: path.name.split("_")[2])
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def assert_same_tensors(ours: Any, theirs: Any, position: str = "") -> None:
    """Nested dicts and lists have equal values, and tensors that are equal bit for bit. `position` is shown if they differ."""
    assert type(ours) is type(theirs), position
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), position
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), position
        for key in ours:
            assert_same_tensors(ours[key], theirs[key], f"{position}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), position
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_tensors(one, other, f"{position}/{index}")
    else:
        assert ours == theirs, position


class CutOffError(Exception):
    """Raised inside a run to cut it off."""


def compute_update(made: TrainingRun) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of one update of two micro-batches, and its gradients."""
    rows = np.arange(8)
    batch = UpdateBatch(number=0, pass_number=1, feature_indices=rows, micro_batches=[rows[:4], rows[4:]])
    made.train_state.model.zero_grad()
    loss, _ = accumulate_gradients(
        UpdatePasses(made.train_state, made.features["train"], made.task, made.runtime, batch)
    )
    gradients = {name: p.grad.clone() for name, p in made.train_state.model.named_parameters() if p.grad is not None}
    return float(loss), gradients


def run_until(config: RunConfig, update: int, monkeypatch: pytest.MonkeyPatch, parts: Parts = NO_PARTS) -> None:
    """Trains, and cuts the run off after this update and its checkpoint, if one is due."""

    def stopping(*arguments: Any, **options: Any) -> Any:
        progress = finish_update(*arguments, **options)
        if progress.update == update:
            raise CutOffError
        return progress

    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.train.finish_update", stopping)
        with pytest.raises(CutOffError):
            finetune(config, parts)


def launch(
    words: list[str], config: RunConfig, settings: dict[str, Any], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Runs the file of the recipe classify in another process.

    words: the launcher, such as TORCHRUN. settings: further settings for the command line. cwd: gets the config as a file.
    """
    return subprocess.run(
        [*words, str(RECIPE), *write_options(config, settings, cwd)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process: equal bits need equal threads
    )


def write_options(config: RunConfig, settings: dict[str, Any], folder: Path) -> list[str]:
    """The command line of a config, written to a file, and of further settings."""
    path = folder / f"{config.name}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return ["--config", str(path), *(f"--{key}={value}" for key, value in settings.items())]


def start_recipe(server: ScriptServer, ranks: int, config: RunConfig, settings: dict[str, Any], cwd: Path) -> Scripts:
    """Starts the file of the recipe classify in forks of a warm process. ranks: The number of processes."""
    return server.start(RECIPE, write_options(config, settings, cwd), cwd, dict(os.environ), ranks)


def run_recipe(
    server: ScriptServer, ranks: int, config: RunConfig, settings: dict[str, Any], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """As launch(), in forks of a warm process instead of under a launcher: in seconds less. ranks: The number of processes."""
    started = start_recipe(server, ranks, config, settings, cwd)
    code = started.wait(90)
    return subprocess.CompletedProcess([str(RECIPE)], code, started.read(), started.read("stderr"))


def kill_recipe(server: ScriptServer, config: RunConfig, cwd: Path) -> None:
    """Starts the recipe, and kills it with SIGKILL when it has saved its third checkpoint."""
    started = start_recipe(server, 1, config, {}, cwd)
    saved = (line for line in started.lines() if line.startswith("saved "))
    for _ in range(3):
        next(saved)
    os.kill(started.processes[0], signal.SIGKILL)
    assert started.wait(60) == -signal.SIGKILL


def start_verify_resume(
    server: ScriptServer, config: RunConfig, cwd: Path, words: list[str], before: str = ""
) -> Scripts:
    """Starts `hf-finetune verify-resume classify` with further arguments. before: Code that runs first."""
    script = cwd / "verify_resume.py"
    script.write_text(f"import sys\nfrom hf_finetune import cli, verify\n{before}\nsys.exit(cli.main())\n")
    words = ["verify-resume", "classify", *words, *write_options(config, {}, cwd)]
    return server.start(script, words, cwd, dict(os.environ), forks=True)
