"""LoRA in the upper blocks beside training these blocks whole, and beside plain peft with transformers' Trainer: same model,
data, epochs, batch size, warm-up and adapters.

    python benchmarks/beside/adapter.py --config recipes/configs/classify/sst2_lora.yaml --data.max_train_examples 2000

Takes the classify recipe's settings, with adapter.kind lora; whole blocks train at the recipe's own learning rate. Prints one
JSON line each: the best accuracy on validation, that on the test data, what trains, the seconds of training with its evaluations
(of hf-finetune with capturing the frozen prefix), and the processor's seconds for all of it, which other loads change less.
"""

import contextlib
import dataclasses
import io
import json
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from hf_finetune import tasks
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import AdapterConfig, RunConfig
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.model import freezing, structure
from hf_finetune.system.locations import local_path
from hf_finetune.tasks.classify import Classification
from hf_finetune.train import finetune

DEFAULTS = runpy.run_path(str(Path(__file__).resolve().parents[2] / "recipes" / "classify.py"))["DEFAULTS"]


def ours(config: RunConfig, kind: str) -> dict[str, Any]:
    """By hf-finetune, from an empty cache."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        own = dataclasses.replace(
            config,
            output_dir=folder,
            name="beside",
            prefix=dataclasses.replace(config.cache, dir=f"{folder}/prefix"),
            tracking=dataclasses.replace(config.tracking, trackers=()),
        )
        results = finetune(own).results
    seconds = sum(results["seconds"][phase] for phase in ("cache", "train", "evaluate"))
    return {
        "kind": kind,
        "validation_accuracy": round(results["best"]["value"], 4),
        "test_accuracy": round(results["test"]["accuracy"], 4),
        "trainable": results["parameters"]["trainable"],
        "seconds": round(seconds, 1),
    }


def encode(task: Classification, table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Rows as Trainer takes them."""
    texts = [[table.columns[name][row] for name in task.text_columns] for row in range(len(table))]
    labels = [task.label_names.index(task.labels_of(table, row)[0]) for row in range(len(table))]
    return [
        {**tokenizer(*each, truncation=True, max_length=max_length), "labels": label}
        for each, label in zip(texts, labels, strict=True)
    ]


def lora_of(model: Any, config: RunConfig) -> Any:
    """peft's model with adapters in the same linear layers, and its learning rates' AdamW."""
    num_frozen = freezing.resolve_num_blocks(config.freeze, structure.analyze_structure(model))
    settings = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=config.adapter.rank,
        lora_alpha=config.adapter.alpha,
        lora_dropout=config.adapter.dropout,
        target_modules=["query", "key", "value", "dense"],
        layers_to_transform=list(range(num_frozen, model.config.num_hidden_layers)),
        layers_pattern="layer",
    )
    return peft.get_peft_model(model, settings)


def optimizer_of(model: Any, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW with the recipe's two learning rates, and no decay of biases."""
    train = config.train
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(("classifier" in name, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        {
            "params": parameters,
            "lr": (train.head_learning_rate or train.learning_rate) if is_head else train.learning_rate,
            "weight_decay": train.weight_decay if decays else 0.0,
        }
        for (is_head, decays), parameters in groups.items()
    )


def theirs(config: RunConfig) -> dict[str, Any]:
    """By peft and Trainer, in bf16 where the processor is fast at it, examples of like length together."""
    tables = load_splits(config.data, config.seed, tasks.form_of("classification", config)).tables()
    task = Classification.from_table(config, tables["train"])
    source = local_path(config.model.backbone, "model.backbone")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    transformers.set_seed(config.seed)
    model = lora_of(
        transformers.AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=len(task.label_names), dtype=torch.float32
        ),
        config,
    )
    rows = {split: encode(task, table, tokenizer, config.data.max_length or 512) for split, table in tables.items()}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                folder,
                num_train_epochs=config.train.epochs,
                per_device_train_batch_size=config.train.batch_size,
                per_device_eval_batch_size=config.evaluation.batch_size,
                warmup_steps=config.train.warmup_fraction,
                train_sampling_strategy="group_by_length",
                eval_strategy="epoch",
                bf16=torch.cpu._is_amx_tile_supported(),
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=config.seed,
            ),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda out: {"accuracy": float(np.mean(out.predictions.argmax(-1) == out.label_ids))},
            optimizers=(optimizer_of(model, config), None),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        test = trainer.evaluate(rows["test"], metric_key_prefix="test")
    found = [row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row]
    return {
        "kind": "peft and Trainer",
        "validation_accuracy": round(max(found), 4),
        "test_accuracy": round(test["test_accuracy"], 4),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Trains three times, and measures."""
    config = load_config(DEFAULTS, sys.argv[1:])
    assert config is not None
    whole = dataclasses.replace(
        config,
        adapter=AdapterConfig(),
        train=dataclasses.replace(config.train, learning_rate=DEFAULTS["train.learning_rate"]),
    )
    for measure in (lambda: ours(config, "LoRA"), lambda: ours(whole, "whole blocks"), lambda: theirs(config)):
        began = time.process_time()
        found = measure()
        print(json.dumps({**found, "cpu_seconds": round(time.process_time() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
