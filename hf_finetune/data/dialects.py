"""How a csv or tsv file is written: its delimiter, and whether its fields are quoted. Both are found in the file."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.rows import FileWarning, Say, find_ending
from hf_finetune.data.text_files import TextFile
from hf_finetune.system.errors import InputError

DELIMITERS = (",", ";", "\t", "|")
NAMES = {"\t": "a tab"}  # of delimiters that are not printed as they are
HEAD_LINES, HEAD_CHARACTERS = 1000, 1 << 18  # at least one line
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
    warn_of_single_quotes(name, head.read_rows(dialect)[1:], say)
    if is_quoted and has_blanks_before_quotes(head, dialect):
        say(f"{name}: blanks after a delimiter are not part of the field, because quotes follow them")
        return replace(dialect, skips_blanks=True)
    return dialect


def warn_of_single_quotes(name: str, rows: Sequence[Sequence[str]], say: Say) -> None:
    """Says it if all fields of rows stand in single quotes, which are characters like any other. name: That of the file."""
    fields = [value.strip() for row in rows for value in row]
    if len(rows) > 1 and all(len(value) > 1 and value[0] == value[-1] == "'" for value in fields):
        say(
            FileWarning(
                f"{name}: all fields stand in single quotes, which are read as part of them; write double quotes"
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


# --- quotes in tsv files ---------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class QuoteCount:
    """Counts of the fields of a tsv file if a quote is a character like any other.

    Attributes:
        num_lines: Lines that are not blank.
        widths: The number of lines by their number of fields.
        quoted: The number of fields of each column that stand in quotes as a writer of csv writes them.
        num_doubled: Those of them with doubled quotes inside.
        num_quoted_commas, num_bare_commas: Fields with a comma that stand in quotes; lines with a comma in a field that does not.
        num_stray: Fields with other quotes.
        begins: A field begins with a quote, so that it matters how the file is read.
    """

    num_lines: int = 0
    widths: dict[int, int] = field(default_factory=dict)
    quoted: dict[int, int] = field(default_factory=dict)
    num_doubled: int = 0
    num_quoted_commas: int = 0
    num_bare_commas: int = 0
    num_stray: int = 0
    begins: bool = False

    def watch(self, lines: Iterable[str]) -> Iterator[str]:
        """Yields the lines and counts them."""
        for line in lines:
            self.add(line)
            yield line

    def add(self, line: str) -> None:
        """Counts one line."""
        fields = line.rstrip("\r\n").split("\t")
        if fields == [""]:
            return
        self.num_lines += 1
        self.widths[len(fields)] = self.widths.get(len(fields), 0) + 1
        bare = fields if '"' not in line else []
        for column, value in enumerate(fields if '"' in line else ()):
            if '"' not in value:
                bare.append(value)
                continue
            self.begins = self.begins or value.startswith('"')
            inside = value[1:-1]
            if len(value) < 2 or value[0] + value[-1] != '""' or '"' in inside.replace('""', ""):
                self.num_stray += 1
                continue
            self.quoted[column] = self.quoted.get(column, 0) + 1
            self.num_doubled += '""' in inside
            self.num_quoted_commas += "," in inside
        self.num_bare_commas += any("," in value for value in bare)

    def count_wrong(self) -> int:
        """Returns the number of lines that have another number of fields than most have."""
        return self.num_lines - max(self.widths.values(), default=0)

    def shows_a_writer(self) -> bool:
        """True if the fields in quotes are as programs write them: with doubled quotes, in all of a column, or where there is
        a comma (as Excel does). False if a quote stands where no program writes it."""
        if self.num_stray or not self.quoted:
            return False
        is_whole_column = max(self.quoted.values()) > 0.5 * self.num_lines
        only_commas = self.num_quoted_commas == sum(self.quoted.values()) and not self.num_bare_commas
        return bool(self.num_doubled) or is_whole_column or only_commas


def is_written_quoted(file: TextFile, say: Say) -> bool:
    """True if the fields of a tsv file are quoted where needed, as programs write csv. It is said if it makes a difference."""
    with file.open(newline="") as text:
        if not any('"' in line for line in text):
            return False
    plain = QuoteCount()
    with file.open(newline="") as text:
        num_wrong, num_long = count_wrong_rows(plain.watch(text))
        for _ in plain.watch(text):  # the lines after a broken row
            pass
    if num_wrong is None or num_wrong != plain.count_wrong():
        is_quoted = num_wrong is not None and num_wrong < plain.count_wrong()
    else:
        is_quoted = not num_long and plain.shows_a_writer()
    if plain.begins:
        way = "quoted" if is_quoted else "characters like any other"
        what = "fields that begin with a quote are" if is_quoted else "quotes are read as"
        say(f"{file.path.name}: {what} {way} (set data.quoting to choose)")
    return is_quoted


def count_wrong_rows(lines: Iterable[str]) -> tuple[int | None, int]:
    """Returns the number of rows of a quoted tsv file that have another number of fields than most have, and the number of those
    that take several lines. The first is None if a row is broken."""
    reader = csv.reader(lines, delimiter="\t", strict=True)
    widths: dict[int, int] = {}
    num_long = line = 0
    try:
        for row in reader:
            num_long += reader.line_num - line > 1
            line = reader.line_num
            if row:
                widths[len(row)] = widths.get(len(row), 0) + 1
    except csv.Error:
        return None, num_long
    return sum(widths.values()) - max(widths.values(), default=0), num_long


# --- rows that a quote swallows --------------------------------------------------------------------------------------


def find_values(file: TextFile, dialect: Dialect, width: int) -> list[set[str]]:
    """Returns the values of each column in the first lines of a file that have no quote, without the header."""
    head = read_head(file)
    rows = [line.rstrip("\r\n").split(dialect.delimiter) for line in head.lines[1:] if '"' not in line]
    return [{row[column] for row in rows if len(row) == width} for column in range(width)]


def have_all_fields(lines: Sequence[str], dialect: Dialect, width: int) -> bool:
    """True if each line has as many fields as a row, which are at least two, if quotes are characters like any other."""
    return width > 1 and all(line.count(dialect.delimiter) == width - 1 for line in lines)


def look_like_rows(lines: Sequence[str], dialect: Dialect, values: Sequence[set[str]]) -> bool:
    """True if each of the lines, which have all fields, has in one column a value that is seen there elsewhere.

    values: The values of each column in other rows.
    """
    rows = [line.rstrip("\r\n").split(dialect.delimiter) for line in lines]
    return any(all(fits(row[column], known) for row in rows) for column, known in enumerate(values) if known - {""})


def fits(value: str, known: set[str]) -> bool:
    """True if a value is one of a column's, or is a number as they all are."""
    return value in known or (is_number(value) and all(map(is_number, known)))


def is_number(text: str) -> bool:
    """True if a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
