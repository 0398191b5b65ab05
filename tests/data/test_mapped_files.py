"""Arrays in mapped files: the same items as in memory, and no pages that stay."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_finetune.data import mapped_files
from hf_finetune.data.arrow_columns import open_columns
from hf_finetune.data.batches import plan_epoch
from hf_finetune.data.column_writer import ColumnWriter
from hf_finetune.data.features import Array, Features, Padding, collate, iterate_array
from hf_finetune.data.mapped_files import MappedArray, map_array
from hf_finetune.training.source import measure_features

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages of a map")


def write_array(path: Path, values: Array) -> MappedArray:
    values.tofile(path)
    return map_array(path, values.dtype.name, values.shape)


def measure_pages(folder: Path) -> float:
    """Returns the MB of pages in memory of all files in a folder that are mapped."""
    total, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            is_inside = str(folder) in line
        elif is_inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total * 1024 / 1e6


KEYS: list[Any] = [
    0,
    -1,
    np.int64(700),
    slice(3, 9),
    slice(9, 3),
    slice(-5, None),
    slice(None),
    slice(0, 900, 7),
    np.array([5, 5, 0, 999, -1, -1000]),
    np.array([[1, 2, 3], [998, 999, 0]]),
    (np.array([7, 3]), None),
    np.array([], dtype=np.int64),
    [3, 1],
    np.arange(1000) % 3 == 0,
    np.array(4),
    True,
    Ellipsis,
]
PAIRED = [(np.array([3, 1, 9]), np.array([0, 2, 1])), (np.array([3, 1]), [0, 2]), (np.array([3, 1]), 1), (7, 2)]


@pytest.mark.parametrize("smallest", [0, 10**9], ids=["read", "mapped"])
@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize("shape", [(1000,), (1000, 3)])
@pytest.mark.parametrize("dtype", ["int32", "bool", "float64"])
def test_items_are_those_of_an_array_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smallest: int, key: Any, shape: tuple[int, ...], dtype: str
) -> None:
    monkeypatch.setattr(mapped_files, "BYTES_BEFORE_RELEASE", smallest)
    values = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    mapped = write_array(tmp_path / "values.bin", values)
    assert mapped[key].dtype == values.dtype
    assert np.array_equal(mapped[key], values[key])
    assert np.shape(mapped[key]) == np.shape(values[key])


@pytest.mark.parametrize("key", PAIRED, ids=repr)
def test_indices_of_several_axes_are_paired_as_numpy_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Any
) -> None:
    monkeypatch.setattr(mapped_files, "BYTES_BEFORE_RELEASE", 0)
    values = np.arange(3000).reshape(1000, 3)
    assert np.array_equal(write_array(tmp_path / "values.bin", values)[key], values[key])


@pytest.mark.parametrize("key", [1000, -1001, np.array([3, 1000]), np.array([-1001])])
def test_an_item_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Any) -> None:
    monkeypatch.setattr(mapped_files, "BYTES_BEFORE_RELEASE", 0)
    with pytest.raises(IndexError):
        write_array(tmp_path / "values.bin", np.arange(1000))[key]


def test_what_is_computed_from_a_mapped_array_is_plain(tmp_path: Path) -> None:
    mapped = write_array(tmp_path / "values.bin", np.arange(1000))
    for computed in (mapped + 1, np.diff(mapped), np.where(mapped > 3, mapped, 0), np.concatenate([mapped, mapped])):
        assert getattr(computed, "file", None) is None
    assert isinstance(mapped.sum(), np.integer)
    with pytest.raises(ValueError, match="read-only"):
        mapped[3] = 1


def test_the_file_is_closed_with_the_array(tmp_path: Path) -> None:
    mapped = write_array(tmp_path / "values.bin", np.arange(1000))
    assert mapped.file is not None
    descriptor = mapped.file.descriptor
    del mapped
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)


@linux_only
def test_an_epoch_holds_no_pages_of_encoded_text(tmp_path: Path) -> None:
    """Fails if a batch is read through the map, which maps 2 MB around each row, or if a pass over the rows leaves its pages."""
    num_rows, length = 400_000, 16
    ids = write_array(tmp_path / "ids.bin", np.arange(num_rows * length, dtype=np.int32) % 1000)
    offsets = write_array(tmp_path / "offsets.bin", np.arange(num_rows + 1) * length)
    features = Features(inputs={"input_ids": ids}, offsets=offsets, labels=None, num_truncated=0)
    for batch in plan_epoch(measure_features(features).lengths, 64, 0, 1)[:40]:
        rows = collate(features, batch, Padding(0)).inputs["input_ids"].numpy()
        assert (rows[:, 0] == batch * length % 1000).all()
    assert measure_pages(tmp_path) < 5
    assert int(np.sum(ids, dtype=np.int64)) > 0  # reads all of the map
    assert measure_pages(tmp_path) > 20
    assert sum(int(part.sum(dtype=np.int64)) for part in iterate_array(ids)) == int(np.sum(ids, dtype=np.int64))
    for _ in iterate_array(ids):
        pass
    assert measure_pages(tmp_path) < 5
    assert (features.lengths == length).all()
    features.fingerprint()
    assert measure_pages(tmp_path) < 5


@linux_only
def test_scattered_rows_of_a_table_hold_no_pages(tmp_path: Path) -> None:
    writer = ColumnWriter(["text"], tmp_path / "rows.arrow")
    for row in range(100_000):
        writer.add([f"{row:0200}"])
    writer.close()
    column = open_columns(tmp_path / "rows.arrow", writer.describe())["text"]
    scattered = column.take(np.random.default_rng(0).permutation(100_000)[:1000])
    assert [int(value) for value in scattered[:]] == list(scattered.rows)  # type: ignore[arg-type]
    assert measure_pages(tmp_path) < 6
