"""Tables on disk: columns that were read from files once, for all later runs on the same files.

A table lies in cache_root/tables/KEY: rows.arrow, and meta.json with digests of both. It is used only if the digests are right;
otherwise the files are read again. The key holds digests of the files and all settings that reading depends on.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_finetune import __version__
from hf_finetune.data.arrow_columns import open_columns
from hf_finetune.data.table import Table, TableBuilder, assemble_table
from hf_finetune.system.files import hash_file

VERSION = 3  # raise it if the same key would give another table
SMALLEST_STORED = 4_000_000  # bytes: rows that are read as fast as a table is opened and checked are read each time
FOLDER, ROWS, META = "tables", "rows.arrow", "meta.json"

Fill = Callable[[TableBuilder], Mapping[str, Any]]  # adds all rows, and returns further attributes of the table


def build_table(names: tuple[str, ...], fill: Fill) -> Table:
    """Returns a table in memory."""
    builder = TableBuilder(names)
    attributes = fill(builder)
    return builder.finish(**attributes)


def open_or_build(root: Path, parts: Any, names: tuple[str, ...], fill: Fill) -> Table:
    """Returns a table on disk. It is built if it is not there, or damaged.

    Args:
        root: The folder of the caches.
        parts: Plain values that the rows depend on.
        names: The names of the columns.
        fill: Reads the rows if they are needed.

    If the folder cannot be written, the table lies in memory, and its notes say so.
    """
    key = hashlib.sha256(json.dumps([VERSION, __version__, names, parts]).encode()).hexdigest()[:32]
    folder = root / FOLDER / key
    table = open_table(folder)
    if table is not None:
        with contextlib.suppress(OSError):
            os.utime(folder / META)  # the time of its last use
        return table
    temporary = folder.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        write_table(temporary, names, fill)
        if (table := open_table(folder)) is None:  # else another run was faster, and may be reading it
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            table = open_table(folder)
        if table is not None:
            return table
        reason = "does not keep what is written"
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    table = build_table(names, fill)
    note = f"the rows are held in memory, because {folder.parent} {reason}"
    return replace(table, notes=(*table.notes, note))


def write_table(folder: Path, names: tuple[str, ...], fill: Fill) -> None:
    """Writes a table into a folder."""
    builder = TableBuilder(names, folder / ROWS)
    attributes = fill(builder)
    table = builder.describe()
    builder.writer.close()
    content = {
        "rows": hash_file(folder / ROWS),
        "columns": builder.writer.describe(),
        "table": table,
        "attributes": dict(attributes),
    }
    (folder / META).write_text(json.dumps({"digest": digest_json(content), "content": content}), encoding="utf-8")


def open_table(folder: Path) -> Table | None:
    """Returns the table in a folder, None if there is none or if a digest is wrong."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        content = meta["content"]
        if meta["digest"] != digest_json(content) or content["rows"] != hash_file(folder / ROWS):
            return None
        table = assemble_table(open_columns(folder / ROWS, content["columns"]), content["table"])
        return replace(table, **{name: restore(value) for name, value in content["attributes"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged
        return None


def restore(value: Any) -> Any:
    """Returns an attribute of a table as it was before it was JSON."""
    return tuple(value) if isinstance(value, list) else value


def digest_json(content: Any) -> str:
    """Returns the sha256 of plain values, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
