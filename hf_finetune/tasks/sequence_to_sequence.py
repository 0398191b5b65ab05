"""Sequence-to-sequence tasks: the model generates a target text for a source text. Summarization and translation differ only in
their metrics.

B examples, T input tokens, L target tokens, V entries of the vocabulary.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import IGNORED, Array, Batch, Features, Ragged
from hf_finetune.data.formats import PARALLEL
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.system.markdown import code_span
from hf_finetune.tasks.base import (
    Columns,
    CountedObjective,
    Encoding,
    GeneratingScoring,
    Outputs,
    Runner,
    Task,
)
from hf_finetune.tasks.example_scores import ExampleScores, Rule, count_targets
from hf_finetune.tasks.generation import Generation
from hf_finetune.tasks.own_functions import Metric, MetricInputs, compute_own_metrics
from hf_finetune.tasks.scoring import KeptOutputs
from hf_finetune.tasks.text.references import TextMetrics, find_lists_in_csv, list_references, read_references
from hf_finetune.tasks.tokens import project_with, score_batch, sum_entropy

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of summarization and translation.

    Args:
        input_prefix: Text put before every input, such as "summarize: ".
        max_target_length: Longest target in tokens, both trained on and generated; longer training targets are cut.
        generate_examples: Number of examples of validation, and of the test, for which text is generated and scored at each
            evaluation; 0 for none.
        num_beams: Beams of the search; 1 is greedy.
        length_penalty: Exponent of the length by which the scores of beams are divided.
    """

    input_prefix: str = ""
    max_target_length: int = 128
    generate_examples: int = 200
    num_beams: int = 4
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for key in ("max_target_length", "num_beams"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "must be at least 1")
        require(self.generate_examples >= 0, "task.generate_examples", self.generate_examples, "must be 0 or more")
        penalty = self.length_penalty
        require(abs(penalty) < float("inf"), "task.length_penalty", penalty, "must be finite")
        unused = "has no effect without beams (task.num_beams is 1)"
        require(self.num_beams > 1 or penalty == 1, "task.length_penalty", penalty, unused)


@dataclass(frozen=True, kw_only=True)
class SourceAndTargetColumns(Columns):
    """A column of source texts and a column of target texts, or of lists of target texts."""

    source: str
    target: str

    @property
    def spec(self) -> ColumnSpec:
        source = (self.source,)
        return ColumnSpec(inputs=source, labels=(self.target,), texts=source, text_files=PARALLEL, together=source)

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 1:
            raise InputError(f"--text: takes one text, not {len(texts)}")
        return {self.source: texts[0]}


@dataclass(frozen=True, kw_only=True)
class SequenceToSequenceEncoding(Encoding):
    """A source text to the input, the first target text to labels. generation_note: How texts are generated, for describe()."""

    rows_are_independent: ClassVar[bool] = True

    columns: SourceAndTargetColumns
    input_prefix: str
    max_target_length: int
    generation_note: str

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.columns.source, self.columns.target)

    def encoding_settings(self) -> dict[str, Any]:
        return {"input_prefix": self.input_prefix, "max_target_length": self.max_target_length}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Also returns target_ids [sum of L], target_offsets [N + 1], and targets_cut, the number of targets that were longer
        than max_target_length. A row without a target gets one of special tokens only."""
        texts = [self.input_prefix + text for text in table.columns[self.columns.source]]
        inputs = tokenize([texts], tokenizer, max_length)

        def tokenize_targets(texts: list[str], **options: Any) -> Any:
            return tokenizer(text_target=texts, **options)

        targets = [(list_references(value) or [""])[0] for value in table.columns[self.columns.target]]
        encoded = tokenize([targets], tokenize_targets, self.max_target_length)
        return {
            **inputs,
            "target_ids": encoded["input_ids"],
            "target_offsets": encoded["offsets"],
            "targets_cut": encoded["truncated"],
        }

    def check_rows(self, table: Table) -> None:
        for row in range(len(table)):
            read_references(table, row, self.columns.target)

    def find_row_warnings(self, table: Table) -> list[str]:
        """Targets of csv files that are lists written as text, and are read as one text each."""
        rows = find_lists_in_csv(table, self.columns.target)
        if not rows:
            return []
        return [
            f"{table.where(rows[0])}: {self.columns.target} is a list that is written as text, and so are {len(rows):,} of "
            f"{len(table):,}: each is read as one text"
        ]

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Ragged:
        """Returns the token ids of each target, which is the first of several references."""
        self.check_rows(table)
        return Ragged(values=arrays["target_ids"], offsets=arrays["target_offsets"])

    def prepare(self, batch: Batch, features: Features, model: Any, epoch: int) -> Batch:
        """Returns the batch with the decoder's inputs: the labels, shifted by the model's own function.

        The model does not get the labels: with them it would compute its own loss in addition.
        """
        if batch.labels is None:
            return batch
        from hf_finetune.model import heads

        labels = batch.labels.long()
        inputs = {**batch.inputs, "decoder_input_ids": heads.make_decoder_inputs(model, labels)}
        return replace(batch, inputs=inputs, labels=labels)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Returns lines about the input, the targets, and how texts are generated."""
        cut = f"{int(features.extras['targets_cut']):,} training targets are longer and were cut"
        return [
            *super().describe(features, table, max_length),
            ("targets", f"at most {self.max_target_length} tokens; {cut}"),
            ("generation", self.generation_note),
        ]


