"""What a user would pick instead: transformers' Trainer as its run_clm.py uses it, on the model, text, blocks and settings of
recipes/configs/model_language/tiny_shakespeare.yaml. Prints one JSON line.

    python benchmarks/beside/language_modelling.py data/tiny_shakespeare/input.txt

Blocks, splits and freeze plan are ours, built by the package, so that only the loop differs: Trainer's order of examples,
its cross entropy, its schedule of the same shape.
"""

import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch.utils.data import Dataset

from hf_finetune.config.loading import load_config
from hf_finetune.data.features import make_features
from hf_finetune.data.splits import load_splits
from hf_finetune.model import backbone, freezing
from hf_finetune.system import processes
from hf_finetune.tasks import build, form_of

CONFIG = Path(__file__).parents[2] / "recipes/configs/model_language/tiny_shakespeare.yaml"


class Blocks(Dataset[dict[str, Any]]):
    """The blocks of a split, the model's own labels beside them."""

    def __init__(self, features: Any) -> None:
        ids = torch.from_numpy(features.inputs["input_ids"].astype("int64"))
        self.rows = list(ids.split(features.sequence_lengths.tolist()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.rows[row], "labels": self.rows[row]}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Blocks padded at their ends, which only a file's last one needs."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [row["input_ids"] for row in rows]
    mask = pad([torch.ones_like(each) for each in ids], batch_first=True)
    return {"input_ids": pad(ids, batch_first=True), "attention_mask": mask,
            "labels": pad(ids, batch_first=True, padding_value=-100)}  # fmt: skip


def main(path: str) -> None:
    """Trains and measures."""
    began = time.perf_counter()
    own = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    own["data"]["train"] = [path]
    config = load_config({f"{section}.{key}": value for section, values in own.items() if isinstance(values, dict)
                          for key, value in values.items()} | {"data.label_column": None}, [])  # fmt: skip
    assert config is not None
    splits = load_splits(config.data, config.seed, form_of("language_modelling", config))
    task = build("language_modelling", config, splits.train)
    tokenizer = backbone.load_tokenizer(config.model)
    model = backbone.load_backbone(config.model, task.head, tokenizer).model
    freezing.apply_freezing(model, config.freeze)
    length = int(config.data.max_length or 0)
    blocks = {split: Blocks(make_features(task.tokenize(table, tokenizer, length), None))
              for split, table in splits.tables().items()}  # fmt: skip
    train = config.train
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=train.max_updates or -1, per_device_train_batch_size=train.batch_size,
            per_device_eval_batch_size=8, learning_rate=train.learning_rate, weight_decay=train.weight_decay,
            warmup_steps=math.ceil(train.warmup_fraction * (train.max_updates or 0)), lr_scheduler_type="linear",
            bf16=processes.choose_precision("auto")[0] == "bf16", use_cpu=True, seed=config.seed,
            eval_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, data_collator=collate, train_dataset=blocks["train"])
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        losses = {split: trainer.evaluate(blocks[split])["eval_loss"] for split in ("validation", "test")}
    found = {split: {"loss": loss, "perplexity": math.exp(loss)} for split, loss in losses.items()}
    print(json.dumps({"beside": "transformers.Trainer", **found, "seconds": {
        "train": round(seconds, 1), "total": round(time.perf_counter() - began, 1)}}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
