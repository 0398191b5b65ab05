"""Token classification: a tag for each word. The tags mark entities (NER, chunking) or stand for themselves (POS).

A sentence that is longer than data.max_length gives several features: windows that overlap. Each word belongs to one of them.

B features of a batch, N features of a split, T tokens, C tags.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_finetune.config.sections import RunConfig, TaskSettings, require
from hf_finetune.data.conll import describe_columns
from hf_finetune.data.features import Batch
from hf_finetune.data.formats import CONLL
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.system.errors import InputError
from hf_finetune.system.markdown import escape_markdown
from hf_finetune.tasks.base import Columns, CountedObjective, Task
from hf_finetune.tasks.labels import canonical_label, compute_class_weights, read_names, sort_numbers_first
from hf_finetune.tasks.objectives import LinearTargets
from hf_finetune.tasks.tag_encoding import TaggingEncoding
from hf_finetune.tasks.tag_scoring import TaggingScoring
from hf_finetune.tasks.text.tag_forms import find_form
from hf_finetune.tasks.text.tag_reader import TagReader, find_tags
from hf_finetune.tasks.text.tag_rows import TagRows
from hf_finetune.tasks.text.tags import IGNORED_TAG, OUTSIDE, guess_scheme_of_names, list_kinds, number_names
from hf_finetune.tasks.text.words import put_spaces_before_words, split_words

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
        ignore_labels: Tags of words that are not labelled, such as -100 or null: they are neither learned nor scored.
        label_names: Names of the tags if the data have numbers, from 0; the order of the tags is the same.
    """

    tag_scheme: Literal["auto", "IOB1", "IOB2", "BIOES", "none"] = "auto"
    tag_faults: Literal["error", "repair"] = "error"
    label_all_pieces: bool = False
    window_overlap: int | None = None
    class_weights: tuple[str, ...] = ()
    focal_gamma: float = 0.0
    ignore_labels: tuple[str | int | None, ...] = ()
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            self.window_overlap is None or self.window_overlap >= 0,
            "task.window_overlap",
            self.window_overlap,
            "must be 0 or more",
        )
        require(0 <= self.focal_gamma < float("inf"), "task.focal_gamma", self.focal_gamma, "must be 0 or more")
        require(
            len(set(self.label_names)) == len(self.label_names),
            "task.label_names",
            list(self.label_names),
            "must differ from each other",
        )


def get_settings(config: RunConfig) -> Settings:
    """Returns `config.task`, which is of this task."""
    assert isinstance(config.task, Settings)
    return config.task


