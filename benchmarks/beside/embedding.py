"""What `recipes/embed.py` does, by sentence_transformers.SentenceTransformerTrainer: same model, data, loss, epochs, batch
size, learning rate, warm-up and frozen tensors.

    python benchmarks/beside/embedding.py --config recipes/configs/embed/stsb_embeddings.yaml [--train.epochs 1 ...]

Takes the recipe's own settings; trains in fp32, where train.precision is not bf16. Prints one JSON line: the metrics of
validation and test before training and after it, and the seconds of training (of hf-finetune: seconds.train and
seconds.cache in results.json).
"""

import json
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import evaluation, losses
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from hf_finetune.config.loading import load_config
from hf_finetune.config.sections import RunConfig
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import Table
from hf_finetune.model import freezing
from hf_finetune.system.locations import local_path
from hf_finetune.tasks import form_of

ROOT = Path(__file__).resolve().parent.parent.parent


def evaluator(config: RunConfig, table: Table) -> Any:
    """sentence-transformers' own measure of a split."""
    one, other = (table.columns[name] for name in config.data.text_columns[:2])
    if config.data.label_column:
        return evaluation.EmbeddingSimilarityEvaluator(one, other, table.columns[config.data.label_column])
    corpus = list(dict.fromkeys(other))  # each text once, as hf-finetune ranks them
    numbers = {text: str(number) for number, text in enumerate(corpus)}
    relevant: dict[str, set[str]] = {}
    for anchor, positive in zip(one, other, strict=True):
        relevant.setdefault(anchor, set()).add(numbers[positive])
    queries = {str(number): text for number, text in enumerate(relevant)}
    return evaluation.InformationRetrievalEvaluator(
        queries, {number: text for text, number in numbers.items()},
        {str(number): found for number, found in enumerate(relevant.values())}, accuracy_at_k=[1, 10], mrr_at_k=[10],
    )  # fmt: skip


def build(config: RunConfig, folder: str) -> SentenceTransformer:
    """The backbone with the recipe's pooling, and the recipe's tensors frozen."""
    transformer = Transformer(folder, max_seq_length=config.data.max_length)
    freezing.apply_freezing(transformer.model, config.freeze)
    pooling = Pooling(transformer.get_embedding_dimension(), config.task.pooling)
    return SentenceTransformer(modules=[transformer, pooling, *([Normalize()] if config.task.normalize else [])])


def train(config: RunConfig, model: SentenceTransformer, table: Table) -> float:
    """Trains as the config says; returns the seconds of it."""
    columns: dict[str, Any] = {name: table.columns[name] for name in config.data.text_columns}
    if config.data.label_column:
        scores = [float(value) for value in table.columns[config.data.label_column]]
        least, most = min(scores), max(scores)
        columns["score"] = [(score - least) / (most - least) for score in scores]
    ranking = losses.MultipleNegativesRankingLoss(model, scale=config.task.similarity_scale)
    loss = losses.CosineSimilarityLoss(model) if config.data.label_column else ranking
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=config.train.epochs,
            per_device_train_batch_size=config.train.batch_size,
            learning_rate=config.train.learning_rate,
            weight_decay=config.train.weight_decay,
            warmup_steps=config.train.warmup_fraction,  # a share, where it is below 1
            max_grad_norm=config.train.max_grad_norm,
            use_cpu=not torch.accelerator.is_available(),
            bf16=config.train.precision == "bf16",
            seed=config.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss
        )
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def main() -> None:
    """Measures, trains, measures."""
    defaults = runpy.run_path(str(ROOT / "recipes/embed.py"))["DEFAULTS"]
    config = load_config(defaults, sys.argv[1:])
    assert config is not None
    torch.manual_seed(config.seed)
    splits = load_splits(config.data, config.seed, form_of("embedding", config))
    model = build(config, local_path(config.model.backbone, "model.backbone"))
    measures = {split: evaluator(config, table) for split, table in splits.tables().items() if split != "train"}
    before = {split: measure(model) for split, measure in measures.items()}
    seconds = train(config, model, splits.train)
    after = {split: measure(model) for split, measure in measures.items()}
    print(json.dumps({"before": before, "after": after, "train_seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
