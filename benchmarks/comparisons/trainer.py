"""Parts that the comparisons share: the settings of a recipe, and transformers.Trainer with the same settings."""

import contextlib
import json
import runpy
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from hf_finetune.config.loading import load_config
from hf_finetune.config.recipes import recipe_path
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import load_task
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.model import freezing
from hf_finetune.model.backbone import set_dropout
from hf_finetune.system.locations import local_path
from hf_finetune.system.processes import choose_precision, peak_memory_mb

# Options of make_arguments(): evaluates and saves after every epoch, as hf-finetune does
EVERY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1}
DEFAULT_LENGTH = 512  # longest input in tokens if data.max_length is not given


def load_recipe_defaults(recipe: str) -> dict[str, Any]:
    """Returns the default settings of a recipe."""
    defaults: dict[str, Any] = runpy.run_path(str(recipe_path(recipe)))["DEFAULTS"]
    return defaults


def load_recipe_config(recipe: str, words: Sequence[str]) -> RunConfig:
    """Returns the settings of a recipe, with those of its command line."""
    return load_config(load_recipe_defaults(recipe), words)


def load_task_and_tables(config: RunConfig) -> tuple[Any, dict[str, Table]]:
    """Returns hf-finetune's task, which reads labels and answers, and the table of each split."""
    task_class = load_task(config.task.kind)
    splits = load_splits(config.data, config.seed, task_class.make_columns(config).spec)
    train = task_class.extend_training(config, splits.train)
    return task_class.from_table(config, train), {**splits.tables(), "train": train}


def load_model(config: RunConfig, auto_class: Any, **config_entries: Any) -> tuple[Any, Any]:
    """Returns the backbone with a new head, its tensors frozen as the config says, and its tokenizer.

    config_entries: Entries of the model's config, such as id2label.
    """
    source = local_path(config.model.backbone, "model.backbone")
    hf_config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **config_entries)
    set_dropout(hf_config, config.model.dropout)
    transformers.set_seed(config.seed)
    model = auto_class.from_pretrained(source, trust_remote_code=False, config=hf_config, dtype=torch.float32)
    freezing.apply_freezing(model, config.freeze)
    return model, transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def make_optimizer(model: Any, config: RunConfig, head: str) -> torch.optim.Optimizer:
    """Returns AdamW with the recipe's two learning rates, and without weight decay of biases and norms, as in Trainer.

    head: Name of the module that is the new head.
    """
    train = config.train
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((head in name.split("."), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        {
            "params": parameters,
            "lr": (train.head_learning_rate or train.learning_rate) if is_head else train.learning_rate,
            "weight_decay": train.weight_decay if decays else 0.0,
        }
        for (is_head, decays), parameters in groups.items()
    )


def make_arguments(
    config: RunConfig, folder: str, arguments_class: Any = transformers.TrainingArguments, **options: Any
) -> Any:
    """Returns Trainer's arguments for the settings of a run on one process. options: further arguments."""
    train = config.train
    precision, _ = choose_precision(train.precision)
    return arguments_class(
        output_dir=folder,
        num_train_epochs=train.epochs,
        max_steps=train.max_updates or -1,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=config.evaluation.batch_size,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        warmup_steps=train.warmup_fraction,  # a share of all updates, because it is below 1
        lr_scheduler_type="constant_with_warmup" if train.schedule == "constant" else train.schedule,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.accelerator.is_available(),
        seed=config.seed,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{"save_strategy": "no", **options},
    )


def run_trainer(trainer: Any) -> float:
    """Trains. Returns the seconds. The lines that Trainer prints go to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        began = time.perf_counter()
        trainer.train()
        return round(time.perf_counter() - began, 1)


def list_evaluations(trainer: Any, metric: str) -> list[float]:
    """Returns a metric of the validation split after each epoch, rounded to four digits."""
    key = f"eval_{metric}"
    return [round(row[key], 4) for row in trainer.state.log_history if key in row]


def measure_peak(trainer: Any) -> float:
    """Returns the peak memory until now in MB."""
    return round(peak_memory_mb(trainer.args.device), 1)


def print_result(**values: Any) -> None:
    """Prints the result as one JSON line."""
    print(json.dumps(values), flush=True)
