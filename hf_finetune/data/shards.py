"""The shards of data.streaming: files, the shards of a data set on the Hub, an iterable data set or a generator function."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig, require
from hf_finetune.data.formats import get_value, is_table, name_type
from hf_finetune.data.hub_datasets import hides_labels
from hf_finetune.data.memory import MEMORY, not_given_error
from hf_finetune.data.missing_columns import missing_column_error
from hf_finetune.data.plain import check_cell, make_plain, name_library
from hf_finetune.data.row_adapter import NumberedRow
from hf_finetune.data.rows import DistinctNotes, prefix_note, sort_notes
from hf_finetune.data.sources import find_class_names, find_files, read_files
from hf_finetune.data.stream import Row, Shard, make_block_table
from hf_finetune.data.table import ColumnSpec, Table, make_examples
from hf_finetune.system.errors import InputError, first_line

DIGESTED_BYTES = 1 << 20  # at the begin of each file
DIGESTED_ROWS = 100  # of rows that a program gives


@dataclass(frozen=True, kw_only=True)
class StreamedData:
    """Where a stream comes from.

    Attributes:
        shards: In their own order.
        setting: The setting that names them.
        notes: What was recognised in the shards since it was asked last, and what may be wrong with them.
        digest: Returns a digest of them that is cheap: of names, sizes and first bytes.
        class_names: The names of the classes, if the data hold class numbers and name them.
        is_in_memory: A program gives the rows.
    """

    shards: tuple[Shard, ...]
    setting: str
    notes: DistinctNotes
    digest: Callable[[], str]
    class_names: tuple[str, ...] | None = None
    is_in_memory: bool = False

    def make_table(self, rows: Sequence[Row], spec: ColumnSpec, notes: Iterable[str] = ()) -> Table:
        """Returns the examples of rows. InputError at the first row that cannot be used. notes: Those of the table."""
        table = make_block_table(rows, spec.columns, self.class_names, is_in_memory=self.is_in_memory)
        return make_examples(replace(table, **sort_notes(notes)), spec)


def find_streamed_data(config: DataConfig, spec: ColumnSpec, given: object = None) -> StreamedData:
    """Returns the shards of the training data.

    Args:
        config: Where they are.
        spec: The columns to read.
        given: What a program gave for training: a datasets.IterableDataset, or a function that returns an iterator of rows.

    Raises InputError if there are none, or if they cannot be streamed.
    """
    if given is not None:
        return find_given_shards(given, config, spec)
    if config.train == (f"{MEMORY}train",):
        raise not_given_error("train")
    if config.dataset is not None:
        return find_hub_shards(config, spec)
    return find_file_shards(config, spec)


# --- files ----------------------------------------------------------------------------------------------------------


def find_file_shards(config: DataConfig, spec: ColumnSpec) -> StreamedData:
    """Returns a shard for each file of data.train, or for each pair of text files."""
    paths = find_files(config.train, "data.train")
    text_files = spec.text_files
    is_paired = text_files is not None and text_files.read_pair is not None and not all(map(is_table, paths))
    size = 2 if is_paired else 1
    groups = [
        tuple(paths[start : start + size]) for start in range(0, len(paths), size)
    ]  # read_files() refuses half a pair
    notes = DistinctNotes()
    shards = [
        Shard(
            name=str(group[-1]),
            read=FileReader(tuple(map(str, group)), config, spec, notes),
            in_order=spec.in_order and not is_table(group[-1]),
        )
        for group in groups
    ]
    return StreamedData(
        shards=tuple(shards),
        setting="data.train",
        notes=notes,
        digest=lambda: digest_begins(paths),
        class_names=find_class_names(paths, config),
    )


@dataclass(frozen=True)
class FileReader:
    """Reads the rows of a file, or of a pair of text files. notes: Take what was recognised."""

    locations: tuple[str, ...]
    config: DataConfig
    spec: ColumnSpec
    notes: DistinctNotes

    def __call__(self) -> Iterator[Row]:
        count = 0
        for path, rows in read_files(self.locations, self.config, "data.train", self.spec, say=self.notes.add):
            for line, row in rows:
                file = str(row[""] if path.is_dir() else path)
                values = take_values(row, f"{file}:{line}", self.config, self.spec)
                count += 1
                yield Row(file, line, values, None if is_table(path) else row.get("#lines"))
        if not count:
            raise InputError(f"{self.locations[-1]}: is empty")


def take_values(row: Any, where: str, config: DataConfig, spec: ColumnSpec) -> tuple[Any, ...]:
    """Returns the values of the columns that the task reads. InputError if the row lacks one that it must have."""
    values: list[Any] = []
    for name in spec.columns:
        if name not in row and name.partition(".")[0] not in row and name not in spec.own_columns:
            values.append(None)
            continue
        try:
            values.append(get_value(row, name))
        except KeyError:
            if spec.requires(name, row):
                raise missing_column_error(where, name, row, config, spec) from None
            values.append(None)
    return tuple(values)


def digest_begins(paths: Iterable[Path]) -> str:
    """Returns a digest of the names, the sizes and the first bytes of files, and of all files in folders."""
    digest = hashlib.sha256()
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            with file.open("rb") as opened:
                begin = hashlib.sha256(opened.read(DIGESTED_BYTES)).hexdigest()
            digest.update(f"{file.name} {file.stat().st_size} {begin}\n".encode())
    return digest.hexdigest()


# --- the Hub --------------------------------------------------------------------------------------------------------


def load_streamed_dataset(config: DataConfig) -> tuple[Any, Any]:
    """Returns the splits of data.dataset as iterable data sets, and their builder. InputError if it cannot be loaded."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(config.dataset or "", config.subset)
        return builder.as_streaming_dataset(), builder
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"data.dataset ({config.dataset}): cannot be loaded: {first_line(error)}") from None


