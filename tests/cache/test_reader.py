"""Cached activations read back in batches."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.entries import HIDDEN, ROWS, build, make_entry, make_features, make_values

from hf_finetune.cache import reader, store
from hf_finetune.cache.reader import StoredActivations
from hf_finetune.data.features import Padding, attach_activations, collate

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("resident", [0, 100, 2**26])
@pytest.mark.parametrize("dtype", reader.ITEM_BYTES)
def test_batches_get_the_activations_of_their_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, resident: int
) -> None:
    monkeypatch.setattr(reader, "RESIDENT_BYTES", resident)
    entry = make_entry(tmp_path, dtype)
    build(entry)
    for split, rows in ROWS.items():
        starts = entry.layout.starts[split]
        stored = StoredActivations(path=entry.folder / store.ACTIVATIONS, dtype=dtype, hidden=HIDDEN, starts=starts)
        features = dataclasses.replace(make_features(rows), activations=stored)
        for indices in (np.arange(len(rows)), np.array([len(rows) - 1, 0, 0]), np.array([3])):
            batch = attach_activations(collate(features, indices, Padding(9)), features)
            activations, mask = batch.activations, batch.inputs["attention_mask"].bool()
            assert activations is not None
            assert activations.dtype == getattr(torch, dtype)
            assert activations.shape == (*mask.shape, HIDDEN)
            expected = np.concatenate([make_values(rows[row]) for row in indices])
            assert torch.equal(activations[mask].float(), torch.from_numpy(expected))
            assert bool(torch.isfinite(activations).all())
            assert stored.unreleased_bytes <= resident
            if sys.platform == "linux" and resident == 0:
                assert count_resident_kilobytes(stored.path) == 0


def count_resident_kilobytes(path: Path) -> int:
    """Kilobytes of a mapped file that this process holds in memory."""
    maps = Path("/proc/self/smaps").read_text().split(f"{path}\n")
    assert len(maps) > 1
    return sum(int(part.split("Rss:")[1].split()[0]) for part in maps[1:])
