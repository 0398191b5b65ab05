"""Using a fine-tuned model: what it says of texts, metrics for a labelled file. The same for every task."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

from hf_finetune.config.sections import DataConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from hf_finetune.data.features import Features, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table, check_texts
from hf_finetune.model import lora
from hf_finetune.model.backbone import (
    LOADING_ERRORS,
    LONGEST_DEFAULT,
    decode_texts,
    holds_model,
    model_source,
    position_limit,
    silence_transformers,
)
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import TASKS
from hf_finetune.tasks.base import Kept, Task
from hf_finetune.training.evaluation import EvaluationOutput, run_evaluation

BATCH_SIZE = 64  # examples a forward, as evaluation.batch_size has it

NO_LIMIT = 10**9  # tokens; a tokenizer that knows of no limit says 10**30


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A fine-tuned model with its tokenizer and task, ready to answer."""

    model: Any
    tokenizer: Any
    task: Task
    config: RunConfig  # as far as the export recorded it: columns, encodings, task settings
    metric: str  # what decided which checkpoint is best

    @classmethod
    def from_pretrained(cls, location: str, **columns: Any) -> "Predictor":
        """Loads a run folder (its model/), a model folder, or a model on the Hub. `columns`: text_columns, label_column and
        choice_columns where they are called otherwise than in training."""
        source = model_source(location)
        if Path(location).is_dir() and source == location and not holds_model(Path(location)):
            raise InputError(f"{location}: holds no finished run (model/config.json) and no model (config.json)")
        try:
            with silence_transformers():
                hf_config = lora.load_config(source)
                noted = getattr(hf_config, "hf_finetune", None) or {}
                kind = find_task(location, hf_config, noted)
                model = lora.load_model(source, kind.auto_class, hf_config)
                tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        except LOADING_ERRORS as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"{location}: is no run folder, model folder or model on the Hub: {reason}") from None
        model.eval().to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
        try:
            config = read_recorded_config(noted, columns)
            kind.form(config)
            task = kind.from_facts(config, noted.get("facts") or kind.facts_of_model(model.config))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(
                f"{location}: what its config says of the training (hf_finetune) is of another version: {error!r}"
            ) from None
        metric = noted.get("metric") or task.default_metric
        return cls(model=model, tokenizer=tokenizer, task=task, config=config, metric=metric)

    @property
    def max_length(self) -> int:
        """Tokens an input may have: where training cut, which the tokenizer says, and never more than the positions."""
        limits = [min(int(self.tokenizer.model_max_length), NO_LIMIT)]
        table = position_limit(self.model)
        if table is not None:
            limits.append(table)
        return min(limits) if limits[0] < NO_LIMIT else min(*limits, LONGEST_DEFAULT)

    def encode(self, table: Table, *, has_labels: bool) -> Features:
        """The features of a table, encoded here and now."""
        arrays = self.task.tokenize(table, self.tokenizer, self.max_length)
        return make_features(arrays, self.task.labels(table, arrays) if has_labels else None)

    def run_model(
        self, features: Features, rows: "np.ndarray[Any, Any] | None" = None, **options: Any
    ) -> EvaluationOutput:
        """What the model says of the features, batch by batch as an evaluation of a run does it."""
        machine: Any = SimpleNamespace(device=self.model.device, process=0, num_processes=1)
        pad_token_id = int(self.tokenizer.pad_token_id or 0)
        return run_evaluation(self.model, features, self.task, machine, batch_size=options.pop("batch_size", BATCH_SIZE),
                        pad_token_id=pad_token_id, rows=rows, distributed=False, **options)  # fmt: skip

    def predict(
        self, rows: Table | Iterable[Mapping[str, Any]], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[dict[str, Any]]:
        """For each row, in order, what the task answers: a label and probabilities, tags, an answer, a text, a vector. Rows
        have the columns of the training data."""
        table = rows if isinstance(rows, Table) else self.make_table(rows)
        if not len(table):
            return iter(())
        asked = replace(self, task=self.task.for_predictions(self.tokenizer))
        features = asked.encode(table, has_labels=False)
        generates = asked.task.predicts_by_generating
        kept: Kept = asked.run_model(features, batch_size=batch_size, generates=generates).outputs
        return asked.task.predictions(decode_texts(self.tokenizer, kept) if generates else kept, features, table)

    def make_table(self, rows: Iterable[Mapping[str, Any]]) -> Table:
        """Rows as a table; "row 1" stands for the line in errors."""
        form, given = TASKS[self.task.name].form(self.config), list(rows)
        for number, row in enumerate(given, 1):
            if lacking := [name for name in form.inputs if name not in row]:
                raise InputError(f"row {number}: has no {lacking[0]!r} (it has {', '.join(map(str, row))})")
        columns = {name: [row.get(name) for row in given] for name in form.columns}
        table = Table(
            columns=columns, files=[f"row {number}" for number in range(1, len(given) + 1)], lines=[0] * len(given)
        )
        check_texts(table, form)
        return table

    def read(self, path: str | Sequence[str], *, needs_labels: bool) -> Table:
        """The rows of a file, or of several."""
        form = TASKS[self.task.name].form(self.config)
        paths = (path,) if isinstance(path, str) else path
        return read_table(paths, self.config.data, "--data", form, needs_labels=needs_labels)

    def evaluate(self, table: Table, *, metric: str | None = None) -> dict[str, float]:
        """Loss and metrics on labelled rows; to the last bit those of a run's own evaluation on as many threads."""
        name = self.task.check_metric(metric, "--metric") if metric else self.metric
        features = self.encode(table, has_labels=True)
        outcome, rows = self.run_model(features), np.arange(len(features))
        values = {"loss": outcome.loss, **self.task.metrics(name, outcome.outputs, features, table, rows)}
        written = self.task.generated_rows(features)
        if written is not None:
            texts = decode_texts(self.tokenizer, self.run_model(features, written, generates=True).outputs)
            values |= self.task.generated_metrics(texts, features, table, written)
        return values


def find_task(location: str, hf_config: Any, noted: Mapping[str, Any]) -> type[Task]:
    """The task that a model was fine-tuned for: as the export noted it, else by the kind of its head."""
    if name := noted.get("task"):
        return TASKS[name]
    architecture = (getattr(hf_config, "architectures", None) or [""])[0].replace("LMHeadModel", "ForCausalLM")
    for task in TASKS.values():
        head = task.auto_class.removeprefix("AutoModel").replace("Seq2SeqLM", "ConditionalGeneration")
        if head and architecture.endswith(head):
            return task
    raise InputError(f"{location}: its head ({architecture or 'none'}) is of no task of hf-finetune's")


def read_recorded_config(noted: Mapping[str, Any], columns: Mapping[str, Any]) -> RunConfig:
    """The settings that the export recorded, with other columns where they are named."""
    given = {key: value for key, value in columns.items() if value}
    found: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key in ("text_columns", "label_column", "choice_columns", "encoding")
        if (value := given.get(key, noted.get(key))) is not None or key in noted
    }
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in noted.get("settings", {}).items()
    }
    return RunConfig(
        model=ModelConfig(backbone="-"),
        data=DataConfig(train=("-",), **found),
        task=TaskConfig(**settings),
        train=TrainConfig(label_smoothing=noted.get("label_smoothing", 0.0)),
    )


