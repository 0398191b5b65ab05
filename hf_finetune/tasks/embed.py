"""Sentence embeddings: one vector a text, from pairs of texts that belong together, or from pairs with a score.

B features (rows), S sequences (texts), C candidates, D numbers of a vector.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.config.sections import RunConfig, require
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Batch, Features
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import Kept, Task
from hf_finetune.tasks.classify import number_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch

ANCHORS_AT_ONCE = 1024  # whose similarities with all candidates are in memory together

# Files of model/ are those that this version of sentence-transformers writes and reads
FORMAT_VERSION = "6.2.0"

MODULES = "sentence_transformers"


@dataclass(frozen=True, kw_only=True)
class Embedding(Task):
    """Texts as vectors whose cosine says how alike two are.

    problem: pairs or triplets (without data.label_column), whose loss finds each anchor's positive among all other texts of
    the batch; or scored_pairs, whose loss is the squared difference of the cosine and the score, scaled from the training
    rows' range to 0..1. On STS-B that reached a Spearman of 0.885 in an epoch, and CoSENT, which takes the order alone, 0.871.
    """

    problem: str
    text_columns: tuple[str, ...]
    label_column: str | None
    pooling: str = "mean"
    normalize: bool = True
    similarity_scale: float = 20.0
    score_range: tuple[float, float] = (0.0, 1.0)  # of the training rows
    couples_rows: bool = True

    name = "embedding"
    auto_class = "AutoModel"
    pipeline_tag = "sentence-similarity"
    library_name = "sentence-transformers"
    settings = frozenset({"pooling", "normalize", "similarity_scale"})

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        first, *others = config.data.text_columns
        label = config.data.label_column
        require(label is None or len(others) < 2, "data.text_columns", list(config.data.text_columns),
              f"takes two columns where there are scores (data.label_column: {label})")  # fmt: skip
        return ColumnSpec(
            inputs=(first,), labels=(*others, *((label,) if label else ())), texts=(first,), together=(first,)
        )

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Embedding":
        """Pairs, triplets, or scored pairs, by the columns that are named."""
        columns, label = config.data.text_columns, config.data.label_column
        require(len(columns) >= 2, "data.text_columns", list(columns),
              "takes two columns that belong together, such as [anchor, positive]")  # fmt: skip
        problem = "scored_pairs" if label else "pairs" if len(columns) == 2 else "triplets"
        task = cls.from_facts(config, {"problem": problem})
        if label is None:
            return task
        scores = {task.score_of(table, row) for row in range(len(table))}
        require(len(scores) > 1, "data.label_column", label, f"training has one score only, {min(scores):g}")
        scale = task.similarity_scale
        require(scale == cls.similarity_scale, "task.similarity_scale", scale, "has no meaning where there are scores")
        return replace(task, score_range=(min(scores), max(scores)))

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "Embedding":
        return cls(
            problem=facts["problem"],
            text_columns=config.data.text_columns,
            label_column=config.data.label_column,
            pooling=config.task.pooling,
            normalize=config.task.normalize,
            similarity_scale=config.task.similarity_scale,
            score_range=tuple(facts.get("score_range", cls.score_range)),
            couples_rows=facts["problem"] != "scored_pairs",
        )

    def facts(self) -> dict[str, Any]:
        return {"problem": self.problem, "score_range": list(self.score_range)}

    def score_of(self, table: Table, row: int) -> float:
        """The number that says how alike the texts of a row are."""
        return number_of(table, row, str(self.label_column), "as a score is")

    # --- metrics

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("spearman", "pearson") if self.problem == "scored_pairs" else ("recall_at_1", "recall_at_10", "mrr")

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Besides metric_names, of pairs recall_at_ with any number."""
        name = metrics.SHORT_NAMES.get(name, name)
        count = name.removeprefix("recall_at_")
        if self.problem != "scored_pairs" and count != name and count.isdecimal() and int(count) > 0:
            return f"recall_at_{int(count)}"
        return super().check_metric(name, key)

    def metrics(
        self, metric: str, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        """Correlations of the cosine with the score; or, of ranks(), the share up to k and the mean of 1 / rank."""
        names = dict.fromkeys((*self.metric_names, metric))
        if self.problem == "scored_pairs":
            cosines = np.array([cosine(vectors)[0] for vectors in kept])
            return metrics.compute_all(names, predictions=cosines, scores=cosines, references=features.get_labels(rows))
        places = ranks(kept, features, rows)
        recalls = {
            name: float(np.mean(places <= int(name.removeprefix("recall_at_"))))
            for name in names
            if name.startswith("recall_at_")
        }
        return recalls | {"mrr": float(np.mean(1 / places))}

    # --- model

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """InputError where the backbone is no stack that reads a text by itself."""
        if getattr(model.config, "is_encoder_decoder", False):
            kind = type(model).__name__
            raise InputError(f"model.backbone ({kind}): has a decoder beside its encoder; embeddings take an encoder")

    def write_extras(self, folder: "Path", model: Any, max_length: int) -> None:
        """What sentence_transformers.SentenceTransformer(folder) reads, byte for byte as its version 6.2.0 writes it."""
        import torch
        import transformers

        kinds = [("", "base.modules.transformer.Transformer"),
                 ("1_Pooling", "sentence_transformer.modules.pooling.Pooling")]  # fmt: skip
        kinds += [("2_Normalize", "base.modules.normalize.Normalize")] * self.normalize
        modules = [
            {"idx": place, "name": str(place), "path": path, "type": f"{MODULES}.{kind}"}
            for place, (path, kind) in enumerate(kinds)
        ]
        versions = {"pytorch": torch.__version__, "sentence_transformers": FORMAT_VERSION}
        write_json(folder / "modules.json", modules, indent=2)
        write_json(folder / "config_sentence_transformers.json", {
            "__version__": versions | {"transformers": transformers.__version__},
            "default_prompt_name": None,
            "model_type": "SentenceTransformer",
            "prompts": {"document": "", "query": ""},
            "similarity_fn_name": "cosine",
        }, indent=2)  # fmt: skip
        write_json(folder / "sentence_bert_config.json", {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        })  # fmt: skip
        size, names = int(model.config.hidden_size), ("module_input_name", "module_output_name")
        pooling = {"embedding_dimension": size, "pooling_mode": self.pooling, "include_prompt": True}
        write_json(folder / "1_Pooling" / "config.json", pooling)
        if self.normalize:
            write_json(folder / "2_Normalize" / "config.json", dict.fromkeys(names, "sentence_embedding"))

    # --- data

    def encoded_columns(self) -> tuple[str, ...]:
        return self.text_columns

    def texts_of(self, table: Table, row: int) -> list[str]:
        """The texts of a row: the first alone, where it has no second; negatives may be null, or lists."""
        texts: list[str] = []
        for place, name in enumerate(self.text_columns):
            given = table.columns[name][row]
            if given is None and place == 1:
                break
            for text in given if place > 1 and isinstance(given, (list, tuple)) else [given]:
                if text is None and place > 1:
                    continue
                if not isinstance(text, str) or not text.strip():
                    kind = f"a {type(text).__name__}, not a string" if text is not None else "null"
                    raise InputError(f"{table.where(row)}: {name} is {'empty' if isinstance(text, str) else kind}")
                texts.append(text)
        return texts

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """One sequence a text: anchor, positive, negatives. `texts`: [S] the first sequence with the same tokens."""
        rows = [self.texts_of(table, row) for row in range(len(table))]
        arrays = tokenize([[text for texts in rows for text in texts]], tokenizer, max_length)
        flat, offsets = arrays["input_ids"], arrays["offsets"]
        first: dict[bytes, int] = {}
        same = [
            first.setdefault(flat[begin:end].tobytes(), number)
            for number, (begin, end) in enumerate(pairwise(offsets.tolist()))
        ]
        counts = np.cumsum([0, *(len(texts) for texts in rows)])
        return {**arrays, "rows": counts.astype(np.int64), "texts": np.array(same, dtype=np.int32)}

    def labels(self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]":
        """Scores [N] float32; of pairs the place of the positive behind the anchor, 0, [N]."""
        require(len(self.text_columns) > 1, "data.text_columns", list(self.text_columns), "measuring takes two columns")
        for row in np.flatnonzero(np.diff(arrays["rows"]) < 2).tolist():
            raise InputError(f"{table.where(row)}: {self.text_columns[1]} is null")
        if self.problem == "scored_pairs":
            return np.array([self.score_of(table, row) for row in range(len(table))], dtype=np.float32)
        return np.zeros(len(table), dtype=np.int64)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """Besides the input: what is learned from, and how the scores are spread."""
        named, cut = " and ".join(self.text_columns[:2]), f"{features.num_truncated:,} training texts are longer"
        lines = [("input", f"at most {max_length} tokens a text; {cut} and were cut")]
        how = f"{self.pooling} pooling{', length 1' if self.normalize else ''}"
        if self.problem == "scored_pairs":
            scores = np.asarray(features.labels, dtype=float)
            least, most = self.score_range
            spread = f"{least:g} (learned as cosine 0) to {most:g} (as 1), mean {scores.mean():.3g}"
            return [("task", f"scored pairs of {named}; {how}"), ("scores", spread), *lines]
        own = features.num_sequences - 2 * len(features)
        distinct = len(np.unique(features.extras["texts"]))
        return [
            ("task", f"{self.problem} of {named}; every other text of a batch is a negative; {how}"),
            ("texts", f"{distinct:,} different ones; {own:,} negatives of their own row"),
            *lines,
        ]

    # --- forward

    def represent(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Vectors [S, D] of the last hidden states [S, T, D]."""
        from torch.nn import functional as F

        hidden = outputs.float()
        if self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            mask = batch.inputs["attention_mask"][..., None].to(hidden.dtype)
            vectors = (hidden * mask).sum(1) / mask.sum(1)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """The vectors of each row's texts, [its number, D]."""
        vectors = self.represent(outputs, batch).cpu().numpy()
        return np.split(vectors, np.cumsum(batch.sequence_counts)[:-1])

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Of scored pairs the squared differences of cosine and scaled score, and their number."""
        from torch.nn import functional as F

        assert batch.labels is not None
        pairs = self.represent(outputs, batch).unflatten(0, (-1, 2))
        least, most = self.score_range
        cosines = F.cosine_similarity(pairs[:, 0], pairs[:, 1], dim=-1)
        return F.mse_loss(cosines, (batch.labels - least) / (most - least), reduction="sum"), float(len(cosines))

    def coupled_loss(
        self,
        representations: "torch.Tensor",
        counts: "np.ndarray[Any, Any]",
        features: Features,
        rows: "np.ndarray[Any, Any]",
    ) -> "tuple[torch.Tensor, float]":
        """Cross entropy of each anchor's positive, and their number; what is known to be alike besides is no candidate.
        Multiple negatives ranking (Henderson et al. 2017, arXiv:1705.00652), with hard negatives where rows have them."""
        import torch
        from torch.nn import functional as F

        vectors = F.normalize(representations.float(), dim=-1)
        anchors, others = places_of(counts)
        texts = np.asarray(features.extras["texts"])[features.get_sequence_indices(rows)]
        similarities = self.similarity_scale * vectors[anchors] @ vectors[others].T
        own = anchors - np.arange(len(rows))  # the positives among the candidates
        right = similarities[np.arange(len(rows)), own]
        alike = known_alike(texts[anchors], texts[anchors + 1], texts[others])
        away = [torch.from_numpy(places[alike[1] != own[alike[0]]]) for places in alike]
        negatives = similarities.index_put(tuple(away), similarities.new_tensor(-torch.inf))
        return (torch.logsumexp(negatives, 1) - right).sum(), float(len(rows))

    # --- use

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """The vector of a row's one text; of two texts their cosine; of more the first's cosine with each other one."""
        for vectors in kept:
            if len(vectors) == 1:
                yield {"embedding": [float(str(value)) for value in vectors[0]]}  # as few digits as tell float32 apart
            else:
                found = [float(value) for value in cosine(vectors)]
                yield {"similarity": found[0]} if len(found) == 1 else {"similarities": found}

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        most = len(self.text_columns)
        if len(texts) > most:
            others = {1: "", 2: ", or two to compare"}.get(most, f", or up to {most} to compare the first with")
            raise InputError(f"--text: takes one text{others}")
        return dict(zip(self.text_columns, texts, strict=False))

    def card(self) -> str:
        pooled = "mean of the last hidden states" if self.pooling == "mean" else "last hidden state of the first token"
        length = ", scaled to length 1" if self.normalize else ""
        return f"""sentence embeddings, from {self.problem.replace("_", " ")}.
A text's vector is the {pooled}{length}; the cosine says how alike two texts are.

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("model").encode(["a text", "another"])
```

It takes sentence-transformers {FORMAT_VERSION} or newer. Plain transformers loads the encoder, and leaves the pooling to you."""


def places_of(counts: "np.ndarray[Any, Any]") -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Places of the first sequence of each row, and of all others, in the order of the rows."""
    anchors = np.cumsum(counts) - counts
    is_other = np.ones(int(counts.sum()), dtype=bool)
    is_other[anchors] = False
    return anchors, np.flatnonzero(is_other)


def known_alike(
    anchors: "np.ndarray[Any, Any]", positives: "np.ndarray[Any, Any]", candidates: "np.ndarray[Any, Any]"
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Row and column of all candidates that are no negatives of an anchor: its own text, the text of its positive, and
    that of any row's positive whose anchor has the same text. All given as numbers of texts: [B], [B], [C]."""
    columns: dict[int, list[int]] = defaultdict(list)
    for column, text in enumerate(candidates.tolist()):
        columns[text].append(column)
    alike: dict[int, set[int]] = {anchor: {anchor} for anchor in anchors.tolist()}
    for anchor, positive in zip(anchors.tolist(), positives.tolist(), strict=True):
        alike[anchor].add(positive)
    found = [
        (row, column)
        for row, anchor in enumerate(anchors.tolist())
        for text in sorted(alike[anchor])
        for column in columns.get(text, ())
    ]
    places = np.array(found, dtype=np.int64).reshape(-1, 2)
    return places[:, 0], places[:, 1]


def ranks(kept: Kept, features: Features, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """[B] the place, from 1, of each row's positive among all different candidates of the rows, by cosine with the anchor;
    a candidate as near as the positive comes before it. What is known to be alike besides does not compete."""
    counts = np.array([len(vectors) for vectors in kept])
    anchors, others = places_of(counts)
    texts = np.asarray(features.extras["texts"])[features.get_sequence_indices(rows)]
    vectors = unit(np.concatenate(kept))
    candidates, first = np.unique(texts[others], return_index=True)
    own = np.searchsorted(candidates, texts[anchors + 1])
    alike_rows, alike_columns = known_alike(texts[anchors], texts[anchors + 1], candidates)
    found = np.empty(len(rows), dtype=np.int64)
    for begin in range(0, len(rows), ANCHORS_AT_ONCE):
        part = np.arange(begin, min(begin + ANCHORS_AT_ONCE, len(rows)))
        similarities = vectors[anchors[part]] @ vectors[others[first]].T
        right = similarities[part - begin, own[part]]
        low, high = np.searchsorted(alike_rows, [begin, begin + len(part)])
        similarities[alike_rows[low:high] - begin, alike_columns[low:high]] = -np.inf  # the positive too
        found[part] = 1 + (~(similarities < right[:, None])).sum(1)  # nan is as near as can be
    return found


def cosine(vectors: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The cosine of the first vector with each other one, [C]."""
    first, *others = unit(vectors)
    return np.stack(others) @ first


def unit(vectors: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The vectors with length 1; 0 stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def write_json(path: "Path", value: Any, indent: int = 4) -> None:
    """Writes JSON, in a folder of its own where the path has one."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), encoding="utf-8")
