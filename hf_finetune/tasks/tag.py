"""Token classification: a tag for each word. The tags mark entities (NER, chunking) or stand for themselves (POS).

A sentence that is longer than data.max_length gives several features: windows that overlap. Each word belongs to one of them.

B features of a batch, N features of a split, T tokens, C tags.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.features import Array, Batch, Features, Ragged
from hf_finetune.data.formats import CONLL
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import Columns, Encoding, Outputs, Scoring, SummedObjective, Task
from hf_finetune.tasks.labels import compute_class_weights, describe_class_weights, format_counts, sort_numbers_first
from hf_finetune.tasks.own_functions import MetricInputs
from hf_finetune.tasks.text.tag_reader import TagReader
from hf_finetune.tasks.text.tags import (
    OUTSIDE,
    complete_tags,
    count_faults,
    describe_entities,
    find_entities,
    guess_scheme,
    guess_scheme_of_names,
    join_tag,
    list_kinds,
    score_entities,
    split_tag,
)
from hf_finetune.tasks.text.words import encode_words, label_pieces, put_spaces_before_words, split_words

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Settings of tagging.

    Args:
        tag_scheme: How entities are written; auto finds out by the tags, none takes each tag for itself.
        tag_faults: What happens if tags break the scheme, such as an I-x after an O: error or repair.
        label_all_pieces: Train on all pieces of a word, not on the first one alone.
        window_overlap: Tokens that neighbouring windows of a long text share; a quarter of a window if not given.
        class_weights: balanced, or tag=weight for some tags; the others weigh 1.
        focal_gamma: Exponent of the focal loss; 0 is plain cross entropy.
    """

    tag_scheme: Literal["auto", "IOB1", "IOB2", "BIOES", "none"] = "auto"
    tag_faults: Literal["error", "repair"] = "error"
    label_all_pieces: bool = False
    window_overlap: int | None = None
    class_weights: tuple[str, ...] = ()
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.window_overlap is None or self.window_overlap >= 0,
            "task.window_overlap",
            self.window_overlap,
            "must be 0 or more",
        )
        require(0 <= self.focal_gamma < float("inf"), "task.focal_gamma", self.focal_gamma, "must be 0 or more")


def get_settings(config: RunConfig) -> Settings:
    """Returns `config.task`, which is of this task."""
    assert isinstance(config.task, Settings)
    return config.task


@dataclass(frozen=True, kw_only=True)
class TaggingColumns(Columns):
    """A column of lists of words and a column of lists of tags."""

    text: str
    label: str

    @property
    def spec(self) -> ColumnSpec:
        return ColumnSpec(inputs=(self.text,), labels=(self.label,), text_files=CONLL, together=(self.text,))

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 1:
            raise InputError(f"--text: takes one text, not {len(texts)}; it is split into words")
        return {self.text: split_words(texts[0])}


