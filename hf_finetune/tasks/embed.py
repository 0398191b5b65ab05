"""Sentence embeddings: one vector a text, trained on pairs of texts that belong together, or on pairs with a score.

B features of a batch, N features of a split, S texts (one sequence each), C candidates, T tokens, D numbers of a vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.columns import find_distinct, has_values, iterate
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Batch, Features
from hf_finetune.data.table import ColumnSpec, Table, describe_value, is_delimited
from hf_finetune.data.written_lists import (
    describe_written_lists,
    find_forms,
    holds_written_lists,
    is_blank,
    is_missing,
    is_written_list,
    read_texts,
    warn_of_joined_texts,
)
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import (
    Columns,
    Encoding,
    InBatchObjective,
    Objective,
    Outputs,
    Scoring,
    SummedObjective,
    Task,
)
from hf_finetune.tasks.labels import read_number
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.retrieval import compute_cosines, find_false_negatives, rank_positives, split_anchors
from hf_finetune.tasks.sentence_transformers_files import FORMAT_VERSION, write_files

if TYPE_CHECKING:
    from pathlib import Path

    import torch

RECALL = "recall_at_"


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of sentence embeddings.

    Args:
        pooling: How the token vectors of a text become one: their mean, or the vector of the first token (cls).
        normalize: Scale vectors to length 1.
        similarity_scale: Factor of the cosine similarities before the softmax; only for pairs without scores.
    """

    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    similarity_scale: float = 20.0

    def __post_init__(self) -> None:
        scale = self.similarity_scale
        require(0 < scale < float("inf"), "task.similarity_scale", scale, "must be above 0 and finite")


SCORES = ("label", "score", "similarity_score")  # columns of scored pairs in public data sets
NEGATIVES = ("negative", "negatives", "hard_negative", "hard_negatives")  # of triplets


@dataclass(frozen=True, kw_only=True)
class EmbeddingColumns(Columns):
    """A column of anchors, one of positives, columns of negatives; or two columns of texts and one of scores."""

    texts: tuple[str, ...]
    label: str | None

    @property
    def spec(self) -> ColumnSpec:
        first, *others = self.texts
        labels = others if self.label is None else [*others, self.label]
        unused = [name for name in (*SCORES, *NEGATIVES) if self.label is None and name not in self.texts]
        return ColumnSpec(
            inputs=(first,), labels=tuple(labels), texts=(first,), together=(first,), also_read=tuple(unused)
        )

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        most = len(self.texts)
        if len(texts) > most:
            others = {1: "", 2: ", or two to compare"}.get(most, f", or up to {most} to compare the first with")
            raise InputError(f"--text: takes one text{others}")
        return dict(zip(self.texts, texts, strict=False))


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Turns the hidden states of a text into its vector. mode: mean or cls."""

    mode: str
    normalize: bool

    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Returns the vectors [S, D] of texts with the last hidden states `outputs` [S, T, D]."""
        from torch.nn import functional as F

        hidden = outputs.float()
        if self.mode == "cls":
            vectors = hidden[:, 0]
        else:
            mask = batch.inputs["attention_mask"][..., None].to(hidden.dtype)
            vectors = (hidden * mask).sum(1) / mask.sum(1)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors


