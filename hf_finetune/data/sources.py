"""Tables of rows from files, folders and installed packages, each row with its origin."""

import glob
import hashlib
import os.path
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.arrow_files import read_class_names
from hf_finetune.data.examples import convert_rows, join_rows
from hf_finetune.data.formats import (
    ARROW_ENDINGS,
    find_ending,
    get_value,
    is_table,
    read_rows,
    say_nothing,
)
from hf_finetune.data.function_digest import digest_function
from hf_finetune.data.missing_columns import missing_column_error
from hf_finetune.data.plain import check_cell
from hf_finetune.data.row_adapter import WORD_LINES
from hf_finetune.data.rows import prefix_note, sort_notes
from hf_finetune.data.table import (
    ColumnSpec,
    Table,
    TableBuilder,
    check_texts,
    describe_origin,
    describe_value,
    is_text,
    text_and_label_spec,
)
from hf_finetune.data.table_store import SMALLEST_STORED, build_table, open_or_build
from hf_finetune.system.errors import InputError
from hf_finetune.system.files import hash_unchanged
from hf_finetune.system.locations import local_path

MOST_NAMES = 10  # of classes in one message


def find_files(locations: Sequence[str], key: str) -> list[Path]:
    """Returns the files and folders that the locations name. Globs are expanded, and their matches sorted.

    `key` is the setting that errors name. Raises InputError for a location without any file.
    """
    paths: list[Path] = []
    for location in locations:
        path = local_path(location, key)
        if os.path.exists(path):  # Path.exists raises an error if the name is too long
            paths.append(Path(path))
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"{key} ({location}): no such file or folder")
        paths += [Path(match) for match in matches]
    return paths


def read_table(
    locations: Sequence[str],
    config: DataConfig,
    key: str,
    spec: ColumnSpec | None = None,
    *,
    needs_labels: bool = True,
    root: Path | None = None,
) -> Table:
    """Reads all rows of the locations.

    Args:
        locations: Files, folders, globs, or package://NAME/path.
        config: The names of the columns, and the encodings of text files.
        key: The setting that errors name.
        spec: The columns to read; texts with a label if not given.
        needs_labels: False if rows may lack the label columns. Labels are read if there are any.
        root: The folder of the caches. The rows of large files lie there, for the next run too (data.table_store); if it is not
            given, they lie in memory.

    Raises InputError, with file and line, if a row lacks a column, or a text is null, empty or not a string.
    """
    if spec is None:
        spec = text_and_label_spec(config.text_columns, str(config.label_column))
    columns = spec

    def add_rows(builder: TableBuilder) -> list[str]:
        notes: list[str] = []
        files = read_files(locations, config, key, columns, needs_labels=needs_labels, say=notes.append)
        add_files(builder, files, config, columns, needs_labels=needs_labels)
        return notes

    def fill(builder: TableBuilder) -> dict[str, Any]:
        return sort_notes(
            add_rows(builder) if columns.find_conversion is None else convert_rows(builder, add_rows, columns)
        )

    paths = find_files(locations, key)
    if root is None or measure(paths) < SMALLEST_STORED:
        table = build_table(spec.own_columns, fill)
    else:
        parts = [
            [[str(path), digest_files([path])] for path in paths],
            describe_reading(config, spec, needs_labels=needs_labels),
        ]
        table = open_or_build(root, parts, spec.own_columns, fill)
    table = replace(table, class_names=find_class_names(paths, config))
    if spec.find_conversion is not None:
        check_texts(table, spec)
    return join_rows(table, spec, needs_labels=needs_labels)


def find_class_names(paths: Sequence[Path], config: DataConfig) -> tuple[str, ...] | None:
    """Returns the names of the classes whose numbers the label column of files holds; None if they name none.

    InputError if a file has other names than the first one, or none: their numbers would be mixed.
    """
    if not isinstance(config.label_column, str):
        return None
    found = {
        path: read_class_names(path, config.label_column)
        if find_ending(path) in ARROW_ENDINGS and path.suffix != ".gz" and path.is_file()
        else None
        for path in paths
    }
    first = next((path for path in paths if found[path]), None)
    if first is None:
        return None
    for path in paths:
        if found[path] != found[first]:
            raise InputError(
                f"{path}: {config.label_column} has {describe_names(found[path])}, and in {first} it has "
                f"{describe_names(found[first])}; write the labels of both as names"
            )
    return found[first]


def describe_names(names: Sequence[str] | None) -> str:
    """Returns the first names of classes, for error messages."""
    if names is None:
        return "no names of classes"
    return f"the classes {', '.join(names[:MOST_NAMES])}{', ...' if len(names) > MOST_NAMES else ''}"


