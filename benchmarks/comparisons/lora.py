"""Compares three ways to train the upper blocks of a classifier: LoRA by hf-finetune, the same blocks without adapters by
hf-finetune, and LoRA by peft with transformers.Trainer.

    python benchmarks/comparisons/lora.py --config recipes/configs/classify/sst2_lora.yaml --data.max_train_examples 2000

Takes the settings of the classify recipe, with adapter.kind lora: model, data, epochs, batch size, warm-up and adapters are the
same. Blocks without adapters train at the recipe's own learning rate. The backbone must be a BERT model.

Prints a JSON line for each way: the best accuracy on validation, the accuracy on test, the number of trained parameters, and the
seconds of training with its evaluations. The seconds of hf-finetune include the computation of the activations of the frozen
layers. cpu_seconds is the processor time of everything, which other programs on the machine change less.
"""

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import transformers
from trainer import (
    DEFAULT_LENGTH,
    list_evaluations,
    load_model,
    load_recipe_config,
    load_recipe_defaults,
    load_task_and_tables,
    make_arguments,
    make_optimizer,
    print_result,
    run_trainer,
)

from hf_finetune.config.sections import AdapterConfig, RunConfig
from hf_finetune.data.table import Table
from hf_finetune.model import freezing, structure
from hf_finetune.tasks.classify import Classification
from hf_finetune.train import finetune


def train_ours(config: RunConfig) -> dict[str, Any]:
    """Trains with hf-finetune, from an empty cache. Returns what was measured."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        own = dataclasses.replace(
            config,
            output_dir=folder,
            name="comparison",
            cache=dataclasses.replace(config.cache, dir=f"{folder}/cache"),
            tracking=dataclasses.replace(config.tracking, trackers=()),
        )
        results = finetune(own).results
    seconds = sum(results["seconds"][phase] for phase in ("cache", "train", "evaluate"))
    return {
        "validation_accuracy": round(results["best"]["value"], 4),
        "test_accuracy": round(results["test"]["accuracy"], 4),
        "trainable": results["parameters"]["trainable"],
        "seconds": round(seconds, 1),
    }


def encode(task: Classification, table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Returns the rows as transformers' run_glue.py encodes them."""
    labels: Any = task.encoding.labels(table, {})
    rows = []
    for row, label in enumerate(labels.tolist()):
        texts = [table.columns[name][row] for name in task.encoding.encoded_columns()]
        rows.append({**tokenizer(*texts, truncation=True, max_length=max_length), "labels": label})
    return rows


def add_adapters(model: Any, config: RunConfig) -> Any:
    """Returns peft's model, with adapters in the same linear layers as hf-finetune's."""
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


def compute_accuracy(output: Any) -> dict[str, float]:
    """Returns the accuracy of Trainer's predictions."""
    return {"accuracy": float(np.mean(output.predictions.argmax(-1) == output.label_ids))}


def train_theirs(config: RunConfig) -> dict[str, Any]:
    """Trains with peft and Trainer, in batches of examples of similar length. Returns what was measured."""
    task, tables = load_task_and_tables(config)
    model, tokenizer = load_model(
        config, transformers.AutoModelForSequenceClassification, **dict(task.head.config_entries)
    )
    model = add_adapters(model, config)
    length = config.data.max_length or DEFAULT_LENGTH
    rows = {split: encode(task, table, tokenizer, length) for split, table in tables.items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = transformers.Trainer(
            model=model,
            args=make_arguments(config, folder, train_sampling_strategy="group_by_length", eval_strategy="epoch"),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_accuracy,
            optimizers=(make_optimizer(model, config, "classifier"), None),
        )
        seconds = run_trainer(trainer)
        with contextlib.redirect_stdout(sys.stderr):
            test = trainer.evaluate(rows["test"], metric_key_prefix="test")
    return {
        "validation_accuracy": max(list_evaluations(trainer, "accuracy")),
        "test_accuracy": round(test["test_accuracy"], 4),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "seconds": seconds,
    }


def main() -> None:
    """Trains in all three ways, and prints a line for each."""
    config = load_recipe_config("classify", sys.argv[1:])
    learning_rate = load_recipe_defaults("classify")["train.learning_rate"]
    without_adapters = dataclasses.replace(
        config, adapter=AdapterConfig(), train=dataclasses.replace(config.train, learning_rate=learning_rate)
    )
    ways: dict[str, tuple[Callable[[RunConfig], dict[str, Any]], RunConfig]] = {
        "LoRA": (train_ours, config),
        "blocks without adapters": (train_ours, without_adapters),
        "peft and Trainer": (train_theirs, config),
    }
    for kind, (train, settings) in ways.items():
        began = time.process_time()
        values = train(settings)
        print_result(kind=kind, **values, cpu_seconds=round(time.process_time() - began, 1))


if __name__ == "__main__":
    main()
