"""data.streaming: training data that are read and encoded during training, a block of rows at a time.

The rows of an epoch come in the order of data/stream.py. A block of them becomes one table, is encoded as any other, and its
features are divided into batches. Then comes the next block. Nothing of it is kept, in memory or on disk.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig, RunConfig, require
from hf_finetune.data.batches import GROUPED_BATCHES, plan_block
from hf_finetune.data.features import Array, Features, make_features
from hf_finetune.data.rows import FileWarning
from hf_finetune.data.shards import find_streamed_data
from hf_finetune.data.splits import Splits, read_given_splits
from hf_finetune.data.stream import Row, cut_into_blocks, shuffle_rows
from hf_finetune.data.streamed_data import StreamedData
from hf_finetune.data.table import ColumnSpec, NoExamplesError, Table, TableBuilder
from hf_finetune.system.console import label_lines, print_message
from hf_finetune.system.errors import InputError
from hf_finetune.system.processes import Processes
from hf_finetune.tasks.base import Task
from hf_finetune.training.schedule import StreamedSchedule
from hf_finetune.training.source import MeasuredFeatures, SourceBatch, measure_features

SAMPLE_ROWS = 1000  # that the report before training describes


class StreamError(InputError):
    """The stream cannot be read on. The batches up to here were good, so the run can be saved before it stops."""


# --- before training ------------------------------------------------------------------------------------------------


def open_stream(config: RunConfig, spec: ColumnSpec, given: Mapping[str, Any]) -> StreamedData | None:
    """Returns the shards of the training data with data.streaming, None without it. given: What a program gave, by split.

    Raises InputError if they cannot be found, or if an example is made of several rows.
    """
    if not config.data.streaming:
        return None
    require(
        spec.join_rows is None,
        "data.streaming",
        True,
        f"does not go together with task.kind {config.task.kind}, which may join several rows of a file to one example",
    )
    return find_streamed_data(config.data, spec, given.get("train"))


def load_streamed_splits(
    config: DataConfig, spec: ColumnSpec, given: Mapping[str, Any], data: StreamedData, root: Path
) -> tuple[Splits, Table]:
    """Returns the splits, whose training table is a sample of the stream, and the rows that the task learns from: the first ones
    of the stream, in the order of the shards, and those of validation. root: The folder of the caches, for other splits."""
    tables = read_given_splits(config, spec, given, root)
    require("validation" in tables, "data.validation", list(config.validation), "must be given with data.streaming")
    rows = list(islice(chain.from_iterable(shard.read() for shard in data.shards), config.shuffle_buffer))
    require(bool(rows), data.setting.partition(" ")[0], data.shards[0].name, "has no rows to train on")
    head = data.make_table(rows, spec, data.notes.take())
    splits = Splits(
        train=head.take(range(min(SAMPLE_ROWS, len(head)))),
        validation=tables["validation"],
        test=tables.get("test"),
        notes=describe_stream(config, spec, data, len(head)),
        num_rows={split: len(table) for split, table in tables.items()},
    )
    return splits, join_tables(head, tables["validation"])


def join_tables(first: Table, second: Table) -> Table:
    """Returns the rows of both tables. Class numbers have the names of the first table's."""
    builder = TableBuilder(list(dict.fromkeys((*first.columns, *second.columns))))
    for table in (first, second):
        rows = zip(*(table.columns.get(name, [None] * len(table)) for name in builder.names), strict=True)
        for values, file, line in zip(rows, table.files, table.lines, strict=True):
            builder.add(values, file, line)
    return builder.finish(class_names=first.class_names, is_in_memory=first.is_in_memory)


def describe_stream(config: DataConfig, spec: ColumnSpec, data: StreamedData, num_head: int) -> tuple[str, ...]:
    """Returns the lines of the report that say how the stream is read."""
    count = len(data.shards)
    if any(shard.in_order for shard in data.shards):
        order = f"in random order; {config.shuffle_buffer:,} lines of a text are encoded together"
    else:
        order = f"in random order, rows through a buffer of {config.shuffle_buffer:,} (data.shuffle_buffer)"
    sample = min(SAMPLE_ROWS, num_head)
    return (
        f"train: a stream of {count:,} shard{'s' if count > 1 else ''} {order}; encoded as it is read",
        f"the task learns its labels and the like from the first {num_head:,} rows and from validation; the counts of "
        f"training rows below are of the first {sample:,}",
    )


