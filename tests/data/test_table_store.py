"""Tables on disk: read from files once, checked by their digests before they are used again."""

import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from hf_finetune.config.sections import DataConfig
from hf_finetune.data import hub_datasets, sources
from hf_finetune.data.columns import find_distinct
from hf_finetune.data.memory import read_memory
from hf_finetune.data.sources import read_table
from hf_finetune.data.splits import load_splits
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError

VALUES = [None, "a", 1, 1.0, True, "1", [1, "x"], {"k": [None]}, "ä😀", "half \ud800"]


@pytest.fixture(autouse=True)
def _store_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sources, hub_datasets):
        monkeypatch.setattr(module, "SMALLEST_STORED", 1)
    monkeypatch.setattr("hf_finetune.data.column_writer.ROWS_IN_CHUNK", 7)


def write_rows(path: Path, count: int = 50) -> str:
    rows = [{"text": f"text {row}", "label": VALUES[1 + row % 2]} for row in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str, root: Path | None) -> Table:
    return read_table((path,), DataConfig(train=(path,)), "data.train", root=root)


def list_tables(root: Path) -> list[Path]:
    return sorted((root / "tables").iterdir())


def test_a_table_on_disk_has_the_rows_and_digests_of_one_in_memory(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    memory, disk = read(path, None), read(path, tmp_path)
    assert disk.columns["text"].file is not None  # type: ignore[attr-defined]
    assert disk.columns == memory.columns
    assert [disk.where(row) for row in range(50)] == [memory.where(row) for row in range(50)]
    assert disk.digest(["text", "label"]) == memory.digest(["text", "label"]) != disk.digest(["label", "text"])
    for rows in ([3, 1, 1, 40], np.array([0, 9, 49]), range(2, 30, 3), range(4)):
        assert disk.take(rows).columns == memory.take(rows).columns
        assert disk.take(rows).digest(["text"]) == memory.take(rows).digest(["text"])
        assert list(disk.take(rows).lines) == [row + 1 for row in rows]
    again = pickle.loads(pickle.dumps(disk.take([5, 3])))
    assert list(again.columns["text"]) == ["text 5", "text 3"]
    assert again.columns["text"].file is not None
    (folder,) = list_tables(tmp_path)
    assert datasets.Dataset.from_file(str(folder / "rows.arrow"))["text"][:2] == ["text 0", "text 1"]


@pytest.mark.parametrize("first", [0, 3, 10, 25, 49])
def test_a_table_has_the_optional_columns_that_its_rows_have_whenever_the_first_one_comes(
    tmp_path: Path, first: int
) -> None:
    """The digest is that of a column of the task, which is null in all rows before."""
    rows = [{"text": "a"} | ({"late": [row], "later": "x"} if row in (first, 49) else {}) for row in range(50)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = ColumnSpec(inputs=("text",), also_read=("never", "late", "later"))
    dense = ColumnSpec(inputs=("text",), optional=("late", "later"))
    disk, memory, whole = (
        read_table((str(path),), DataConfig(train=("-",)), "data.train", columns, root=root)
        for columns, root in ((spec, tmp_path), (spec, None), (dense, None))
    )
    assert list(disk.columns) == list(memory.columns) == ["text", "late", "later"]
    assert list(disk.columns["late"]) == list(memory.columns["late"]) == [row.get("late") for row in rows]
    names = ["late", "later"]
    assert disk.digest(names) == memory.digest(names) == whole.digest(names)
    assert sorted(path.name for path in list_tables(tmp_path)[0].iterdir()) == ["meta.json", "rows.arrow"]
    given = read_memory(rows, "train", DataConfig(train=("-",)), spec)
    assert given.columns == memory.columns


def test_every_value_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    values = [value for value in VALUES if value != "half \ud800"] * 3
    path.write_text("".join(json.dumps({"text": "t", "label": value}) + "\n" for value in values))
    for table in (read(str(path), tmp_path), read(str(path), tmp_path)):
        assert list(map(repr, table.columns["label"])) == list(map(repr, values))
        assert [repr(table.columns["label"][row]) for row in reversed(range(len(values)))] == list(
            map(repr, reversed(values))
        )
        codes, distinct = find_distinct(table.columns["label"])
        assert [repr(distinct[code]) for code in codes] == list(map(repr, values))
        assert len(distinct) == len(VALUES) - 1


def test_files_are_read_once_and_again_if_they_or_the_settings_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    first = read(path, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_files", lambda *arguments, **options: pytest.fail("was read again"))
        assert read(path, tmp_path).columns == first.columns
    with Path(path).open("a") as file:
        file.write('{"text": "new", "label": "a"}\n')
    assert len(read(path, tmp_path)) == 51
    read_table((path,), DataConfig(train=(path,), encoding=("latin-1",)), "data.train", root=tmp_path)
    assert len(list_tables(tmp_path)) == 3


def test_every_damage_is_found_and_the_files_are_read_again(tmp_path: Path) -> None:
    path, generator = write_rows(tmp_path / "a.jsonl"), random.Random(0)
    expected = read(path, tmp_path)
    values = {name: list(column) for name, column in expected.columns.items()}
    (folder,) = list_tables(tmp_path)
    for number in range(120):
        file = folder / ("rows.arrow", "meta.json")[number % 2]
        content = bytearray(file.read_bytes())
        if number % 12 == 0:
            file.unlink()
        elif number % 12 in (1, 2):
            file.write_bytes(content[: generator.randrange(len(content))])
        elif number % 12 in (3, 4):
            file.write_bytes(content + b"x")
        else:
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.unlink()
            file.write_bytes(content)
        table = read(path, tmp_path)
        assert table.columns == values
        assert list(table.lines) == list(range(1, 51))


def test_a_row_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    with Path(path).open("a") as file:
        file.write('{"text": "", "label": "a"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:51: text is empty"):
        read(path, tmp_path)
    assert list_tables(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_said_and_the_rows_are_in_memory(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    (tmp_path / "root").write_text("a file where the folder should be")
    table = read(path, tmp_path / "root")
    assert len(table) == 50
    assert "held in memory" in table.notes[-1]


def test_splits_of_a_table_on_disk_are_those_of_one_in_memory(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 200)
    config = DataConfig(train=(path,), max_train_examples=90)
    memory, disk = load_splits(config, 3), load_splits(config, 3, root=tmp_path)
    for split, table in memory.tables().items():
        assert disk.tables()[split].columns == table.columns
        assert list(disk.tables()[split].lines) == list(table.lines)
        assert disk.tables()[split].digest(["text"]) == table.digest(["text"])
    shutil.rmtree(tmp_path / "tables")  # mapped files stay readable
    assert len(list(disk.train.columns["text"])) == 90


MEASURE = """
import sys
from pathlib import Path
from hf_finetune.config.sections import DataConfig
from hf_finetune.data import sources

def measure():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Anonymous:"))

def read(name):
    path = str(Path(sys.argv[1]) / name)
    return sources.read_table((path,), DataConfig(train=(path,)), "data.train", root=Path(sys.argv[1]))

sources.SMALLEST_STORED = 1
few = read("few.parquet")
before = measure()
many = read("many.parquet")
print(len(many), measure() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_a_parquet_file_leaves_no_memory_that_grows_with_its_rows(tmp_path: Path) -> None:
    """In a process of its own. It grew by 40 MB, which Arrow kept for itself."""
    for name, count in (("few", 1000), ("many", 100_000)):
        columns = {"text": [f"{row:060d} a text" for row in range(count)], "label": ["a", "b"] * (count // 2)}
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    printed = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    count, megabytes = printed.stdout.split()
    assert int(count) == 100_000
    assert float(megabytes) < 12
