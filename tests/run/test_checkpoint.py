"""Checkpoint files: which are kept, which are found intact, and how damaged ones are handled."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_finetune.run import checkpoint
from hf_finetune.system.errors import InputError


def save(folder: Path, update: int, value: float | None = None) -> checkpoint.Manifest:
    """A small checkpoint."""
    content: dict[str, Any] = {
        "epoch": 1,
        "update": update,
        "loss": 0.5,
        "model_state_dict": {"w": torch.ones(3) * update},
    }
    return checkpoint.save_checkpoint(folder, content, metric="accuracy", value=value)


def list_updates(folder: Path) -> list[int]:
    """The updates of the checkpoints in a folder."""
    return [manifest.update for manifest in checkpoint.read_manifests(folder)]


def remove_old(folder: Path, saved: checkpoint.Manifest, best: int | None = None, **keep: int) -> None:
    """Removes old checkpoints, but keeps one best and one last unless `keep` says otherwise."""
    options = {"keep_best": 1, "keep_last": 1} | keep
    checkpoint.remove_old_checkpoints(folder, saved, greater_is_better=True, updates={best}, **options)


def test_names_contain_epoch_update_loss_and_metric(tmp_path: Path) -> None:
    assert save(tmp_path, 434, 0.9128).file == "ckpt_epoch0001_update000434_loss0.5000_accuracy0.9128.pt"
    assert save(tmp_path, 5).file == "ckpt_epoch0001_update000005_loss0.5000.pt"


def test_the_best_and_the_last_are_kept(tmp_path: Path) -> None:
    for update, value in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None)):
        remove_old(tmp_path, save(tmp_path, update, value))
    assert list_updates(tmp_path) == [2, 4]
    remove_old(tmp_path, save(tmp_path, 5, 0.5), keep_best=2, keep_last=2)
    assert list_updates(tmp_path) == [2, 4, 5]
    assert len(list(tmp_path.iterdir())) == 7  # three with their manifests, and the references


def test_the_best_is_the_one_that_stays_of_two_saves_of_an_update(tmp_path: Path) -> None:
    """A signal stopped the run at an evaluation; it was saved before it, and again after it."""
    save(tmp_path, 4, 0.1)
    save(tmp_path, 5, None)
    evaluated = save(tmp_path, 5, 0.9)
    checkpoint.write_references(tmp_path, evaluated, 5)
    remove_old(tmp_path, evaluated, best=5)
    assert checkpoint.read_references(tmp_path) == {"best": evaluated.file, "last": evaluated.file}
    assert (tmp_path / evaluated.file).exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_newer_checkpoint_does_not_remove_a_new_one(tmp_path: Path, damage: str) -> None:
    """A run that resumes from 50, because 100 is damaged, keeps what it saves at 60."""
    save(tmp_path, 50, 0.5)
    path = tmp_path / save(tmp_path, 100, 0.6).file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw if damage == "flipped" else raw[:-5]) if damage != "missing" else path.unlink()
    newest, skipped = checkpoint.find_newest_intact(tmp_path)
    assert newest is not None
    assert "update000050" in newest.name
    assert len(skipped) == 1
    remove_old(tmp_path, save(tmp_path, 60, 0.4), best=50)
    assert {50, 60} <= set(list_updates(tmp_path))
    newest, _ = checkpoint.find_newest_intact(tmp_path)
    assert newest is not None
    assert "update000060" in newest.name


def test_a_checkpoint_whose_manifest_cannot_be_read_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / save(tmp_path, 1).file
    checkpoint.make_manifest_path(path).write_text('{"file": "x", "of a later version": 1}')
    remove_old(tmp_path, save(tmp_path, 2))
    assert path.exists()


def test_what_a_stopped_save_left_is_no_damage(tmp_path: Path) -> None:
    """A file without a manifest was never reported as saved, unless references.json names it: then its manifest is lost."""
    saved = save(tmp_path, 1)
    (tmp_path / "ckpt_epoch0001_update000002_loss0.5000.pt").write_bytes(b"no manifest was written")
    for verify in (True, False):
        rows = checkpoint.list_checkpoints(tmp_path, verify=verify)
        assert [row.state for row in rows] == ["intact" if verify else "not read", checkpoint.NOT_COMPLETED]
    checkpoint.make_manifest_path(tmp_path / saved.file).unlink()
    states = [row.state for row in checkpoint.list_checkpoints(tmp_path, verify=True)]
    assert states == ["has no readable manifest", checkpoint.NOT_COMPLETED]


def test_a_full_disk_keeps_no_file_without_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save(tmp_path, 1)

    def refuse(path: Path, content: bytes) -> None:
        raise InputError(f"{path.parent}: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", refuse)
        for update in (2, 1):  # the second has the name of the first checkpoint, which stays
            with pytest.raises(InputError, match="full"):
                save(tmp_path, update)
    assert [path.name for path in tmp_path.glob("*.pt")] == [saved.file]
    assert checkpoint.find_newest_intact(tmp_path)[0] == tmp_path / saved.file


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("flipped", "has other bytes than were written"),
        ("cut", r"has \d+ bytes instead of \d+"),
        ("missing", "is missing"),
        ("manifest", "has no manifest"),
    ],
)
def test_a_disk_that_does_not_give_back_what_was_written_is_found_at_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, reason: str
) -> None:
    """It reports success. The older checkpoint is still there, since only a save that was read back removes it."""
    saved, write = save(tmp_path, 1), checkpoint.write_atomically

    def spoil(manifest_path: Path, content: bytes) -> None:
        write(manifest_path, content)
        path = manifest_path.with_suffix(".pt")
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        if damage == "manifest":
            manifest_path.write_bytes(content.replace(b"0.5", b"0.6"))
        elif damage == "missing":
            path.unlink()
        else:
            path.write_bytes(raw if damage == "flipped" else raw[:-5])

    monkeypatch.setattr(checkpoint, "write_atomically", spoil)
    with pytest.raises(InputError, match=rf"update000002\S+\.pt: {reason} when it is read back; check the disk$"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.read_references(tmp_path)["last"] == saved.file
    assert checkpoint.find_intact(tmp_path, 1) == tmp_path / saved.file


def test_a_save_computes_no_second_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that hashes beside the writing is enough: the file is read back with a cheaper digest."""
    monkeypatch.setattr(checkpoint, "hash_file", None)
    saved = save(tmp_path, 1)
    monkeypatch.undo()
    assert checkpoint.find_damage(tmp_path, saved) is None


