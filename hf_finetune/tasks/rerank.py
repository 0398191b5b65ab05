"""Reranking: a cross-encoder reads a query together with each of its documents, and ranks the documents by their scores.

B queries of a batch, N queries of a split, S sequences (a query with one of its documents), C documents of a query.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Batch, Features, Ragged
from hf_finetune.data.formats import name_type
from hf_finetune.data.label_counts import format_counts
from hf_finetune.data.sources import read_table
from hf_finetune.data.table import ColumnSpec, Table, describe_value
from hf_finetune.data.written_lists import warn_of_joined_texts
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Columns, Encoding, Outputs, Scoring, SummedObjective, Task
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.ranking import compute_metric, parse_metric
from hf_finetune.tasks.text.document_reader import (
    DOCUMENTS,
    EXAMPLE_COLUMNS,
    FORM,
    FORMS,
    LABEL_NAMES,
    LABELS,
    NUM_ADDED,
    NUM_ROWS,
    DocumentReader,
    add_negatives,
    check_forms,
    collect_forms,
    read_label,
)

if TYPE_CHECKING:
    import torch

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
class RerankingEncoding(Encoding):
    """A sequence for each document of a query, and the documents' labels.

    Args:
        query: The column of the query.
        loss: As Settings.loss.
        highest_label: The highest label of the training rows.
        written_lists: Whether the texts of a column of documents are lists written as text; of the columns that have texts in
            training.
    """

    rows_are_independent: ClassVar[bool] = True

    query: str
    loss: str
    highest_label: float
    written_lists: Mapping[str, bool] = field(default_factory=dict)

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.query, DOCUMENTS)

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Encodes each document as a pair of texts: the query and the document."""
        check_forms(table, self.written_lists)
        documents = [read_documents(table, row) for row in range(len(table))]
        counts = [len(texts) for texts in documents]
        queries = [query for query, count in zip(table.columns[self.query], counts, strict=True) for _ in range(count)]
        arrays = tokenize([queries, [text for texts in documents for text in texts]], tokenizer, max_length)
        return {**arrays, "rows": np.cumsum([0, *counts], dtype=np.int64)}

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Ragged:
        """Returns the labels of each query's documents, float32 [C] each."""
        rows = self.read_all_labels(table)
        values = np.array([label for labels in rows for label in labels], dtype=np.float32)
        return Ragged(values=values, offsets=np.asarray(arrays["rows"]))

    def read_all_labels(self, table: Table) -> list[list[float]]:
        """Returns the labels of each query's documents. InputError with file and line if one of them cannot be used, or if the
        documents are written in another way than those of training: their tokens may be known from a file in another form."""
        check_forms(table, self.written_lists)
        rows = [read_labels(table, row) for row in range(len(table))]
        if not any(map(any, rows)):
            raise InputError(f"{table.files[0]}: no document of any query is relevant (has a label above 0)")
        for row, labels in enumerate(rows):
            if self.loss == "pointwise" and max(labels) > self.highest_label:
                raise InputError(
                    f"{table.where(row)}: the label {max(labels):g} is above the highest of training, {self.highest_label:g}, "
                    "which task.loss pointwise trains as the probability 1"
                )
        return rows

    def check_rows(self, table: Table) -> None:
        self.read_all_labels(table)

    def find_row_warnings(self, table: Table) -> list[str]:
        """Documents that are not relevant, and that may be several in one text."""
        return warn_of_joined_texts(table, partial(split_documents, table), "documents that are not relevant")

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Returns lines about the form of the rows, the documents and their labels, queries without effect, and the input."""
        assert isinstance(features.labels, Ragged)
        counts = features.count_sequences(np.arange(len(features)))
        num_added = np.array(table.columns[NUM_ADDED])
        lines = [
            ("task", self.describe_rows(table)),
            ("documents", f"{len(features.labels.values):,}, {counts.min():,} to {counts.max():,} for each query"),
            ("labels", self.describe_labels(features.labels.values)),
        ]
        if num_added.any():
            added = (
                f"{num_added.sum():,} of task.negatives added to {(num_added > 0).sum():,} of {len(table):,} queries"
            )
            lines.append(("negatives", added))
        if unused := sum(not teaches(features.labels.get(row), self.loss) for row in range(len(features))):
            reason = "no relevant document" if self.loss == "listwise" else "no two documents with different labels"
            lines.append(("unused", f"{unused:,} queries have no effect: they have one document, or {reason}"))
        cut = f"{features.num_truncated:,} queries with a document are longer and were cut"
        return [*lines, ("input", f"at most {max_length} tokens; {cut}")]

    def describe_rows(self, table: Table) -> str:
        """Returns the form of the rows, how many were joined, and how many lists belong to a query that has another one."""
        num_rows, num_repeated = sum(table.columns[NUM_ROWS]), len(table) - len(set(table.columns[self.query]))
        shown = f"reranking; {num_rows:,} rows with a query and {FORMS[table.columns[FORM][0]]}"
        if num_rows > len(table):
            shown += f", joined to {len(table):,} queries"
        if num_repeated:
            shown += f"; {num_repeated:,} queries occur again, and each list is ranked by itself"
        return shown

    def describe_labels(self, values: Array) -> str:
        """Returns how often each label occurs, or the range of many labels; and what a pointwise loss makes of them."""
        numbers = Counter(values.tolist())
        shown = f"{values.min():g} to {values.max():g}"
        if len(numbers) <= 8:
            shown = format_counts({f"{label:g}": count for label, count in sorted(numbers.items())})
        if self.loss == "pointwise" and self.highest_label != 1:
            shown += f"; trained as probabilities: {self.highest_label:g} as 1"
        return f"{shown}; a document above 0 is relevant"


@dataclass(frozen=True, kw_only=True)
class RerankingObjective(SummedObjective):
    """The loss of a query's scores by the labels of its documents.

    listwise: cross entropy of the softmax of the scores and the labels divided by their sum (Bruch et al. 2019,
        doi:10.1145/3341981.3344221, eq. 2), for each query with a relevant document. With one relevant document that is minus
        the logarithm of its probability.
    pairwise: logistic loss of the difference of two scores (RankNet, Burges et al. 2005, doi:10.1145/1102351.1102363), for each
        pair of documents of a query with different labels.
    pointwise: binary cross entropy of each document's score and its label, divided by the highest label of training.
    """

    kind: str
    highest_label: float = 1.0
    label_smoothing: float = 0.0

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Returns the loss summed over queries, pairs or documents, and their number. outputs: scores of all documents [S, 1]."""
        import torch
        from torch.nn import functional as F

        assert batch.labels is not None
        counts = torch.as_tensor(batch.sequence_counts, device=outputs.device)
        parts = outputs.float()[:, 0].split(batch.sequence_counts.tolist())
        scores = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)  # [B, C]
        is_document = torch.arange(scores.shape[1], device=outputs.device) < counts[:, None]
        labels = batch.labels.masked_fill(~is_document, 0.0)  # [B, C]
        if self.kind == "listwise":
            return self.compare_lists(scores, labels, is_document)
        if self.kind == "pairwise":
            is_pair = (labels[:, :, None] > labels[:, None, :]) & is_document[:, None, :]
            differences = (scores[:, :, None] - scores[:, None, :])[is_pair]
            return F.softplus(-differences).sum(), float(len(differences))
        targets = labels[is_document] / self.highest_label
        return F.binary_cross_entropy_with_logits(scores[is_document], targets, reduction="sum"), float(len(targets))

    def compare_lists(
        self, scores: "torch.Tensor", labels: "torch.Tensor", is_document: "torch.Tensor"
    ) -> "tuple[torch.Tensor, float]":
        """Returns the listwise loss. All arguments are [B, C]."""
        totals, counts = labels.sum(-1), is_document.sum(-1)
        is_target = (totals > 0) & (counts > 1)
        log_probabilities = scores.masked_fill(~is_document, float("-inf")).log_softmax(-1)
        log_probabilities = log_probabilities.masked_fill(~is_document, 0.0)
        targets = labels / totals.clamp(min=1e-30)[:, None]
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / counts[:, None]
        terms = -(targets * log_probabilities).sum(-1)
        return terms[is_target].sum(), float(is_target.sum())