# --- during training ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """The rows that were read last, and their features.

    Attributes:
        table: The examples, in the order of the stream.
        num_rows: The number of rows that they were taken from: rows without a label may be left out.
        measured: Their features.
        batches: The indices of the features of each batch.
        is_last: No block of the epoch follows.
    """

    table: Table
    num_rows: int
    measured: MeasuredFeatures
    batches: list[Array]
    is_last: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Where a stream is read: all that a checkpoint needs to read on.

    Attributes:
        update: The number of batches that were taken.
        epoch: Of the block, from 0.
        first_row: The number of rows of the epoch before the block.
        block: The number of blocks before it, in all epochs.
        batch: The number of batches that were taken from the block.
        examples: The number of features that were taken.
    """

    update: int = 0
    epoch: int = 0
    first_row: int = 0
    block: int = 0
    batch: int = 0
    examples: int = 0

    def move(self, epoch: int, first_row: int = 0) -> "Position":
        """Returns the position at the begin of the next block, which is there."""
        return dataclasses.replace(self, epoch=epoch, first_row=first_row, block=self.block + 1, batch=0)


class StreamedBatches:
    """The batches of a stream (a training.source.BatchSource). Each update takes the next one."""

    def __init__(
        self, data: StreamedData, task: Task, tokenizer: Any, max_length: int, config: RunConfig, processes: Processes
    ) -> None:
        """Reads nothing yet.

        Args:
            data: The shards.
            task: Encodes the rows.
            tokenizer: The tokenizer of the run.
            max_length: Longest input in tokens.
            config: The settings of the run.
            processes: All processes read the same rows.
        """
        self.data, self.task, self.tokenizer, self.max_length = data, task, tokenizer, max_length
        self.config, self.processes = config, processes
        self.spec = task.columns.spec
        self.block_rows = config.train.batch_size * GROUPED_BATCHES
        if self.spec.in_order:  # texts are joined and cut into sequences: of few rows the last batch would be small
            self.block_rows = max(self.block_rows, config.data.shuffle_buffer)
        self.digest = data.digest()
        self.position = Position()
        self.block: Block | None = None
        self.rows_of_epoch: Iterator[tuple[list[Row], bool]] = iter(())
        self.epoch_ends: list[int] = []

    def make_schedule(self) -> StreamedSchedule:
        """Returns the schedule of the run, whose epochs end where those of the stream do."""
        train = self.config.train
        assert train.max_updates is not None  # check_streaming() requires it
        return StreamedSchedule(planned_updates=train.max_updates, epochs=train.epochs, epoch_ends=self.epoch_ends)

    def get_batch(self, update: int) -> SourceBatch:
        """Returns the next batch. StreamError if the stream cannot be read on; then on all processes."""
        assert update == self.position.update, "a stream gives its batches in their order"
        block = self.block
        if block is None or self.position.batch == len(block.batches):
            block = self.read_next_block()
        indices = block.batches[self.position.batch]
        self.position = dataclasses.replace(
            self.position,
            update=update + 1,
            batch=self.position.batch + 1,
            examples=self.position.examples + len(indices),
        )
        if block.is_last and self.position.batch == len(block.batches):
            self.epoch_ends.append(update + 1)
        return SourceBatch(
            measured=block.measured,
            indices=indices,
            epoch=self.position.epoch + 1,
            pass_number=self.position.block + 1,
        )

    def read_next_block(self) -> Block:
        """Reads and encodes the block after the present one. On all processes; StreamError on all if one of them fails."""
        position, before, ends = self.position, self.block, list[int]()
        if before is None:
            self.open_epoch(position.epoch)
        elif not before.is_last:
            position = position.move(position.epoch, position.first_row + before.num_rows)
        else:
            position = position.move(position.epoch + 1)
            self.open_epoch(position.epoch)
        while (block := self.agree_on(position.block)) is None:  # none of the rows that were left is an example
            if position.first_row == 0:
                raise StreamError(f"{self.data.setting}: gave no example to train on in an entire epoch")
            ends.append(position.update)
            position = position.move(position.epoch + 1)
            self.open_epoch(position.epoch)
        self.epoch_ends += ends
        self.position, self.block = position, block
        return block

    def open_epoch(self, epoch: int, first_row: int = 0) -> None:
        """Begins to read an epoch, after its first rows."""
        rows = shuffle_rows(self.data.shards, self.config.data.shuffle_buffer, self.config.seed, epoch)
        self.rows_of_epoch = cut_into_blocks(islice(rows, first_row, None), self.block_rows)

    def agree_on(self, number: int) -> Block | None:
        """Returns the next block of the epoch, None if it has no more examples. StreamError on all processes if one of them
        cannot read it."""
        block, problem = None, None
        try:
            block = self.encode_next(number)
        except InputError as error:
            problem = str(error)
        problems = [found for found in self.processes.gather(problem) if found is not None]
        if problems:
            raise StreamError(problems[0])
        return block

    def encode_next(self, number: int) -> Block | None:
        """Reads and encodes the next block of the epoch that has examples, None if none has. number: Its number in the run."""
        num_rows = 0
        for rows, is_last in self.rows_of_epoch:
            num_rows += len(rows)
            self.print_notes()
            try:
                table = self.data.make_table(rows, self.spec)
            except NoExamplesError:
                continue
            features = self.encode(table)
            batches = plan_block(features.lengths, self.config.train.batch_size, self.config.seed, number)
            measured = measure_features(features)
            return Block(table=table, num_rows=num_rows, measured=measured, batches=batches, is_last=is_last)
        return None

    def print_notes(self) -> None:
        """Prints what was recognised in files that were read since the last call, and what may be wrong with them, if it was not
        said of another file before."""
        for note in self.data.notes.take() if self.processes.process == 0 else ():
            is_warning = isinstance(note, FileWarning)
            (line,) = label_lines("data", [f"warning: {note}" if is_warning else note])
            print_message(line, level=logging.WARNING if is_warning else None)

    def encode(self, table: Table) -> Features:
        """Returns the features of rows. InputError with file and line at the first row that cannot be used."""
        arrays = self.task.encoding.tokenize(table, self.tokenizer, self.max_length)
        try:
            return make_features(arrays, self.task.encoding.labels(table, arrays))
        except InputError as error:
            if not self.task.label_names:
                raise
            raise InputError(
                f"{error}; with data.streaming the labels are those of the first {self.config.data.shuffle_buffer:,} rows and "
                "of data.validation; name all of them in task.label_names"
            ) from None

    def locate(self, index: int) -> str:
        """`file:line` of the example that a feature of the present block was made from."""
        assert self.block is not None
        return self.block.table.where(self.block.measured.features.get_example(index))

    # --- resume -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Returns where the stream is read, and a digest of the block, as plain values for a checkpoint."""
        digest = None if self.block is None else self.block.measured.features.fingerprint()
        return {**dataclasses.asdict(self.position), "epoch_ends": list(self.epoch_ends), "digest": digest}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Reads on where a checkpoint was saved: reads the rows before it again, without encoding them. saved: its describe().

        Raises InputError if the stream has other rows there now.
        """
        fields = {field.name for field in dataclasses.fields(Position)}
        self.position = Position(**{name: int(saved[name]) for name in fields})
        self.epoch_ends[:] = saved["epoch_ends"]
        if saved["digest"] is None:
            return
        self.open_epoch(self.position.epoch, self.position.first_row)
        self.block = self.agree_on(self.position.block)
        require(
            self.block is not None and self.block.measured.features.fingerprint() == saved["digest"],
            "data.streaming",
            True,
            f"{self.data.setting} gives other rows than when the checkpoint was saved; restore the data, or choose another name",
        )
