"""Fixtures of all tests. Nothing here needs a network or any file outside the repository."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)  # two workers on two cores; and one thread is the same everywhere


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("HF_FINETUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`backbones("bert", layers=2)`: the folder of a small random backbone, made once a session."""
    made: dict[str, Path] = {}

    def make(family: str = "bert", **options: Any) -> Path:
        key = f"{family}-{sorted(options.items())}"
        if key not in made:
            made[key] = tiny.make_backbone(tmp_path_factory.mktemp(family), family, **options)
        return made[key]

    return make


@pytest.fixture
def make_config(tmp_path: Path, backbones: Callable[..., Path]) -> Callable[..., RunConfig]:
    """`make_config(**{"train.epochs": 1})`: a RunConfig on a small backbone and 60 + 24 + 24 made rows under tmp_path.

    `problem` and `pair` choose the made data; every other key is a setting over these defaults.
    """

    def make(problem: str = "single_label", pair: bool = False, **settings: Any) -> RunConfig:
        for seed, (split, count) in enumerate((("train", 60), ("validation", 24), ("test", 24))):
            path = tmp_path / f"{split}-{problem}{'-pair' if pair else ''}.jsonl"
            if not path.exists():
                tiny.write_jsonl(path, tiny.make_rows(count, seed=seed, problem=problem, pair=pair))
            settings.setdefault(f"data.{split}", [str(path)])
        defaults = {
            "task.kind": "classify",
            "name": "run",
            "output_dir": str(tmp_path / "outputs"),
            "model.backbone": str(backbones("bert")) if "model.backbone" not in settings else "",
            "data.text_columns": ["text", "other"] if pair else ["text"],
            "train.epochs": 2,
            "train.batch_size": 8,
            "train.learning_rate": 2e-3,
            "tracking.trackers": [],
            "tracking.log_every": 1,
            "train.precision": "fp32",  # whatever this processor is fast at
        }
        return load_config(defaults | settings, [])

    return make
