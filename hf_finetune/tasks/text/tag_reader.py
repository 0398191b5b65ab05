"""Reads the words of a table's rows and their tags. Each error names file, line and word."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_finetune.data.features import IGNORED
from hf_finetune.data.table import Table, describe_value
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import canonical_label
from hf_finetune.tasks.text.label_checks import NOT_LABELLED, suggest_names
from hf_finetune.tasks.text.tag_forms import TagForm, find_form, find_spelling
from hf_finetune.tasks.text.tags import (
    IGNORED_TAG,
    PREFIXES,
    belongs_to_scheme,
    complete_tags,
    count_pairs,
    guess_scheme,
    repair_tags,
)
from hf_finetune.tasks.text.words import split_words


@dataclass(frozen=True, kw_only=True)
class TagReader:
    """Reads words and tags.

    Args:
        text_column: The column of lists of words.
        label_column: The column of lists of tags, one for each word.
        scheme: A key of tags.PREFIXES; none if the tags do not mark entities.
        repairs: Tags that break the scheme are repaired. If false, they are an error.
        ignored: Tags of words that are not labelled; null stands for a missing tag.
        class_names: The names of numbers, from 0; () if the data name their classes themselves, or have no numbers.
        label_names: The labels of the task. If tags mark entities, tags in another form of these are read as them.
        known: The tags that were read before, by the names of the table's classes and the type.
    """

    text_column: str
    label_column: str
    scheme: str
    repairs: bool = False
    ignored: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    known: dict[Hashable, dict[Any, str]] = field(init=False, default_factory=dict, compare=False, repr=False)

    def read_words(self, table: Table, row: int) -> list[str]:
        """Returns the words of a row. A string without tags is split into words, as `predict --text` does."""
        value = table.columns[self.text_column][row]
        if isinstance(value, str):
            has_tags = self.label_column in table.columns and table.columns[self.label_column][row] is not None
            value = value if has_tags else split_words(value)
        if not isinstance(value, (list, tuple)) or not value:
            raise InputError(f"{table.where(row)}: {self.text_column} is {describe_value(value, 'a list of words')}")
        if set(map(type, value)) != {str}:
            for number, word in enumerate(value, 1):
                if not isinstance(word, str):
                    raise InputError(
                        f"{table.where(row)}: word {number} of {self.text_column} ({word}) is not a string"
                    )
        return list(value)

    def read_names(self, table: Table, row: int) -> list[str]:
        """Returns the tags of a row as the data have them, in canonical form: one for each word, or IGNORED_TAG.

        Tags of entities are in the form of the labels, if the labels have them.
        """
        value, words = table.columns[self.label_column][row], self.read_words(table, row)
        if not isinstance(value, (list, tuple)):
            way_out = "; add its tags, or remove the row" if value is None else ""
            described = describe_value(value, "a list of tags")
            raise InputError(f"{table.where(row)}: {self.label_column} is {described}{way_out}")
        if len(value) != len(words):
            raise InputError(
                f"{table.where(row)}: {len(value)} {self.label_column} for {len(words)} {self.text_column}"
            )
        types = set(map(type, value))
        known = self.get_known(table, types.pop()) if len(types) == 1 else {}
        try:
            return [known[tag] for tag in value]
        except (KeyError, TypeError):  # one that is new, or cannot be hashed; or tags of several types
            return [self.read_name(table, row, word) for word in range(len(value))]

    def get_known(self, table: Table, kind: type) -> dict[Any, str]:
        """Returns the tags of a type that were read before: 1, 1.0 and true would be one key."""
        return self.known.setdefault((table.class_names, kind), {})

    def read_name(self, table: Table, row: int, word: int) -> str:
        """Returns the tag of one word in canonical form, and adds it to the known ones."""
        value = table.columns[self.label_column][row][word]
        is_plain = not isinstance(value, (bool, list, tuple, dict))
        label = canonical_label(value) if is_plain else None
        if is_plain and ("null" if label is None else label) in self.ignored:
            name = IGNORED_TAG
        elif label is None:
            hint = "; task.ignore_labels null leaves words without a tag out" if is_plain else ""
            shown = "null" if value is None else repr(value)
            raise InputError(f"{self.describe_tag(table, row, word, shown)}, is not the name of a tag{hint}")
        elif label == NOT_LABELLED and NOT_LABELLED not in self.label_names:
            raise InputError(
                f"{self.describe_tag(table, row, word, label)}, means a word that is not labelled; set "
                f"task.ignore_labels {NOT_LABELLED} to neither learn nor score such words"
            )
        else:
            name = self.find_label(self.name_number(table, row, word, label))
        if isinstance(value, Hashable) and value == value:  # not nan
            self.get_known(table, type(value))[value] = name
        return name

    def name_number(self, table: Table, row: int, word: int, label: str) -> str:
        """Returns the name of a class if the tag is its number, else the tag. InputError if no class has the number."""
        names = self.class_names or table.class_names
        if not names or label in names or (not self.class_names and not label.lstrip("-").isdecimal()):
            return label
        if label.isdecimal() and int(label) < len(names):
            return names[int(label)]
        source = "of task.label_names" if self.class_names else "of the data set"
        tag = self.describe_tag(table, row, word, label)
        raise InputError(f"{tag}, is not among the {len(names)} classes {source}")

    def find_label(self, name: str) -> str:
        """Returns the label that a tag stands for, or the tag itself."""
        by_form = {canonical_label(label) or label: label for label in self.label_names}
        if self.scheme == "none":
            return by_form.get(name, name)
        return find_spelling(name, by_form) or name

    def describe_tag(self, table: Table, row: int, word: int, tag: object) -> str:
        """Returns the beginning of an error about a tag: file, line, word and tag."""
        where = table.where(row)
        if table.word_lines and (lines := table.word_lines[row]):
            where = f"{table.files[row]}:{lines[word]}"
        return f"{where}: the tag of word {word + 1} ({table.columns[self.text_column][row][word]}), {tag}"

    def read_tags(self, table: Table, row: int) -> list[str]:
        """Returns the tags of a row, all by the rules of the scheme.

        Raises InputError at the first tag that breaks the scheme, unless `repairs` is true.
        """
        names = self.read_names(table, row)
        if self.scheme == "none":
            return names
        if not all(belongs_to_scheme(tag, self.scheme) for tag in set(names) - {IGNORED_TAG}):
            self.refuse_strangers(table, row, names)
        repaired_tags = repair_tags(names, self.scheme)
        if repaired_tags != names and not self.repairs:
            word = next(word for word, tag in enumerate(names) if tag != repaired_tags[word])
            raise InputError(
                f"{self.describe_tag(table, row, word, names[word])}, breaks {self.scheme}, which has "
                f"{repaired_tags[word]} there; correct it, or set task.tag_faults repair"
            )
        return repaired_tags

    def refuse_strangers(self, table: Table, row: int, tags: Sequence[str]) -> None:
        """Raises InputError at the first tag that is not of the scheme."""
        for word, tag in enumerate(tags):
            if tag != IGNORED_TAG and not belongs_to_scheme(tag, self.scheme):
                takes = ", ".join(f"{prefix}-..." for prefix in PREFIXES[self.scheme])
                raise InputError(
                    f"{self.describe_tag(table, row, word, tag)}, is not a tag of {self.scheme}, which has O, {takes}"
                )

    def read_tag_numbers(self, table: Table, row: int, numbers: Mapping[str, int]) -> list[int]:
        """Returns the tags of a row as numbers, IGNORED for words that are not labelled. InputError if `numbers` lacks a tag."""
        tags = self.read_tags(table, row)
        strangers = set(tags) - numbers.keys() - {IGNORED_TAG}
        for word, tag in enumerate(tags if strangers else ()):
            if tag in strangers:
                raise InputError(
                    f"{self.describe_tag(table, row, word, tag)}, is not among the {len(numbers)} that training has"
                    f"; {suggest_names(tag, tuple(numbers))}"
                )
        return [numbers.get(tag, IGNORED) for tag in tags]


@dataclass(frozen=True, kw_only=True)
class FoundTags:
    """What the tags of a training table are.

    Args:
        labels: All tags. If they mark entities, each type has all tags of the scheme, even those that training lacks.
        scheme: A key of tags.PREFIXES, or none.
        reason: Why it is this scheme, and how the tags are written.
        form: How they are written, if it is not the canonical form.
    """

    labels: frozenset[str]
    scheme: str
    reason: str
    form: TagForm | None

    def spell(self, name: str) -> str:
        """Returns a tag in canonical form."""
        return (self.form and self.form.read(name)) or name


def find_tags(reader: TagReader, scheme: str, table: Table) -> FoundTags:
    """Returns what the tags of a table are.

    Args:
        reader: Reads them for themselves: its scheme is none.
        scheme: The setting task.tag_scheme.
        table: The training rows.
    """
    pairs = count_pairs(reader.read_names(table, row) for row in range(len(table)))
    distinct = {tag for _, tag in pairs} - {IGNORED_TAG}
    form = None if scheme == "none" else find_form(distinct)
    reason = "set by task.tag_scheme"
    if form is not None:
        spelled: Counter[tuple[str, str]] = Counter()
        for (before, tag), count in pairs.items():
            spelled[form.read(before) or before, form.read(tag) or tag] += count
        pairs = spelled
    if scheme == "auto":
        scheme, reason = guess_scheme(pairs)
    if form is not None:
        reason = f"{form.describe(distinct)}; {reason}"
    labels = complete_tags({tag for _, tag in pairs} - {IGNORED_TAG}, scheme)
    return FoundTags(labels=frozenset(labels), scheme=scheme, reason=reason, form=form)
