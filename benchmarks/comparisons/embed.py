"""Trains what recipes/embed.py trains, with sentence_transformers.SentenceTransformerTrainer.

    python benchmarks/comparisons/embed.py --config recipes/configs/embed/stsb_embeddings.yaml [--train.epochs 1 ...]

Takes the settings of the recipe: model, data, loss, epochs, batch size, learning rate, warm-up and frozen tensors are the same.
Prints one JSON line: sentence-transformers' metrics of validation and test before and after training, and the seconds of training
(of hf-finetune: seconds.train and seconds.cache in results.json).
"""

import contextlib
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import evaluation, losses
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from trainer import load_recipe_config, load_task_and_tables, make_arguments, print_result, run_trainer

from hf_finetune.config.sections import RunConfig
from hf_finetune.data.table import Table
from hf_finetune.model import freezing
from hf_finetune.system.locations import local_path
from hf_finetune.tasks.embed import Settings


def get_settings(config: RunConfig) -> Settings:
    """Returns `config.task`, which is of this task."""
    assert isinstance(config.task, Settings)
    return config.task


def make_evaluator(config: RunConfig, table: Table) -> Any:
    """Returns sentence-transformers' evaluator of a split. It ranks each distinct text once, as hf-finetune does."""
    first, second = (list(table.columns[name]) for name in config.data.text_columns[:2])
    if config.data.label_column:
        return evaluation.EmbeddingSimilarityEvaluator(first, second, list(table.columns[config.data.label_column]))
    ids = {text: str(number) for number, text in enumerate(dict.fromkeys(second))}
    relevant: dict[str, set[str]] = {}
    for anchor, positive in zip(first, second, strict=True):
        relevant.setdefault(anchor, set()).add(ids[positive])
    return evaluation.InformationRetrievalEvaluator(
        {str(number): text for number, text in enumerate(relevant)},
        {text_id: text for text, text_id in ids.items()},
        {str(number): text_ids for number, text_ids in enumerate(relevant.values())},
        accuracy_at_k=[1, 10],
        mrr_at_k=[10],
    )


def build_model(config: RunConfig) -> SentenceTransformer:
    """Returns the backbone with the pooling and the frozen tensors of the settings."""
    source, settings = local_path(config.model.backbone, "model.backbone"), get_settings(config)
    transformer = Transformer(source, max_seq_length=config.data.max_length)
    freezing.apply_freezing(transformer.model, config.freeze)
    pooling = Pooling(transformer.get_embedding_dimension(), settings.pooling)
    modules = [transformer, pooling, *([Normalize()] if settings.normalize else [])]
    return SentenceTransformer(modules=modules, trust_remote_code=False)


def train(config: RunConfig, model: SentenceTransformer, table: Table) -> float:
    """Trains by the settings. Returns the seconds."""
    columns: dict[str, Any] = {name: list(table.columns[name]) for name in config.data.text_columns}
    if config.data.label_column:
        scores = [float(value) for value in table.columns[config.data.label_column]]
        least, most = min(scores), max(scores)
        columns["score"] = [(score - least) / (most - least) for score in scores]
        loss: Any = losses.CosineSimilarityLoss(model)
    else:
        loss = losses.MultipleNegativesRankingLoss(model, scale=get_settings(config).similarity_scale)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=make_arguments(config, folder, SentenceTransformerTrainingArguments),
            train_dataset=Dataset.from_dict(columns),
            loss=loss,
        )
        return run_trainer(trainer)


def main() -> None:
    """Evaluates, trains, and evaluates again."""
    config = load_recipe_config("embed", sys.argv[1:])
    torch.manual_seed(config.seed)
    _, tables = load_task_and_tables(config)
    model = build_model(config)
    evaluators = {split: make_evaluator(config, table) for split, table in tables.items() if split != "train"}
    with contextlib.redirect_stdout(sys.stderr):
        before = {split: evaluate(model) for split, evaluate in evaluators.items()}
        seconds = train(config, model, tables["train"])
        after = {split: evaluate(model) for split, evaluate in evaluators.items()}
    print_result(before=before, after=after, train_seconds=seconds)


if __name__ == "__main__":
    main()