@dataclass(frozen=True, kw_only=True)
class RerankingScoring(Scoring):
    """Scores to rankings, and how well these agree with the labels.

    Args:
        query: The column of the query.
        gives_probabilities: Predicted scores are probabilities.
    """

    query: str
    gives_probabilities: bool

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("ndcg_at_10", "mrr_at_10", "map")

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Also takes ndcg_at_K and mrr_at_K for any K, written with @ too."""
        parsed = parse_metric(name)
        if parsed is not None and parsed[1] is not None:
            return "{}_at_{}".format(*parsed)
        return super().check_metric(name, key)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns the scores of each query's documents [C]."""
        return np.split(outputs.float()[:, 0].cpu().numpy(), np.cumsum(batch.sequence_counts)[:-1])

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """Returns the means over queries. A query without a relevant document counts as 0."""
        assert isinstance(features.labels, Ragged)
        labels = [features.labels.get(int(index)) for index in indices]
        return {
            name: float(np.mean([compute_metric(name, *query) for query in zip(outputs, labels, strict=True)]))
            for name in dict.fromkeys((*self.metric_names, metric))
            if name != "loss"
        }

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """The scores of each query's documents, a list of arrays [C], and the labels of these documents."""
        assert isinstance(features.labels, Ragged)
        labels = [features.labels.get(int(index)) for index in indices]
        return MetricInputs(predictions=list(outputs), references=labels)

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields `{query, ranking}` for each query. ranking: `{document, text, score}` of each document, the best first, where
        document is its index from 0."""
        from scipy.special import expit

        for query, texts, scores in zip(table.columns[self.query], table.columns[DOCUMENTS], outputs, strict=True):
            order = np.argsort(-scores, kind="stable").tolist()
            shown = expit(scores) if self.gives_probabilities else scores
            ranking = [{"document": index, "text": texts[index], "score": float(shown[index])} for index in order]
            yield {"query": query, "ranking": ranking}


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


def read_documents(table: Table, row: int) -> list[str]:
    """Returns a query's documents. InputError if they are not a list of texts, as a row of train.augment may have them."""
    texts: list[str] = table.columns[DOCUMENTS][row]
    if not isinstance(texts, (list, tuple)) or not texts:
        raise InputError(f"{table.where(row)}: {DOCUMENTS} is {describe_value(texts, 'a list of texts')}")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{table.where(row)}: {DOCUMENTS} has a text that is {describe_value(text)}")
    return list(texts)


