"""What `recipes/tag.py` does, by transformers' Trainer as its run_ner.py uses it: same model, data, epochs, batch size, learning
rates, warm-up and frozen tensors.

    python benchmarks/beside/tagging.py --config recipes/configs/tag/wnut17.yaml [--train.epochs 1 ...]

Takes the recipe's own settings. Prints one JSON line: seqeval's metrics of validation and test after the last epoch (hf-finetune
takes the best on validation), and the seconds of training.
"""

import json
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import seqeval.metrics
import torch
import transformers

from hf_finetune import tasks
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import IGNORED
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.model import freezing
from hf_finetune.system.locations import local_path
from hf_finetune.tasks.tag import Tagging

ROOT = Path(__file__).resolve().parent.parent.parent


def encode(task: Tagging, table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """As run_ner.py: labels at first pieces; what is longer is cut."""
    rows = []
    for row in range(len(table)):
        tags = task.numbers_of(table, row)
        encoded = tokenizer(
            table.columns["tokens"][row], is_split_into_words=True, truncation=True, max_length=max_length
        )
        words = encoded.word_ids()
        labels = [
            IGNORED if word is None or (at and words[at - 1] == word) else tags[word] for at, word in enumerate(words)
        ]
        rows.append({**encoded, "labels": labels})
    return rows


def measure(task: Tagging, outcome: Any) -> dict[str, float]:
    """seqeval's entity scores and accuracy of Trainer's predictions."""
    numbers = np.argmax(outcome.predictions, -1)
    given, asked = [], []
    for predicted, labels in zip(numbers, outcome.label_ids, strict=True):
        given.append(task.named(predicted[labels != IGNORED].tolist()))
        asked.append(task.named(labels[labels != IGNORED].tolist()))
    names = ("f1_score", "precision_score", "recall_score", "accuracy_score")
    return {
        name.removesuffix("_score"): round(float(getattr(seqeval.metrics, name)(asked, given)), 4) for name in names
    }


def optimizer_of(model: Any, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW with the recipe's two learning rates, and no decay of biases and norms, as Trainer has it."""
    train = config.train
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("classifier"), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        {
            "params": parameters,
            "lr": (train.head_learning_rate or train.learning_rate) if is_head else train.learning_rate,
            "weight_decay": train.weight_decay if decays else 0.0,
        }
        for (is_head, decays), parameters in groups.items()
    )


def main() -> None:
    """Trains and measures."""
    defaults = runpy.run_path(str(ROOT / "recipes" / "tag.py"))["DEFAULTS"]
    config = load_config(defaults, sys.argv[1:])
    assert config is not None
    tables = load_splits(config.data, config.seed, tasks.form_of("tagging", config)).tables()
    task = Tagging.from_table(config, tables["train"])
    source = local_path(config.model.backbone, "model.backbone")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    transformers.set_seed(config.seed)
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        source, dtype=torch.float32, **task.model_settings()
    )
    freezing.apply_freezing(model, config.freeze)
    rows = {split: encode(task, table, tokenizer, config.data.max_length or 512) for split, table in tables.items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                folder,
                num_train_epochs=config.train.epochs,
                per_device_train_batch_size=config.train.batch_size,
                per_device_eval_batch_size=config.evaluation.batch_size,
                warmup_steps=config.train.warmup_fraction,
                train_sampling_strategy="group_by_length",
                bf16=torch.cpu._is_amx_tile_supported(),
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=config.seed,
            ),
            train_dataset=rows["train"],
            data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
            optimizers=(optimizer_of(model, config), None),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = round(time.perf_counter() - began, 1)
        found = {split: measure(task, trainer.predict(rows[split])) for split in rows if split != "train"}
    print(json.dumps({"trainer": transformers.__version__, **found, "train_seconds": seconds}))


if __name__ == "__main__":
    main()
