"""Files of many formats as rows, each with the line it came from.

The readers use the standard library (pyarrow for parquet), so that an error can name the file and the line.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_finetune.config.sections import FILE_ENDINGS, DataConfig
from hf_finetune.system.errors import InputError

csv.field_size_limit(1 << 30)

Rows = Iterator[tuple[int, dict[str, Any]]]  # pairs of a line number, from 1, and a row

# Columns of CoNLL-U, https://universaldependencies.org/format.html
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


# --- tables: csv, tsv, json, jsonl, parquet --------------------------------------------------------------------------


def read_text(path: Path, encodings: Sequence[str]) -> str:
    """Returns the text of a file, by the first encoding that fits. Files named *.gz are decompressed.

    Raises InputError if the file cannot be read or no encoding fits.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    problem = ""
    for encoding in encodings:
        try:
            return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
        except UnicodeDecodeError as error:
            content = error.object  # without the byte order mark, which utf-8-sig removes
            line = content.count(b"\n", 0, error.start) + 1
            problem = problem or f"{path}:{line}: byte 0x{content[error.start]:02x} is not {encoding}"
        except (LookupError, ValueError):  # ValueError: a few codecs of Python do not decode bytes to text
            raise InputError(f"data.encoding ({encoding}): Python has no such encoding") from None
    raise InputError(f"{problem}; name the file's encodings in data.encoding, such as [utf-8, latin-1]")


def read_delimited(path: Path, text: str, delimiter: str) -> Rows:
    """Yields the rows of a csv or tsv file with a header line."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        width = len(reader.fieldnames or ())
        for row in reader:
            if None in row or None in row.values():
                num_fields = sum(value is not None for value in row.values())
                if None in row:  # the fields beyond the header, a list
                    num_fields = width + len(row[None])
                raise InputError(f"{path}:{reader.line_num}: {num_fields} fields, but the header has {width}")
            yield reader.line_num, row
    except csv.Error as error:
        line = reader.line_num + 1  # line_num is that of the previous row
        raise InputError(f"{path}:{line}: broken row: {error}") from None


def read_json_lines(path: Path, text: str) -> Rows:
    """Yields the rows of a file with one JSON object on each line. Blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            check_unicode(line, row)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: broken JSON: {describe_json_error(error)}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: must be a JSON object with named columns, not {name_type(row)}")
        yield number, row


def name_type(value: Any) -> str:
    """Returns the type of a value with its article, for error messages: "null", "a list", "an int"."""
    if value is None:
        return "null"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def check_unicode(text: str, value: Any) -> None:
    """Raises UnicodeEncodeError if the JSON `text` of `value` has half a surrogate pair, as in \\uD800."""
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()


def describe_json_error(error: Exception) -> str:
    """Returns the error's text with the column, and without the position in the text, which is not that in the file."""
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair"
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def read_json(path: Path, text: str) -> Rows:
    """Yields the rows of a JSON array of objects, or the questions of a SQuAD file, with the number of the record, from 1."""
    if not text.strip():
        return
    try:
        rows = json.loads(text)
        check_unicode(text, rows)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":  # several documents: JSON lines in a file named .json
            yield from read_json_lines(path, text)
            return
        origin = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(path)
        raise InputError(f"{origin}: broken JSON: {describe_json_error(error)}") from None
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        yield from enumerate(read_squad(path, rows["data"]), 1)
        return
    if not isinstance(rows, list):
        rows = [rows]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}: record {number} must be a JSON object, not {name_type(row)}")
        yield number, row


