"""The shards of data.streaming that an iterator gives: of an iterable data set, or of a function of a program."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.formats import name_type
from hf_finetune.data.plain import check_cell, make_plain, name_library
from hf_finetune.data.row_adapter import NumberedRow
from hf_finetune.data.rows import DistinctNotes, prefix_note
from hf_finetune.data.stream import Row, Shard
from hf_finetune.data.streamed_data import StreamedData, take_values
from hf_finetune.data.table import ColumnSpec
from hf_finetune.system.errors import InputError, first_line

DIGESTED_ROWS = 100  # of rows that a program gives


def is_stream(value: object) -> bool:
    """True if a program's training data are a stream: a datasets.IterableDataset, or a function that returns rows."""
    return is_iterable_dataset(value) or (callable(value) and not isinstance(value, type))


def is_iterable_dataset(value: object) -> bool:
    """True if the value is a datasets.IterableDataset. Does not import the library."""
    return name_library(value) == "datasets" and type(value).__name__ == "IterableDataset"


def find_given_shards(given: Any, config: DataConfig, spec: ColumnSpec) -> StreamedData:
    """Returns the shards of a datasets.IterableDataset, or the one of a function that returns an iterator of rows."""
    if is_iterable_dataset(given):
        return make_dataset_shards(given, "train", "train", config, spec, is_in_memory=True)
    notes = DistinctNotes()
    reader = IterableReader(start_anew(given), "train", "train", config, spec, notes, first=0)
    shards = (Shard(name="train", read=reader),)
    return StreamedData(
        shards=shards, setting="train", notes=notes, digest=lambda: digest_first_rows(shards), is_in_memory=True
    )


def start_anew(function: Callable[[], Any]) -> Callable[[], Any]:
    """Returns the function with a check that it returns another iterator each time: InputError if not, because the rows that were
    taken from it would be missing in the next epoch."""
    last: list[Any] = []

    def start() -> Any:
        rows = function()
        if last and rows is last[0] and hasattr(rows, "__next__"):
            raise InputError(
                "train: the function returned the same iterator again; return a new one, from the first row"
            )
        last[:] = [rows]
        return rows

    return start


def make_dataset_shards(
    dataset: Any,
    name: str,
    setting: str,
    config: DataConfig,
    spec: ColumnSpec,
    *,
    digest: Callable[[], str] | None = None,
    is_in_memory: bool = False,
) -> StreamedData:
    """Returns the shards of a datasets.IterableDataset. `name` is that of the split, for errors."""
    count = dataset.num_shards
    feature = (dataset.features or {}).get(config.label_column)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    shards, notes = [], DistinctNotes()
    for number in range(count):
        part = dataset.shard(num_shards=count, index=number) if count > 1 else dataset
        shard_name = f"{name} shard {number}" if count > 1 else name
        first = 0 if is_in_memory else 1
        reader = IterableReader(part.__iter__, shard_name, setting, config, spec, notes, first=first)
        shards.append(Shard(name=shard_name, read=reader))
    return StreamedData(
        shards=tuple(shards),
        setting=setting,
        notes=notes,
        digest=digest or (lambda: digest_first_rows(shards)),
        class_names=tuple(names) if names else None,
        is_in_memory=is_in_memory,
    )


@dataclass(frozen=True)
class IterableReader:
    """Reads the rows of an iterator that `start` returns. `notes` take what was recognised. `first` is the number of the first
    row."""

    start: Callable[[], Any]
    name: str
    setting: str
    config: DataConfig
    spec: ColumnSpec
    notes: DistinctNotes
    first: int

    def __call__(self) -> Iterator[Row]:
        number = self.first - 1
        try:
            for number, row in self.adapt(self.number_rows()):
                where = f"{self.name}[{number}]"
                named = zip(self.spec.columns, take_values(row, where, self.config, self.spec), strict=True)
                yield Row(self.name, number, tuple(check_cell(make_plain(value), where, name) for name, value in named))
        except InputError:
            raise
        except Exception as error:  # of the network, of a file, or of the user's function
            kind = type(error).__name__
            raise InputError(
                f"{self.setting}: cannot be read after {self.name}[{number}]: {kind}: {first_line(error)}"
            ) from error

    def number_rows(self) -> Iterator[NumberedRow]:
        """Yields the rows with their numbers. InputError if one is anything else than a dict."""
        for number, row in enumerate(self.start(), self.first):
            if not isinstance(row, dict):
                where = f"{self.name}[{number}]"
                raise InputError(f"{where}: is {name_type(row)}, not a dict; a stream gives rows as dicts")
            yield number, row

    def adapt(self, rows: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
        """Yields the rows in the task's own columns (ColumnSpec.adapter)."""
        if self.spec.adapter is None:
            return rows
        return self.spec.adapter.adapt(
            ((number, {str(name): make_plain(cell) for name, cell in row.items()}) for number, row in rows),
            where=lambda number: f"{self.name}[{number}]",
            say=lambda note: self.notes.add(prefix_note(note, f"{self.name}: ")),
            needs_labels=True,
        )


def digest_first_rows(shards: Sequence[Shard]) -> str:
    """Returns a digest of the first rows of the first shard, and of the number of shards."""
    rows = [row.values for row in islice(shards[0].read(), DIGESTED_ROWS)]
    return hashlib.sha256(json.dumps([len(shards), rows], default=str).encode()).hexdigest()
