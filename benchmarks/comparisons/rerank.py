"""Trains what recipes/rerank.py trains, with sentence_transformers.CrossEncoderTrainer.

    python benchmarks/comparisons/rerank.py --config recipes/configs/rerank/squad_sentences.yaml [--train.epochs 1 ...] [--lambda]

Takes the settings of the recipe: model, data, epochs, batch size, learning rates, warm-up and frozen tensors are the same.
The loss is sentence-transformers' of the kind that task.loss names: ListNetLoss, RankNetLoss or BinaryCrossEntropyLoss; with
--lambda it is LambdaLoss. Prints one JSON line: metrics of validation and test after the last epoch, by sentence-
transformers' own evaluator, and the seconds of training (of hf-finetune: seconds.train and seconds.cache in results.json).
"""

import argparse
import contextlib
import sys
import tempfile
from typing import Any

import transformers
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, evaluation, losses
from trainer import (
    DEFAULT_LENGTH,
    load_recipe_config,
    load_task_and_tables,
    make_arguments,
    make_optimizer,
    print_result,
    run_trainer,
)

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.table import Table
from hf_finetune.model import freezing
from hf_finetune.system.locations import local_path
from hf_finetune.tasks.rerank import Settings
from hf_finetune.tasks.text.document_examples import DOCUMENTS, LABELS

LOSSES = {
    "listwise": losses.ListNetLoss,
    "pairwise": losses.RankNetLoss,
    "pointwise": losses.BinaryCrossEntropyLoss,
    "lambda": losses.LambdaLoss,
}


def make_dataset(config: RunConfig, table: Table, loss: str) -> Any:
    """Returns the training data as the loss takes them: a row for each query, or for each document."""
    queries = table.columns[config.data.text_columns[0]]
    documents, labels = table.columns[DOCUMENTS], table.columns[LABELS]
    if loss != "pointwise":
        return Dataset.from_dict({"query": queries, "documents": documents, "labels": labels})
    rows = [
        (query, text, label)
        for query, texts, values in zip(queries, documents, labels, strict=True)
        for text, label in zip(texts, values, strict=True)
    ]
    return Dataset.from_dict(dict(zip(("query", "document", "label"), zip(*rows, strict=True), strict=True)))


def make_evaluator(config: RunConfig, table: Table) -> Any:
    """Returns sentence-transformers' evaluator of a split. It knows relevant documents and others, not grades."""
    samples = []
    for query, texts, labels in zip(
        table.columns[config.data.text_columns[0]], table.columns[DOCUMENTS], table.columns[LABELS], strict=True
    ):
        relevant = [text for text, label in zip(texts, labels, strict=True) if label > 0]
        others = [text for text, label in zip(texts, labels, strict=True) if label == 0]
        samples.append({"query": query, "positive": relevant, "negative": others})
    return evaluation.CrossEncoderRerankingEvaluator(samples, batch_size=config.evaluation.batch_size)


def train(config: RunConfig, model: CrossEncoder, table: Table, loss: str) -> float:
    """Trains by the settings. Returns the seconds. A batch of documents is as large as the recipe's of queries is on average."""
    dataset = make_dataset(config, table, loss)
    with tempfile.TemporaryDirectory() as folder:
        arguments = make_arguments(config, folder, CrossEncoderTrainingArguments)
        arguments.per_device_train_batch_size = round(config.train.batch_size * len(dataset) / len(table))
        trainer = CrossEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            loss=LOSSES[loss](model),
            optimizers=(make_optimizer(model, config, "classifier"), None),
        )
        return run_trainer(trainer)


def main() -> None:
    """Trains and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lambda", dest="takes_lambda", action="store_true", help="train with LambdaLoss")
    options, words = parser.parse_known_args()
    config = load_recipe_config("rerank", words)
    assert isinstance(config.task, Settings)
    _, tables = load_task_and_tables(config)
    transformers.set_seed(config.seed)
    length = config.data.max_length or DEFAULT_LENGTH
    source = local_path(config.model.backbone, "model.backbone")
    model = CrossEncoder(source, trust_remote_code=False, num_labels=1, max_length=length)
    freezing.apply_freezing(model.model, config.freeze)
    loss = "lambda" if options.takes_lambda else config.task.loss
    with contextlib.redirect_stdout(sys.stderr):
        seconds = train(config, model, tables["train"], loss)
        found = {
            split: {name: round(float(value), 4) for name, value in make_evaluator(config, table)(model).items()}
            for split, table in tables.items()
            if split != "train"
        }
    print_result(loss=LOSSES[loss].__name__, **found, train_seconds=seconds)


if __name__ == "__main__":
    main()