@dataclass(frozen=True, kw_only=True)
class TaggingEncoding(Encoding):
    """Words to pieces in windows, tags to a label for each token.

    Args:
        reader: Reads words and tags.
        label_names: The C tags.
        default_tag: The tag of words that the tokenizer drops.
        label_all_pieces, window_overlap: See Settings.
        class_weights: The weight of each tag, or ().
        reason: Why the tags are read in this scheme.
    """

    reader: TagReader
    label_names: tuple[str, ...]
    default_tag: str
    label_all_pieces: bool = False
    window_overlap: int | None = None
    class_weights: tuple[float, ...] = ()
    reason: str = ""

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.reader.text_column,)

    def encoding_settings(self) -> dict[str, Any]:
        return {"window_overlap": self.window_overlap}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> dict[str, Array]:
        """Returns the arrays of text.words.encode_words(): with word_indices [T] and is_first_piece [T]."""
        rows = [self.reader.read_words(table, row) for row in range(len(table))]
        return encode_words(rows, tokenizer, max_length, self.window_overlap)

    def labels(self, table: Table, arrays: Mapping[str, Array]) -> Ragged:
        """Returns the number of a word's tag at its first piece, in the window that the word belongs to, and IGNORED elsewhere.

        With label_all_pieces the later pieces have a label too, as in transformers' run_ner.py: I-x after a first piece B-x, else
        the word's own tag.
        """
        index = number_names(self.label_names)
        tags = [self.reader.read_tag_numbers(table, row, index) for row in range(len(table))]
        later_tags = None
        if self.label_all_pieces:
            later_tags = [self.find_inside_tag(number) for number in range(len(self.label_names))]
        return Ragged(values=label_pieces(tags, arrays, later_tags), offsets=arrays["offsets"])

    def find_inside_tag(self, number: int) -> int:
        """Returns the tag of a word's later pieces: I-x for B-x, else the same tag."""
        prefix, kind = split_tag(self.label_names[number])
        inside_tag = join_tag("I", kind)
        if self.reader.scheme == "none" or prefix != "B" or inside_tag not in self.label_names:
            return number
        return self.label_names.index(inside_tag)

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The windows, the words that the model does not see, the words of each tag, and the entities of each type."""
        rows = [self.reader.read_tags(table, row) for row in range(len(table))]
        examples: Any = features.example_indices
        num_split = int((np.bincount(examples) > 1).sum())
        lines = [("input", f"at most {max_length} tokens; {num_split:,} longer training texts in overlapping windows")]
        if features.num_truncated:
            lines.append(("", f"{features.num_truncated:,} texts have a word that is longer than a window and was cut"))
        num_dropped = sum(map(len, rows)) - int(features.extras["is_first_piece"].sum())
        if num_dropped:
            lines.append(("", f"{num_dropped:,} words have no token: they are always predicted as {self.default_tag}"))
        counts = Counter(tag for row in rows for tag in row)
        lines.append(("tags", f"{self.reader.scheme}, {self.reason}: {format_counts(counts)}"))
        if self.reader.scheme != "none":
            lines += self.describe_entities(table, rows)
        return [*lines, *describe_class_weights(self.label_names, self.class_weights)]

    def describe_entities(self, table: Table, rows: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
        """Returns lines about tags that were repaired, and about the entities of each type. rows: the tags of each row."""
        lines = []
        if self.reader.repairs:
            raw_rows = [self.reader.read_raw_tags(table, row) for row in range(len(table))]
            num_repaired = sum(count_faults(tags, self.reader.scheme) for tags in raw_rows)
            if num_repaired:
                lines.append(("", f"{num_repaired:,} tags broke the scheme and were repaired"))
        counts = Counter(kind for tags in rows for kind, _, _ in find_entities(tags))
        return [*lines, ("entities", format_counts(counts) or "none")]


@dataclass(frozen=True, kw_only=True)
class TaggingObjective(SummedObjective):
    """Cross entropy of each labelled token."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Loss summed over all labels [B, T] that are not IGNORED, and their number or weight. outputs: logits [B, T, C]."""
        from hf_finetune.tasks.losses import cross_entropy

        assert batch.labels is not None
        return cross_entropy(
            outputs,
            batch.labels,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            focal_gamma=self.focal_gamma,
        )