def add_files(
    builder: TableBuilder,
    files: Iterable[tuple[Path, Iterable[tuple[int, dict[str, Any]]]]],
    config: DataConfig,
    spec: ColumnSpec,
    *,
    needs_labels: bool,
) -> None:
    """Adds the rows of files to a table. InputError, with file and line, if a row lacks a column, or if a text cannot be used."""
    texts = frozenset(spec.texts if spec.find_conversion is None else ())
    keys: tuple[str, ...] = ()
    absent: set[str] = set()  # columns that rows with these keys lack and do not need
    for path, rows in files:
        is_folder, has_words, num_rows = path.is_dir(), not is_table(path) or spec.adapter is not None, 0
        has_types = find_ending(path) in ARROW_ENDINGS  # others cannot give values of odd types
        for line, row in rows:
            num_rows += 1
            file = str(row[""] if is_folder else path)
            values: list[Any] = []
            if keys != tuple(row):
                keys, absent = tuple(row), set()
                builder.add_columns(spec.list_present(row))
                builder.add_unread(spec.list_unread(row))
            for name in builder.names:
                if name in absent:
                    values.append(None)
                    continue
                try:
                    value = get_value(row, name)
                except KeyError:
                    if spec.requires(name, row, needs_labels=needs_labels):
                        where = f"{file}:{line}"
                        raise missing_column_error(where, name, row, config, spec, needs_labels=needs_labels) from None
                    value = None
                    if "." not in name:  # else it depends on the row's values
                        absent.add(name)
                value = check_cell(value, f"{file}:{line}", name) if has_types else value
                if name in texts and not is_text(value):
                    where, unit = describe_origin(file, line), "file" if is_folder else "row"
                    raise InputError(f"{where}: {name} is {describe_text(value, name, rows, unit)}")
                values.append(value)
            builder.add(values, file, line, row.get(WORD_LINES) if has_words else None)
        if not num_rows:
            raise InputError(f"{path}: is empty")


def describe_text(value: Any, name: str, later: Iterable[tuple[int, dict[str, Any]]], unit: str) -> str:
    """Returns what is wrong with a text; of one that is not there, with the way out and how many more there are.

    Args:
        value: The value of the row that has no text.
        name: Its column.
        later: The rows after it, which are read to count those without a text too.
        unit: What a row is: "row" or "file".
    """
    described = describe_value(value)
    if described not in ("empty", "null"):
        return described
    count = 0
    try:
        for _, row in later:
            count += describe_value(get_value(row, name)) in ("empty", "null")
    except (InputError, KeyError):
        count = 0  # rows that cannot be read are named when those without a text are removed
    if not count:
        return f"{described}; remove the {unit}"
    return f"{described}; remove the {unit}, and {count:,} more without a text after it"


def measure(paths: Iterable[Path]) -> int:
    """Returns the size of files in bytes. A folder counts by its files."""
    return sum(
        file.stat().st_size
        for path in paths
        for file in (path.rglob("*") if path.is_dir() else [path])
        if file.is_file()
    )


def describe_reading(config: DataConfig, spec: ColumnSpec, *, needs_labels: bool) -> dict[str, Any]:
    """Returns all settings that the rows of files depend on, as plain values."""
    names = ("text_columns", "label_column", "encoding", "delimiter", "quoting", "header", "max_expansion")
    kind = spec.text_files and spec.text_files.description
    columns = {
        name: getattr(spec, name) for name in ("inputs", "labels", "optional", "texts", "alternatives", "also_read")
    }
    return {
        **{name: getattr(config, name) for name in names},
        **columns,
        "text_files": kind,
        "adapter": repr(spec.adapter),
        "conversion": spec.find_conversion and digest_function(spec.find_conversion),
        "needs_labels": needs_labels,
    }


def read_files(
    locations: Sequence[str],
    config: DataConfig,
    key: str,
    spec: ColumnSpec,
    *,
    needs_labels: bool = True,
    say: Callable[[str], None] = say_nothing,
) -> Iterator[tuple[Path, Iterable[tuple[int, dict[str, Any]]]]]:
    """Yields each file and its rows. Of a pair of text files, yields the second one.

    Without `needs_labels`, a single text file is read as the first of a pair. say: Takes sentences about what was recognised.
    """
    paths = find_files(locations, key)
    text_paths = [path for path in paths if not is_table(path) and path.is_file()]
    read_pair = None if spec.text_files is None else spec.text_files.read_pair
    is_single_source = len(paths) == 1 and not needs_labels
    if read_pair is None or not text_paths or is_single_source:
        for path in paths:
            rows = read_rows(path, config, spec.text_files, say, spec.needs)
            yield path, rows if path.is_dir() else adapt_rows(path, rows, spec, say, needs_labels=needs_labels)
        return
    if len(text_paths) != len(paths) or len(text_paths) % 2:
        names = ", ".join(map(str, paths))
        raise InputError(f"{key} ({names}): text files must come in pairs, each source followed by its target")
    for source, target in zip(text_paths[::2], text_paths[1::2], strict=True):
        yield target, read_pair(source, target, config, say)


def adapt_rows(
    path: Path,
    rows: Iterable[tuple[int, dict[str, Any]]],
    spec: ColumnSpec,
    say: Callable[[str], None],
    *,
    needs_labels: bool,
) -> Iterable[tuple[int, dict[str, Any]]]:
    """Returns the rows of a file in the task's own columns (ColumnSpec.adapter)."""
    if spec.adapter is None or not is_table(path):
        return rows
    return spec.adapter.adapt(
        iter(rows),
        where=lambda line: describe_origin(str(path), line),
        say=lambda note: say(prefix_note(note, f"{path}: ")),
        needs_labels=needs_labels,
    )


def digest_files(paths: Iterable[Path]) -> str:
    """Returns the sha256, in hexadecimal, of the bytes of files, in their order, and of all files in folders with their names
    inside the folder."""
    digest = hashlib.sha256()
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            name = "" if file == path else file.relative_to(path).as_posix()
            digest.update(f"{name} {hash_unchanged(file)}\n".encode())
    return digest.hexdigest()