@dataclass(frozen=True, kw_only=True)
class EmbeddingEncoding(Encoding):
    """One sequence a text: the anchor, its positive, its negatives.

    score_range: Smallest and largest score of the training rows; None without scores. pooling: How vectors
    are made, which describe() prints. written_lists: Whether the texts of a column of negatives are lists written as text; of
    the columns that have texts in training.
    """

    rows_are_independent: ClassVar[bool] = True

    problem: str
    texts: tuple[str, ...]
    label: str | None
    pooling: Pooling
    score_range: tuple[float, float] | None = None
    written_lists: Mapping[str, bool] = field(default_factory=dict)

    def encoded_columns(self) -> tuple[str, ...]:
        return self.texts

    def encoding_settings(self) -> dict[str, Any]:
        return {"written_lists": dict(self.written_lists)} if len(self.texts) > 2 else {}

    def read_texts(self, table: Table, row: int) -> list[str]:
        """Returns the texts of a row, only the first if the second is null. A negative may be null or blank, or a list of texts,
        which may be written as text."""
        texts: list[str] = []
        for index, name in enumerate(self.texts):
            value = table.columns[name][row]
            if value is None and index == 1:
                break
            if index > 1:
                value = None if is_blank(value) else read_texts(value)
            values = value if index > 1 and isinstance(value, (list, tuple)) else [value]
            for text in values:
                if text is None and index > 1:
                    continue
                if not isinstance(text, str) or not text.strip():
                    raise InputError(f"{table.where(row)}: {name} is {describe_value(text)}")
                texts.append(text)
        return texts

    def check_texts(self, table: Table) -> None:
        """Raises InputError, with file and line, at a negative that is written in another way than those of training, or that is
        blank; a csv file has no null, and writes it so. Also at an anchor or positive that is a list written as text in a csv
        file: a row of a jsonl file with that list is an error, too."""
        has_cells = any(is_delimited(file) for file, _ in table.list_files()) and not table.is_in_memory
        for name in self.texts[:2] if has_cells else ():
            for row, value in enumerate(chain.from_iterable(iterate(table.columns[name]))):
                if is_written_list(value) and table.is_delimited(row):
                    raise InputError(
                        f"{table.where(row)}: {name} is a list that is written as text; make a row of each text, or, if it is a "
                        "text, use a jsonl file"
                    )
        for name in self.texts[2:]:
            holds_written_lists(table, name, self.written_lists.get(name))
            for row, value in enumerate(chain.from_iterable(iterate(table.columns[name]))):
                is_missing(table, row, name, value)  # raises the error

    def check_rows(self, table: Table) -> None:
        self.check_texts(table)
        for row in range(len(table)):
            if len(self.read_texts(table, row)) < min(2, len(self.texts)):
                raise InputError(f"{table.where(row)}: {self.texts[1]} is null")
            if self.label is not None:
                read_score(table, row, self.label)

    def find_warnings(self, tables: Mapping[str, Table]) -> list[str]:
        """Columns of training that look like scores or negatives and are not read: all pairs are taken as texts that belong
        together."""
        if self.label is not None or len(self.texts) < 2:
            return []
        columns = tables["train"].columns.items()
        unread = {name: column for name, column in columns if name not in self.texts and has_values(column)}
        warnings = [
            f"the column {name} is not read: if it holds negatives, name it after the others: --data.text_columns "
            f"{' '.join(self.texts)} {name}"
            for name in NEGATIVES
            if name in unread
        ]
        for name in SCORES:
            if name in unread:
                shown = ", ".join(map(str, find_distinct(unread[name])[1][:3]))
                warnings.append(
                    f"the column {name} ({shown}) is not read: each {self.texts[0]} and its {self.texts[1]} are trained as texts "
                    "that belong together; name it in data.label_column if it scores the pairs"
                )
        return warnings

    def find_row_warnings(self, table: Table) -> list[str]:
        """Negatives that may be several in one text."""
        if len(self.texts) < 3:
            return []
        return warn_of_joined_texts(table, partial(self.split_texts, table), "negatives")

    def split_texts(self, table: Table, row: int) -> tuple[list[str], list[str]]:
        """Returns the negatives of a row, and its positive."""
        texts = self.read_texts(table, row)
        return texts[2:], texts[1:2]

    def describe_problem(self, table: Table) -> list[tuple[str, str]]:
        """The columns of negatives that are lists written as text."""
        names = [name for name, is_list in self.written_lists.items() if is_list]
        return [("negatives", describe_written_lists(names))] if names else []

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Also returns `texts` [S], a number for each text. Texts with the same tokens have the number of the first of them."""
        self.check_texts(table)
        rows = [self.read_texts(table, row) for row in range(len(table))]
        arrays = tokenize([[text for texts in rows for text in texts]], tokenizer, max_length)
        counts = np.cumsum([0, *(len(texts) for texts in rows)])
        return {**arrays, "rows": counts.astype(np.int64), **self.join(arrays)}

    def join(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Returns `texts` as tokenize() does."""
        first: dict[bytes, int] = {}
        numbers = [
            first.setdefault(arrays["input_ids"][begin:end].tobytes(), number)
            for number, (begin, end) in enumerate(pairwise(arrays["offsets"].tolist()))
        ]
        return {"texts": np.array(numbers, dtype=np.int32)}

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Array:
        """Returns scores [N] float32. Without scores returns zeros [N]: the first text after the anchor is the positive."""
        require(len(self.texts) > 1, "data.text_columns", list(self.texts), "evaluation needs two columns")
        self.check_texts(table)  # the arrays may be those of equal rows in a file of another kind
        incomplete = np.flatnonzero(np.diff(arrays["rows"]) < 2)
        if len(incomplete):
            raise InputError(f"{table.where(int(incomplete[0]))}: {self.texts[1]} is null")
        if self.label is None:
            return np.zeros(len(table), dtype=np.int64)
        return np.array([read_score(table, row, self.label) for row in range(len(table))], dtype=np.float32)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Returns lines about the kind of pairs, the number of texts or the range of the scores, and the input."""
        columns = " and ".join(self.texts[:2])
        vectors = f"{self.pooling.mode} pooling"
        if self.pooling.normalize:
            vectors += ", vectors of length 1"
        cut = f"{features.num_truncated:,} training texts are longer and were cut"
        length = ("input", f"at most {max_length} tokens a text; {cut}")
        if self.score_range is not None:
            scores = np.asarray(features.labels, dtype=float)
            least, most = self.score_range
            spread = f"{least:g} (trained as cosine 0) to {most:g} (as 1), mean {scores.mean():.3g}"
            return [("task", f"scored pairs of {columns}; {vectors}"), ("scores", spread), length]
        num_hard = features.num_sequences - 2 * len(features)
        num_distinct = len(np.unique(features.extras["texts"]))
        return [
            ("task", f"{self.problem} of {columns}; all other texts of a batch are negatives; {vectors}"),
            ("texts", f"{num_distinct:,} distinct; {num_hard:,} hard negatives"),
            *self.describe_problem(table),
            length,
        ]


@dataclass(frozen=True, kw_only=True)
class RankingObjective(InBatchObjective):
    """Multiple negatives ranking: each anchor finds its positive among all texts of the batch that are not anchors (Henderson
    et al. 2017, arXiv:1705.00652). The negatives of all rows are candidates too."""

    pooling: Pooling
    similarity_scale: float

    def embed(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        return self.pooling.embed(outputs, batch)

    def batch_loss(
        self, embeddings: "torch.Tensor", counts: Array, features: Features, indices: Array
    ) -> "tuple[torch.Tensor, float]":
        """Returns the cross entropy of the positives, by the scaled cosines, and B. False negatives are not candidates."""
        import torch
        from torch.nn import functional as F

        vectors = F.normalize(embeddings.float(), dim=-1)
        anchors, others = split_anchors(counts)
        texts = get_text_numbers(features, indices)
        similarities = self.similarity_scale * vectors[anchors] @ vectors[others].T
        positives = anchors - np.arange(len(indices))  # indices among the candidates, which the anchors are not
        of_positives = similarities[np.arange(len(indices)), positives]
        rows, columns = find_false_negatives(texts[anchors], texts[anchors + 1], texts[others])
        is_masked = columns != positives[rows]
        masked = (torch.from_numpy(rows[is_masked]), torch.from_numpy(columns[is_masked]))
        logits = similarities.index_put(masked, similarities.new_tensor(-torch.inf))
        return (torch.logsumexp(logits, 1) - of_positives).sum(), float(len(indices))


@dataclass(frozen=True, kw_only=True)
class SimilarityObjective(SummedObjective):
    """Squared difference of the cosine of a pair and its score, scaled from the training rows' range to 0..1.

    On STS-B this reached a Spearman correlation of 0.885 after one epoch. CoSENT, which uses only the order of the scores,
    reached 0.871.
    """

    pooling: Pooling
    score_range: tuple[float, float]

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Returns the squared differences, summed over pairs, and the number of pairs."""
        from torch.nn import functional as F

        assert batch.labels is not None
        pairs = self.pooling.embed(outputs, batch).unflatten(0, (-1, 2))
        least, most = self.score_range
        cosines = F.cosine_similarity(pairs[:, 0], pairs[:, 1], dim=-1)
        return F.mse_loss(cosines, (batch.labels - least) / (most - least), reduction="sum"), float(len(cosines))


