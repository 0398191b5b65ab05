"""The shards of data.streaming: files, the shards of a data set on the Hub, an iterable data set or a generator function."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig, require
from hf_finetune.data.formats import is_table
from hf_finetune.data.hub_datasets import hides_labels
from hf_finetune.data.iterable_shards import find_given_shards, make_dataset_shards
from hf_finetune.data.memory import MEMORY, not_given_error
from hf_finetune.data.rows import DistinctNotes
from hf_finetune.data.sources import find_class_names, find_files, read_files
from hf_finetune.data.stream import Row, Shard
from hf_finetune.data.streamed_data import StreamedData, take_values
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError, first_line

DIGESTED_BYTES = 1 << 20  # at the begin of each file


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
