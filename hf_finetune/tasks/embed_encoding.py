"""How sentence embeddings encode the texts of a row, and what is said of them.

N features of a split, S texts (one sequence each).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from typing import Any, ClassVar

import numpy as np

from hf_finetune.config.sections import require
from hf_finetune.data.columns import find_distinct, has_values, iterate
from hf_finetune.data.encoding import tokenize
from hf_finetune.data.features import Array, Features
from hf_finetune.data.table import Table, describe_value, is_delimited
from hf_finetune.data.written_lists import (
    describe_written_lists,
    holds_written_lists,
    is_blank,
    is_missing,
    is_written_list,
    read_texts,
    warn_of_joined_texts,
)
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Encoding
from hf_finetune.tasks.embed_columns import NEGATIVES, SCORES, read_score
from hf_finetune.tasks.embed_objectives import Pooling


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