def read_parquet(path: Path) -> Rows:
    """Yields the rows of a parquet file, with the number of the row, from 1."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not an intact parquet file: {str(error).splitlines()[0]}") from None
    except (
        ValueError,
        OverflowError,
        KeyError,
    ) as error:  # no UTF-8, dates that Python does not have, unknown time zones
        raise InputError(f"{path}: holds a value that cannot be read: {error}") from None


def read_squad(path: Path, articles: list[Any]) -> Iterator[dict[str, Any]]:
    """Yields the questions of a SQuAD 1.1 or 2.0 file.

    A row has id, title, context, question, answers {text, answer_start} and is_impossible.
    """
    for article_number, article in enumerate(articles, 1):
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = question.get("answers", [])
                    yield {
                        "id": str(question["id"]),
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": question["question"],
                        "answers": {key: [answer[key] for answer in answers] for key in ("text", "answer_start")},
                        "is_impossible": question.get("is_impossible", False),
                    }
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else "does not have the layout of SQuAD"
            raise InputError(
                f"{path}: article {article_number} {problem}; SQuAD files hold data: [{{paragraphs: [{{context, qas: "
                "[{id, question, answers: [{text, answer_start}]}]}]}]"
            ) from None


def read_table_file(path: Path, config: DataConfig) -> Rows:
    """Yields the rows of a csv, tsv, json, jsonl or parquet file, by its ending."""
    ending = find_ending(path)
    if ending == ".parquet":
        return read_parquet(path)
    text = read_text(path, config.encoding)
    if ending in (".csv", ".tsv"):
        return read_delimited(path, text, "," if ending == ".csv" else "\t")
    return read_json_lines(path, text) if ending == ".jsonl" else read_json(path, text)


# --- other files: each task reads one kind at most -------------------------------------------------------------------


def read_class_folder(folder: Path, config: DataConfig) -> Rows:
    """Yields the rows of a folder with one subfolder of .txt files for each class. The line is 0.

    The path of the file is in the row's column "", which no table can have.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    files = [(path, subfolder.name) for subfolder in classes for path in sorted(subfolder.glob("*.txt"))]
    if not files:
        raise InputError(f"{folder}: has no subfolders with .txt files, one subfolder for each class")
    if len(config.text_columns) == 2:
        raise InputError(f"data.text_columns ({list(config.text_columns)}): a folder of .txt files has one text column")
    for path, label in files:
        yield 0, {"": path, config.text_columns[0]: read_text(path, config.encoding), str(config.label_column): label}


def read_lines(path: Path, config: DataConfig) -> Rows:
    """Yields every line of a text file as a row, empty lines too."""
    for number, line in enumerate(split_lines(read_text(path, config.encoding)), 1):
        yield number, {config.text_columns[0]: line.removesuffix("\r")}


