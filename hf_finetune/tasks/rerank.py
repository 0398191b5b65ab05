"""Reranking: a cross-encoder reads a query together with each of its documents, and ranks the documents by their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns, Task
from hf_finetune.tasks.rerank_encoding import RerankingEncoding, read_labels, teaches
from hf_finetune.tasks.rerank_scoring import RerankingObjective, RerankingScoring
from hf_finetune.tasks.text.document_examples import DOCUMENTS, EXAMPLE_COLUMNS, LABELS, add_negatives, collect_forms
from hf_finetune.tasks.text.document_reader import LABEL_NAMES, DocumentReader

# What sentence_transformers.CrossEncoder applies to the model's output: with a pointwise loss, scores are probabilities
ACTIVATIONS = {False: "torch.nn.modules.linear.Identity", True: "torch.nn.modules.activation.Sigmoid"}


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of reranking.

    Args:
        loss: listwise compares all documents of a query, pairwise each two with different labels; pointwise takes each document
            by itself, and its scores are probabilities.
        document_columns: Columns of documents with labels, each a text, a list of texts or null. Those that a row has are read.
        positive_columns: Columns of relevant documents, in the same forms.
        negative_columns: Columns of documents that are not relevant, in the same forms.
        negatives: File of more documents that are not relevant, for the training queries: rows of a query and documents, without
            labels, or of a query and negatives.
    """

    paths = ("negatives",)

    loss: Literal["listwise", "pairwise", "pointwise"] = "listwise"
    document_columns: tuple[str, ...] = ("documents", "document")
    positive_columns: tuple[str, ...] = ("positive", "positives")
    negative_columns: tuple[str, ...] = ("negatives", "negative")
    negatives: str | None = None


@dataclass(frozen=True, kw_only=True)
class RerankingColumns(Columns):
    """The column of the query, and those that documents and labels may be in. label: data.label_column."""

    reader: DocumentReader
    label: str | None

    @property
    def spec(self) -> ColumnSpec:
        """Rows with the same query stay in one split, and are one example unless they have lists of documents."""
        reader = self.reader
        names = {
            "task.document_columns": reader.documents,
            "task.positive_columns": reader.positives,
            "task.negative_columns": reader.negatives,
            "data.label_column": reader.labels,
        }
        return ColumnSpec(
            inputs=(reader.query,),
            labels=() if self.label is None else (self.label,),
            optional=(*reader.documents, *reader.positives, *reader.negatives, *reader.labels),
            texts=(reader.query,),
            together=(reader.query,),
            settings={column: key for key, columns in names.items() for column in columns},
            join_rows=reader.read_examples,
            join_keys=reader.find_keys,
        )

    @property
    def num_example_texts(self) -> int:
        """A query and two documents."""
        return 3

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        query, *documents = texts
        if not documents:
            raise InputError("--text: takes the query and then one document or more, not one text")
        return {self.reader.query: query, self.reader.documents[0]: documents}


@dataclass(frozen=True, kw_only=True)
class Reranking(Task):
    """Reranking of a query's documents; `problem` is the loss.

    Args:
        highest_label: The highest label of the training rows.
    """

    Settings = Settings
    library_name = "sentence-transformers"
    loss_settings = ("loss",)

    encoding: RerankingEncoding
    highest_label: float

    @classmethod
    def make_columns(cls, config: RunConfig) -> RerankingColumns:
        assert isinstance(config.task, Settings)
        settings, texts, label = config.task, config.data.text_columns, config.data.one_label_column
        require(len(texts) == 1, "data.text_columns", list(texts), "must be one column, of the query")
        other_names = f"must not be named {' or '.join((DOCUMENTS, LABELS))}"
        require(texts[0] not in EXAMPLE_COLUMNS, "data.text_columns", list(texts), other_names)
        groups = (settings.document_columns, settings.positive_columns, settings.negative_columns)
        require(bool(groups[0]), "task.document_columns", "[]", "must name at least one column")
        names = [*texts, *(name for group in groups for name in group), *([label] if label else [])]
        require(
            len(set(names)) == len(names),
            "task.document_columns",
            list(groups[0]),
            "must differ from each other, and from data.text_columns, data.label_column, task.positive_columns and "
            f"task.negative_columns ({', '.join(names)})",
        )
        documents, positives, negatives = groups
        labels = tuple(name for name in LABEL_NAMES if name not in names) if label is None else (label,)
        reader = DocumentReader(
            query=texts[0], documents=documents, positives=positives, negatives=negatives, labels=labels
        )
        return RerankingColumns(reader=reader, label=label)

    @classmethod
    def extend_training(cls, config: RunConfig, table: Table) -> Table:
        """Adds the documents of task.negatives to the training queries."""
        assert isinstance(config.task, Settings)
        path, spec = config.task.negatives, cls.make_columns(config).spec
        if path is None:
            return table
        found = read_table((path,), config.data, "task.negatives", spec, needs_labels=False)
        return add_negatives(table, found, config.data.text_columns[0])

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Reranking":
        """Finds the highest label. InputError if the training rows do not rank any documents."""
        assert isinstance(config.task, Settings)
        kind, smoothing = config.task.loss, config.train.label_smoothing
        require(smoothing == 0 or kind == "listwise", "train.label_smoothing", smoothing, "is for task.loss listwise")
        rows = [read_labels(table, row) for row in range(len(table))]
        if not any(teaches(np.array(labels), "pairwise") for labels in rows):
            raise InputError(
                f"{table.files[0]}: no training query has a relevant document and one that is less relevant; "
                "task.negatives can add documents that are not relevant"
            )
        highest_label = max(max(labels) for labels in rows)
        return cls.from_state(config, {"highest_label": highest_label, "written_lists": collect_forms(table)})

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Reranking":
        assert isinstance(config.task, Settings)
        kind, columns = config.task.loss, cls.make_columns(config)
        query, highest_label = columns.reader.query, float(state["highest_label"])
        is_pointwise = kind == "pointwise"
        entries = {
            "id2label": {0: "score"},
            "label2id": {"score": 0},
            # By which transformers' pipelines choose between the score itself and its sigmoid
            "problem_type": "multi_label_classification" if is_pointwise else "regression",
        }
        return cls(
            problem=kind,
            label_names=("score",),
            highest_label=highest_label,
            pipeline_tag="text-ranking",
            head=HeadSpec(auto_class="AutoModelForSequenceClassification", config_entries=entries, has_labels=True),
            columns=columns,
            encoding=RerankingEncoding(
                query=query,
                loss=kind,
                highest_label=highest_label,
                written_lists=state.get("written_lists", {}),
            ),
            objective=RerankingObjective(
                kind=kind, highest_label=highest_label, label_smoothing=config.train.label_smoothing
            ),
            scoring=RerankingScoring(query=query, gives_probabilities=is_pointwise),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"highest_label": self.highest_label, "written_lists": dict(self.encoding.written_lists)}

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Writes into the config what sentence_transformers.CrossEncoder applies to the scores; by default it is a sigmoid."""
        model.config.sentence_transformers = {"activation_fn": ACTIVATIONS[self.problem == "pointwise"]}

    def describe_for_card(self) -> str:
        return f"""reranking: the documents of a query are ranked by their scores, trained with a {self.problem} loss.

```python
from sentence_transformers import CrossEncoder

scores = CrossEncoder("model").predict([("a query", "a document"), ("a query", "another")])
```"""
