"""Trains what recipes/tag.py trains, with transformers.Trainer as in its example run_ner.py.

    python benchmarks/comparisons/tag.py --config recipes/configs/tag/wnut17.yaml [--train.epochs 1 ...]

Takes the settings of the recipe: model, data, epochs, batch size, learning rates, warm-up and frozen tensors are the same. Prints
one JSON line: seqeval's metrics of validation and test after the last epoch (hf-finetune takes the best epoch on validation), F1
of validation after every epoch, and the seconds of training with these evaluations and saves.
"""

import contextlib
import sys
import tempfile
from typing import Any

import numpy as np
import seqeval.metrics
import transformers
from trainer import (
    DEFAULT_LENGTH,
    EVERY_EPOCH,
    list_evaluations,
    load_model,
    load_recipe_config,
    load_task_and_tables,
    make_arguments,
    make_optimizer,
    measure_peak,
    print_result,
    run_trainer,
)

from hf_finetune.data.features import IGNORED
from hf_finetune.data.table import Table
from hf_finetune.tasks.tag import Tagging
from hf_finetune.tasks.text.tags import number_names

METRICS = ("f1_score", "precision_score", "recall_score", "accuracy_score")


def encode(task: Tagging, table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Returns the rows as run_ner.py encodes them: labels are at first pieces, and longer sentences are cut."""
    reader, numbers = task.encoding.reader, number_names(task.label_names)
    rows = []
    for row in range(len(table)):
        tags = reader.read_tag_numbers(table, row, numbers)
        encoded = tokenizer(
            reader.read_words(table, row), is_split_into_words=True, truncation=True, max_length=max_length
        )
        labels, previous = [], None
        for word in encoded.word_ids():
            labels.append(IGNORED if word is None or word == previous else tags[word])
            previous = word
        rows.append({**encoded, "labels": labels})
    return rows


def compute_scores(task: Tagging, output: Any) -> dict[str, float]:
    """Returns seqeval's entity scores and accuracy of Trainer's predictions."""
    predicted, references = [], []
    for numbers, labels in zip(np.argmax(output.predictions, -1), output.label_ids, strict=True):
        is_labelled = labels != IGNORED
        predicted.append(task.scoring.name_tags(numbers[is_labelled].tolist()))
        references.append(task.scoring.name_tags(labels[is_labelled].tolist()))
    return {
        name.removesuffix("_score"): round(float(getattr(seqeval.metrics, name)(references, predicted)), 4)
        for name in METRICS
    }


def main() -> None:
    """Trains and evaluates."""
    config = load_recipe_config("tag", sys.argv[1:])
    task, tables = load_task_and_tables(config)
    model, tokenizer = load_model(
        config, transformers.AutoModelForTokenClassification, **dict(task.head.config_entries)
    )
    length = config.data.max_length or DEFAULT_LENGTH
    rows = {split: encode(task, table, tokenizer, length) for split, table in tables.items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = transformers.Trainer(
            model=model,
            args=make_arguments(config, folder, train_sampling_strategy="group_by_length", **EVERY_EPOCH),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
            processing_class=tokenizer,
            compute_metrics=lambda output: compute_scores(task, output),
            optimizers=(make_optimizer(model, config, "classifier"), None),
        )
        seconds, peak = run_trainer(trainer), measure_peak(trainer)
        trainer.save_model()
        with contextlib.redirect_stdout(sys.stderr):
            scores = {split: compute_scores(task, trainer.predict(rows[split])) for split in rows if split != "train"}
    print_result(
        trainer=transformers.__version__,
        **scores,
        each_epoch=list_evaluations(trainer, "f1"),
        train_seconds=seconds,
        peak_memory_mb=peak,
    )


if __name__ == "__main__":
    main()
