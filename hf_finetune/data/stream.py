"""The order of a stream: rows of shards, shuffled through a buffer, in blocks. A pure function of (shards, buffer, seed, epoch).

A shard is a file (or a pair of text files), a shard of a data set on the Hub, or what a program gives. Shards come in a random
order. Their rows flow through a buffer: each next row is drawn from it, and the row that is read takes its place.

K rows of a block.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from hf_finetune.data.table import Table, TableBuilder

DRAWS_AT_ONCE = 1000


class Row(NamedTuple):
    """A row of a shard.

    Attributes:
        file: The file that it stands in.
        line: Its line in the file.
        values: Of the columns that the task reads.
        word_lines: The line of each word, if the file has one word a line.
    """

    file: str
    line: int
    values: tuple[Any, ...]
    word_lines: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of a stream that is read from its begin to its end.

    Attributes:
        name: Of the file, or of the part of a data set.
        read: Returns its rows, from the first one, each time that it is called.
        in_order: Its rows keep their order, because they are the lines of one text.
    """

    name: str
    read: Callable[[], Iterable[Row]]
    in_order: bool = False


def shuffle_rows(shards: Sequence[Shard], buffer_size: int, seed: int, epoch: int) -> Iterator[Row]:
    """Yields each row of the shards once, in the order of an epoch, counted from 0.

    Holds at most `buffer_size` rows. If one shard is in order, so are all: only the order of the shards is then random.
    """
    generator = np.random.default_rng([seed, 4, epoch])
    order = generator.permutation(len(shards))
    rows = chain.from_iterable(shards[number].read() for number in order)
    if any(shard.in_order for shard in shards):
        yield from rows
        return
    buffer = list(islice(rows, buffer_size))
    for place, row in zip(draw_places(generator, len(buffer)), rows, strict=False):
        yield buffer[place]
        buffer[place] = row
    for place in generator.permutation(len(buffer)):
        yield buffer[place]


def draw_places(generator: np.random.Generator, size: int) -> Iterator[int]:
    """Yields random places in a buffer, without end."""
    while size:
        yield from generator.integers(size, size=DRAWS_AT_ONCE).tolist()


def cut_into_blocks(rows: Iterable[Row], size: int) -> Iterator[tuple[list[Row], bool]]:
    """Yields blocks of `size` rows, the last one perhaps shorter, and whether it is the last."""
    rows = iter(rows)
    block = list(islice(rows, size))
    while block:
        following = next(rows, None)
        yield block, following is None
        if following is None:
            return
        block = [following, *islice(rows, size - 1)]


def make_block_table(
    rows: Sequence[Row],
    columns: Sequence[str],
    class_names: tuple[str, ...] | None = None,
    *,
    is_in_memory: bool = False,
) -> Table:
    """Returns the table of the rows of a block. The other arguments are as in Table."""
    builder = TableBuilder(columns)
    for row in rows:
        builder.add(row.values, row.file, row.line, row.word_lines)
    return builder.finish(class_names=class_names, is_in_memory=is_in_memory)
