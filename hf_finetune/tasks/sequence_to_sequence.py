"""A text is written for a text: summarization and translation, which differ in their metrics.

B examples, T input tokens, L target tokens, C entries of the vocabulary.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.config.sections import RunConfig, require
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Batch, Features, Ragged
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import install_hint
from hf_finetune.tasks.base import Kept, Task
from hf_finetune.tasks.losses import cross_entropy

if TYPE_CHECKING:
    import torch

# What stays of a backbone's generation settings: what belongs to its vocabulary, and what keeps it from repeating itself.
# The others (lengths, sampling) were chosen for other data.
KEPT_OF_GENERATION = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
                      "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "no_repeat_ngram_size")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Task):
    """What summarization and translation share: all but their names and metrics."""

    text_column: str
    label_column: str
    input_prefix: str
    max_target_length: int
    generate_examples: int
    num_beams: int
    length_penalty: float
    label_smoothing: float

    auto_class = "AutoModelForSeq2SeqLM"
    settings = frozenset({"input_prefix", "max_target_length", "generate_examples", "num_beams", "length_penalty"})

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        columns, label, task = config.data.text_columns, config.data.label_column, config.task
        require(len(columns) == 1, "data.text_columns", list(columns), "takes one column, of the texts that are read")
        if label is None:
            raise InputError("data.label_column (None): is needed: the column of the texts that are written")
        require(task.num_beams > 1 or task.length_penalty == 1, "task.length_penalty", task.length_penalty,
              "weighs beams, and task.num_beams is 1")  # fmt: skip
        return ColumnSpec(inputs=columns, labels=(label,), texts=columns, text_files="parallel", together=columns)

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "SequenceToSequence":
        """Learns nothing of the table. InputError where the package that computes the metrics is not installed."""
        task = cls.from_facts(config, {})
        task.scores(["a"], [["a"]])
        return task

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "SequenceToSequence":
        return cls(
            text_column=config.data.text_columns[0],
            label_column=str(config.data.label_column),
            input_prefix=config.task.input_prefix,
            max_target_length=config.task.max_target_length,
            generate_examples=config.task.generate_examples,
            num_beams=config.task.num_beams,
            length_penalty=config.task.length_penalty,
            label_smoothing=config.train.label_smoothing,
        )

    @property
    def scorer(self) -> tuple[tuple[str, ...], Callable[..., dict[str, float]]]:
        """The names of the metrics of written text, the first of which decides, and what computes them."""
        raise NotImplementedError

    def scores(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """The metrics of texts against one or more references each; none where no text is to be written."""
        return self.scorer[1](texts, references) if self.generate_examples else {}

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.scorer[0] if self.generate_examples else ()

    @property
    def default_metric(self) -> str:
        return self.metric_names[0] if self.generate_examples else "loss"

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        if name not in ("loss", *self.metric_names):
            why = "" if self.generate_examples else " (task.generate_examples is 0: no text is written to be compared)"
            raise InputError(f"{key} ({name}): {self.name} has {', '.join(('loss', *self.metric_names))}{why}")
        return name

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Sets how the model writes, here and in the exported folder. InputError where it cannot begin or end a text, or not
        write task.max_target_length tokens."""
        import transformers

        config, before = model.config, model.generation_config
        kept = {name: value for name in KEPT_OF_GENERATION if (value := getattr(before, name, None)) is not None}
        start = getattr(config, "decoder_start_token_id", None)
        config.decoder_start_token_id = kept.get("decoder_start_token_id") if start is None else start
        name = getattr(config, "_name_or_path", "")
        require(config.decoder_start_token_id is not None, "model.backbone", name,
              "its config has no decoder_start_token_id, with which a text begins")  # fmt: skip
        ends = as_list(kept.setdefault("eos_token_id", tokenizer.eos_token_id))
        require(ends == [None] or bool(set(tokenizer(text_target="a")["input_ids"]) & set(ends)), "model.backbone", name,
              "its tokenizer does not end a target with the model's end token, so it could not learn to stop")  # fmt: skip
        limit = getattr(config, "max_decoder_position_embeddings", getattr(config, "max_position_embeddings", None))
        require(limit is None or self.max_target_length <= limit, "task.max_target_length", self.max_target_length,
              f"this backbone writes at most {limit} tokens")  # fmt: skip
        beams = {"num_beams": self.num_beams, "length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        if self.num_beams > 1 and before.early_stopping is not None:
            beams["early_stopping"] = before.early_stopping
        model.generation_config = transformers.GenerationConfig(
            **{**kept, **beams, "decoder_start_token_id": config.decoder_start_token_id},
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=self.max_target_length,
        )

    # --- data

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.text_column, self.label_column)

    def encoding_settings(self) -> dict[str, Any]:
        return {"input_prefix": self.input_prefix, "max_target_length": self.max_target_length}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """Inputs as one text each, and beside them target_ids, target_offsets [N + 1], and targets_cut, how many were longer
        than task.max_target_length. A row without a target has one of special tokens only."""
        inputs = tokenize(
            [[self.input_prefix + text for text in table.columns[self.text_column]]], tokenizer, max_length
        )

        def as_targets(texts: list[str], **options: Any) -> Any:
            return tokenizer(text_target=texts, **options)

        targets = [(references_in(value) or [""])[0] for value in table.columns[self.label_column]]
        encoded = tokenize([targets], as_targets, self.max_target_length)
        return {
            **inputs,
            "target_ids": encoded["input_ids"],
            "target_offsets": encoded["offsets"],
            "targets_cut": encoded["truncated"],
        }

    def labels(self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> Ragged:
        """The token ids of each target; of several references the first."""
        for row in range(len(table)):
            self.references(table, row)
        return Ragged(values=arrays["target_ids"], offsets=arrays["target_offsets"])

    def references(self, table: Table, row: int) -> list[str]:
        """What is right for a row, the first of which is trained on."""
        value = table.columns[self.label_column][row]
        found = references_in(value)
        if not found:
            empty = value in ("", []) or (isinstance(value, str) and not value.strip())
            what = "null" if value is None else "empty" if empty else f"({value!r}) no text, nor a list of texts"
            raise InputError(f"{table.where(row)}: {self.label_column} is {what}")
        return found

    def prepare(self, batch: Batch, features: Features, model: Any, view: int) -> Batch:
        """With what the decoder reads: the model's own shift of the labels. They are not given to the model, which would
        compute the loss a second time, and its mean."""
        if batch.labels is None:
            return batch
        from hf_finetune.model import heads

        labels = batch.labels.long()
        inputs = {**batch.inputs, "decoder_input_ids": heads.make_decoder_inputs(model, labels)}
        return replace(batch, inputs=inputs, labels=labels)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        beams = f"{self.num_beams} beams, length penalty {self.length_penalty:g}" if self.num_beams > 1 else "greedily"
        cut = f"{int(features.extras['targets_cut']):,} training targets are longer and were cut"
        written = f"{beams}, for at most {self.generate_examples:,} examples of validation and of test"
        return [
            *Task.describe(self, features, table, max_length),
            ("targets", f"at most {self.max_target_length} tokens; {cut}"),
            ("writing", written if self.generate_examples else "none: task.generate_examples is 0"),
        ]

    # --- forward

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Sum of the cross entropy [B, L, C] over all target tokens, and their number."""
        assert batch.labels is not None
        return cross_entropy(outputs, batch.labels, label_smoothing=self.label_smoothing)

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """The logarithm of the target's probability, [1]."""
        assert batch.labels is not None
        rows = zip(outputs, batch.labels, strict=True)
        return [-cross_entropy(row, labels)[0].reshape(1).cpu().numpy() for row, labels in rows]

    def generate(self, model: Any, batch: Batch) -> "list[np.ndarray[Any, Any]]":
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "decoder_input_ids"}
        return list(model.generate(**inputs).cpu().numpy())

    # --- metrics and use

    def metrics(
        self, metric: str, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        """None besides the loss: the others need written text."""
        return {}

    def generated_rows(self, features: Features) -> "np.ndarray[Any, Any] | None":
        """task.generate_examples of them, spread evenly over the split."""
        count = min(self.generate_examples, len(features))
        return np.arange(count) * len(features) // count if count else None

    def generated_metrics(
        self, texts: Sequence[str], features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        written = [text.strip() for text in texts]
        return self.scores(written, [self.references(table, int(row)) for row in rows])

    @property
    def predicts_by_generating(self) -> bool:
        return True

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """`{text}`: what was written for each row."""
        for text in kept:
            yield {"text": text.strip()}

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 1:
            raise InputError(f"--text: takes one text, not {len(texts)}")
        return {self.text_column: texts[0]}

    def card(self) -> str:
        begins = f"Inputs begin with `{self.input_prefix}`. " if self.input_prefix else ""
        read = f'"{self.input_prefix}" + text' if self.input_prefix else "text"
        measured = f" {', '.join(self.metric_names)} are of at most {self.generate_examples:,} examples of a split."
        return (
            f"{self.name}.\n{begins}It writes with "
            f'`model.generate(**tokenizer([{read}], truncation=True, return_tensors="pt"))`, at most '
            f"{self.max_target_length} tokens; generation_config.json holds how."
            + (measured if self.generate_examples else "")
        )


def package(module: str, what: str) -> Any:
    """The module; InputError with what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        hint = install_hint(module.partition(".")[0])
        raise InputError(
            f"task.generate_examples: {what} of written text needs a package: {hint}; or set it to 0"
        ) from None


def references_in(value: Any) -> list[str]:
    """The texts of a label: itself, or the members of a list; [] where any is no text with something in it."""
    texts = list(value) if isinstance(value, (list, tuple)) else [value]
    return texts if all(isinstance(text, str) and text.strip() for text in texts) else []


def as_list(value: Any) -> list[Any]:
    """The members of a list, or the value alone."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
