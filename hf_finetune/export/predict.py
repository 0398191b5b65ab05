"""Predictions and metrics of a fine-tuned model. The same for every task."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_finetune.config.loading import config_from_dict
from hf_finetune.config.sections import RunConfig
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.data.features import Features, make_features
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import Table, check_texts
from hf_finetune.model import heads, lora
from hf_finetune.model.backbone import (
    LOADING_ERRORS,
    LONGEST_DEFAULT,
    find_model_source,
    find_position_limit,
    holds_model,
    silence_transformers,
)
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import write_atomically
from hf_finetune.system.processes import SingleProcess
from hf_finetune.tasks.base import Task
from hf_finetune.training.evaluation import ModelRunner

BATCH_SIZE = 64  # examples a forward, the default of evaluation.batch_size
NO_LIMIT = 10**9  # tokens; the model_max_length of a tokenizer without a limit is 10**30


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A fine-tuned model with its tokenizer and task.

    Args:
        config: The settings that the export recorded: columns, encodings, task settings.
        metric: The metric that decided which checkpoint is best.
    """

    model: Any
    tokenizer: Any
    task: Task
    config: RunConfig
    metric: str

    @classmethod
    def from_pretrained(cls, location: str, *, task: str | None = None, **columns: Any) -> "Predictor":
        """Loads a run folder (its model/), a model folder, or a model on the Hub.

        Args:
            location: The folder, or the Hub id.
            task: Import path of the model's task if it is a class of your own, as my_package.tasks:MyTask. No model can have a
                class imported that is not named here.
            columns: text_columns, label_column and choice_columns, if they have other names than in training.

        InputError if there is no model, or if it belongs to no task.
        """
        source = find_model_source(location)
        if Path(location).is_dir() and source == location and not holds_model(Path(location)):
            raise InputError(f"{location}: holds no finished run (model/config.json) and no model (config.json)")
        try:
            with silence_transformers():
                hf_config = lora.load_config(source)
                loaded_task, config, metric = load_recorded_task(location, hf_config, columns, task)
                model = lora.load_model(source, loaded_task.head.auto_class, hf_config)
                tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        except LOADING_ERRORS as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(
                f"{location}: is not a run folder, a model folder or a model on the Hub: {reason}"
            ) from None
        model.eval().to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
        return cls(model=model, tokenizer=tokenizer, task=loaded_task, config=config, metric=metric)

    @property
    def max_length(self) -> int:
        """Longest input in tokens: where training cut, which the tokenizer records, and never more than the positions."""
        limits = [min(int(self.tokenizer.model_max_length), NO_LIMIT)]
        positions = find_position_limit(self.model)
        if positions is not None:
            limits.append(positions)
        return min(limits) if limits[0] < NO_LIMIT else min(*limits, LONGEST_DEFAULT)

    def encode(self, table: Table, *, has_labels: bool) -> Features:
        """The features of a table, without the cache of encoded texts."""
        encoding = self.task.encoding
        arrays = encoding.tokenize(table, self.tokenizer, self.max_length)
        return make_features(arrays, encoding.labels(table, arrays) if has_labels else None)

    def make_runner(self, features: Features, batch_size: int = BATCH_SIZE) -> ModelRunner:
        """Returns a runner of the model over the features."""
        return ModelRunner(
            model=self.model,
            tokenizer=self.tokenizer,
            task=self.task,
            features=features,
            processes=SingleProcess(device=self.model.device),
            pad_token_id=int(self.tokenizer.pad_token_id or 0),
            batch_size=batch_size,
        )

    def predict(
        self, rows: Table | Iterable[Mapping[str, Any]], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[dict[str, Any]]:
        """Yields a prediction for each row, in order: a label and probabilities, tags, an answer, a text, a vector.

        Rows have the columns of the training data.
        """
        table = rows if isinstance(rows, Table) else self.make_table(rows)
        if not len(table):
            return iter(())
        inference = replace(self, task=self.task.for_inference(self.tokenizer))
        features = inference.encode(table, has_labels=False)
        return inference.task.scoring.predict(inference.make_runner(features, batch_size), features, table)

    def make_table(self, rows: Iterable[Mapping[str, Any]]) -> Table:
        """Rows as a table; errors name a row as "row 1"."""
        spec, listed = self.task.columns.spec, list(rows)
        for number, row in enumerate(listed, 1):
            if missing := [name for name in spec.inputs if name not in row]:
                raise InputError(f"row {number}: has no {missing[0]!r} (it has {', '.join(map(str, row))})")
        table = Table(
            columns={name: [row.get(name) for row in listed] for name in spec.columns},
            files=[f"row {number}" for number in range(1, len(listed) + 1)],
            lines=[0] * len(listed),
        )
        check_texts(table, spec)
        return table

    def read(self, path: str | Sequence[str], *, needs_labels: bool) -> Table:
        """The rows of a file, or of several."""
        paths = (path,) if isinstance(path, str) else path
        return read_table(paths, self.config.data, "--data", self.task.columns.spec, needs_labels=needs_labels)

    def evaluate(self, table: Table, *, metric: str | None = None) -> dict[str, float]:
        """Loss and metrics on labelled rows; to the last bit those of a run's own evaluation on as many threads."""
        scoring = self.task.scoring
        name = scoring.check_metric(metric, "--metric") if metric else self.metric
        features = self.encode(table, has_labels=True)
        indices = np.arange(len(features))
        return scoring.evaluate(self.make_runner(features), features, table, metric=name, indices=indices)


def load_recorded_task(
    location: str, hf_config: Any, columns: Mapping[str, Any], own_task: str | None = None
) -> tuple[Task, RunConfig, str]:
    """Returns task, settings and best metric as the export recorded them in the model's config.

    For a model that was trained elsewhere, returns them as far as its config contains them.
    """
    recorded = getattr(hf_config, "hf_finetune", None)
    if not recorded:
        return make_task({"task": {"kind": find_task(location, hf_config)}}, hf_config, columns)
    try:
        kind = recorded["task"]["kind"]
        if kind in TASKS or ":" not in kind or kind == own_task:
            make_task(recorded, hf_config, {})
    except (InputError, TypeError, KeyError, ValueError, AttributeError) as error:
        reason = error if isinstance(error, InputError) else repr(error)
        raise InputError(
            f"{location}: the training settings in its config (hf_finetune) were written by another version: {reason}"
        ) from None
    if kind not in TASKS and kind != own_task:
        raise InputError(
            f"{location}: its task is the class {kind}, which is imported only if you name it: --task {kind}, or "
            f"Predictor.from_pretrained(..., task={kind!r})"
        )
    return make_task(recorded, hf_config, columns)


def make_task(recorded: Mapping[str, Any], hf_config: Any, columns: Mapping[str, Any]) -> tuple[Task, RunConfig, str]:
    """Returns task, settings and best metric of what an export recorded, with other columns if they are given."""
    config = read_recorded_config(recorded, columns)
    task_class = load_task(config.task.kind)
    task: Task = task_class.from_state(config, recorded.get("task_state") or task_class.read_state(hf_config))
    return task, config, recorded.get("metric") or task.scoring.default_metric


def find_task(location: str, hf_config: Any) -> str:
    """The kind of the first task whose models have this model's head. InputError if there is none."""
    if head := heads.find_head(hf_config):
        for kind in TASKS:
            if head.auto_class in load_task(kind).auto_classes:
                return kind
    architecture = heads.get_architecture(hf_config) or "none"
    raise InputError(f"{location}: its head ({architecture}) belongs to no task of hf-finetune")


def read_recorded_config(recorded: Mapping[str, Any], columns: Mapping[str, Any]) -> RunConfig:
    """Returns the settings that the export recorded, with other columns if they are given."""
    requested = {key: value for key, value in columns.items() if value}
    data = {
        key: requested.get(key, recorded.get(key))
        for key in ("text_columns", "label_column", "encoding")
        if key in requested or key in recorded
    }
    task = dict(recorded["task"])
    if "choice_columns" in requested:
        task["choice_columns"] = requested["choice_columns"]
    return config_from_dict(
        {
            "model": {"backbone": "-"},
            "data": {"train": ["-"], **data},
            "task": task,
            "train": {"label_smoothing": recorded.get("label_smoothing", 0.0)},
        }
    )


def predict_file(predictor: Predictor, data: str, out: str | None) -> list[dict[str, Any]]:
    """Predicts every row of a file, in order. Writes the predictions to `out`, completely or not at all, if it is given: JSON
    lines, or the task's one document to a .json file."""
    if out is not None and not Path(out).parent.is_dir():
        raise InputError(f"--out ({out}): there is no folder {Path(out).parent}")
    predictions = list(predictor.predict(predictor.read(data, needs_labels=False)))
    if out is not None:
        path = Path(out).resolve()
        is_document = path.suffix == ".json"
        entries = [predictor.task.scoring.make_document(predictions)] if is_document else predictions
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        if path.exists() and not path.is_file():  # a pipe, a terminal, /dev/null: written to, not replaced
            path.write_text(lines, encoding="utf-8")
        else:
            write_atomically(path, lines.encode())
    return predictions


def evaluate_file(predictor: Predictor, data: str | Sequence[str], *, metric: str | None = None) -> dict[str, float]:
    """Loss and metrics on a labelled file, or on several."""
    return predictor.evaluate(predictor.read(data, needs_labels=True), metric=metric)


def predict_texts(predictor: Predictor, texts: Sequence[str]) -> dict[str, Any]:
    """The prediction for the texts of one example."""
    if any(not text.strip() for text in texts):
        raise InputError("--text: is empty")
    return next(iter(predictor.predict([predictor.task.columns.make_row(texts)])))