def test_the_remains_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / "ckpt_epoch0001_update000001_loss0.5000.pt").write_bytes(b"no manifest was written")
    (tmp_path / ".ckpt_epoch0001_update000002_loss0.5000.pt.writing").write_bytes(b"half")
    saved = save(tmp_path, 3)
    remove_old(tmp_path, saved)
    assert {path.name for path in tmp_path.iterdir()} == {saved.file, f"{saved.file[:-3]}.json", "references.json"}


def test_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"run": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="is not an intact checkpoint"):
        checkpoint.load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_find_intact_takes_the_one_that_verifies(tmp_path: Path) -> None:
    bad, good = save(tmp_path, 7, 0.1), save(tmp_path, 7, 0.2)
    (tmp_path / bad.file).write_bytes(b"damaged")
    assert checkpoint.find_intact(tmp_path, 7) == tmp_path / good.file
    assert checkpoint.find_intact(tmp_path, 8) is None


def test_nested_tensors_are_copied_to_the_cpu() -> None:
    content = {"a": [torch.ones(1, device="meta")], "b": (1, {"c": "text"}), "d": torch.ones(2, requires_grad=True)}
    with pytest.raises(NotImplementedError, match="meta"):  # it is moved, and meta tensors cannot be
        checkpoint.copy_to_cpu(content)
    moved = checkpoint.copy_to_cpu({"b": (1, {"c": "text"}), "d": content["d"]})
    assert moved["b"] == (1, {"c": "text"})
    assert not moved["d"].requires_grad


@pytest.mark.parametrize(
    "change",
    [
        {"update": None},
        {"file": 3},
        {"file": "../x.pt"},
        {"loss": None},
        {"epoch": "one"},
        {"value": "high"},
        {"metric": 1},
        {"metric": "loss", "value": "high"},
        {"metric": 1, "value": None},
        {"metric": "loss", "value": 10**400},
        {"loss": 10**400},
        {"loss": "0.5"},
        {"value": 10**400},
        {"file": "a" * 5000},
    ],
)
def test_a_manifest_with_impossible_values_is_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    saved = save(tmp_path, 1, 0.5)
    path = checkpoint.make_manifest_path(tmp_path / saved.file)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert checkpoint.read_manifests(tmp_path) == []
    assert [row.state for row in checkpoint.list_checkpoints(tmp_path, verify=True)] == ["has no readable manifest"]


def test_damaged_bytes_give_an_input_error(tmp_path: Path) -> None:
    """Random bytes are changed in complete checkpoints and in bare pickles."""
    generator = random.Random(0)
    path = tmp_path / "x.pt"
    messages = []
    torch.save({"model": torch.ones(3), "run": {"a": [1, 2.5, "x"]}}, path)
    for content in (path.read_bytes(), pickle.dumps({"a": 1}, protocol=2)):
        for _ in range(300):
            spoiled = bytearray(content)
            for _ in range(generator.randint(1, 4)):
                spoiled[generator.randrange(len(spoiled))] = generator.randrange(256)
            path.write_bytes(spoiled)
            try:
                checkpoint.load_checkpoint(path)
            except InputError as error:
                messages.append(str(error))
    assert all(str(path) in message for message in messages)
    assert len(messages) > 300  # the others are still complete: a tensor's value has changed