def split_lines(text: str) -> list[str]:
    """Returns the lines of a text. A newline at its end does not begin another line."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_conll(path: Path, config: DataConfig) -> Rows:
    """Yields the sentences of a CoNLL file, one word on a line and blank lines between sentences.

    A row has the words in the text column, the tags in the label column, and the lines of the words in "#lines". The word is
    in the first column of the file. The tag is in the last column, or in the one whose number (from 1) is data.label_column; in
    CoNLL-U files (.conllu) in the one whose name it is, such as upos. A file with a single column has no tags.
    """
    is_conllu = find_ending(path) == ".conllu"
    words: list[str] = []
    tags: list[str] = []
    lines: list[int] = []
    width = 0
    for number, line in enumerate([*read_text(path, config.encoding).split("\n"), ""], 1):
        if not line.strip():
            if words:
                row: dict[str, Any] = {config.text_columns[0]: words, "#lines": lines}
                if tags:
                    row[str(config.label_column)] = tags
                yield lines[0], row
            words, tags, lines = [], [], []
            continue
        if is_conllu and line.startswith("#"):
            continue
        fields = line.rstrip("\r").split("\t") if is_conllu or "\t" in line else line.split()
        if fields[0] == "-DOCSTART-":
            continue
        if is_conllu and not fields[0].isdigit():  # 1-2: the parts of "don't" follow; 1.1: a word that was left out
            continue
        width = width or len(fields)
        expected_width = len(CONLLU) if is_conllu else width
        if len(fields) != expected_width:
            raise InputError(f"{path}:{number}: {len(fields)} columns, expected {expected_width}")
        lines.append(number)
        words.append(fields[1] if is_conllu else fields[0])
        if is_conllu or width > 1:
            tags.append(fields[find_tag_column(config, width, is_conllu=is_conllu)].strip())


def find_tag_column(config: DataConfig, width: int, *, is_conllu: bool) -> int:
    """Returns the index of the column of tags, from 0. `width`: number of columns."""
    column = str(config.label_column)
    if is_conllu:
        name = "upos" if column == "tags" else column.lower()
        if name not in CONLLU:
            raise InputError(f"data.label_column ({column}): for a CoNLL-U file must be one of {', '.join(CONLLU)}")
        return CONLLU.index(name)
    if not column.isdigit():
        return width - 1
    if not 1 < int(column) <= width:
        raise InputError(f"data.label_column ({column}): the file has {width} columns, and words are in the first")
    return int(column) - 1


def read_parallel(source: Path, target: Path, config: DataConfig) -> Rows:
    """Yields the lines of two text files as pairs: source in the text column, target in the label column.

    Lines that are empty in both files are skipped. Raises InputError if one file has more lines than the other, or if a line is
    empty in one file only.
    """
    source_lines, target_lines = (split_lines(read_text(path, config.encoding)) for path in (source, target))
    if len(source_lines) != len(target_lines):
        raise InputError(
            f"{target}: has {len(target_lines):,} lines, but {source} has {len(source_lines):,}; each line must be the target "
            "of the same line of the source file"
        )
    for number, pair in enumerate(zip(source_lines, target_lines, strict=True), 1):
        source_text, target_text = (line.strip() for line in pair)
        if bool(source_text) != bool(target_text):
            empty, other = (target, source) if source_text else (source, target)
            raise InputError(f"{empty}:{number}: is empty, but line {number} of {other} is not")
        if source_text:
            yield number, {config.text_columns[0]: source_text, str(config.label_column): target_text}


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a task reads files that are not tables.

    Attributes:
        description: These files, for error messages.
        read: Reads one file, or one folder.
        read_pair: If files come in pairs, reads a pair: source and target. `read` then reads a source without target.
        takes_folders: True if `read` reads folders and not files.
    """

    description: str
    read: Callable[[Path, DataConfig], Rows]
    read_pair: Callable[[Path, Path, DataConfig], Rows] | None = None
    takes_folders: bool = False


CLASS_FOLDERS = TextFormat(description="a folder", read=read_class_folder, takes_folders=True)
LINES = TextFormat(description="a text file", read=read_lines)
CONLL = TextFormat(description=".conllu, .conll, .bio, .iob, .txt", read=read_conll)
PARALLEL = TextFormat(
    description="two text files with a source and its target on the same line", read=read_lines, read_pair=read_parallel
)


# --- all files -------------------------------------------------------------------------------------------------------


def get_value(row: Mapping[str, Any], column: str) -> Any:
    """Returns the value of a column. "a.b" is the entry b of the object in column a. Raises KeyError if there is none."""
    if column in row or "." not in column:
        return row[column]
    outer, _, inner = column.partition(".")
    if not isinstance(row[outer], Mapping):
        raise KeyError(column)
    return get_value(row[outer], inner)


def find_ending(path: Path) -> str:
    """Returns the ending of a file's name in lower case, without .gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def is_table(path: Path) -> bool:
    """True if the file's ending is that of a table."""
    return find_ending(path) in FILE_ENDINGS


def say_nothing(note: str) -> None:
    """Keeps no note."""


def read_rows(
    path: Path, config: DataConfig, text_files: TextFormat | None = None, say: Callable[[str], None] = say_nothing
) -> Rows:
    """Yields the rows of a file or folder: of a table by its ending, of any other by `text_files`.

    say: Takes sentences about what was recognised in the file, such as its delimiter.

    Raises InputError if the task does not read such files.
    """
    if text_files is not None and path.is_dir() == text_files.takes_folders and (path.is_dir() or not is_table(path)):
        return text_files.read(path, config)
    is_compressed_parquet = find_ending(path) == ".parquet" and path.suffix == ".gz"
    if path.is_dir() or not is_table(path) or is_compressed_parquet:
        others = "" if text_files is None else f"; or {text_files.description}"
        raise InputError(f"{path}: the ending must be one of {', '.join(FILE_ENDINGS)} (.gz may follow){others}")
    return read_table_file(path, config)
