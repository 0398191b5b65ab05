"""What `recipes/choose.py` does, by transformers' Trainer as its run_swag.py uses it: same model, data, epochs, batch size,
learning rates, warm-up and frozen tensors.

    python benchmarks/beside/choice.py --config recipes/configs/choose/copa.yaml [--train.epochs 1 ...]

Takes the recipe's own settings; all rows must have as many choices. Prints one JSON line: accuracy after every epoch
(hf-finetune takes the best on validation), and the seconds of training with these evaluations.
"""

import json
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_finetune import tasks
from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.model import freezing
from hf_finetune.system.locations import local_path
from hf_finetune.tasks.choose import Choice

ROOT = Path(__file__).resolve().parent.parent.parent


def encode(task: Choice, table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """As run_swag.py: each choice with the stem before it."""
    rows = []
    for row in range(len(table)):
        choices = task.choices(table, row).texts
        stem = " ".join(table.columns[name][row] for name in task.stem_columns)
        encoded = tokenizer([stem] * len(choices), list(choices), truncation=True, max_length=max_length)
        rows.append({**encoded, "labels": task.right_choice(table, row)})
    return rows


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
    defaults = runpy.run_path(str(ROOT / "recipes" / "choose.py"))["DEFAULTS"]
    config = load_config(defaults, sys.argv[1:])
    assert config is not None
    tables = load_splits(config.data, config.seed, tasks.form_of("choice", config)).tables()
    task = Choice.from_table(config, tables["train"])
    source = local_path(config.model.backbone, "model.backbone")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    transformers.set_seed(config.seed)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(source, dtype=torch.float32)
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
            data_collator=transformers.DataCollatorForMultipleChoice(tokenizer),
            compute_metrics=lambda out: {"accuracy": float((out.predictions.argmax(-1) == out.label_ids).mean())},
            optimizers=(optimizer_of(model, config), None),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = round(time.perf_counter() - began, 1)
    found = [round(row["eval_accuracy"], 4) for row in trainer.state.log_history if "eval_accuracy" in row]
    print(json.dumps({"trainer": transformers.__version__, "validation_accuracy": found, "train_seconds": seconds}))


if __name__ == "__main__":
    main()