@dataclass(frozen=True, kw_only=True)
class TaggingScoring(Scoring):
    """Tags of tokens to tags of words, entities and their scores.

    Args:
        reader: Reads words and tags.
        label_names: The C tags.
        default_tag: The tag of words that the tokenizer drops.
    """

    reader: TagReader
    label_names: tuple[str, ...]
    default_tag: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of entities, in the labels' order."""
        return list_kinds(self.label_names)

    @property
    def metric_names(self) -> tuple[str, ...]:
        if self.reader.scheme == "none":
            return ("accuracy", "f1_macro")
        return ("f1", "precision", "recall", "accuracy")

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Also takes a score of one type of entities, such as f1/person."""
        score, _, kind = name.partition("/")
        if self.reader.scheme != "none" and score in ("f1", "precision", "recall") and kind in self.kinds:
            return name
        return super().check_metric(name, key)

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """The number of the most likely tag of each token, without padding [T]."""
        best = outputs.argmax(-1).int().cpu().numpy()
        lengths = batch.inputs["attention_mask"].sum(-1).tolist()
        return [tags[:length].copy() for tags, length in zip(best, lengths, strict=True)]

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        """F1, precision and recall over all entities, word accuracy, then F1, precision and recall for each entity type. Without
        a scheme: accuracy and macro F1 over tags. Every word counts once."""
        index = number_names(self.label_names)
        predicted = self.choose_word_tags(outputs, features, table, indices)
        references = {row: self.reader.read_tag_numbers(table, row, index) for row in predicted}
        all_predicted = [number for numbers in predicted.values() for number in numbers]
        all_references = [number for numbers in references.values() for number in numbers]
        if self.reader.scheme == "none":
            return metrics.compute_all(
                self.metric_names, predictions=all_predicted, scores=None, references=all_references
            )
        scores = score_entities(
            map(self.name_tags, references.values()), map(self.name_tags, predicted.values()), self.kinds
        )
        overall = {name: value for name, value in scores.items() if "/" not in name}
        by_kind = {name: value for name, value in scores.items() if "/" in name}
        return {**overall, "accuracy": metrics.accuracy(all_predicted, all_references), **by_kind}

    def name_tags(self, numbers: Sequence[int]) -> list[str]:
        """Returns the names of tags."""
        return [self.label_names[number] for number in numbers]

    def choose_word_tags(
        self, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[int, list[int]]:
        """Returns the numbers of the words' tags, for each row of the table that the features at `indices` were made of.

        A word has the tag of its first piece, in the window that it belongs to; the default tag if it has no piece.
        """
        default = self.label_names.index(self.default_tag)
        tags: dict[int, list[int]] = {}
        for feature, numbers in zip(indices.tolist(), outputs, strict=True):
            row = features.get_example(feature)
            if row not in tags:
                tags[row] = [default] * len(self.reader.read_words(table, row))
            tokens = slice(features.offsets[feature], features.offsets[feature + 1])
            is_first_piece = features.extras["is_first_piece"][tokens]
            words = features.extras["word_indices"][tokens][is_first_piece]
            for word, number in zip(words.tolist(), numbers[is_first_piece].tolist(), strict=True):
                tags[row][word] = number
        return tags

    def make_metric_inputs(self, outputs: Outputs, features: Features, table: Table, indices: Array) -> MetricInputs:
        """The names of the words' tags, a list for each row. There are no scores: only the most likely tags are kept."""
        index = number_names(self.label_names)
        predicted = self.choose_word_tags(outputs, features, table, indices)
        references = [self.name_tags(self.reader.read_tag_numbers(table, row, index)) for row in predicted]
        return MetricInputs(
            predictions=[self.name_tags(numbers) for numbers in predicted.values()],
            references=references,
            label_names=self.label_names,
        )

    def make_predictions(self, outputs: Outputs, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """For each sentence its tokens and their tags. If the tags mark entities, also the entities: type, text, and the words
        from `begin` up to, not including, `end`."""
        tags_of_rows = self.choose_word_tags(outputs, features, table, np.arange(len(features)))
        for row in range(len(table)):
            words, tags = self.reader.read_words(table, row), self.name_tags(tags_of_rows[row])
            prediction: dict[str, Any] = {"tokens": words, "tags": tags}
            if self.reader.scheme != "none":
                prediction["entities"] = describe_entities(words, tags)
            yield prediction


@dataclass(frozen=True, kw_only=True)
class Tagging(Task):
    """Token classification.

    Args:
        problem: entities, or tags if each stands for itself.
        scheme: A key of tags.PREFIXES; none if the tags do not mark entities.
        default_tag: The tag of words that the tokenizer drops.
        class_weights: The weight of each tag, or ().
    """

    Settings = Settings
    auto_classes = ("AutoModelForTokenClassification",)
    loss_settings = ("class_weights", "focal_gamma")

    encoding: TaggingEncoding
    scoring: TaggingScoring
    scheme: str
    default_tag: str
    class_weights: tuple[float, ...] = ()

    @classmethod
    def make_columns(cls, config: RunConfig) -> TaggingColumns:
        texts, label = config.data.text_columns, config.data.label_column
        require(len(texts) == 1, "data.text_columns", list(texts), "must be one column, of lists of words")
        require(label is not None, "data.label_column", None, "tagging needs the column of the tags")
        return TaggingColumns(text=texts[0], label=str(label))

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Tagging":
        """Finds the scheme (if task.tag_scheme is auto) and the tags, in a fixed order, in the training rows.

        Each type of entities has all tags of the scheme, even those that training lacks: validation may have them.
        """
        settings, columns, rows = get_settings(config), cls.make_columns(config), range(len(table))
        scheme: str = settings.tag_scheme
        reason = "set by task.tag_scheme"
        if scheme == "auto":
            reader = make_reader(columns, settings, "none")
            scheme, reason = guess_scheme([reader.read_raw_tags(table, row) for row in rows])
        reader = make_reader(columns, settings, scheme)
        counts = Counter(tag for row in rows for tag in reader.read_tags(table, row))
        if len(counts) < 2:
            raise InputError(
                f"data.label_column ({reader.label_column}): training has only the tag {next(iter(counts))!r}; "
                "at least two tags are needed"
            )
        names = table.class_names or tuple(sorted(complete_tags(counts, scheme), key=sort_numbers_first))
        task = cls.from_state(
            config,
            {
                "labels": names,
                "scheme": scheme,
                "default": OUTSIDE if OUTSIDE in names else counts.most_common(1)[0][0],
                "class_weights": compute_class_weights(settings.class_weights, names, counts),
            },
        )
        return replace(task, encoding=replace(task.encoding, reason=reason))

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Tagging":
        settings, columns = get_settings(config), cls.make_columns(config)
        reader = make_reader(columns, settings, state["scheme"])
        names, default_tag = tuple(state["labels"]), state["default"]
        weights = tuple(state.get("class_weights", ()))
        entries = {"id2label": dict(enumerate(names)), "label2id": number_names(names)}
        return cls(
            problem="tags" if reader.scheme == "none" else "entities",
            label_names=names,
            scheme=reader.scheme,
            default_tag=default_tag,
            class_weights=weights,
            pipeline_tag="token-classification",
            head=HeadSpec(auto_class=cls.auto_classes[0], config_entries=entries, has_labels=True),
            columns=columns,
            encoding=TaggingEncoding(
                reader=reader,
                label_names=names,
                default_tag=default_tag,
                label_all_pieces=settings.label_all_pieces,
                window_overlap=settings.window_overlap,
                class_weights=weights,
            ),
            objective=TaggingObjective(
                label_smoothing=config.train.label_smoothing, class_weights=weights, focal_gamma=settings.focal_gamma
            ),
            scoring=TaggingScoring(reader=reader, label_names=names, default_tag=default_tag),
        )

    @classmethod
    def read_state(cls, model_config: Any) -> dict[str, Any]:
        names = [model_config.id2label[number] for number in range(model_config.num_labels)]
        default_tag = OUTSIDE if OUTSIDE in names else names[0]
        return {"labels": names, "scheme": guess_scheme_of_names(names), "default": default_tag}

    def state_dict(self) -> dict[str, Any]:
        return {
            "labels": list(self.label_names),
            "scheme": self.scheme,
            "default": self.default_tag,
            "class_weights": list(self.class_weights),
        }

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Makes a byte-level tokenizer put a space before each word; the exported tokenizer does so too."""
        put_spaces_before_words(tokenizer)

    def describe_for_card(self) -> str:
        if self.scheme == "none":
            return f"tagging words.\n{len(self.label_names)} tags: {', '.join(self.label_names)}"
        kinds = list_kinds(self.label_names)
        return f"finding entities ({self.scheme}).\n{len(kinds)} types: {', '.join(kinds)}"


def make_reader(columns: TaggingColumns, settings: Settings, scheme: str) -> TagReader:
    """Returns the reader of these columns in a scheme."""
    return TagReader(
        text_column=columns.text,
        label_column=columns.label,
        scheme=scheme,
        repairs=settings.tag_faults == "repair",
    )


def number_names(names: Sequence[str]) -> dict[str, int]:
    """Returns the number of each name, from 0."""
    return {name: number for number, name in enumerate(names)}
