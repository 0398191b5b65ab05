"""Sentence embeddings: one vector a text, trained on pairs of texts that belong together, or on pairs with a score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.table import Table
from hf_finetune.data.written_lists import find_forms
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Objective, Task
from hf_finetune.tasks.embed_columns import EmbeddingColumns, read_score
from hf_finetune.tasks.embed_encoding import EmbeddingEncoding
from hf_finetune.tasks.embed_objectives import Pooling, RankingObjective, SimilarityObjective
from hf_finetune.tasks.embed_scoring import EmbeddingScoring
from hf_finetune.tasks.sentence_transformers_files import FORMAT_VERSION, write_files

if TYPE_CHECKING:
    from pathlib import Path


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