@dataclass(frozen=True, kw_only=True)
class SequenceToSequenceObjective(CountedObjective):
    """Cross entropy of the target tokens."""

    label_smoothing: float = 0.0

    @property
    def reads_some_tokens(self) -> bool:
        return True

    @property
    def project(self) -> Callable[..., Any]:
        return project_with(self.label_smoothing)

    def count(self, batch: Batch) -> float:
        """Returns the number of target tokens."""
        from hf_finetune.tasks.losses import count_targets

        assert batch.labels is not None
        return count_targets(batch.labels)

    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the cross entropy, summed over all target tokens. outputs: Logits [B, L, V]."""
        return sum_entropy(outputs, batch, self.find_targets, self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class SequenceToSequenceScoring(GeneratingScoring):
    """The loss of all targets, and the metrics of texts generated for some examples.

    target: column of the references. num_texts: examples for which text is generated, at most.
    """

    target: str
    text_metrics: TextMetrics
    num_texts: int

    @property
    def reads_some_tokens(self) -> bool:
        return True

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.text_metrics.names if self.num_texts else ()

    @property
    def default_metric(self) -> str:
        return self.metric_names[0] if self.num_texts else "loss"

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        if name in self.text_metrics.names and not self.num_texts:
            raise InputError(f"{key} ({name}): needs generated texts, and task.generate_examples is 0")
        return super().check_metric(name, key)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns the log probability [1] of each target."""
        return [-scores[:1] for scores in score_batch(outputs, batch, is_causal=False)]

    def generate(self, model: Any, batch: Batch) -> list[Array]:
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "decoder_input_ids"}
        return list(model.generate(**inputs).cpu().numpy())

    def choose_examples(self, num_examples: int) -> Array:
        """Returns the indices of the examples of a split for which text is generated, spread evenly over the split."""
        count = min(self.num_texts, num_examples)
        return np.arange(count) * num_examples // max(count, 1)

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """Returns nothing: all metrics but the loss need generated texts, see evaluate()."""
        return {}

    def evaluate(
        self,
        runner: Runner,
        features: Features,
        table: Table,
        *,
        metric: str,
        indices: Array,
        max_texts: int | None = None,
        more_metrics: Sequence[str] = (),
        own_metrics: Mapping[str, Metric] = MappingProxyType({}),
    ) -> dict[str, float]:
        if own_metrics and not self.num_texts:
            raise InputError("evaluation.metrics: need generated texts, and task.generate_examples is 0")
        known = self.default_metric if metric in own_metrics else metric
        values = super().evaluate(runner, features, table, metric=known, indices=indices)
        chosen = np.intersect1d(self.choose_examples(len(features)), indices)[:max_texts]
        if not len(chosen):
            return values
        return values | self.score_texts(runner.generate_texts(self.generate, chosen), table, chosen, own_metrics)

    def score_texts(
        self,
        texts: Sequence[str],
        table: Table,
        rows: Array,
        own_metrics: Mapping[str, Metric] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Returns the metrics of texts that were generated for these rows of a table."""
        predictions = [text.strip() for text in texts]
        references = [read_references(table, int(row), self.target) for row in rows]
        inputs = MetricInputs(predictions=predictions, references=references)
        return self.text_metrics.compute(predictions, references) | compute_own_metrics(own_metrics, inputs)

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        """The loss of each target, summed over its tokens, and what the metrics of the generated texts follow from."""
        entropies = -np.asarray(kept.outputs, dtype=np.float64)[:, 0]
        counts = count_targets(features, kept.indices, IGNORED)
        texts = [text.strip() for text in kept.texts]
        places = np.searchsorted(kept.indices, kept.text_indices)
        rules: dict[str, Rule] = {"loss": ("ratio", "entropy", "tokens")}
        columns: dict[str, Array] = {"entropy": entropies, "tokens": counts}
        if texts:
            references = [read_references(table, int(row), self.target) for row in kept.text_indices]
            for name, values in self.text_metrics.score_each(texts, references).items():
                columns[name] = np.full(len(entropies), np.nan)
                columns[name][places] = values
            rules |= self.text_metrics.rules
        predictions: list[str | None] = [None] * len(entropies)
        for place, text in zip(places.tolist(), texts, strict=True):
            predictions[place] = text
        return ExampleScores(
            rows=kept.indices,
            metrics=rules,
            columns=tuple(columns),
            numbers=np.column_stack([*columns.values()]),
            labels=[list_references(table.columns[self.target][int(row)])[0] for row in kept.indices],
            predictions=predictions if texts else None,
            losses=entropies / counts,
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields `{text}`, the generated text of each row."""
        for text in outputs:
            yield {"text": text.strip()}


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Task):
    """The common base of summarization and translation. A subclass sets the two class variables.

    Args:
        noun: Name of the task, also on the Hub.
        text_metrics: Metrics of the generated texts.
        input_prefix: Text put before every input.
        num_texts: Examples of a split for which text is generated, at most.
        generation: How text is generated.
    """

    Settings = Settings
    auto_classes = ("AutoModelForSeq2SeqLM",)
    noun: ClassVar[str]
    text_metrics: ClassVar[TextMetrics]

    input_prefix: str
    num_texts: int
    generation: Generation

    @classmethod
    def make_columns(cls, config: RunConfig) -> SourceAndTargetColumns:
        sources, target = config.data.text_columns, config.data.label_column
        require(len(sources) == 1, "data.text_columns", list(sources), "must be one column, of the source texts")
        require(target is not None, "data.label_column", None, "must be the column of the target texts")
        return SourceAndTargetColumns(source=sources[0], target=str(target))

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "SequenceToSequence":
        """InputError if the package that computes the metrics is missing, or if all targets are lists written as text in csv
        files: they may be the texts to generate, or the references of each row."""
        task = cls.from_state(config, {})
        target = cls.make_columns(config).target
        rows = find_lists_in_csv(table, target)
        if rows and len(rows) == len(table):
            raise InputError(
                f"{table.where(rows[0])}: {target} is a list that is written as text, as all others: it may be a text to "
                "generate, or several references; use a jsonl file, "
                "in which a string is a text to generate, and a list holds references"
            )
        if task.num_texts:
            cls.text_metrics.compute(["a"], [["a"]])
        return task

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "SequenceToSequence":
        assert isinstance(config.task, Settings)
        settings, columns = config.task, cls.make_columns(config)
        generation = Generation(
            max_length=settings.max_target_length,
            num_beams=settings.num_beams,
            length_penalty=settings.length_penalty,
        )
        note = "none: task.generate_examples is 0"
        if settings.generate_examples:
            count = f"at most {settings.generate_examples:,} examples of validation and of the test"
            note = f"{generation.describe()}; {count}"
        return cls(
            problem=cls.noun,
            pipeline_tag=cls.noun,
            input_prefix=settings.input_prefix,
            num_texts=settings.generate_examples,
            generation=generation,
            head=HeadSpec(auto_class=cls.auto_classes[0]),
            columns=columns,
            encoding=SequenceToSequenceEncoding(
                columns=columns,
                input_prefix=settings.input_prefix,
                max_target_length=settings.max_target_length,
                generation_note=note,
            ),
            objective=SequenceToSequenceObjective(label_smoothing=config.train.label_smoothing),
            scoring=SequenceToSequenceScoring(
                target=columns.target, text_metrics=cls.text_metrics, num_texts=settings.generate_examples
            ),
        )

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Sets how the model generates text. InputError if it cannot generate any, or not task.max_target_length tokens."""
        self.generation.configure(model, tokenizer)

    def describe_for_card(self) -> str:
        text, begins, metrics = "text", "", ""
        if self.input_prefix:
            text = f"{json.dumps(self.input_prefix, ensure_ascii=False)} + text"
            begins = f"Inputs begin with {code_span(self.input_prefix)}. "
        call = f'model.generate(**tokenizer([{text}], truncation=True, return_tensors="pt"))'
        if self.num_texts:
            names = ", ".join(self.text_metrics.names)
            metrics = f" {names} are computed on at most {self.num_texts:,} examples of a split."
        return (
            f"{self.noun}.\n{begins}"
            f"{code_span(call)} generates at most "
            f"{self.generation.max_length} tokens, by the settings in generation_config.json.{metrics}"
        )
