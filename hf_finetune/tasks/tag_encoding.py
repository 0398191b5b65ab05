"""How tagging encodes words, labels their tokens, and what it says of the data.

N features of a split, T tokens, C tags.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import ne
from typing import Any, ClassVar

import numpy as np

from hf_finetune.data.features import IGNORED, Array, Features, Ragged
from hf_finetune.data.label_counts import format_counts
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Encoding
from hf_finetune.tasks.labels import describe_class_weights
from hf_finetune.tasks.text.label_checks import find_lookalikes
from hf_finetune.tasks.text.tag_forms import find_strangers
from hf_finetune.tasks.text.tag_reader import TagReader
from hf_finetune.tasks.text.tags import (
    IGNORED_TAG,
    OUTSIDE,
    find_entities,
    join_tag,
    list_kinds,
    number_names,
    split_tag,
)
from hf_finetune.tasks.text.words import encode_words, label_pieces

MOST_SHOWN = 5  # tags that a warning shows


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
        is_scheme_set: The scheme is that of task.tag_scheme.
    """

    rows_are_independent: ClassVar[bool] = True

    reader: TagReader
    label_names: tuple[str, ...]
    default_tag: str
    label_all_pieces: bool = False
    window_overlap: int | None = None
    class_weights: tuple[float, ...] = ()
    reason: str = ""
    is_scheme_set: bool = False

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
        if not any(number != IGNORED for row in tags for number in row):
            raise InputError(f"{table.where(0)}: no word of these data is labelled, see task.ignore_labels")
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
        counts = self.count(table)
        examples: Any = features.example_indices
        num_split = int((np.bincount(examples) > 1).sum())
        lines = [("input", f"at most {max_length} tokens; {num_split:,} longer training texts in overlapping windows")]
        if features.num_truncated:
            lines.append(("", f"{features.num_truncated:,} texts have a word that is longer than a window and was cut"))
        num_dropped = counts.words - int(features.extras["is_first_piece"].sum())
        if num_dropped:
            lines.append(("", f"{num_dropped:,} words have no token: they are always predicted as {self.default_tag}"))
        unscored = "; entities are not scored" if self.reader.scheme == "none" and OUTSIDE in counts.tags else ""
        lines.append(("tags", f"{self.reader.scheme}, {self.reason}{unscored}: {format_counts(counts.tags)}"))
        if counts.ignored:
            setting = f"task.ignore_labels {' '.join(self.reader.ignored)}"
            lines.append(("", f"{counts.ignored:,} words are not labelled ({setting}): neither learned nor scored"))
        if counts.repaired:
            lines.append(("", f"{counts.repaired:,} tags broke the scheme and were repaired"))
        if self.reader.scheme != "none":
            lines.append(("entities", format_counts(counts.entities) or "none"))
        return [*lines, *describe_class_weights(self.label_names, self.class_weights)]

    def count(self, table: Table) -> "TagCounts":
        """Returns what a table has of words, tags and entities."""
        counts = TagCounts()
        for row in range(len(table)):
            tags = self.reader.read_tags(table, row)
            counts.words += len(tags)
            counts.tags.update(tags)
            if self.reader.scheme != "none":
                counts.entities.update(kind for kind, _, _ in find_entities(tags))
                if self.reader.repairs:
                    counts.repaired += sum(map(ne, tags, self.reader.read_names(table, row)))
        counts.ignored = counts.tags.pop(IGNORED_TAG, 0)
        return counts

    def count_labels(self, table: Table) -> dict[str, int]:
        """The entities of each type, or the words of each tag if tags do not mark entities."""
        counts = self.count(table)
        return dict(counts.tags if self.reader.scheme == "none" else counts.entities)

    def unify_labels(self, table: Table) -> Sequence[Any]:
        """The tags of the rows in canonical form."""
        return [self.reader.read_tags(table, row) for row in range(len(table))]

    def find_warnings(self, tables: Mapping[str, Table]) -> list[str]:
        """Numbers as tags, tags that look like those of entities and are not read as such, tags or types that look alike."""
        if self.reader.scheme == "none":
            alike = find_lookalikes(self.label_names)
            warnings = [f"tags that look alike are different ones: {' and '.join(group)}" for group in alike]
            if self.is_scheme_set or "train" not in tables:
                return warnings
            strangers = warn_of_strangers(self.count_labels(tables["train"]))
            return [*warn_of_numbers(self.label_names), *strangers, *warnings]
        alike = find_lookalikes(list_kinds(self.label_names))
        return [f"types of entities that look alike are different ones: {' and '.join(group)}" for group in alike]

    def find_row_warnings(self, table: Table) -> list[str]:
        """Tags of which none marks an entity."""
        return [] if self.reader.scheme == "none" or self.count_labels(table) else ["no word is in an entity"]


@dataclass(kw_only=True)
class TagCounts:
    """What a table has of words, of tags by their names and of entities by their types; words that are not labelled, and tags
    that were repaired."""

    words: int = 0
    tags: Counter[str] = field(default_factory=Counter)
    entities: Counter[str] = field(default_factory=Counter)
    ignored: int = 0
    repaired: int = 0


def warn_of_numbers(names: Sequence[str]) -> list[str]:
    """Returns a warning if all tags are whole numbers."""
    if not all(name.isdecimal() for name in names):
        return []
    return [
        f"all {len(names)} tags are numbers without names, such as {names[0]} and {names[-1]}: no entities are scored; if they "
        "stand for tags such as O and B-PER, name them in task.label_names, from 0; else set task.tag_scheme none"
    ]


def warn_of_strangers(counts: Mapping[str, int]) -> list[str]:
    """Returns a warning if most tags look like those of entities and some do not. counts: The number of words by tag."""
    marked, strangers = find_strangers(counts)
    if not strangers:
        return []
    shown = ", ".join(strangers[:MOST_SHOWN]) + (", ..." if len(strangers) > MOST_SHOWN else "")
    verb = "are" if len(strangers) > 1 else "is"
    return [
        f"tags such as {marked[0]} look like those of entities, but {shown} {verb} not of their scheme: each tag stands for "
        "itself, and no entities are scored; correct the tags, or set task.tag_scheme none if that is meant"
    ]
