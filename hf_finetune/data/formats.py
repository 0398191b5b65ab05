"""Files of all formats as rows, each with the line it came from. The ending of a file's name chooses how it is read.

Readers go from the start of a file to its end and hold no more of it than a row, so that an error can name the line. Each is a
module: delimited, json_files, arrow_files, lines, conll.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hf_finetune.config.sections import FILE_ENDINGS, DataConfig
from hf_finetune.data.arrow_files import read_arrow
from hf_finetune.data.conll import read_conll
from hf_finetune.data.delimited import read_delimited
from hf_finetune.data.json_files import read_json, read_json_lines
from hf_finetune.data.lines import read_classes, read_lines, read_parallel
from hf_finetune.data.rows import (
    NeedsColumn,
    Rows,
    Say,
    find_ending,
    get_value,
    is_table,
    name_type,
    needs_all,
    say_nothing,
)
from hf_finetune.system.errors import InputError

__all__ = [
    "CLASS_FOLDERS",
    "CONLL",
    "LINES",
    "PARALLEL",
    "Rows",
    "Say",
    "TextFormat",
    "explain_missing_column",
    "find_ending",
    "get_value",
    "is_table",
    "name_type",
    "read_rows",
    "say_nothing",
]

FASTTEXT_ENDINGS = (".txt", ".ft", ".train", ".valid", ".test")
SPREADSHEETS = (".xlsx", ".xls", ".ods")
ARROW_ENDINGS = (".parquet", ".arrow", ".feather")  # these are compressed inside


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a task reads files that are not tables.

    Attributes:
        description: These files, for error messages.
        read: Reads one file, or one folder. Takes the path, the settings and a function for notes.
        read_pair: If files come in pairs, reads a pair: source and target. `read` then reads a source without target.
        takes_folders: True if `read` reads folders.
        endings: The endings of the files that `read` reads; None for all that are not tables, () for none.
        has_lists: The columns of the task hold lists, such as the words of a sentence.
    """

    description: str
    read: Callable[..., Rows]
    read_pair: Callable[..., Rows] | None = None
    takes_folders: bool = False
    endings: tuple[str, ...] | None = None
    has_lists: bool = False

    def takes(self, path: Path) -> bool:
        """True if `read` reads this file or folder."""
        if path.is_dir():
            return self.takes_folders
        return not is_table(path) and (self.endings is None or find_ending(path) in self.endings)


CLASS_FOLDERS = TextFormat(
    description="a folder; or a .txt file as fastText reads it",
    read=read_classes,
    takes_folders=True,
    endings=FASTTEXT_ENDINGS,
)
LINES = TextFormat(description="a text file", read=read_lines)
CONLL = TextFormat(description=".conllu, .conll, .bio, .iob, .txt", read=read_conll, has_lists=True)
PARALLEL = TextFormat(
    description="two text files with a source and its target on the same line", read=read_lines, read_pair=read_parallel
)


def read_rows(
    path: Path,
    config: DataConfig,
    text_files: TextFormat | None = None,
    say: Say = say_nothing,
    needs: NeedsColumn = needs_all,
) -> Rows:
    """Yields the rows of a file or folder: of a table by its ending, of any other by `text_files`.

    Args:
        path: The file or folder.
        config: How text files are written.
        text_files: How the task reads files that are not tables.
        say: Takes sentences about what was recognised in the file, such as its delimiter.
        needs: Whether the column with a name is needed. Rows have all columns, and others may be null.

    Raises InputError if the task does not read such files.
    """
    if find_ending(path) in SPREADSHEETS and not path.is_dir():
        raise InputError(f"{path}: spreadsheets are not read; save the sheet as CSV (UTF-8)")
    if text_files is not None and text_files.takes(path):
        return text_files.read(path, config, say)
    is_packed_twice = find_ending(path) in ARROW_ENDINGS and path.suffix == ".gz"
    if path.is_dir() or not is_table(path) or is_packed_twice:
        others = "" if text_files is None else f"; or {text_files.description}"
        raise InputError(f"{path}: the ending must be one of {', '.join(FILE_ENDINGS)} (.gz may follow){others}")
    has_lists = text_files is not None and text_files.has_lists
    return read_table_file(path, config, say, needs, has_lists=has_lists)


def read_table_file(path: Path, config: DataConfig, say: Say, needs: NeedsColumn, *, has_lists: bool) -> Rows:
    """Yields the rows of a table, by its ending. has_lists: As in TextFormat."""
    ending = find_ending(path)
    if ending in ARROW_ENDINGS:
        return read_arrow(path, needs)
    if ending in (".csv", ".tsv"):
        return read_delimited(path, config, say)
    if ending == ".json":
        return read_json(path, config, say, has_lists=has_lists)
    return read_json_lines(path, config, say)


def explain_missing_column(path: Path, config: DataConfig, text_files: TextFormat | None) -> str:
    """Returns the end of the error about a column that a file lacks: what else may be wrong with a file of this kind, or ""."""
    ending = find_ending(path)
    if ending in (".csv", ".tsv") and config.header:
        return ", or set data.header false if the file has no line with the names of columns"
    if ending in FASTTEXT_ENDINGS and text_files is CLASS_FOLDERS:
        return "; a line of such a file is __label__NAME and a text"
    return ""
