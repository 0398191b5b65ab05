"""Quotes in tsv files: whether fields are quoted as programs write csv, or a quote is a character like any other."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hf_finetune.data.rows import Say
from hf_finetune.data.text_files import TextFile


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
