"""Reads the words of a table's rows and their tags. Each error names file, line and word."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_finetune.data.table import Table, describe_value
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.text.tags import PREFIXES, belongs_to_scheme, repair_tags
from hf_finetune.tasks.text.words import split_words


@dataclass(frozen=True, kw_only=True)
class TagReader:
    """Reads words and tags.

    Args:
        text_column: The column of lists of words.
        label_column: The column of lists of tags, one for each word.
        scheme: A key of tags.PREFIXES; none if the tags do not mark entities.
        repairs: Tags that break the scheme are repaired. If false, they are an error.
    """

    text_column: str
    label_column: str
    scheme: str
    repairs: bool = False

    def read_words(self, table: Table, row: int) -> list[str]:
        """Returns the words of a row. A string without tags is split into words, as `predict --text` does."""
        value, where = table.columns[self.text_column][row], table.where(row)
        has_tags = self.label_column in table.columns and table.columns[self.label_column][row] is not None
        if isinstance(value, str) and not has_tags:
            value = split_words(value)
        if not isinstance(value, (list, tuple)) or not value:
            raise InputError(f"{where}: {self.text_column} is {describe_value(value, 'a list of words')}")
        for number, word in enumerate(value, 1):
            if not isinstance(word, str):
                raise InputError(f"{where}: word {number} of {self.text_column} ({word}) is not a string")
        return list(value)

    def read_raw_tags(self, table: Table, row: int) -> list[str]:
        """Returns the names of a row's tags as the data have them, one for each word."""
        value, words, where = table.columns[self.label_column][row], self.read_words(table, row), table.where(row)
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: {self.label_column} is {describe_value(value, 'a list of tags')}")
        if len(value) != len(words):
            raise InputError(f"{where}: {len(value)} {self.label_column} for {len(words)} {self.text_column}")
        return [self.read_tag_name(table, row, word, tag) for word, tag in enumerate(value)]

    def read_tag_name(self, table: Table, row: int, word: int, value: Any) -> str:
        """Returns one tag as a string. A number stands for a class of the data set, if it names its classes."""
        names = table.class_names
        if isinstance(value, int) and not isinstance(value, bool):
            if names is not None and not 0 <= value < len(names):
                tag = self.describe_tag(table, row, word, value)
                raise InputError(f"{tag}, is not among the {len(names)} classes of the data set")
            return str(value) if names is None else names[value]
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.describe_tag(table, row, word, repr(value))}, is not the name of a tag")
        return value

    def describe_tag(self, table: Table, row: int, word: int, tag: object) -> str:
        """Returns the beginning of an error about a tag: file, line, word and tag."""
        where = table.where(row)
        if table.word_lines and table.word_lines[row]:
            where = f"{table.files[row]}:{table.word_lines[row][word]}"
        return f"{where}: the tag of word {word + 1} ({table.columns[self.text_column][row][word]}), {tag}"

    def read_tags(self, table: Table, row: int) -> list[str]:
        """Returns the tags of a row, all by the rules of the scheme.

        Raises InputError at the first tag that breaks the scheme, unless `repairs` is true.
        """
        raw_tags = self.read_raw_tags(table, row)
        if self.scheme == "none":
            return raw_tags
        for word, tag in enumerate(raw_tags):
            if not belongs_to_scheme(tag, self.scheme):
                takes = ", ".join(f"{prefix}-..." for prefix in PREFIXES[self.scheme])
                raise InputError(
                    f"{self.describe_tag(table, row, word, tag)}, is not a tag of {self.scheme}, which has O, {takes}"
                )
        repaired_tags = repair_tags(raw_tags, self.scheme)
        for word, (tag, repaired) in enumerate(zip(raw_tags, repaired_tags, strict=True)):
            if tag != repaired and not self.repairs:
                raise InputError(
                    f"{self.describe_tag(table, row, word, tag)}, breaks {self.scheme}, which has {repaired} there; "
                    "correct it, or set task.tag_faults repair"
                )
        return repaired_tags

    def read_tag_numbers(self, table: Table, row: int, numbers: Mapping[str, int]) -> list[int]:
        """Returns the tags of a row as numbers. Raises InputError if `numbers` lacks one of them."""
        tags = self.read_tags(table, row)
        for word, tag in enumerate(tags):
            if tag not in numbers:
                raise InputError(
                    f"{self.describe_tag(table, row, word, tag)}, is not among the {len(numbers)} that training has"
                )
        return [numbers[tag] for tag in tags]
