"""Configs of small runs on made-up data."""

from pathlib import Path
from typing import Any

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from support import tiny


def make_small_config(
    folder: Path, backbone: Path | str, problem: str = "single_label", pair: bool = False, **settings: Any
) -> RunConfig:
    """A config for a small backbone, and 60 + 24 + 24 made-up rows that are written to the folder unless they are there.

    problem, pair: choose the made-up rows. settings: override the defaults below.
    """
    files = {}
    for seed, (split, count) in enumerate((("train", 60), ("validation", 24), ("test", 24))):
        path = folder / f"{split}-{problem}{'-pair' if pair else ''}.jsonl"
        if not path.exists():
            tiny.write_jsonl(path, tiny.make_rows(count, seed=seed, problem=problem, pair=pair))
        files[f"data.{split}"] = [str(path)]
    defaults = {
        "task.kind": "classify",
        "name": "run",
        "output_dir": str(folder / "outputs"),
        "model.backbone": str(backbone),
        "data.text_columns": ["text", "other"] if pair else ["text"],
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.learning_rate": 2e-3,
        "tracking.trackers": [],
        "tracking.log_every": 1,
        "train.precision": "fp32",  # the same on every processor
    }
    return load_config(defaults | files | settings, [])
