"""How a csv or tsv file is written: its delimiter, and whether its fields are quoted. Both are found in the file."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.headers import describe_header, find_repeated_name
from hf_finetune.data.rows import FileWarning, Say, find_ending
from hf_finetune.data.tab_quotes import is_written_quoted
from hf_finetune.data.text_files import TextFile
from hf_finetune.system.errors import InputError

DELIMITERS = (",", ";", "\t", "|")
NAMES = {"\t": "a tab"}  # of delimiters that are not printed as they are
HEAD_LINES, HEAD_CHARACTERS = 1000, 1 << 18  # at least one line
PANDAS = "pandas does it with read_csv(FILE, {}).to_csv(FILE, index=False)"
DOUBLE_QUOTES = "write double quotes; " + PANDAS.format('quotechar="\'"')
EXCEL_HINT = re.compile(r'"?sep=([,;\t|])"?\s*')  # a first line that Excel reads and writes


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a file is written.

    Args:
        delimiter: The delimiter of its fields.
        is_quoted: A field may stand in double quotes, and a double quote in it is doubled.
        num_skipped: Lines before the header.
        skips_blanks: Blanks after a delimiter are not part of the field.
    """

    delimiter: str
    is_quoted: bool
    num_skipped: int = 0
    skips_blanks: bool = False

    @property
    def options(self) -> dict[str, object]:
        """The arguments of csv.reader()."""
        return {
            "delimiter": self.delimiter,
            "quoting": csv.QUOTE_MINIMAL if self.is_quoted else csv.QUOTE_NONE,
            "quotechar": '"' if self.is_quoted else None,
            "skipinitialspace": self.skips_blanks,
        }


@dataclass(frozen=True, kw_only=True)
class Head:
    """The first lines of a file. is_whole: the file has no more."""

    lines: list[str]
    is_whole: bool

    def read_rows(self, dialect: Dialect) -> list[list[str]]:
        """Returns the rows, without blank ones, and without the last one if more of it may follow."""
        rows = list(csv.reader(self.lines, **dialect.options))  # type: ignore[arg-type]
        return [row for row in (rows if self.is_whole else rows[:-1] or rows) if row]


def read_head(file: TextFile) -> Head:
    """Returns the first lines of a file."""
    lines: list[str] = []
    size = 0
    with file.open(newline="") as text:
        for line in text:
            if len(lines) == HEAD_LINES or (lines and size + len(line) > HEAD_CHARACTERS):
                return Head(lines=lines, is_whole=False)
            lines.append(line)
            size += len(line)
    return Head(lines=lines, is_whole=True)


def find_dialect(file: TextFile, config: DataConfig, say: Say) -> Dialect:
    """Returns how a file is written, and says it if it is not as the ending says.

    Raises InputError if the delimiter may be one of several.
    """
    head, name = read_head(file), file.path.name
    hint = EXCEL_HINT.fullmatch(head.lines[0]) if head.lines else None
    if hint:
        head = Head(lines=head.lines[1:], is_whole=head.is_whole)
    own = "," if find_ending(file.path) == ".csv" else "\t"
    delimiter = config.delimiter or (hint[1] if hint else find_delimiter(file, head, own, config))
    if delimiter != own and config.delimiter is None:
        say(f"{name}: the delimiter is {NAMES.get(delimiter, delimiter)} (set data.delimiter to choose another)")
    is_quoted = config.quoting == "quoted"
    if config.quoting == "auto":
        is_quoted = delimiter != "\t" or is_written_quoted(file, say)
    dialect = Dialect(delimiter=delimiter, is_quoted=is_quoted, num_skipped=1 if hint else 0)
    if is_quoted and has_blanks_before_quotes(head, dialect):
        say(f"{name}: blanks after a delimiter are not part of the field, because quotes follow them")
        dialect = replace(dialect, skips_blanks=True)
    rows = head.read_rows(dialect)
    first, others = rows[:1], [row for row in rows[1:] if len(row) == len(rows[0])]
    warn_of_single_quotes(name, others, say)
    if first and config.header and (repeated := find_repeated_name(first[0], others)):
        say(describe_header(name, repeated))
    return dialect


def warn_of_single_quotes(name: str, rows: Sequence[Sequence[str]], say: Say) -> None:
    """Says it if all fields of a column stand in single quotes, which are characters like any other. name: That of the file."""
    columns = [[value.strip() for value in column] for column in zip(*rows, strict=True)] if len(rows) > 1 else []
    quoted = [
        str(number)
        for number, column in enumerate(columns, 1)
        if all(len(value) > 1 and value[0] == value[-1] == "'" for value in column)
    ]
    if quoted:
        where = "" if len(quoted) == len(columns) else f" of column {' and '.join(quoted)}"
        say(
            FileWarning(
                f"{name}: all fields{where} stand in single quotes, which are read as part of them; {DOUBLE_QUOTES}"
            )
        )


def has_blanks_before_quotes(head: Head, dialect: Dialect) -> bool:
    """True if quoted fields stand after a delimiter and a blank, as in `pos, "a fine film"`, and the first rows can be read so.
    Without that, the quotes would be read as part of the fields. Programs do not write this."""
    if not any(value.startswith(' "') for row in head.read_rows(dialect) for value in row[1:]):
        return False
    rows: list[list[str]] = []
    options = replace(dialect, skips_blanks=True).options
    try:
        rows.extend(csv.reader(head.lines, strict=True, **options))  # type: ignore[arg-type]
    except csv.Error:
        if head.is_whole or not rows:  # else the last row may be cut off
            return False
    return len({len(row) for row in rows if row}) == 1


# --- the delimiter ---------------------------------------------------------------------------------------------------


def find_delimiter(file: TextFile, head: Head, own: str, config: DataConfig) -> str:
    """Returns the delimiter that gives all first rows the same number of fields, at least 2. `own`: that of the ending.

    If several do, it is the one whose header has a column that is wanted. Raises InputError if that is not one alone.
    """
    wanted = {*config.text_columns, *config.label_columns}
    names: dict[str, set[str]] = {}  # of the columns, by delimiter
    fitting: list[str] = []
    for delimiter in DELIMITERS:
        for rows in read_both_ways(head, delimiter, config):
            names[delimiter] = {name.strip() for name in rows[0]} if rows and config.header else set()
            if rows and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
                fitting.append(delimiter)
                break
    named = [delimiter for delimiter in fitting or DELIMITERS if names.get(delimiter, set()) & wanted]
    if not fitting:
        return named[0] if len(named) == 1 else own
    if len(fitting) == 1 or len(named) == 1:
        return (named if len(named) == 1 else fitting)[0]
    if config.header and own in fitting and not named:
        return own  # the error about the missing column says more
    found = " or ".join(NAMES.get(delimiter, repr(delimiter)) for delimiter in fitting)
    raise InputError(f"{file.path}: the delimiter may be {found}; set data.delimiter")


def read_both_ways(head: Head, delimiter: str, config: DataConfig) -> Iterator[list[list[str]]]:
    """Yields the first rows as they are if fields are quoted, and if they are not, as far as data.quoting leaves it open."""
    ways = {"quoted": [True], "none": [False], "auto": [True, False] if delimiter == "\t" else [True]}[config.quoting]
    for is_quoted in ways:
        yield head.read_rows(Dialect(delimiter=delimiter, is_quoted=is_quoted))