def read_labels(table: Table, row: int) -> list[float]:
    """Returns the labels of a query's documents. InputError with file and line if one has none, or if they are not a list with a
    number for each, as a row of train.augment may have them."""
    labels, count = table.columns[LABELS][row], len(table.columns[DOCUMENTS][row])
    if not isinstance(labels, (list, tuple)) or len(labels) != count:
        found = f"has {len(labels)} labels" if isinstance(labels, (list, tuple)) else f"is {name_type(labels)}"
        raise InputError(f"{table.where(row)}: {LABELS} {found}; it must be a list of labels for {count} documents")
    known = [read_label(label, f"{table.where(row)}: {LABELS}") for label in labels if label is not None]
    if len(known) < len(labels):
        raise InputError(
            f"{table.where(row)}: {len(labels) - len(known)} of {len(labels)} documents of this query have no label; the column "
            f"must be named {', '.join(LABEL_NAMES)}, or be given in data.label_column{table.describe_unread()}"
        )
    return known


def split_documents(table: Table, row: int) -> tuple[list[str], list[str]]:
    """Returns the documents of a query that are not relevant, and those that are. Neither has those without a label."""
    pairs = list(zip(table.columns[DOCUMENTS][row], table.columns[LABELS][row], strict=True))
    return [text for text, label in pairs if label == 0], [text for text, label in pairs if label]


def teaches(labels: Array, kind: str) -> bool:
    """True if a query whose documents have these labels [C] has an effect on a loss."""
    if kind == "pointwise":
        return True
    return len(labels) > 1 and bool(labels.min() < labels.max() if kind == "pairwise" else labels.max() > 0)
