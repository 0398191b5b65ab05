"""Trains what recipes/model_language.py trains (a causal model), with transformers.Trainer as in its example run_clm.py.

    python benchmarks/comparisons/model_language.py --config recipes/configs/model_language/tiny_shakespeare.yaml

Takes the settings of the recipe. Blocks, splits and frozen tensors are made by hf-finetune, so that only the loop differs:
Trainer has its own order of examples and its own cross entropy. Prints one JSON line: loss and perplexity of validation and test,
and the seconds of training and of everything.
"""

import contextlib
import math
import sys
import tempfile
import time
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset
from trainer import load_recipe_config, load_task_and_tables, make_arguments, print_result, run_trainer

from hf_finetune.data.features import IGNORED, Features, make_features
from hf_finetune.model import backbone, freezing


class Blocks(Dataset[dict[str, Any]]):
    """The blocks of a split. Their labels are their own tokens: the model shifts them."""

    def __init__(self, features: Features) -> None:
        ids = torch.from_numpy(features.inputs["input_ids"].astype("int64"))
        self.blocks = list(ids.split(features.sequence_lengths.tolist()))

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"input_ids": self.blocks[number], "labels": self.blocks[number]}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads sequences at their ends; of blocks, only the last one of a file needs it."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids, labels = ([row[name] for row in rows] for name in ("input_ids", "labels"))
    mask = pad([torch.ones_like(tokens) for tokens in ids], batch_first=True)
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": mask,
        "labels": pad(labels, batch_first=True, padding_value=IGNORED),
    }


def main() -> None:
    """Trains and evaluates."""
    began = time.perf_counter()
    config = load_recipe_config("model_language", sys.argv[1:])
    task, tables = load_task_and_tables(config)
    if task.problem != "causal":
        raise SystemExit("model_language.py: the backbone must be a causal model; see run_mlm.py for a masked one")
    tokenizer = backbone.load_tokenizer(config.model)
    loaded = backbone.load_backbone(config.model, task.head, tokenizer)
    freezing.apply_freezing(loaded.model, config.freeze)
    length = backbone.resolve_max_length(loaded, config.data.max_length)
    blocks = {
        split: Blocks(make_features(task.encoding.tokenize(table, tokenizer, length), None))
        for split, table in tables.items()
    }
    transformers.set_seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = make_arguments(config, folder)
        trainer: Any = transformers.Trainer(
            loaded.model, arguments, data_collator=collate, train_dataset=blocks["train"]
        )
        seconds = run_trainer(trainer)
        with contextlib.redirect_stdout(sys.stderr):
            losses = {split: trainer.evaluate(blocks[split])["eval_loss"] for split in blocks if split != "train"}
    scores = {split: {"loss": loss, "perplexity": math.exp(loss)} for split, loss in losses.items()}
    total = round(time.perf_counter() - began, 1)
    print_result(trainer=transformers.__version__, **scores, seconds={"train": seconds, "total": total})


if __name__ == "__main__":
    main()