@dataclass(frozen=True, kw_only=True)
class EmbeddingScoring(Scoring):
    """Correlations with the scores, or how well anchors find their positives; predictions are vectors or similarities."""

    pooling: Pooling
    has_scores: bool

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("spearman", "pearson") if self.has_scores else ("recall_at_1", "recall_at_10", "mrr")

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Also takes recall_at_K for any K if there are no scores."""
        name = metrics.expand_name(name)
        count = name.removeprefix(RECALL)
        if not self.has_scores and count != name and count.isdecimal() and int(count) > 0:
            return f"{RECALL}{int(count)}"
        return super().check_metric(name, key)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Returns, for each feature, the vectors of its texts [number of its texts, D]."""
        vectors = self.pooling.embed(outputs, batch).cpu().numpy()
        return np.split(vectors, np.cumsum(batch.sequence_counts)[:-1])

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """Returns the correlations of scores and cosines. Without scores, returns recall_at_K, the share of positives with rank K
        or better, and mrr, the mean of 1 / rank."""
        names = dict.fromkeys((*self.metric_names, metric))
        if self.has_scores:
            cosines = np.array([compute_cosines(vectors)[0] for vectors in outputs])
            scores = features.get_labels(indices)
            return metrics.compute_all(names, predictions=cosines, scores=cosines, references=scores)
        ranks = rank_positives(outputs, get_text_numbers(features, indices))
        recalls = {
            name: float(np.mean(ranks <= int(name.removeprefix(RECALL)))) for name in names if name.startswith(RECALL)
        }
        return recalls | {"mrr": float(np.mean(1 / ranks))}

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """The cosines of the first text of each row with its others, a list of arrays; as scores the vectors of its texts
        [texts, D]. References are the scores of the rows [N], or None if they have none: the second text belongs to the first."""
        return MetricInputs(
            predictions=[compute_cosines(vectors) for vectors in outputs],
            references=features.get_labels(indices) if self.has_scores else None,
            scores=list(outputs),
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """Yields `{embedding}` for one text, `{similarity}` for two, or `{similarities}` of the first with each other one."""
        for vectors in outputs:
            if len(vectors) == 1:
                # By way of str: the fewest digits that give the same float32 again
                yield {"embedding": [float(str(value)) for value in vectors[0]]}
                continue
            cosines = [float(value) for value in compute_cosines(vectors)]
            yield {"similarity": cosines[0]} if len(cosines) == 1 else {"similarities": cosines}


@dataclass(frozen=True, kw_only=True)
class Embedding(Task):
    """Sentence embeddings: texts as vectors whose cosine is their similarity.

    Args:
        problem: pairs or triplets, if there is no data.label_column; else scored_pairs.
        pooling: How vectors are made.
        score_range: Smallest and largest score of the training rows; None without scores.
    """

    Settings = Settings
    library_name = "sentence-transformers"
    loss_settings = ("similarity_scale",)

    encoding: EmbeddingEncoding
    pooling: Pooling
    score_range: tuple[float, float] | None = None

    @classmethod
    def make_columns(cls, config: RunConfig) -> EmbeddingColumns:
        texts, label = config.data.text_columns, config.data.one_label_column
        require(
            label is None or len(texts) <= 2,
            "data.text_columns",
            list(texts),
            f"must be two columns if there are scores (data.label_column: {label})",
        )
        return EmbeddingColumns(texts=texts, label=label)

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Embedding":
        """Finds the problem by the columns that are named, and in the training rows the range of the scores, and the columns of
        negatives that are lists written as text."""
        assert isinstance(config.task, Settings)
        texts, label = config.data.text_columns, config.data.one_label_column
        needed = "must be two columns whose texts belong together, such as [anchor, positive], or more"
        require(len(texts) >= 2, "data.text_columns", list(texts), needed)
        if label is None:
            problem = "pairs" if len(texts) == 2 else "triplets"
            return cls.from_state(config, {"problem": problem, "written_lists": find_forms(table, texts[2:])})
        scores = {read_score(table, row, label) for row in range(len(table))}
        require(len(scores) > 1, "data.label_column", label, f"training has only one score, {min(scores):g}")
        scale = config.task.similarity_scale
        unused = "has no effect on pairs with scores"
        require(scale == Settings.similarity_scale, "task.similarity_scale", scale, unused)
        return cls.from_state(config, {"problem": "scored_pairs", "score_range": (min(scores), max(scores))})

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Embedding":
        assert isinstance(config.task, Settings)
        settings, problem = config.task, state["problem"]
        pooling = Pooling(mode=settings.pooling, normalize=settings.normalize)
        columns = cls.make_columns(config)
        score_range, written_lists = None, state.get("written_lists", {})
        objective: Objective
        if problem == "scored_pairs":
            least, most = state["score_range"]
            score_range = (least, most)
            objective = SimilarityObjective(pooling=pooling, score_range=score_range)
        else:
            objective = RankingObjective(pooling=pooling, similarity_scale=settings.similarity_scale)
        return cls(
            problem=problem,
            pooling=pooling,
            score_range=score_range,
            pipeline_tag="sentence-similarity",
            head=HeadSpec(auto_class="AutoModel"),
            columns=columns,
            encoding=EmbeddingEncoding(
                problem=problem,
                texts=columns.texts,
                label=columns.label,
                pooling=pooling,
                score_range=score_range,
                written_lists=written_lists,
            ),
            objective=objective,
            scoring=EmbeddingScoring(pooling=pooling, has_scores=score_range is not None),
        )

    def state_dict(self) -> dict[str, Any]:
        if self.score_range is not None:
            return {"problem": self.problem, "score_range": list(self.score_range)}
        return {"problem": self.problem} | (
            {"written_lists": dict(self.encoding.written_lists)} if self.problem == "triplets" else {}
        )

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """InputError if the backbone is an encoder-decoder."""
        if getattr(model.config, "is_encoder_decoder", False):
            kind = type(model).__name__
            raise InputError(
                f"model.backbone ({kind}): is an encoder-decoder; embeddings need an encoder, such as BERT"
            )

    def write_extras(self, folder: "Path", model: Any, max_length: int) -> None:
        """Writes the files that sentence_transformers.SentenceTransformer(folder) reads."""
        dimension = int(model.config.hidden_size)
        write_files(folder, dimension=dimension, pooling=self.pooling.mode, normalize=self.pooling.normalize)

    def describe_for_card(self) -> str:
        names = {"mean": "mean of the last hidden states", "cls": "last hidden state of the first token"}
        vector = names[self.pooling.mode]
        if self.pooling.normalize:
            vector += ", scaled to length 1"
        return f"""sentence embeddings, trained on {self.problem.replace("_", " ")}.
The vector of a text is the {vector}. The cosine of two vectors is the similarity of their texts.

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("model").encode(["a text", "another"])
```

This needs sentence-transformers {FORMAT_VERSION} or newer. Plain transformers loads the encoder without the pooling."""


def read_score(table: Table, row: int, column: str) -> float:
    """Returns the score of a row: how similar its two texts are. InputError with file and line if it is not a number."""
    return read_number(table, row, column, "as a score must be")


def get_text_numbers(features: Features, indices: Array) -> Array:
    """Returns the text numbers [S] of the features at `indices`: equal for texts with the same tokens."""
    return np.asarray(features.extras["texts"])[features.get_sequence_indices(indices)]
