"""What the attacks write: a small model, a run of it, rows. Made once, in a folder that no fault reaches."""

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from support import tiny
from support.configs import make_small_config

from hf_finetune.config.sections import RunConfig
from hf_finetune.export.predict import Predictor
from hf_finetune.run.folder import open_run
from hf_finetune.run.setup import set_up
from hf_finetune.run.training_run import Clock, TrainingRun
from hf_finetune.train import finetune


class Tools:
    """The things that attacks share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reached: dict[str, set[str]] = {}  # the functions of the package that an attack reached, by its name

    @cached_property
    def backbone(self) -> Path:
        """The folder of a small backbone."""
        return tiny.make_backbone(self.folder / "backbone", "bert", layers=1)

    def make_config(self, folder: Path, **settings: Any) -> RunConfig:
        """The config of a run below a folder. The data lie elsewhere."""
        config = make_small_config(self.folder, self.backbone, **{"cache.activations": "off", **settings})
        return dataclasses.replace(config, output_dir=str(folder))

    def make_run(self, **settings: Any) -> TrainingRun:
        """A run that is ready for update 0, in the folder of the tools."""
        config = self.make_config(self.folder / "outputs", **settings)
        with open_run(config) as runtime:
            return set_up(config, runtime, Clock())

    @cached_property
    def run(self) -> TrainingRun:
        """A run that trains the head."""
        return self.make_run(**{"freeze.embeddings": True, "freeze.layers": "all"})

    @cached_property
    def adapted(self) -> TrainingRun:
        """A run that trains an adapter, which it exports without its backbone."""
        return self.make_run(**{"adapter.kind": "lora", "adapter.merge": False, "name": "adapted"})

    @cached_property
    def results(self) -> dict[str, Any]:
        """The results of a run that is finished."""
        settings = {"train.max_updates": 1, "name": "finished", "cache.dir": str(self.folder / "cache")}
        return finetune(self.make_config(self.folder / "outputs", **settings)).results

    @cached_property
    def predictor(self) -> Predictor:
        """A model of two labels."""
        model, folder = tiny.make_model("bert", layers=1, num_labels=2), self.folder / "model"
        model.save_pretrained(folder)
        tiny.make_tokenizer().save_pretrained(folder)
        return Predictor.from_pretrained(folder, device="cpu")

    @cached_property
    def rows(self) -> Path:
        """A file of rows to predict."""
        rows = [{"text": row["text"], "id": number} for number, row in enumerate(tiny.make_rows(7))]
        return tiny.write_jsonl(self.folder / "rows.jsonl", rows)


def move(run: TrainingRun, folder: Path) -> TrainingRun:
    """The run with its folder below another one."""
    config = dataclasses.replace(run.config, output_dir=str(folder), name="run")
    return dataclasses.replace(run, config=config, runtime=dataclasses.replace(run.runtime, run_dir=config.run_dir))


def read_files(folder: Path, *patterns: str) -> dict[str, Any]:
    """The content of the files that match, by name: JSON as values."""
    found: dict[str, Any] = {}
    for pattern in patterns:
        for path in folder.glob(pattern):
            content = path.read_bytes()
            found[path.name] = json.loads(content) if path.suffix == ".json" else content
    return found


def to_lists(tensors: Any) -> Any:
    """Nested tensors as lists."""
    if isinstance(tensors, torch.Tensor):
        return tensors.tolist()
    if isinstance(tensors, dict):
        return {key: to_lists(value) for key, value in tensors.items()}
    return tensors
