"""Rows of text and labels from files, folders, installed packages and the Hub, each row with its origin.

Readers are plain standard library (pyarrow for parquet), so that an error can name the file and the line.
"""

import csv
import glob
import gzip
import importlib.metadata
import importlib.util
import io
import json
import os.path
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.config import FILE_ENDINGS, DataConfig, check
from hf_finetune.errors import InputError
from hf_finetune.files import sha256_of

csv.field_size_limit(1 << 30)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length, and for each row where it came from."""

    columns: dict[str, list[Any]]
    files: list[str]  # of each row
    lines: list[int]  # of each row, counted from 1; 0 where the whole file is the row
    class_names: tuple[str, ...] | None = None  # of an integer label column of a Hub data set

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
        )


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


def read_text(path: Path, encodings: Sequence[str]) -> str:
    """The decoded text of a file, gunzipped where its name says so, by the first encoding that fits."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    failure = ""
    for encoding in encodings:
        try:
            return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
        except UnicodeDecodeError as error:
            given = error.object  # without the byte order mark that utf-8-sig takes off
            line = given.count(b"\n", 0, error.start) + 1
            failure = failure or f"{path}:{line}: byte 0x{given[error.start]:02x} is not {encoding}"
        except (LookupError, ValueError):  # ValueError: the few codecs of Python that are not for bytes of text
            raise InputError(f"data.encoding ({encoding}): Python knows no such encoding") from None
    raise InputError(f"{failure}; name the file's encodings in data.encoding, such as [utf-8, latin-1]")


Rows = Iterator[tuple[int, dict[str, Any]]]  # line number from 1, and the row


def read_delimited(path: Path, text: str, delimiter: str) -> Rows:
    """Rows of a csv or tsv with a header line."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        width = len(reader.fieldnames or ())
        for row in reader:
            if None in row or None in row.values():
                fields = width + len(row[None]) if None in row else sum(value is not None for value in row.values())
                raise InputError(f"{path}:{reader.line_num}: {fields} fields where the header has {width}")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num + 1}: broken row: {error}") from None  # line_num: of the row before


def read_json_lines(path: Path, text: str) -> Rows:
    """Rows of a file with one JSON object a line; blank lines are passed over."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            check_unicode(line, row)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: broken JSON: {json_fault(error)}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: must be a JSON object with named columns, not a {type(row).__name__}")
        yield number, row


def check_unicode(text: str, value: Any) -> None:
    """Raises UnicodeEncodeError where the JSON `text` of `value` writes half a surrogate pair, as in \\uD800."""
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()


def json_fault(error: Exception) -> str:
    """What is wrong, without the position, which is that in the line and not in the file."""
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair"
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def read_json(path: Path, text: str) -> Rows:
    """Rows of a JSON array of objects; the number is the record's."""
    if not text.strip():
        return
    try:
        rows = json.loads(text)
        check_unicode(text, rows)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":  # several documents: JSON lines under the ending .json
            yield from read_json_lines(path, text)
            return
        place = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(path)
        raise InputError(f"{place}: broken JSON: {json_fault(error)}") from None
    if not isinstance(rows, list):
        rows = [rows]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}: record {number} must be a JSON object, not a {type(row).__name__}")
        yield number, row


def read_parquet(path: Path) -> Rows:
    """Rows of a parquet file; the number is the row's."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole parquet file: {str(error).splitlines()[0]}") from None
    except (ValueError, OverflowError) as error:  # bytes that are no UTF-8; dates beyond those of Python
        raise InputError(f"{path}: holds a value that cannot be read: {error}") from None


def read_class_folder(folder: Path, config: DataConfig) -> Rows:
    """Rows of a folder with one sub-folder of .txt files a class; yields 0 and the file's path under "" as well."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    files = [(path, kind.name) for kind in classes for path in sorted(kind.glob("*.txt"))]
    if not files:
        raise InputError(f"{folder}: holds no sub-folders with .txt files, one sub-folder a class")
    if len(config.text_columns) == 2:
        raise InputError(f"data.text_columns ({list(config.text_columns)}): a folder of .txt files has one text")
    for path, label in files:
        yield 0, {"": path, config.text_columns[0]: read_text(path, config.encoding), config.label_column: label}