def predict_file(predictor: Predictor, data: str, out: str | None) -> list[dict[str, Any]]:
    """Predicts every row of a file, in order; returns them, and writes them to `out` whole where it is given: JSON lines, or
    to a .json file the task's one document."""
    if out is not None and not Path(out).parent.is_dir():
        raise InputError(f"--out ({out}): there is no folder {Path(out).parent}")
    rows = list(predictor.predict(predictor.read(data, needs_labels=False)))
    if out is not None:
        from hf_finetune.system.files import write_atomically

        path = Path(out).resolve()
        written = [predictor.task.document(rows)] if path.suffix == ".json" else rows
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written)
        if path.exists() and not path.is_file():  # a pipe, a terminal, /dev/null: written to, not replaced
            path.write_text(lines, encoding="utf-8")
        else:
            write_atomically(path, lines.encode())
    return rows


def evaluate_file(predictor: Predictor, data: str | Sequence[str], *, metric: str | None = None) -> dict[str, float]:
    """Loss and metrics on a labelled file, or on several."""
    return predictor.evaluate(predictor.read(data, needs_labels=True), metric=metric)


def predict_texts(predictor: Predictor, texts: Sequence[str]) -> dict[str, Any]:
    """What the model says of the texts of one example."""
    if any(not text.strip() for text in texts):
        raise InputError("--text: is empty")
    return next(iter(predictor.predict([predictor.task.row_of_texts(texts)])))