def find_hub_shards(config: DataConfig, spec: ColumnSpec) -> StreamedData:
    """Returns the shards of the training split of data.dataset."""
    splits, builder = load_streamed_dataset(config)
    name = choose_split(config, "train", splits)
    assert name is not None
    return make_dataset_shards(
        splits[name],
        f"{config.dataset}/{name}",
        f"data.dataset ({config.dataset})",
        config,
        spec,
        digest=lambda: digest_data_files(builder, name),
    )


def choose_split(config: DataConfig, split: str, splits: Any) -> str | None:
    """Returns the data set's name of a split, None if it has none. InputError if the one that a setting names, or that of
    training, is not there."""
    names: tuple[str, ...] = getattr(config, split)
    require(len(names) <= 1, f"data.{split}", list(names), "must name one split of data.dataset")
    name = names[0] if names else split
    if name not in splits and (names or split == "train"):
        raise InputError(f"data.{split} ({name}): {config.dataset} has the splits {', '.join(map(str, splits))}")
    return name if name in splits else None


def read_streamed_splits(config: DataConfig, spec: ColumnSpec) -> dict[str, Table]:
    """Reads the validation and test splits of data.dataset, as far as it has them, without downloading the others."""
    splits, _ = load_streamed_dataset(config)
    tables: dict[str, Table] = {}
    for split in ("validation", "test"):
        name = choose_split(config, split, splits)
        if name is None:
            continue
        data = make_dataset_shards(
            splits[name], f"{config.dataset}/{name}", f"data.dataset ({config.dataset})", config, spec
        )
        rows = [row for shard in data.shards for row in shard.read()]
        table = data.make_table(rows, spec, data.notes.take())
        if not hides_labels(table, config):
            tables[split] = table
    return tables


def digest_data_files(builder: Any, split: str) -> str:
    """Returns a digest of the files of a split: of the revision on the Hub that they are taken from, or of local files."""
    files = [str(file) for file in (builder.config.data_files or {}).get(split, [builder.hash])]
    local = [Path(file) for file in files if Path(file).is_file()]
    remote = sorted(set(files) - set(map(str, local)))
    return hashlib.sha256(json.dumps([digest_begins(local), remote]).encode()).hexdigest()


# --- what a program gives -------------------------------------------------------------------------------------------


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
