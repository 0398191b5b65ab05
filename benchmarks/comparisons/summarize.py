"""Trains what recipes/summarize.py trains, with transformers.Seq2SeqTrainer as in its example run_summarization.py.

    python benchmarks/comparisons/summarize.py --config recipes/configs/summarize/scitldr.yaml [--seed 1 ...] [--lead]

Takes the settings of the recipe: model, data, lengths, epochs, batch size, learning rate, seed and beams are the same. Prints one
JSON line: loss and ROUGE of the test split after the last epoch, and the seconds of training. ROUGE is hf-finetune's: with
stemming, and the best of several references counts. --lead prints the ROUGE of the first sentence of each document instead.
"""

import argparse
import contextlib
import re
import sys
import tempfile
from typing import Any

import numpy as np
import transformers
from trainer import load_model, load_recipe_config, load_task_and_tables, make_arguments, print_result, run_trainer

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.features import IGNORED
from hf_finetune.data.table import Table
from hf_finetune.tasks.sequence_to_sequence import Settings
from hf_finetune.tasks.summarize import compute_rouge
from hf_finetune.tasks.text.references import read_references


def get_settings(config: RunConfig) -> Settings:
    """Returns `config.task`, which is of this task."""
    assert isinstance(config.task, Settings)
    return config.task


def read_all_references(config: RunConfig, table: Table) -> list[list[str]]:
    """Returns the references of each row."""
    return [read_references(table, row, str(config.data.label_column)) for row in range(len(table))]


def encode(config: RunConfig, table: Table, tokenizer: Any) -> list[dict[str, Any]]:
    """Returns the rows as run_summarization.py encodes them, with the first reference as target."""
    settings = get_settings(config)
    texts = [settings.input_prefix + text for text in table.columns[config.data.text_columns[0]]]
    targets = [references[0] for references in read_all_references(config, table)]
    inputs = tokenizer(texts, truncation=True, max_length=config.data.max_length)
    labels = tokenizer(text_target=targets, truncation=True, max_length=settings.max_target_length)["input_ids"]
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": target}
        for ids, mask, target in zip(inputs["input_ids"], inputs["attention_mask"], labels, strict=True)
    ]


def train(config: RunConfig, tables: dict[str, Table]) -> dict[str, Any]:
    """Trains. Returns loss and ROUGE of the test split, and the seconds."""
    settings = get_settings(config)
    model, tokenizer = load_model(config, transformers.AutoModelForSeq2SeqLM)
    rows = {split: encode(config, tables[split], tokenizer) for split in ("train", "test")}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = transformers.Seq2SeqTrainer(
            model=model,
            args=make_arguments(
                config,
                folder,
                transformers.Seq2SeqTrainingArguments,
                predict_with_generate=True,
                generation_max_length=settings.max_target_length,
                generation_num_beams=settings.num_beams,
            ),
            train_dataset=rows["train"],
            processing_class=tokenizer,
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED),
        )
        seconds = run_trainer(trainer)
        with contextlib.redirect_stdout(sys.stderr):
            output = trainer.predict(rows["test"], metric_key_prefix="test")
    ids = np.where(output.predictions >= 0, output.predictions, tokenizer.pad_token_id)
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    scores = score_texts(texts, read_all_references(config, tables["test"]))
    return {"loss": round(output.metrics["test_loss"], 4), **scores, "seconds": seconds}


def score_first_sentences(config: RunConfig, table: Table) -> dict[str, float]:
    """Returns ROUGE of the first sentence of each document."""
    documents = table.columns[config.data.text_columns[0]]
    texts = [re.split(r"(?<=[.!?])\s+(?=[A-Z])", document, maxsplit=1)[0] for document in documents]
    return score_texts(texts, read_all_references(config, table))


def score_texts(texts: list[str], references: list[list[str]]) -> dict[str, float]:
    """Returns ROUGE, rounded to four digits."""
    return {name: round(value, 4) for name, value in compute_rouge(texts, references).items()}


def main() -> None:
    """Trains and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lead", action="store_true", help="take the first sentence of a document as its summary")
    options, words = parser.parse_known_args()
    config = load_recipe_config("summarize", words)
    _, tables = load_task_and_tables(config)
    print_result(**(score_first_sentences(config, tables["test"]) if options.lead else train(config, tables)))


if __name__ == "__main__":
    main()
