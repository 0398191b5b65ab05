"""Trains what recipes/choose.py trains, with transformers.Trainer as in its example run_swag.py.

    python benchmarks/comparisons/choose.py --config recipes/configs/choose/copa.yaml [--train.epochs 1 ...]

Takes the settings of the recipe: model, data, epochs, batch size, learning rates, warm-up and frozen tensors are the same.
All rows must have the same number of choices. Prints one JSON line: accuracy on validation after every epoch (hf-finetune takes
the best epoch), and the seconds of training with these evaluations.
"""

import sys
import tempfile
from typing import Any

import transformers
from trainer import (
    DEFAULT_LENGTH,
    list_evaluations,
    load_model,
    load_recipe_config,
    load_task_and_tables,
    make_arguments,
    make_optimizer,
    print_result,
    run_trainer,
)

from hf_finetune.data.table import Table
from hf_finetune.tasks.choose import Choice


def encode(task: Choice, table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Returns the rows as run_swag.py encodes them: each choice as a pair with the prompt before it."""
    reader, rows = task.encoding.reader, []
    for row in range(len(table)):
        choices = reader.read_choices(table, row).texts
        prompt = " ".join(table.columns[name][row] for name in task.encoding.prompts)
        encoded = tokenizer([prompt] * len(choices), list(choices), truncation=True, max_length=max_length)
        rows.append({**encoded, "labels": reader.read_label(table, row)})
    return rows


def compute_accuracy(output: Any) -> dict[str, float]:
    """Returns the accuracy of Trainer's predictions."""
    return {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())}


def main() -> None:
    """Trains and evaluates."""
    config = load_recipe_config("choose", sys.argv[1:])
    task, tables = load_task_and_tables(config)
    model, tokenizer = load_model(config, transformers.AutoModelForMultipleChoice)
    length = config.data.max_length or DEFAULT_LENGTH
    rows = {split: encode(task, table, tokenizer, length) for split, table in tables.items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = transformers.Trainer(
            model=model,
            args=make_arguments(config, folder, eval_strategy="epoch"),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=transformers.DataCollatorForMultipleChoice(tokenizer),
            compute_metrics=compute_accuracy,
            optimizers=(make_optimizer(model, config, "classifier"), None),
        )
        seconds = run_trainer(trainer)
    print_result(
        trainer=transformers.__version__,
        validation_accuracy=list_evaluations(trainer, "accuracy"),
        train_seconds=seconds,
    )


if __name__ == "__main__":
    main()
