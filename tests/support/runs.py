"""Starting, killing and comparing whole runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_finetune.config.sections import RunConfig
from hf_finetune.train import after_update, finetune


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key != "time" and not key.endswith("per_second")}
        for line in lines
    ]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The exported weights."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(run_dir / "model").state_dict()


def last_checkpoint(run_dir: Path) -> dict[str, Any]:
    """The newest checkpoint, opened as a user would."""
    return torch.load(
        max((run_dir / "checkpoints").glob("*.pt"), key=lambda path: path.name.split("_")[2]), weights_only=True
    )


def assert_same_tensors(ours: Any, theirs: Any, place: str = "") -> None:
    """Nested dicts and lists of equal values, tensors equal bit for bit."""
    assert type(ours) is type(theirs), place
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), place
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            assert_same_tensors(ours[key], theirs[key], f"{place}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), place
        for position, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_tensors(one, other, f"{place}/{position}")
    else:
        assert ours == theirs, place


class CutOffError(Exception):
    """Thrown into a run to stop it."""


def run_until(config: RunConfig, update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, and stops after that update (its checkpoint, if one is due, is written before the next begins)."""

    def stopping(*arguments: Any, **options: Any) -> Any:
        progress = after_update(*arguments, **options)
        if progress.update == update:
            raise CutOffError
        return progress

    with monkeypatch.context() as patch:
        patch.setattr("hf_finetune.train.after_update", stopping)
        with pytest.raises(CutOffError):
            finetune(config)


def launch(
    words: list[str], config: RunConfig, settings: dict[str, Any], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Runs the recipe's own file under a launcher, in a process of its own, with the config as a file."""
    from hf_finetune.config.loading import to_yaml

    path = cwd / f"{config.name}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    recipe = Path(__file__).parents[2] / "recipes" / "classify.py"
    options = [f"--{key}={value}" for key, value in settings.items()]
    return subprocess.run(
        [*words, str(recipe), "--config", str(path), *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process: the same bits want the same threads
    )


BIN = Path(sys.executable).parent


TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2"]
