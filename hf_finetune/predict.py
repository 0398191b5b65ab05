"""Using a fine-tuned model: labels and probabilities for texts, metrics for a labelled file."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_finetune import metrics
from hf_finetune.backbone import LOADING_ERRORS, LONGEST_DEFAULT, position_limit, quiet
from hf_finetune.config import DataConfig
from hf_finetune.data import Features, collate, evaluation_batches, flat_features
from hf_finetune.errors import InputError
from hf_finetune.sources import Table, local_path, read_table
from hf_finetune.tasks.classification import Classification

BATCH_SIZE = 64  # examples a forward, as evaluation.batch_size has it
NO_LIMIT = 10**9  # tokens; a tokenizer that knows of no limit says 10**30


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A fine-tuned model with its tokenizer and labels, ready to answer."""

    model: Any
    tokenizer: Any
    task: Classification
    settings: Mapping[str, Any]  # what the export recorded: text_columns, label_column, label_separator, metric

    @classmethod
    def from_pretrained(cls, location: str) -> "Classifier":
        """Loads a run folder (its model/), a model folder, or a model on the Hub."""
        inside = Path(location) / "model"
        source = str(inside) if (inside / "config.json").is_file() else local_path(location, "MODEL")
        if Path(location).is_dir() and source == location and not (Path(location) / "config.json").is_file():
            raise InputError(f"{location}: holds no finished run (model/config.json) and no model (config.json)")
        try:
            with quiet():
                model = transformers.AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32)
                tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        except LOADING_ERRORS as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"{location}: is no run folder, model folder or model on the Hub: {reason}") from None
        model.eval().to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
        settings = getattr(model.config, "hf_finetune", None) or {}
        problem = model.config.problem_type or (
            "regression" if model.config.num_labels == 1 else "single_label_classification"
        )
        task = Classification(
            problem=problem.removesuffix("_classification"),
            label_names=tuple(model.config.id2label[number] for number in range(model.config.num_labels)),
            label_column=settings.get("label_column", "label"),
            label_separator=settings.get("label_separator"),
        )
        return cls(model=model, tokenizer=tokenizer, task=task, settings=settings)

    def data_config(self, path: str, **changes: Any) -> DataConfig:
        """How a file is read: with the columns the model was trained on, unless `changes` name others."""
        columns = tuple(self.settings.get("text_columns", ("text",)))
        config = DataConfig(
            train=(path,),
            text_columns=columns,
            label_column=self.settings.get("label_column", "label"),
            encoding=tuple(self.settings.get("encoding", ("utf-8",))),
        )
        return replace(config, **{key: value for key, value in changes.items() if value})

    @property
    def max_length(self) -> int:
        """Tokens an input may have: where training cut, which the tokenizer says, and never more than the positions."""
        limits = [min(int(self.tokenizer.model_max_length), NO_LIMIT)]
        table = position_limit(self.model)
        if table is not None:
            limits.append(table)
        return min(limits) if limits[0] < NO_LIMIT else min(*limits, LONGEST_DEFAULT)

    def logits(self, texts: Sequence[Sequence[str]], *, batch_size: int = BATCH_SIZE) -> "np.ndarray[Any, Any]":
        """Logits [N, C] of columns of texts (one column, or two for pairs), in the order given."""
        return self.logits_of(flat_features(texts, self.tokenizer, self.max_length), batch_size)

    def logits_of(self, features: Features, batch_size: int) -> "np.ndarray[Any, Any]":
        """Logits [N, C] of encoded rows, in their order."""
        outputs = np.empty((len(features), len(self.task.label_names)), dtype=np.float32)
        with torch.inference_mode():
            for rows in evaluation_batches(features.lengths, batch_size):
                batch = collate(features, rows, int(self.tokenizer.pad_token_id or 0))
                batch.pop("labels")
                outputs[rows] = self.model(
                    **{name: tensor.to(self.model.device) for name, tensor in batch.items()}
                ).logits.cpu()
        return outputs

    def predict(self, texts: Sequence[Sequence[str]], *, batch_size: int = BATCH_SIZE) -> Iterator[dict[str, Any]]:
        """For each text, in order: label (or labels, or score) and the probability of every label."""
        for scores in self.task.scores(self.logits(texts, batch_size=batch_size)):
            yield dict(self.task.describe(scores))

    def evaluate(self, table: Table, texts: Sequence[Sequence[str]], *, metric: str | None = None) -> dict[str, float]:
        """Loss and metrics on labelled rows; the loss is summed as in loop.evaluate, to the same last bit."""
        if metric and metric != "loss":
            metrics.check_fits(metrics.load(metric, "--metric").name, self.task.problem, "--metric")
        labels = self.task.encode_labels(table)
        features = flat_features(texts, self.tokenizer, self.max_length)
        outputs = self.logits_of(features, BATCH_SIZE)
        losses = [
            self.task.loss(torch.from_numpy(outputs[rows]), torch.from_numpy(labels[rows]))
            for rows in evaluation_batches(features.lengths, BATCH_SIZE)
        ]
        loss = math.fsum(float(total) for total, _ in losses) / sum(count for _, count in losses)
        names = (metric or self.settings.get("metric") or self.task.default_metric, *self.task.metric_names)
        return {"loss": loss, **metrics.compute_all(names, self.task, outputs, labels)}


def columns_of(table: Table, config: DataConfig) -> list[list[str]]:
    """The text columns of a table."""
    return [table.columns[name] for name in config.text_columns]


def predict_file(classifier: Classifier, data: str, out: str | None, **columns: Any) -> list[dict[str, Any]]:
    """Predicts every row of a file, in order; writes JSON lines to `out` whole, or returns them where it is None."""
    if out is not None and not Path(out).parent.is_dir():
        raise InputError(f"--out ({out}): there is no folder {Path(out).parent}")
    config = classifier.data_config(data, **columns)
    table = read_table(config.train, config, "--data", needs_labels=False)
    rows = list(classifier.predict(columns_of(table, config)))
    if out is not None:
        from hf_finetune.files import write_atomically

        path, lines = Path(out).resolve(), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if path.exists() and not path.is_file():  # a pipe, a terminal, /dev/null: written to, not replaced
            path.write_text(lines, encoding="utf-8")
        else:
            write_atomically(path, lines.encode())
    return rows


def evaluate_file(classifier: Classifier, data: str, *, metric: str | None = None, **columns: Any) -> dict[str, float]:
    """Loss and metrics on a labelled file."""
    config = classifier.data_config(data, **columns)
    classifier = replace(classifier, task=replace(classifier.task, label_column=config.label_column))
    table = read_table(config.train, config, "--data")
    return classifier.evaluate(table, columns_of(table, config), metric=metric)
