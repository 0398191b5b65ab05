"""Predictions and metrics of a fine-tuned model. The same for every task."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import transformers

from hf_finetune.config.references import make_reference
from hf_finetune.config.sections import RunConfig, require
from hf_finetune.data.encoding import encode
from hf_finetune.data.features import Features, Padding, make_features
from hf_finetune.data.memory import read_memory
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import ColumnSpec, Table, check_texts
from hf_finetune.export.evaluation import Evaluation
from hf_finetune.export.given_rows import make_row, make_table
from hf_finetune.export.recorded import READING, RecordedTask, load_recorded_task
from hf_finetune.model import lora
from hf_finetune.model.backbone import LONGEST_DEFAULT, find_model_source, find_position_limit, holds_model
from hf_finetune.model.loading import LOADING_ERRORS, make_code_error, needs_code, silence_transformers
from hf_finetune.run.details import measure_lengths
from hf_finetune.run.kept import can_describe, describe_kept
from hf_finetune.run.scored import add_origins
from hf_finetune.system.console import print_message
from hf_finetune.system.errors import InputError, first_line
from hf_finetune.system.processes import SingleProcess
from hf_finetune.tasks.base import Task
from hf_finetune.tasks.own_functions import Metric
from hf_finetune.tasks.scoring import KeepingRunner
from hf_finetune.training.evaluation import ModelRunner

BATCH_SIZE = 64  # examples a forward, the default of evaluation.batch_size
BATCHES_AT_ONCE = 16  # whose rows are sorted by length and predicted together
COLUMNS = ("text_columns", "label_column", "choice_columns", "ignore_labels", *READING)  # may differ from training
NO_LIMIT = 10**9  # tokens; the model_max_length of a tokenizer without a limit is 10**30


@dataclass(frozen=True, kw_only=True, repr=False)
class Predictor:
    """A fine-tuned model with its tokenizer and task.

    Args:
        config: The settings that the export recorded: columns, encodings, task settings.
        metric: The metric that decided which checkpoint is best.
        own_metrics: Metrics of one's own by name.
        lacks_loss: True if the model was trained with a loss of one's own that is not known here.
        notes: Lines about parts of one's own that are not known here.
        location: Where it was loaded from.
    """

    model: Any
    tokenizer: Any
    task: Task
    config: RunConfig
    metric: str
    own_metrics: Mapping[str, Metric] = field(default_factory=dict)
    lacks_loss: bool = False
    notes: tuple[str, ...] = ()
    location: str = ""

    def __repr__(self) -> str:
        return f"Predictor({self.location!r}, task={self.config.task.kind!r}, device={str(self.model.device)!r})"

    @classmethod
    def from_pretrained(
        cls,
        location: str | os.PathLike[str],
        *,
        task: str | type | None = None,
        loss: str | Callable[..., Any] | None = None,
        metrics: Mapping[str, Any] | Sequence[Any] = (),
        device: str | None = None,
        trust_remote_code: bool = False,
        **columns: Any,
    ) -> "Predictor":
        """Loads a run folder (its model/), a model folder, or a model on the Hub.

        Args:
            location: The folder, or the Hub id.
            task: The model's task if it is a class of your own, or its import path, as my_package.tasks:MyTask. No model can have
                a class or function imported that is not named here.
            loss: The loss of your own that it was trained with: the function, or its import path.
            metrics: Metrics of your own: functions by name, a list of functions, or import paths as in evaluation.metrics.
            device: Where it computes, such as cpu or cuda:1; by default the accelerator, if there is one.
            trust_remote_code: Run Python code that the model's files name, if it was trained with model.trust_remote_code.
            columns: text_columns, label_column, choice_columns, ignore_labels, and how files are read (encoding, delimiter,
                quoting, header, max_expansion), if they are not as in training.

        InputError if there is no model, or if it belongs to no task.
        """
        if unknown := sorted(columns.keys() - COLUMNS):
            raise InputError(
                f"{unknown[0]} ({columns[unknown[0]]}): is not an argument; settings are {', '.join(COLUMNS)}"
            )
        location = os.fspath(location)
        task = make_reference(task) if isinstance(task, type) else task
        source = find_model_source(location)
        if Path(location).is_dir() and source == location and not holds_model(Path(location)):
            raise InputError(f"{location}: holds no finished run (model/config.json) and no model (config.json)")
        try:
            with silence_transformers():
                hf_config = lora.load_config(source, trust_code=trust_remote_code)
                recorded = load_recorded_task(location, hf_config, columns, task, loss=loss, metrics=metrics)
                auto_class = recorded.task.head.auto_class
                model = lora.load_model(source, auto_class, hf_config, trust_code=trust_remote_code)
                tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        except LOADING_ERRORS as error:
            if needs_code(error):
                raise make_code_error(location, source) from None
            reason = first_line(error)
            raise InputError(
                f"{location}: is not a run folder, a model folder or a model on the Hub: {reason}"
            ) from None
        default = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        move_model(model.eval(), str(device or default))
        return cls(model=model, tokenizer=tokenizer, location=location, **get_fields(recorded))

    @property
    def max_length(self) -> int:
        """Longest input in tokens: where training cut, which the tokenizer records, and never more than the positions."""
        limits = [min(int(self.tokenizer.model_max_length), NO_LIMIT)]
        positions = find_position_limit(self.model)
        if positions is not None:
            limits.append(positions)
        return min(limits) if limits[0] < NO_LIMIT else min(*limits, LONGEST_DEFAULT)

    def encode(self, table: Table, *, has_labels: bool, root: Path | None = None) -> Features:
        """The features of a table. root: The folder of the caches; if it is given, encoded text lies there and not in memory."""
        encoding = self.task.encoding
        if root is not None:
            return encode(
                encoding,
                table,
                self.tokenizer,
                self.max_length,
                root=root,
                has_labels=has_labels,
                workers=self.config.data.workers,
                say=print_message,
            )
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
            padding=Padding(int(self.tokenizer.pad_token_id or 0)),
            batch_size=batch_size,
        )

    @overload
    def predict(
        self,
        rows: str,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        batch_size: int = BATCH_SIZE,
        device: str | None = None,
    ) -> dict[str, Any]: ...

    @overload
    def predict(
        self,
        rows: Any,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        batch_size: int = BATCH_SIZE,
        device: str | None = None,
    ) -> list[dict[str, Any]]: ...

    def predict(
        self,
        rows: Any,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        batch_size: int = BATCH_SIZE,
        device: str | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Returns the prediction of a text, or a list with one for each row, in order: a label and probabilities, tags, an
        answer, a text, a vector. With task.calibrate a label may be None, and there may be a label_set (docs/tasks.md).

        Args:
            rows: A text; a list or a series of texts; or rows with the columns of the training data: a pandas or polars frame, a
                datasets.Dataset, a list of dicts, a dict of lists.
            top_k: The number of most probable labels (or tokens, for a mask) that are listed.
            threshold: The probability from which on a label is predicted, if a text may have several; 0.5 if not given.
            batch_size: Examples a forward.
            device: Where the model computes from now on, such as cpu or cuda:1.

        InputError, with the row, for a text that is null, empty or not a string, and for an option that the task does not have.
        """
        if device is not None:
            move_model(self.model, device)
        table = self.make_table([rows] if isinstance(rows, str) else rows)
        predictions = list(self.predict_table(table, top_k=top_k, threshold=threshold, batch_size=batch_size))
        return predictions[0] if isinstance(rows, str) else predictions

    def predict_table(
        self,
        table: Table,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Iterator[dict[str, Any]]:
        """Yields a prediction for each row of a table, in order, as they are computed. The options are those of predict()."""
        inference = self.for_inference(top_k=top_k, threshold=threshold, batch_size=batch_size)
        return inference.predict_parts(table, batch_size)

    def for_inference(self, *, top_k: int | None, threshold: float | None, batch_size: int) -> "Predictor":
        """Returns the predictor of rows without targets, with these options. InputError if the task does not have them."""
        require(batch_size >= 1, "batch_size", batch_size, "must be 1 or more")
        task = self.task.for_inference(self.tokenizer)
        scoring = task.scoring.with_options(top_k=top_k, threshold=threshold)
        return replace(self, task=replace(task, scoring=scoring))

    def predict_parts(self, table: Table, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields the predictions of a table, part after part."""
        start, sizes = 0, part_sizes(batch_size)
        while start < len(table):
            end = min(start + next(sizes), len(table))
            yield from self.predict_encoded(*self.encode_rows(table, range(start, end)), batch_size)
            start = end

    def encode_rows(self, table: Table, rows: Sequence[int]) -> tuple[Features, Table]:
        """Returns the features of these rows of a table, and their table. InputError if one cannot be predicted."""
        part, spec = table.take(rows), self.task.columns.spec
        if spec.join_rows is None:  # else its rows were checked before they were joined
            check_texts(part, spec)
        return self.encode(part, has_labels=False), part

    def predict_encoded(self, features: Features, table: Table, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields the predictions of rows and their features."""
        return self.task.scoring.predict(self.make_runner(features, batch_size), features, table)

    def find_problems(self, table: Table, rows: Sequence[int]) -> dict[int, str]:
        """Returns what is wrong with those of the rows that cannot be predicted, by their number."""
        try:
            self.encode_rows(table, rows)
        except InputError as error:
            if len(rows) == 1:
                return {rows[0]: str(error)}
            middle = len(rows) // 2
            return self.find_problems(table, rows[:middle]) | self.find_problems(table, rows[middle:])
        return {}

    def make_table(self, rows: Any) -> Table:
        """Returns rows as a table; errors call the fourth one `rows[3]`. An empty list gives an empty table."""
        return make_table(rows, self.task.columns, self.config.data)

    def make_row(self, text: Any, where: str) -> dict[str, Any]:
        """Returns the row of a text. InputError, with its origin, if it is empty, is not a string, or if the model takes more
        columns."""
        return make_row(text, where, self.task.columns)

    def read(
        self, path: str | Sequence[str], *, needs_labels: bool, root: Path | None = None, spec: ColumnSpec | None = None
    ) -> Table:
        """The rows of a file, or of several. root: The folder of the caches; if it is given, large files lie there. spec: The
        columns to read, if not the task's own."""
        paths, spec = (path,) if isinstance(path, str) else path, spec or self.task.columns.spec
        return read_table(paths, self.config.data, "--data", spec, needs_labels=needs_labels, root=root)

    def evaluate(
        self,
        rows: Any,
        *,
        metric: str | None = None,
        trust_metric_code: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> dict[str, float]:
        """Returns loss and metrics on labelled rows: to the last bit those of a run in fp32 on as many threads.

        Prints what was recognised in files, and what may be wrong with how the rows are read.

        Args:
            rows: Rows as predict() takes them, with labels; or a table.
            metric: An additional metric.
            trust_metric_code: Run the Python code of `metric`, if it is a metric of the Hub or a file.
            batch_size: Examples a forward.
        """
        table = rows
        if not isinstance(rows, Table):
            table = read_memory(rows, "rows", self.config.data, self.task.columns.spec)
        evaluation = self.evaluate_table(
            table, metric=metric, trust_metric_code=trust_metric_code, batch_size=batch_size, keeps=False
        )
        return evaluation.values

    def evaluate_table(
        self,
        table: Table,
        *,
        metric: str | None = None,
        trust_metric_code: bool = False,
        batch_size: int = BATCH_SIZE,
        key: str = "metric",
        root: Path | None = None,
        keeps: bool = True,
    ) -> Evaluation:
        """As evaluate(), with what is known of each example if it `keeps` the outputs.

        Args:
            table: Labelled rows.
            metric, trust_metric_code, batch_size: As evaluate() takes them.
            key: What errors call `metric`.
            root: The folder of the caches, for encoded text; it lies in memory if not given.
        """
        scoring = self.task.scoring
        name, notes = self.metric, self.notes
        if metric:
            name = scoring.load_metric(metric, key, trust_code=trust_metric_code)
        elif name not in self.own_metrics and not scoring.has_metric(name):
            notes = (*notes, describe_left_out(name))
            name = scoring.default_metric
        features = self.encode(table, has_labels=True, root=root)
        for note in table.notes:
            print_message(note)
        for warning in (*table.warnings, *self.task.encoding.find_row_warnings(table)):
            print_message(f"warning: {warning}")
        keeps = keeps and can_describe(scoring)
        task = replace(self.task, scoring=scoring.keep_examples()) if keeps else self.task
        runner = KeepingRunner(replace(self, task=task).make_runner(features, batch_size))
        values = task.scoring.evaluate(
            runner,
            features,
            table,
            metric=name,
            indices=np.arange(len(features)),
            own_metrics=self.own_metrics,
        )
        if self.lacks_loss:
            del values["loss"]
        for note in notes:
            print_message(note)
        evaluation = Evaluation(values=values, table=table, inputs=self.task.columns.spec.inputs)
        scores = describe_kept(scoring, runner.kept, features, table, (name,)) if keeps else None
        if scores is None:
            return evaluation
        scored = add_origins(scores, self.task, table, values, kind=self.config.task.kind, metric=name)
        return replace(evaluation, scored=scored, lengths=measure_lengths(scores, features))


def describe_left_out(metric: str) -> str:
    """Returns the note about a metric that only the model names: its code, if there is any, comes with the model."""
    return (
        f"{metric}: left out, because this package does not have it, and the code of another one runs only if you name and trust "
        f"it: --metric {metric} --evaluation.trust_metric_code, or evaluate(..., metric={metric!r}, trust_metric_code=True)"
    )


def part_sizes(batch_size: int) -> Iterator[int]:
    """Yields the number of rows that are predicted together: one batch, so that the first results come soon, then more."""
    yield batch_size
    while True:
        yield BATCHES_AT_ONCE * batch_size


def get_fields(recorded: RecordedTask) -> dict[str, Any]:
    """Returns what a Predictor takes from a recorded task."""
    names = ("task", "config", "metric", "own_metrics", "lacks_loss", "notes")
    return {name: getattr(recorded, name) for name in names}


def move_model(model: Any, device: str) -> None:
    """Moves a model to a device. InputError if this machine does not have it."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device ({device}): cannot be used here: {first_line(error)}") from None