def read_rows(path: Path, config: DataConfig) -> Rows:
    """Rows of one file or class folder, told apart by ending."""
    if path.is_dir():
        return read_class_folder(path, config)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending == ".parquet" and path.suffix != ".gz":
        return read_parquet(path)
    if ending not in FILE_ENDINGS or ending == ".parquet":
        raise InputError(f"{path}: the ending must be one of {', '.join(FILE_ENDINGS)} (.gz may follow), or a folder")
    text = read_text(path, config.encoding)
    if ending in (".csv", ".tsv"):
        return read_delimited(path, text, "," if ending == ".csv" else "\t")
    return read_json_lines(path, text) if ending == ".jsonl" else read_json(path, text)


def read_table(locations: Sequence[str], config: DataConfig, key: str, *, needs_labels: bool = True) -> Table:
    """All rows of the locations, with the text columns and the label column checked to be there in every row.

    Labels are kept where there are any; without `needs_labels` they may be missing.
    """
    names = [*config.text_columns, config.label_column]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    files: list[str] = []
    lines: list[int] = []
    for path in find_files(locations, key):
        empty = True
        for line, row in read_rows(path, config):
            empty = False
            file = str(row[""] if path.is_dir() else path)
            for name in names:
                if name not in row and (needs_labels or name != config.label_column):
                    setting = "data.label_column" if name == config.label_column else "data.text_columns"
                    found = ", ".join(str(column) for column in row) or "none"
                    raise InputError(f"{file}:{line}: no column {name!r} (columns: {found}); see {setting}")
                columns[name].append(row.get(name))
            files.append(file)
            lines.append(line)
        if empty:
            raise InputError(f"{path}: is empty")
    table = Table(columns=columns, files=files, lines=lines)
    check_texts(table, config)
    return table


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


def check_texts(table: Table, config: DataConfig) -> None:
    """Raises InputError at the first text that is null, empty or no string."""
    for name in config.text_columns:
        for row, value in enumerate(table.columns[name]):
            if not isinstance(value, str):
                kind = "null" if value is None else f"a {type(value).__name__}, not a string"
                raise InputError(f"{table.where(row)}: {name} is {kind}")
            if not value.strip():
                raise InputError(f"{table.where(row)}: {name} is empty")


def read_hub_dataset(config: DataConfig, revision: str | None = None) -> dict[str, Table]:
    """The splits train, validation and test, as far as they are there, of a data set on the Hub.

    data.train, data.validation and data.test name its splits where they are called otherwise. A split whose labels are
    all -1, as benchmarks hide their tests, is left out.
    """
    import datasets

    datasets.disable_progress_bars()
    name = config.dataset or ""
    try:
        loaded = datasets.load_dataset(name, config.subset, revision=revision)
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
        names = [*config.text_columns, config.label_column]
        for column in names:
            if column not in rows.column_names:
                setting = "data.label_column" if column == config.label_column else "data.text_columns"
                found = ", ".join(rows.column_names)
                raise InputError(f"{setting} ({column}): {name} has no such column (columns: {found})")
        feature = rows.features[config.label_column]
        class_names = tuple(getattr(getattr(feature, "feature", feature), "names", None) or ()) or None
        columns = {column: list(rows[column]) for column in names}
        if class_names and split != "train" and set(map(str, columns[config.label_column])) == {"-1"}:
            continue
        tables[split] = Table(
            columns=columns,
            files=[f"{name}/{chosen}"] * len(rows),
            lines=list(range(1, len(rows) + 1)),
            class_names=class_names,
        )
        check_texts(tables[split], config)
    return tables
