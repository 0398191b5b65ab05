"""Tables of data sets of the Hub, and of others of the datasets library, each row with its origin."""

from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig, require
from hf_finetune.data.arrow_columns import ROWS_AT_ONCE
from hf_finetune.data.columns import find_distinct
from hf_finetune.data.examples import make_examples
from hf_finetune.data.plain import check_cell, make_plain
from hf_finetune.data.table import ColumnSpec, Table, TableBuilder, find_column_setting, text_and_label_spec
from hf_finetune.data.table_store import SMALLEST_STORED, build_table, open_or_build
from hf_finetune.system.errors import InputError, first_line


def read_hub_dataset(config: DataConfig, spec: ColumnSpec | None = None, root: Path | None = None) -> dict[str, Table]:
    """Reads a data set of the Hub: its splits train, validation and test, as far as it has them.

    If data.train, data.validation or data.test is given, it is the name of the split to read instead. A split is left out if all
    its labels are -1: benchmarks hide the labels of their tests in this way.

    Args:
        config: The data set, and the names of its columns.
        spec: The columns to read; texts with a label if not given.
        root: The folder of the caches, where the rows lie; if it is not given, they lie in memory.

    Raises InputError if the data set cannot be loaded, or lacks a split or a column.
    """
    if spec is None:
        spec = text_and_label_spec(config.text_columns, str(config.label_column))
    name, dataset = config.dataset or "", load_hub_dataset(config)
    tables: dict[str, Table] = {}
    for split in ("train", "validation", "test"):
        names: tuple[str, ...] = getattr(config, split)
        require(len(names) <= 1, f"data.{split}", list(names), "must name one split of data.dataset")
        split_name = names[0] if names else split
        if split_name in dataset:
            table = make_hub_table(dataset[split_name], f"{name}/{split_name}", config, spec, root=root)
            if split == "train" or not hides_labels(table, config):
                tables[split] = make_examples(table, spec)
        elif names or split == "train":
            raise InputError(f"data.{split} ({split_name}): {name} has the splits {', '.join(dataset)}")
    return tables


def load_hub_dataset(config: DataConfig) -> Any:
    """Returns the datasets.DatasetDict of data.dataset. Raises InputError if it cannot be loaded."""
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(config.dataset or "", config.subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"data.dataset ({config.dataset}): cannot be loaded: {first_line(error)}") from None


def make_hub_table(
    rows: Any, origin: str, config: DataConfig, spec: ColumnSpec, *, root: Path | None = None, first: int = 1
) -> Table:
    """Returns the table of a split (a datasets.Dataset).

    Args:
        rows: The split.
        origin: Names the data set and the split.
        config, spec, root: Those of read_hub_dataset().
        first: The number of the first row.
    """
    if any("." in column and column not in rows.column_names for column in spec.columns):
        rows = rows.flatten()  # so that {"translation": {"de": ...}} has the column translation.de
    for column in (*spec.inputs, *spec.labels, *spec.kept):
        if column not in rows.column_names and spec.requires(column, rows.column_names):
            setting, names = find_column_setting(column, config, spec), ", ".join(rows.column_names)
            raise InputError(f"{setting} ({column}): {origin} has no such column (columns: {names})")
    feature = rows.features.get(config.label_column)
    class_names = getattr(getattr(feature, "feature", feature), "names", None)

    def fill(builder: TableBuilder) -> dict[str, Any]:
        builder.add_columns(name for name in spec.columns if name in rows.column_names)
        builder.add_unread(spec.list_unread(rows.column_names))
        chosen, number = rows.select_columns([name for name in builder.names if name in rows.column_names]), first
        for batch in chosen.iter(batch_size=ROWS_AT_ONCE):
            count = len(next(iter(batch.values())))
            columns = [batch.get(name) or [None] * count for name in builder.names]
            for values in zip(*columns, strict=True):
                where, named = f"{origin}:{number}", zip(builder.names, values, strict=True)
                builder.add([check_cell(make_plain(value), where, name) for name, value in named], origin, number)
                number += 1
        return {"class_names": tuple(class_names) if class_names else None}

    if root is None or (rows.data.nbytes or 0) < SMALLEST_STORED:
        return build_table(spec.own_columns, fill)
    return open_or_build(root, [rows._fingerprint, origin, spec.columns, first], spec.own_columns, fill)


def hides_labels(table: Table, config: DataConfig) -> bool:
    """True if all labels of a table of the Hub are -1 and the column has named classes."""
    labels = table.columns.get(str(config.label_column), [])
    return table.class_names is not None and set(map(str, find_distinct(labels)[1])) == {"-1"}


def digest_dataset(config: DataConfig) -> dict[str, str]:
    """Returns the fingerprint of each split of data.dataset (datasets.Dataset). Raises InputError if it cannot be loaded."""
    dataset = load_hub_dataset(config)
    names = {split: (*getattr(config, split), split)[0] for split in ("train", "validation", "test")}
    return {split: str(dataset[name]._fingerprint) for split, name in names.items() if name in dataset}
