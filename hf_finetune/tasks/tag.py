"""Token classification: a tag for each word, as entities (NER, chunking) or for itself (POS).

N features, T tokens of all of them, C tags. A sentence that is longer than data.max_length gives several features, windows
that overlap; each word belongs to one of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_finetune.config.sections import RunConfig, check
from hf_finetune.data.features import IGNORED, Batch, Features, Ragged
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks import metrics
from hf_finetune.tasks.base import Kept, Task
from hf_finetune.tasks.classify import distribution, numeric_first, weights_line, weights_of
from hf_finetune.tasks.losses import cross_entropy
from hf_finetune.tasks.text.tags import (
    OUTSIDE,
    PREFIXES,
    entities,
    entity_scores,
    guess_scheme,
    is_of,
    join,
    num_faults,
    parts,
    repaired,
    scheme_of_names,
)
from hf_finetune.tasks.text.words import encode, put_spaces_before_words, split_words

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True)
class Tagging(Task):
    """Tags known from the training table, their scheme, and what follows from them.

    problem: entities, or tags that each stand for themselves. scheme: a key of tags.PREFIXES, or none. default_tag: of words
    that the tokenizer drops.
    """

    problem: str
    label_names: tuple[str, ...]
    scheme: str
    default_tag: str
    text_column: str
    label_column: str
    repairs: bool = False
    label_all_pieces: bool = False
    window_overlap: int | None = None
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    reason: str = ""  # why this scheme

    name = "tagging"
    auto_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    settings = frozenset(
        {"class_weights", "focal_gamma", "label_all_pieces", "tag_scheme", "tag_faults", "window_overlap"}
    )

    @classmethod
    def form(cls, config: RunConfig) -> ColumnSpec:
        columns, label = config.data.text_columns, config.data.label_column
        check(len(columns) == 1, "data.text_columns", list(columns), "tagging takes one column, of lists of words")
        check(label is not None, "data.label_column", None, "tagging needs the column of the tags")
        return ColumnSpec(inputs=columns, labels=(str(label),), text_files="conll", together=columns)

    @classmethod
    def from_table(cls, config: RunConfig, table: Table) -> "Tagging":
        """Reads the scheme (where task.tag_scheme is auto) and the tags, in a fixed order, off the training rows. Of each type
        of entity it has all tags of the scheme, seen or not: a validation split may well have the ones not seen."""
        scheme: str = config.task.tag_scheme
        reason = "as task.tag_scheme says"
        task = cls.from_facts(config, {"scheme": scheme, "labels": [], "default": OUTSIDE})
        if scheme == "auto":
            scheme, reason = guess_scheme([task.given_tags(table, row) for row in range(len(table))])
        task = replace(task, scheme=scheme, problem=problem_of(scheme), reason=reason)
        counts = Counter(tag for row in range(len(table)) for tag in task.tags_of(table, row))
        if len(counts) < 2:
            raise InputError(
                f"data.label_column ({task.label_column}): training has only the tag {next(iter(counts))!r}; "
                "two tags are the least"
            )
        found = set(counts)
        if scheme != "none":
            kinds = {kind for _, kind in map(parts, counts) if kind}
            found = {join(prefix, kind) for kind in kinds for prefix in PREFIXES[scheme]}
            found.add(OUTSIDE)
        names = table.class_names or tuple(sorted(found, key=numeric_first))
        return replace(
            task,
            label_names=names,
            default_tag=OUTSIDE if OUTSIDE in names else counts.most_common(1)[0][0],
            class_weights=weights_of(config.task.class_weights, names, counts),
        )

    @classmethod
    def from_facts(cls, config: RunConfig, facts: Mapping[str, Any]) -> "Tagging":
        return cls(
            problem=problem_of(facts["scheme"]),
            label_names=tuple(facts["labels"]),
            scheme=facts["scheme"],
            default_tag=facts["default"],
            text_column=config.data.text_columns[0],
            label_column=str(config.data.label_column),
            repairs=config.task.tag_faults == "repair",
            label_all_pieces=config.task.label_all_pieces,
            window_overlap=config.task.window_overlap,
            label_smoothing=config.train.label_smoothing,
            class_weights=tuple(facts.get("class_weights", ())),
            focal_gamma=config.task.focal_gamma,
        )

    @classmethod
    def facts_of_model(cls, model_config: Any) -> dict[str, Any]:
        names = [model_config.id2label[number] for number in range(model_config.num_labels)]
        default = OUTSIDE if OUTSIDE in names else names[0]
        return {"labels": names, "scheme": scheme_of_names(names), "default": default}

    def facts(self) -> dict[str, Any]:
        return {
            "labels": list(self.label_names),
            "scheme": self.scheme,
            "default": self.default_tag,
            "class_weights": list(self.class_weights),
        }

    # --- rows

    def words_of(self, table: Table, row: int) -> list[str]:
        """The words of a row. A string without tags is split into words as `predict --text` does it."""
        value, where = table.columns[self.text_column][row], table.where(row)
        if isinstance(value, str) and table.columns.get(self.label_column, [None] * len(table))[row] is None:
            value = split_words(value)
        if not isinstance(value, (list, tuple)):
            kind = "null" if value is None else f"a {type(value).__name__}"
            raise InputError(f"{where}: {self.text_column} is {kind}, not a list of words")
        if not value:
            raise InputError(f"{where}: {self.text_column} has no words")
        for number, word in enumerate(value, 1):
            if not isinstance(word, str):
                raise InputError(f"{where}: word {number} of {self.text_column} ({word}) is no string")
        return list(value)

    def given_tags(self, table: Table, row: int) -> list[str]:
        """The names of a row's tags as the data have them, one a word."""
        value, words, where = table.columns[self.label_column][row], self.words_of(table, row), table.where(row)
        if not isinstance(value, (list, tuple)):
            kind = "null" if value is None else f"a {type(value).__name__}"
            raise InputError(f"{where}: {self.label_column} is {kind}, not a list of tags")
        if len(value) != len(words):
            raise InputError(f"{where}: {len(value)} {self.label_column} for {len(words)} {self.text_column}")
        return [self.tag_name(table, row, word, tag) for word, tag in enumerate(value)]

    def tag_name(self, table: Table, row: int, word: int, value: Any) -> str:
        """One tag as a string."""
        names = table.class_names
        if isinstance(value, int) and not isinstance(value, bool):
            if names is not None and not 0 <= value < len(names):
                raise InputError(f"{self.where(table, row, word)}, {value}, is not among the data set's classes")
            return str(value) if names is None else names[value]
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.where(table, row, word)}, {value!r}, is no name of a tag")
        return value

    def where(self, table: Table, row: int, word: int) -> str:
        """What an error about a tag begins with: file, line and word."""
        lines = table.word_lines[row] if table.word_lines else []
        place = f"{table.files[row]}:{lines[word]}" if lines else table.where(row)
        return f"{place}: the tag of word {word + 1} ({table.columns[self.text_column][row][word]})"

    def tags_of(self, table: Table, row: int) -> list[str]:
        """The tags of a row in the scheme. InputError at the first that breaks it, unless task.tag_faults repairs that."""
        given = self.given_tags(table, row)
        if self.scheme == "none":
            return given
        for word, tag in enumerate(given):
            if not is_of(tag, self.scheme):
                takes = ", ".join(f"{prefix}-..." for prefix in PREFIXES[self.scheme])
                raise InputError(
                    f"{self.where(table, row, word)}, {tag}, is not of {self.scheme}, which has O, {takes}"
                )
        right = repaired(given, self.scheme)
        for word, (tag, other) in enumerate(zip(given, right, strict=True)):
            if tag != other and not self.repairs:
                raise InputError(
                    f"{self.where(table, row, word)}, {tag}, breaks {self.scheme}, which has {other} there; mend it, "
                    "or set task.tag_faults repair"
                )
        return right

    def numbers_of(self, table: Table, row: int) -> list[int]:
        """The tags of a row as numbers of the head's outputs."""
        index = {name: number for number, name in enumerate(self.label_names)}
        found = self.tags_of(table, row)
        for word, tag in enumerate(found):
            if tag not in index:
                raise InputError(
                    f"{self.where(table, row, word)}, {tag}, is not among the {len(index)} that training has"
                )
        return [index[tag] for tag in found]

    # --- metrics

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of entities, in the labels' order."""
        return tuple(dict.fromkeys(kind for _, kind in map(parts, self.label_names) if kind))

    @property
    def metric_names(self) -> tuple[str, ...]:
        if self.scheme == "none":
            return ("accuracy", "f1_macro")
        return ("f1", "precision", "recall", "accuracy")

    def check_metric(self, name: str, key: str = "evaluation.metric") -> str:
        """Of entities also a type's: f1/person."""
        measure, _, kind = name.partition("/")
        if self.scheme != "none" and measure in ("f1", "precision", "recall") and kind in self.kinds:
            return name
        return Task.check_metric(self, name, key)

    def metrics(
        self, metric: str, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        """Entity F1, precision and recall, accuracy over words, and the first three by type; without a scheme accuracy and
        the macro F1 over tags. Every word counts once."""
        predicted = self.word_tags(kept, features, table, rows)
        references = {example: self.numbers_of(table, example) for example in predicted}
        given = [number for example in predicted for number in predicted[example]]
        asked = [number for example in predicted for number in references[example]]
        if self.scheme == "none":
            return metrics.compute_all(self.metric_names, predictions=given, scores=None, references=asked)
        scores = entity_scores(
            [self.named(references[example]) for example in predicted], map(self.named, predicted.values()), self.kinds
        )
        by_type = {name: value for name, value in scores.items() if "/" in name}
        overall = {name: value for name, value in scores.items() if "/" not in name}
        return {**overall, "accuracy": metrics.accuracy(given, asked), **by_type}

    def named(self, numbers: Sequence[int]) -> list[str]:
        """Names of tags."""
        return [self.label_names[number] for number in numbers]

    def word_tags(
        self, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[int, list[int]]:
        """For each row of the table that these features are of, the numbers of its words' tags. Each word's is that of its first
        piece in the window it belongs to; the default tag where it has no piece."""
        default = self.label_names.index(self.default_tag)
        found: dict[int, list[int]] = {}
        for row, numbers in zip(rows.tolist(), kept, strict=True):
            example = features.get_example(row)
            if example not in found:
                found[example] = [default] * len(self.words_of(table, example))
            tokens = slice(features.offsets[row], features.offsets[row + 1])
            firsts, words = features.extras["firsts"][tokens], features.extras["words"][tokens]
            for word, number in zip(words[firsts].tolist(), numbers[firsts].tolist(), strict=True):
                found[example][word] = number
        return found

    # --- model and data

    def model_settings(self) -> dict[str, Any]:
        names = dict(enumerate(self.label_names))
        return {"id2label": names, "label2id": {name: number for number, name in names.items()}}

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        put_spaces_before_words(tokenizer)

    def encoded_columns(self) -> tuple[str, ...]:
        return (self.text_column,)

    def encoding_settings(self) -> dict[str, Any]:
        return {"window_overlap": self.window_overlap}

    def tokenize(self, table: Table, tokenizer: Any, max_length: int) -> "dict[str, np.ndarray[Any, Any]]":
        """Besides the usual: words, [T] the number in its sentence of the word that a token is a piece of, -1 of special tokens
        and of words that belong to another window; firsts, [T] whether it is the first piece of a word with a number."""
        rows = [self.words_of(table, row) for row in range(len(table))]
        return encode(rows, tokenizer, max_length, self.window_overlap)

    def labels(self, table: Table, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> Ragged:
        """A tag's number at the first piece of each word, in the window it belongs to, and IGNORED elsewhere. With
        task.label_all_pieces its later pieces have it too, as the tag for the inside of an entity where it begins one (as
        run_ner.py's label_all_tokens)."""
        import numpy as np

        rows = [self.numbers_of(table, row) for row in range(len(table))]
        starts = np.cumsum([0, *map(len, rows)])[:-1]
        numbers = np.array([number for row in rows for number in row], dtype=np.int64)
        examples = np.repeat(arrays["examples"], np.diff(arrays["offsets"]))  # of each token
        is_piece = arrays["words"] >= 0
        of_tokens = np.full(len(is_piece), IGNORED, dtype=np.int64)
        of_tokens[is_piece] = numbers[starts[examples[is_piece]] + arrays["words"][is_piece]]
        later = is_piece & ~arrays["firsts"]
        inside = np.array([self.inside(tag) for tag in range(len(self.label_names))])
        of_tokens[later] = inside[of_tokens[later]] if self.label_all_pieces else IGNORED
        return Ragged(values=of_tokens, offsets=arrays["offsets"])

    def inside(self, number: int) -> int:
        """The tag of a word's later pieces: I-x for B-x, else the same."""
        prefix, kind = parts(self.label_names[number])
        if self.scheme == "none" or prefix != "B" or join("I", kind) not in self.label_names:
            return number
        return self.label_names.index(join("I", kind))

    def describe(self, features: Features, table: Table, max_length: int) -> list[tuple[str, str]]:
        """The windows; words that the model does not see; how many words have each tag, and how many entities there are of
        each type."""
        import numpy as np

        rows = [self.tags_of(table, row) for row in range(len(table))]
        examples: Any = features.example_indices
        several = int((np.bincount(examples) > 1).sum())
        unseen = sum(map(len, rows)) - int(features.extras["firsts"].sum())
        lines = [("input", f"at most {max_length} tokens; {several:,} longer training texts in overlapping windows")]
        if features.num_truncated:
            lines.append(
                ("", f"{features.num_truncated:,} texts have a word that is longer than a window, and was cut")
            )
        if unseen:
            lines.append(("", f"{unseen:,} words that the tokenizer drops: {self.default_tag} without the model"))
        counts = Counter(tag for row in rows for tag in row)
        lines.append(("tags", f"{self.scheme}, {self.reason}: {distribution(counts)}"))
        if self.scheme != "none":
            given = [self.given_tags(table, row) for row in range(len(table))] if self.repairs else rows
            changed = sum(num_faults(row, self.scheme) for row in given)
            if changed:
                lines.append(("", f"{changed:,} tags broke the scheme and were repaired"))
            found = Counter(kind for row in rows for kind, _, _ in entities(row))
            lines.append(("entities", distribution(found) or "none"))
        return [*lines, *weights_line(self.label_names, self.class_weights)]

    # --- forward

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Sum of the cross entropies of all labels [B, T] that are not IGNORED, and their number or weight."""
        assert batch.labels is not None
        return cross_entropy(
            outputs,
            batch.labels,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            focal_gamma=self.focal_gamma,
        )

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """The number of the likeliest tag of each token, without padding."""
        best = outputs.argmax(-1).int().cpu().numpy()
        lengths = batch.inputs["attention_mask"].sum(-1).tolist()
        return [row[:length].copy() for row, length in zip(best, lengths, strict=True)]

    # --- use

    def predictions(self, kept: Kept, features: Features, table: Table) -> Iterator[dict[str, Any]]:
        """For each sentence its tokens and their tags; of entities also these: type, text, and words from begin up to, not
        including, end."""
        import numpy as np

        found = self.word_tags(kept, features, table, np.arange(len(features)))
        for example in range(len(table)):
            words, tags = self.words_of(table, example), self.named(found[example])
            row: dict[str, Any] = {"tokens": words, "tags": tags}
            if self.scheme != "none":
                row["entities"] = [
                    {"type": kind, "text": " ".join(words[begin:end]), "begin": begin, "end": end}
                    for kind, begin, end in entities(tags)
                ]
            yield row

    def row_of_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        if len(texts) != 1:
            raise InputError(f"--text: takes one text, not {len(texts)}; it is split into words")
        return {self.text_column: split_words(texts[0])}

    def card(self) -> str:
        if self.scheme == "none":
            return f"tagging words.\n{len(self.label_names)} tags: {', '.join(self.label_names)}"
        return f"finding entities ({self.scheme}).\n{len(self.kinds)} types: {', '.join(self.kinds)}"


def problem_of(scheme: str) -> str:
    """What tags of a scheme are about."""
    return "tags" if scheme == "none" else "entities"
