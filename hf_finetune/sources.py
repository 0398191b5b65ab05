"""Tables of rows from files, folders, installed packages and the Hub, each row with its origin."""

import glob
import importlib.metadata
import importlib.util
import os.path
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.config import DataConfig, check
from hf_finetune.errors import InputError
from hf_finetune.files import sha256_of
from hf_finetune.formats import TextFiles, is_table, read_lines, read_parallel, read_rows, read_text, value_of


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length, and for each row where it came from."""

    columns: dict[str, list[Any]]
    files: list[str]  # of each row
    lines: list[int]  # of each row, counted from 1; 0 where the whole file is the row
    class_names: tuple[str, ...] | None = None  # of an integer label column of a Hub data set
    word_lines: list[list[int]] | None = None  # of each row's words, where they have lines of their own

    def __len__(self) -> int:
        return len(self.files)

    def where(self, row: int) -> str:
        """`file:line` of a row."""
        return f"{self.files[row]}:{self.lines[row]}" if self.lines[row] else self.files[row]

    def take(self, rows: Sequence[int]) -> "Table":
        """The table of these rows, in this order."""
        return Table(
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
            files=[self.files[row] for row in rows],
            lines=[self.lines[row] for row in rows],
            class_names=self.class_names,
            word_lines=self.word_lines and [self.word_lines[row] for row in rows],
        )


@dataclass(frozen=True, kw_only=True)
class TableForm:
    """What a task needs of its rows, by the names of columns.

    inputs: in every row. labels: in every row that is trained or evaluated on. optional: taken where they are there. texts:
    those of them that must be strings with something in them. text_files: what files that are no tables hold. together: rows
    that are equal in these stay in one split. strata: the column whose values every split gets its share of. in_order: splits
    are taken from the end and not drawn.
    """

    inputs: tuple[str, ...]
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    text_files: TextFiles = ""
    together: tuple[str, ...] = ()
    strata: str | None = None
    in_order: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys((*self.inputs, *self.labels, *self.optional)))


def labelled_texts(config: DataConfig, *, numbers: bool = False) -> TableForm:
    """The form of texts with a label, or with a number."""
    texts, label = config.text_columns, str(config.label_column)
    return TableForm(inputs=texts, labels=(label,), texts=texts, text_files="classes", together=texts,
                     strata=None if numbers else label)  # fmt: skip


def setting_of(column: str, config: DataConfig) -> str:
    """The setting that names a column."""
    choices = "data.choice_columns" if column in config.choice_columns else "data.text_columns"
    return "data.label_column" if column == config.label_column else choices


def local_path(location: str, key: str) -> str:
    """The path that `package://NAME/path[#sha256=HEX]` means; any other location unchanged.

    NAME is the import name; the package is found but not imported. With #sha256 the file (of a folder: its
    model.safetensors) must have that digest. `key` is the setting named in errors.
    """
    if not location.startswith("package://"):
        return location
    rest, wants_digest, digest = location.removeprefix("package://").partition("#sha256=")
    name, _, inside = rest.partition("/")
    try:
        spec = importlib.util.find_spec(name) if re.fullmatch(r"\w+", name) else None
    except ValueError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{key} ({location}): no package {name!r} is installed; {install_hint(name)}")
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists() and not glob.glob(str(path)):
        raise InputError(f"{key} ({location}): the package {name} holds no {inside}")
    if wants_digest:
        weights = path / "model.safetensors" if path.is_dir() else path
        found = sha256_of(weights) if weights.is_file() else "no such file"
        if found != digest:
            raise InputError(f"{key} ({location}): {weights.name} is not the file that was expected (sha256 {found})")
    return str(path)


def model_files(location: str, key: str) -> tuple[str, dict[str, str]]:
    """What from_pretrained takes for a model's location: a folder or Hub id, and of a .gguf file its name beside them.

    Tensors of such a file are converted to floating point as they are loaded. InputError where the package gguf is missing.
    """
    source = local_path(location, key)
    if not source.lower().endswith(".gguf") or os.path.isdir(source):
        return source, {}
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{key} ({location}): a GGUF file is read by the package gguf: {install_hint('gguf')}")
    folder, name = os.path.split(source)
    return folder or ".", {"gguf_file": name}


def install_hint(import_name: str) -> str:
    """The pip command for a package: the smallest extra of ours that carries it, else its own name."""
    distribution = import_name.replace("_", "-")
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("hf-finetune") or []:
        if extra := re.search(r"extra == ['\"](\w+)['\"]", requirement):
            extras.setdefault(extra[1], []).append(re.split(r"[=<>!;\[ ]", requirement)[0].lower())
    carrying = [extra for extra, names in extras.items() if distribution.lower() in names]
    if carrying:
        return f"pip install 'hf-finetune[{min(carrying, key=lambda extra: len(extras[extra]))}]'"
    return f"pip install {distribution}"


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
    locations: Sequence[str], config: DataConfig, key: str, form: TableForm | None = None, *, needs_labels: bool = True
) -> Table:
    """All rows of the locations, with the columns of `form` (a text with a label, if not given) checked to be in every row.

    Labels are kept where there are any; without `needs_labels` they may be missing.
    """
    form = form or labelled_texts(config)
    columns: dict[str, list[Any]] = {name: [] for name in form.columns}
    needed = {*form.inputs, *(form.labels if needs_labels else ())}
    files: list[str] = []
    lines: list[int] = []
    word_lines: list[list[int]] = []
    for path, rows in files_of(locations, config, key, form, needs_labels=needs_labels):
        empty = True
        for line, row in rows:
            empty = False
            file = str(row[""] if path.is_dir() else path)
            for name in columns:
                try:
                    value = value_of(row, name)
                except KeyError:
                    value = None
                    if name in needed:
                        found = ", ".join(str(column) for column in row if column != "#lines") or "none"
                        raise InputError(
                            f"{file}:{line}: no column {name!r} (columns: {found}); see {setting_of(name, config)}"
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


def files_of(
    locations: Sequence[str], config: DataConfig, key: str, form: TableForm, *, needs_labels: bool = True
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


def has_fractions(values: Iterable[Any]) -> bool:
    """Whether all values are numbers (or strings of such) and some are not whole."""
    some = False
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return False
        try:
            some = not float(value).is_integer() or some  # nan too: encode_labels says where it is
        except (ValueError, OverflowError):
            return False
    return some


def check_texts(table: Table, form: TableForm) -> None:
    """Raises InputError at the first text that is null, empty or no string."""
    for name in form.texts:
        for row, value in enumerate(table.columns[name]):
            if not isinstance(value, str):
                kind = "null" if value is None else f"a {type(value).__name__}, not a string"
                raise InputError(f"{table.where(row)}: {name} is {kind}")
            if not value.strip():
                raise InputError(f"{table.where(row)}: {name} is empty")


def read_hub_dataset(config: DataConfig, form: TableForm | None = None) -> dict[str, Table]:
    """The splits train, validation and test, as far as they are there, of a data set on the Hub.

    data.train, data.validation and data.test name its splits where they are called otherwise. A split whose labels are
    all -1, as benchmarks hide their tests, is left out.
    """
    import datasets

    form = form or labelled_texts(config)
    datasets.disable_progress_bars()
    name = config.dataset or ""
    try:
        loaded = datasets.load_dataset(name, config.subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"data.dataset ({name}): cannot be loaded: {str(error).splitlines()[0]}") from None
    tables: dict[str, Table] = {}
    for split in ("train", "validation", "test"):
        wanted: tuple[str, ...] = getattr(config, split)
        check(len(wanted) <= 1, f"data.{split}", list(wanted), "names one split of data.dataset")
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
                setting, found = setting_of(column, config), ", ".join(rows.column_names)
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
