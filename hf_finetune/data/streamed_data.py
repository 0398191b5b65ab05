"""Where a stream comes from: its shards, and the columns of their rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.examples import make_examples
from hf_finetune.data.formats import get_value
from hf_finetune.data.missing_columns import missing_column_error
from hf_finetune.data.rows import DistinctNotes, sort_notes
from hf_finetune.data.stream import Row, Shard, make_block_table
from hf_finetune.data.table import ColumnSpec, Table


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
        said = sort_notes(notes)
        return make_examples(replace(table, notes=said["notes"], warnings=said["warnings"]), spec)


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
