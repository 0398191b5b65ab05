"""Trains what recipes/embed.py trains, with sentence_transformers.SentenceTransformerTrainer.

    python benchmarks/comparisons/embed.py --config recipes/configs/embed/stsb_embeddings.yaml [--only-after]

Takes the settings of the recipe: model, data, loss, epochs, batch size, learning rate, warm-up and frozen tensors are the same.
Prints one JSON line: sentence-transformers' metrics of validation and test before and after training (--only-after: after), the
Spearman correlation of validation after every epoch, and the seconds of training with these evaluations and saves (of
hf-finetune: seconds.train, cache, evaluate and save in results.json). The trained model is saved.
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
from trainer import (
    EVERY_EPOCH,
    list_evaluations,
    load_recipe_config,
    load_task_and_tables,
    make_arguments,
    measure_peak,
    print_result,
    run_trainer,
)

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


def train(config: RunConfig, model: SentenceTransformer, table: Table, evaluate: Any) -> dict[str, Any]:
    """Trains by the settings and saves the model. Returns what was measured. evaluate: The evaluator of validation."""
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
            args=make_arguments(config, folder, SentenceTransformerTrainingArguments, **EVERY_EPOCH),
            train_dataset=Dataset.from_dict(columns),
            loss=loss,
            evaluator=evaluate,
        )
        seconds, peak = run_trainer(trainer), measure_peak(trainer)
        model.save_pretrained(f"{folder}/model")
    each_epoch = list_evaluations(trainer, "spearman_cosine")
    return {"train_seconds": seconds, "each_epoch": each_epoch, "peak_memory_mb": peak}


def main() -> None:
    """Evaluates, trains, and evaluates again."""
    words = [word for word in sys.argv[1:] if word != "--only-after"]
    config = load_recipe_config("embed", words)
    torch.manual_seed(config.seed)
    _, tables = load_task_and_tables(config)
    model = build_model(config)
    evaluators = {split: make_evaluator(config, table) for split, table in tables.items() if split != "train"}
    with contextlib.redirect_stdout(sys.stderr):
        is_brief = len(words) < len(sys.argv[1:])
        before = {} if is_brief else {"before": {split: evaluate(model) for split, evaluate in evaluators.items()}}
        measured = train(config, model, tables["train"], evaluators["validation"])
        after = {split: evaluate(model) for split, evaluate in evaluators.items()}
    print_result(**before, after=after, **measured)


if __name__ == "__main__":
    main()
