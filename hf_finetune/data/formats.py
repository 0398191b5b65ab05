"""Files of many formats as rows, each with the line it came from.

Readers are plain standard library (pyarrow for parquet), so that an error can name the file and the line.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hf_finetune.config.sections import FILE_ENDINGS, DataConfig
from hf_finetune.system.errors import InputError

csv.field_size_limit(1 << 30)

# What a file that is no table (.csv, .json, ...) holds: nothing known, folders of classes, lines of text, words with tags,
# or one of two files whose lines belong together.
TextFiles = Literal["", "classes", "lines", "conll", "parallel"]

CONLLU = (
    "id",
    "form",
    "lemma",
    "upos",
    "xpos",
    "feats",
    "head",
    "deprel",
    "deps",
    "misc",
)  # universaldependencies.org/format


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
            raise InputError(f"{path}:{number}: broken JSON: {describe_json_error(error)}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: must be a JSON object with named columns, not a {type(row).__name__}")
        yield number, row


def check_unicode(text: str, value: Any) -> None:
    """Raises UnicodeEncodeError where the JSON `text` of `value` writes half a surrogate pair, as in \\uD800."""
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()


def describe_json_error(error: Exception) -> str:
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
        raise InputError(f"{place}: broken JSON: {describe_json_error(error)}") from None
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        yield from enumerate(read_squad(path, rows["data"]), 1)
        return
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
        yield 0, {"": path, config.text_columns[0]: read_text(path, config.encoding), str(config.label_column): label}


def read_squad(path: Path, articles: list[Any]) -> Iterator[dict[str, Any]]:
    """Questions of a SQuAD 1.1 or 2.0 file, one row each: id, title, context, question, answers {text, answer_start},
    is_impossible."""
    for article_number, article in enumerate(articles, 1):
        try:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    given = asked.get("answers", [])
                    answers = {key: [answer[key] for answer in given] for key in ("text", "answer_start")}
                    yield {"id": str(asked["id"]), "title": article.get("title", ""), "context": paragraph["context"],
                           "question": asked["question"], "answers": answers,
                           "is_impossible": asked.get("is_impossible", False)}  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            lacks = f"lacks {error}" if isinstance(error, KeyError) else "is not of SQuAD's form"
            raise InputError(
                f"{path}: article {article_number} {lacks}; SQuAD files hold data: [{{paragraphs: [{{context, qas: "
                "[{id, question, answers: [{text, answer_start}]}]}]}]"
            ) from None


def read_lines(path: Path, text: str, config: DataConfig) -> Rows:
    """Every line of a text file as a row, empty ones too."""
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        yield number, {config.text_columns[0]: line.removesuffix("\r")}


def read_conll(path: Path, text: str, config: DataConfig) -> Rows:
    """Sentences of a CoNLL file, one word a line and blank lines between sentences, as {tokens, tags}.

    The word stands in the first column and the tag in the last, or in the column whose number (from 1) is data.label_column;
    of CoNLL-U files (.conllu) by that column's name, such as upos. "#lines" of a row are the lines of its words. A file of
    one column has words only.
    """
    is_conllu = path.name.removesuffix(".gz").lower().endswith(".conllu")
    words: list[str] = []
    tags: list[str] = []
    lines: list[int] = []
    width = 0

    def row() -> dict[str, Any]:
        found: dict[str, Any] = {config.text_columns[0]: [*words], "#lines": [*lines]}
        return found | ({str(config.label_column): [*tags]} if tags else {})

    for number, line in enumerate([*text.split("\n"), ""], 1):
        if not line.strip():
            if words:
                yield lines[0], row()
            words, tags, lines = [], [], []
            continue
        if is_conllu and line.startswith("#"):
            continue
        fields = line.rstrip("\r").split("\t") if is_conllu or "\t" in line else line.split()
        if fields[0] == "-DOCSTART-" or (
            is_conllu and not fields[0].isdigit()
        ):  # documents; 1-2 of "don't", 1.1 of ellipsis
            continue
        width = width or len(fields)
        if len(fields) != width or (is_conllu and width != len(CONLLU)):
            expected_width = len(CONLLU) if is_conllu else width
            raise InputError(f"{path}:{number}: {len(fields)} columns where there should be {expected_width}")
        lines.append(number)
        words.append(fields[1] if is_conllu else fields[0])
        if is_conllu or width > 1:
            tags.append(fields[find_tag_column(config, width, is_conllu=is_conllu)].strip())


def find_tag_column(config: DataConfig, width: int, *, is_conllu: bool) -> int:
    """The column of the tags, from 0."""
    asked = str(config.label_column)
    if is_conllu:
        name = asked.lower() if asked.lower() in CONLLU else "upos" if asked == "tags" else ""
        if not name:
            raise InputError(f"data.label_column ({asked}): of a CoNLL-U file one of {', '.join(CONLLU)}")
        return CONLLU.index(name)
    if asked.isdigit() and not 1 < int(asked) <= width:
        raise InputError(f"data.label_column ({asked}): the file has {width} columns, the first of them the words")
    return int(asked) - 1 if asked.isdigit() else width - 1


def read_parallel(source: Path, target: Path, config: DataConfig) -> Rows:
    """The lines of two text files that belong together, as {text column, label column}; lines empty in both are passed over.

    InputError where one has more lines, or a line is empty in one of them.
    """
    sides = [read_text(path, config.encoding).split("\n") for path in (source, target)]
    sides = [lines[:-1] if lines[-1] == "" else lines for lines in sides]
    if len(sides[0]) != len(sides[1]):
        raise InputError(
            f"{target}: has {len(sides[1]):,} lines and {source} {len(sides[0]):,}; line by line they must belong together"
        )
    for number, (one, other) in enumerate(zip(*sides, strict=True), 1):
        if bool(one.strip()) != bool(other.strip()):
            empty, full = (target, source) if one.strip() else (source, target)
            raise InputError(f"{empty}:{number}: is empty, and line {number} of {full} is not")
        if one.strip():
            yield number, {config.text_columns[0]: one.strip(), str(config.label_column): other.strip()}


def get_value(row: Mapping[str, Any], column: str) -> Any:
    """What a row has in a column; "a.b" is the entry b of the objects in column a. KeyError where there is none."""
    if column in row or "." not in column:
        return row[column]
    outer, _, inner = column.partition(".")
    if not isinstance(row[outer], Mapping):
        raise KeyError(column)
    return get_value(row[outer], inner)


def is_table(path: Path) -> bool:
    """Whether a file's ending is one of those of tables."""
    return Path(path.name.removesuffix(".gz")).suffix.lower() in FILE_ENDINGS


def read_rows(path: Path, config: DataConfig, text_files: TextFiles = "classes") -> Rows:
    """Rows of one file or class folder, told apart by ending. `text_files`: what files of other endings hold."""
    if path.is_dir() and text_files == "classes":
        return read_class_folder(path, config)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending == ".parquet" and path.suffix != ".gz":
        return read_parquet(path)
    other = {"classes": "or a folder", "lines": "or of a text file", "conll": "or .conllu, .conll, .bio, .iob, .txt",
             "parallel": "or two text files whose lines belong together", "": ""}[text_files]  # fmt: skip
    if path.is_dir() or ending == ".parquet" or (not is_table(path) and text_files not in ("lines", "conll")):
        raise InputError(f"{path}: the ending must be one of {', '.join(FILE_ENDINGS)} (.gz may follow), {other}")
    text = read_text(path, config.encoding)
    if not is_table(path):
        return read_lines(path, text, config) if text_files == "lines" else read_conll(path, text, config)
    if ending in (".csv", ".tsv"):
        return read_delimited(path, text, "," if ending == ".csv" else "\t")
    return read_json_lines(path, text) if ending == ".jsonl" else read_json(path, text)
