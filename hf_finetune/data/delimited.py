"""The rows of csv and tsv files, each with the line where it ends."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hf_finetune.config.sections import DataConfig
from hf_finetune.data.dialects import Dialect, find_dialect
from hf_finetune.data.quote_faults import (
    LongRows,
    describe_broken,
    describe_width,
    find_values,
    have_all_fields,
    look_like_rows,
)
from hf_finetune.data.rows import Rows, Say, say_nothing
from hf_finetune.data.text_files import TextFile, find_text_file
from hf_finetune.system.errors import InputError

csv.field_size_limit(1 << 30)


def read_delimited(path: Path, config: DataConfig, say: Say = say_nothing) -> Rows:
    """Yields the rows of a csv or tsv file. Blank lines are skipped.

    Raises InputError with file and line if a row is broken or has another number of fields than the first one, and if two columns
    have one name.
    """
    file = find_text_file(path, config, say)
    dialect = find_dialect(file, config, say)
    header: list[str] = []
    names: list[str] = []
    for line, fields in read_records(file, dialect, config, say):
        if not names:
            header = fields if config.header else []
            names = name_columns(f"{path}:{line}", fields, config, say)
            if header:
                continue
        if fields == header:
            raise InputError(
                f"{path}:{line}: has the names of the columns again, as when files are put together; remove the line, "
                "or set data.header false if the first line is a row of the data"
            )
        yield line, dict(zip(names, fields, strict=True))


def name_columns(where: str, first: Sequence[str], config: DataConfig, say: Say) -> list[str]:
    """Returns the names of the columns: those of the first row, stripped of blanks, or 1, 2, 3, ... if data.header is false.

    A name that a setting has with its blanks keeps them. InputError if two columns have one name.
    """
    if not config.header:
        return [str(number) for number in range(1, len(first) + 1)]
    wanted = {*config.text_columns, *config.label_columns}
    names = [name if name in wanted else name.strip(" \t\r\n\v\f\xa0\u3000\ufeff") for name in first]
    changed = [old for old, new in zip(first, names, strict=True) if old != new]
    if changed:
        file = Path(where.rpartition(":")[0]).name
        say(f"{file}: blanks around the names of columns are not part of them: {', '.join(map(repr, changed))}")
    for name in names:
        if name and names.count(name) > 1:
            numbers = " and ".join(str(number) for number, other in enumerate(names, 1) if other == name)
            raise InputError(
                f"{where}: columns {numbers} are both called {name!r}; rename one, or set data.header false if this line is a "
                "row of the data"
            )
    return names


def read_records(file: TextFile, dialect: Dialect, config: DataConfig, say: Say) -> Iterator[tuple[int, list[str]]]:
    """Yields the fields of each row that is not blank, with the line where it ends. All rows have as many as the first one."""
    path, width, line = file.path, 0, dialect.num_skipped
    pending: list[str] = []  # the lines of the row that is read
    values: list[set[str]] = []
    long_rows = LongRows()
    with file.open(newline="") as text:
        for _ in range(dialect.num_skipped):
            next(text)
        reader = csv.reader(keep_lines(text, pending), strict=True, **dialect.options)  # type: ignore[arg-type]
        try:
            for fields in reader:
                begin, line = line + 1, dialect.num_skipped + reader.line_num
                width = width or len(fields)
                if fields and len(fields) != width:
                    described = describe_width(fields, pending, begin, width=width, dialect=dialect, config=config)
                    raise InputError(f"{path}:{line}: {described}")
                if line > begin and have_all_fields(pending, dialect, width):
                    values = values or find_values(file, dialect, width)
                    if look_like_rows(pending, dialect, values):
                        long_rows.add(path, begin, pending, config)
                pending.clear()
                if fields:
                    yield line, fields
        except csv.Error as error:
            broken = describe_broken(error, pending, line + 1, dialect.num_skipped + reader.line_num)
            raise InputError(f"{path}:{line + 1}: broken row: {broken}") from None
    long_rows.report(path, say)


def keep_lines(lines: Iterable[str], pending: list[str]) -> Iterator[str]:
    """Yields the lines, and appends each to `pending`."""
    for line in lines:
        pending.append(line)
        yield line