@dataclass(frozen=True, kw_only=True)
class TaggingColumns(Columns):
    """A column of lists of words and a column of lists of tags.

    Args:
        text, label: Their names.
        span_scheme: The scheme of tags that are made of spans of characters.
        repairs: As Settings.tag_faults.
    """

    text: str
    label: str
    span_scheme: str = "IOB2"
    repairs: bool = False

    @property
    def spec(self) -> ColumnSpec:
        """Rows of tables may be texts with spans, or words (text.tag_rows)."""
        rows = TagRows(text_column=self.text, label_column=self.label, scheme=self.span_scheme, repairs=self.repairs)
        return ColumnSpec(
            inputs=(self.text,), labels=(self.label,), text_files=CONLL, together=(self.text,), adapter=rows
        )

    def make_row(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 1:
            raise InputError(f"--text: takes one text, not {len(texts)}; it is split into words")
        return {self.text: split_words(texts[0])}


@dataclass(frozen=True, kw_only=True)
class TaggingObjective(CountedObjective):
    """Cross entropy of each labelled token."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0

    @property
    def reads_some_tokens(self) -> bool:
        return True

    @property
    def linear_targets(self) -> LinearTargets:
        return LinearTargets(problem="single_label", class_weights=self.class_weights)

    def count(self, batch: Batch) -> float:
        """The number or weight of the labels [B, T] that are not IGNORED."""
        from hf_finetune.tasks.losses import count_targets

        assert batch.labels is not None
        return count_targets(batch.labels, self.class_weights)

    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Loss summed over all labels [B, T] that are not IGNORED. outputs: logits [B, T, C], or [1, N, C] of
        the labelled tokens."""
        from hf_finetune.tasks.losses import cross_entropy

        targets = batch.labels if batch.reading is None else batch.reading.targets
        assert targets is not None
        return cross_entropy(
            outputs,
            targets,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            focal_gamma=self.focal_gamma,
        )


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
        settings = get_settings(config)
        return TaggingColumns(
            text=texts[0],
            label=str(label),
            span_scheme="IOB2" if settings.tag_scheme in ("auto", "none") else settings.tag_scheme,
            repairs=settings.tag_faults == "repair",
        )

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Tagging":
        """Finds the scheme (if task.tag_scheme is auto) and the tags, in a fixed order, in the training rows.

        Each type of entities has all tags of the scheme, even those that training lacks: validation may have them.
        """
        settings, columns, rows = get_settings(config), cls.make_columns(config), range(len(table))
        raw_reader = make_reader(columns, settings, "none")
        found = find_tags(raw_reader, settings.tag_scheme, table)
        names = raw_reader.class_names or table.class_names or sorted(found.labels, key=sort_numbers_first)
        names = tuple(found.spell(name) for name in names)
        reader = make_reader(columns, settings, found.scheme, names)
        counts = Counter(tag for row in rows for tag in reader.read_tags(table, row))
        counts.pop(IGNORED_TAG, 0)
        if len(counts) < 2:
            found_tags = f"only the tag {next(iter(counts))!r}" if counts else "no tag"
            read = describe_columns(Path(table.files[0]), config.data)
            raise InputError(
                f"data.label_column ({reader.label_column}): training has {found_tags}; at least two tags are needed"
                f"{'; ' if read else ''}{read}"
            )
        task = cls.from_state(
            config,
            {
                "labels": names,
                "scheme": found.scheme,
                "default": OUTSIDE if OUTSIDE in names else counts.most_common(1)[0][0],
                "class_weights": compute_class_weights(settings.class_weights, names, counts),
            },
        )
        return replace(task, encoding=replace(task.encoding, reason=found.reason))

    @classmethod
    def from_state(cls, config: RunConfig, state: Mapping[str, Any]) -> "Tagging":
        settings, columns = get_settings(config), cls.make_columns(config)
        names, default_tag = read_names(state), state["default"]
        reader = make_reader(columns, settings, state["scheme"], names)
        weights = tuple(state.get("class_weights", ()))
        entries = {"id2label": dict(enumerate(names)), "label2id": number_names(names)}
        return cls(
            problem="tags" if reader.scheme == "none" else "entities",
            label_names=names,
            scheme=reader.scheme,
            default_tag=default_tag,
            class_weights=weights,
            pipeline_tag="token-classification",
            head=HeadSpec(
                auto_class=cls.auto_classes[0],
                config_entries=entries,
                has_labels=True,
                spell_label=reader.find_label,
            ),
            columns=columns,
            encoding=TaggingEncoding(
                reader=reader,
                label_names=names,
                default_tag=default_tag,
                label_all_pieces=settings.label_all_pieces,
                window_overlap=settings.window_overlap,
                class_weights=weights,
                is_scheme_set=settings.tag_scheme != "auto",
            ),
            objective=TaggingObjective(
                label_smoothing=config.train.label_smoothing, class_weights=weights, focal_gamma=settings.focal_gamma
            ),
            scoring=TaggingScoring(reader=reader, label_names=names, default_tag=default_tag),
        )

    @classmethod
    def read_state(cls, model_config: Any) -> dict[str, Any]:
        """Labels and scheme of a model; labels in another form, such as b-PER, are taken as the canonical ones."""
        names = [model_config.id2label[number] for number in range(model_config.num_labels)]
        form = find_form(names)
        names = [(form and form.read(name)) or name for name in names]
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
            return f"tagging words.\n{len(self.label_names)} tags: {', '.join(map(escape_markdown, self.label_names))}"
        kinds = list_kinds(self.label_names)
        return f"finding entities ({self.scheme}).\n{len(kinds)} types: {', '.join(map(escape_markdown, kinds))}"


def make_reader(
    columns: TaggingColumns, settings: Settings, scheme: str, label_names: tuple[str, ...] = ()
) -> TagReader:
    """Returns the reader of these columns in a scheme, for a task with these labels."""
    return TagReader(
        text_column=columns.text,
        label_column=columns.label,
        scheme=scheme,
        repairs=settings.tag_faults == "repair",
        ignored=tuple(canonical_label(label) or "null" for label in settings.ignore_labels),
        class_names=settings.label_names,
        label_names=label_names,
    )
