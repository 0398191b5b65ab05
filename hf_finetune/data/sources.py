"""Tables of rows from files, folders, installed packages and the Hub, each row with its origin."""

import glob
import os.path
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig, require
from hf_finetune.data.formats import get_value, is_table, read_lines, read_parallel, read_rows, read_text
from hf_finetune.data.table import ColumnSpec, Table, check_texts, find_column_setting, text_and_label_spec
from hf_finetune.system.errors import InputError
from hf_finetune.system.locations import local_path


def find_files(locations: Sequence[str], key: str) -> list[Path]:
    """Every file (or class folder) that the locations name, globs expanded and sorted."""
    paths: list[Path] = []
    for location in locations:
        path = local_path(location, key)
        if os.path.exists(path):  # Path.exists raises where a name is too long
            paths.append(Path(path))
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"{key} ({location}): no such file or folder")
        paths += [Path(match) for match in matches]
    return paths


def read_table(
    locations: Sequence[str], config: DataConfig, key: str, form: ColumnSpec | None = None, *, needs_labels: bool = True
) -> Table:
    """All rows of the locations, with the columns of `form` (a text with a label, if not given) checked to be in every row.

    Labels are kept where there are any; without `needs_labels` they may be missing.
    """
    form = form or text_and_label_spec(config.text_columns, str(config.label_column))
    columns: dict[str, list[Any]] = {name: [] for name in form.columns}
    needed = {*form.inputs, *(form.labels if needs_labels else ())}
    files: list[str] = []
    lines: list[int] = []
    word_lines: list[list[int]] = []
    for path, rows in read_files(locations, config, key, form, needs_labels=needs_labels):
        empty = True
        for line, row in rows:
            empty = False
            file = str(row[""] if path.is_dir() else path)
            for name in columns:
                try:
                    value = get_value(row, name)
                except KeyError:
                    value = None
                    if name in needed:
                        found = ", ".join(str(column) for column in row if column != "#lines") or "none"
                        raise InputError(
                            f"{file}:{line}: no column {name!r} (columns: {found}); see {find_column_setting(name, config)}"
                        ) from None
                columns[name].append(value)
            files.append(file)
            lines.append(line)
            word_lines.append([] if is_table(path) else row.get("#lines", []))
        if empty:
            raise InputError(f"{path}: is empty")
    table = Table(columns=columns, files=files, lines=lines, word_lines=word_lines if any(word_lines) else None)
    check_texts(table, form)
    return table


def read_files(
    locations: Sequence[str], config: DataConfig, key: str, form: ColumnSpec, *, needs_labels: bool = True
) -> Iterator[tuple[Path, Iterable[tuple[int, dict[str, Any]]]]]:
    """Each file and its rows. Of parallel text files the second of two is named; without `needs_labels` one may be alone, and
    holds sources."""
    paths = find_files(locations, key)
    plain = [path for path in paths if not is_table(path) and path.is_file()]
    if form.text_files == "parallel" and plain:
        if len(paths) == 1 and not needs_labels:
            yield plain[0], read_lines(plain[0], read_text(plain[0], config.encoding), config)
            return
        if len(plain) != len(paths) or len(plain) % 2:
            named = ", ".join(map(str, paths))
            raise InputError(f"{key} ({named}): text files come in twos, first the source and then its target")
        for source, target in zip(plain[::2], plain[1::2], strict=True):
            yield target, read_parallel(source, target, config)
        return
    for path in paths:
        yield path, read_rows(path, config, form.text_files)


def read_hub_dataset(config: DataConfig, form: ColumnSpec | None = None) -> dict[str, Table]:
    """The splits train, validation and test, as far as they are there, of a data set on the Hub.

    data.train, data.validation and data.test name its splits where they are called otherwise. A split whose labels are
    all -1, as benchmarks hide their tests, is left out.
    """
    import datasets

    form = form or text_and_label_spec(config.text_columns, str(config.label_column))
    datasets.disable_progress_bars()
    name = config.dataset or ""
    try:
        loaded = datasets.load_dataset(name, config.subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"data.dataset ({name}): cannot be loaded: {str(error).splitlines()[0]}") from None
    tables: dict[str, Table] = {}
    for split in ("train", "validation", "test"):
        wanted: tuple[str, ...] = getattr(config, split)
        require(len(wanted) <= 1, f"data.{split}", list(wanted), "names one split of data.dataset")
        chosen = wanted[0] if wanted else split
        if chosen not in loaded:
            if wanted or split == "train":
                raise InputError(f"data.{split} ({chosen}): {name} has the splits {', '.join(loaded)}")
            continue
        rows = loaded[chosen]
        if any("." in column and column not in rows.column_names for column in form.columns):
            rows = rows.flatten()  # {"translation": {"de": ...}} has the column translation.de then
        for column in (*form.inputs, *form.labels):
            if column not in rows.column_names:
                setting, found = find_column_setting(column, config), ", ".join(rows.column_names)
                raise InputError(f"{setting} ({column}): {name} has no such column (columns: {found})")
        feature = rows.features.get(config.label_column)
        class_names = tuple(getattr(getattr(feature, "feature", feature), "names", None) or ()) or None
        columns = {
            column: list(rows[column]) if column in rows.column_names else [None] * len(rows) for column in form.columns
        }
        if class_names and split != "train" and set(map(str, columns[str(config.label_column)])) == {"-1"}:
            continue
        tables[split] = Table(
            columns=columns,
            files=[f"{name}/{chosen}"] * len(rows),
            lines=list(range(1, len(rows) + 1)),
            class_names=class_names,
        )
        check_texts(tables[split], form)
    return tables
