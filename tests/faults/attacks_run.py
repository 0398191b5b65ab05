"""The writers of a run's folder: checkpoints, records, curves, notes and its lock."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fault_attack import Attack

from faults.tools import Tools, move, read_files, to_lists
from hf_finetune.data.report import DataReport
from hf_finetune.run import checkpoint, folder, resume, seen_rows, trackers, tracking, training_run
from hf_finetune.run.seen_rows import SEEN_ROWS, read_seen_rows
from hf_finetune.system.errors import InputError
from hf_finetune.system.locks import HeldError, Lock


def list_attacks(tools: Tools) -> list[Attack]:
    """The attacks on a run's folder."""
    return [
        Attack(name="checkpoint", prepare=save_three, write=lambda place: save(place, 4, 0.7), read=read_checkpoints),
        Attack(name="first checkpoint", write=lambda place: save(place / "new", 4, 0.7), read=read_checkpoints),
        Attack(
            name="copy of a checkpoint",
            prepare=lambda place: save_three(place / "a"),
            write=lambda place: copy(tools, place),
            read=lambda place: read_checkpoints(place / "b"),
        ),
        Attack(
            name="preflight", prepare=make_folder, write=lambda place: preflight(tools, place), read=lambda place: {}
        ),
        Attack(
            name="seen rows", prepare=make_folder, write=lambda place: write_seen_rows(tools, place), read=read_seen
        ),
        Attack(name="claim", write=lambda place: claim(tools, place), read=lambda place: {}),
        Attack(name="record", prepare=make_folder, write=lambda place: record(tools, place), read=read_records),
        Attack(
            name="archive",
            prepare=lambda place: record_old(tools, place),
            write=lambda place: record(tools, place, resume="never"),
            read=read_archive,
            leaves=("run.*", "run.*/*"),  # each call moves what the one before has written
        ),
        Attack(name="metrics", prepare=log_old, write=lambda place: log(tools, place), read=read_metrics),
        Attack(
            name="tensorboard",
            prepare=log_old,
            write=lambda place: log(tools, place, ("tensorboard",)),
            read=read_metrics,
            leaves=("*tfevents*",),
            dies=False,
        ),
        Attack(name="wandb id", prepare=make_folder, write=lambda place: bool(run_id(tools, place)), read=read_run_id),
        Attack(name="lock", write=lock_twice, read=lambda place: {}),
    ]


def make_folder(place: Path) -> None:
    """The folder of a run."""
    (place / "run").mkdir()


# --- checkpoints ----------------------------------------------------------------------------------------------------


def save(place: Path, update: int, value: float) -> None:
    """Saves a checkpoint and removes old ones. The second is the best."""
    content: dict[str, Any] = {"epoch": 1, "update": update, "loss": 0.5, "model": torch.full((5,), float(update))}
    saved = checkpoint.save_checkpoint(place, content, metric="accuracy", value=value, best_update=2)
    checkpoint.remove_old_checkpoints(place, saved, keep_best=1, keep_last=1, greater_is_better=True, updates={2})


def save_three(place: Path) -> None:
    """Three saves, which leave the best and the last."""
    for update, value in ((1, 0.5), (2, 0.9), (3, 0.6)):
        save(place, update, value)


def read_checkpoints(place: Path) -> dict[str, Any]:
    """The newest checkpoint, the best, and the references that are there."""
    found: dict[str, Any] = {}
    for folder_of_them in (place, place / "new"):
        newest, _ = checkpoint.find_newest_intact(folder_of_them)
        best = checkpoint.find_intact(folder_of_them, 2)
        for name, path in (("newest", newest), ("best", best)):
            if path is not None:
                found[name] = to_lists(checkpoint.load_checkpoint(path))
    return found


def copy(tools: Tools, place: Path) -> None:
    """Copies a checkpoint, as a run that continues elsewhere does. One that cannot be read is none: another takes its place."""
    if not move(tools.run, place).runtime.on_main(lambda: resume.copy_checkpoint(place / "a", 2, place / "b")):
        raise InputError(f"{place}: there is nothing to copy")


# --- before training ------------------------------------------------------------------------------------------------


def preflight(tools: Tools, place: Path) -> None:
    """Reserves a checkpoint's space, and gives it back."""
    training_run.preflight_check(move(tools.run, place))


def claim(tools: Tools, place: Path) -> None:
    """Creates and locks a folder, and releases it."""
    config = tools.make_config(place)
    with folder.lock_folder(config, move(tools.run, place).runtime) as lock:
        assert lock is not None


def record(tools: Tools, place: Path, resume: str = "auto") -> None:
    """Writes what a run records before it begins."""
    config = tools.make_config(place, **{"checkpoint.resume": resume})
    report = DataReport(rows={"train": 60}, labels={}, texts={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "describe_environment", lambda _: {"device": "cpu"})  # which asks git
        runtime = move(tools.run, place).runtime
        runtime.on_main(lambda: folder.record_run(config, runtime, {"data": {}}, report))


def record_old(tools: Tools, place: Path) -> None:
    """A run that has trained."""
    make_folder(place)
    (place / "run" / "config.yaml").write_text("name: old\n")
    for number in range(3):
        (place / "run" / f"file-{number}").write_text(f"{number}")


def read_records(place: Path) -> dict[str, Any]:
    """The records."""
    return read_files(place / "run", "*.json", "*.yaml")


def read_archive(place: Path) -> dict[str, Any]:
    """The records of the new run, and the files of the old one wherever they are."""
    found = read_records(place)
    if found.get("config.yaml") == b"name: old\n":
        del found["config.yaml"]
    return found | {path.name: path.read_text() for path in place.glob("run*/file-*")}


# --- curves ---------------------------------------------------------------------------------------------------------


def log_old(place: Path) -> None:
    """The rows of an interrupted run."""
    make_folder(place)
    rows = [{"update": number, "epoch": 1, "time": 0.0, "train/loss": 0.5} for number in (1, 2)]
    (place / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"upda')


def log(tools: Tools, place: Path, names: tuple[str, ...] = ()) -> None:
    """Logs two rows after the second update of the interrupted run."""
    run = move(tools.run, place)
    config = tools.make_config(place, **{"tracking.trackers": list(names)})
    tracker = tracking.Tracking(config, run.runtime, metric="accuracy", start_update=2)
    for update in (3, 4):
        tracker.log({"train/loss": 0.25}, update=update, epoch=1)
    tracker.write_test_row({"accuracy": 0.5}, update=4, epoch=1)
    tracker.finish({"test": {"accuracy": 0.5}}, update=4)


def read_metrics(place: Path) -> dict[str, Any]:
    """The rows of metrics.jsonl without their times. The next run drops a last line that was cut off."""
    found: dict[str, Any] = {}
    for line in (place / "run" / "metrics.jsonl").read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            found[f"{row['update']} {sorted(row)[-3:]}"] = {**row, "time": 0.0}
    return found


def run_id(tools: Tools, place: Path) -> str:
    """The id of the run at W&B."""
    return trackers.get_wandb_id(move(tools.run, place).runtime)


def read_run_id(place: Path) -> dict[str, Any]:
    """Whether there is an id, and its length."""
    path = place / "run" / "wandb-id"
    return {"id": len(path.read_text())} if path.exists() else {}


# --- at the end -----------------------------------------------------------------------------------------------------


def write_seen_rows(tools: Tools, place: Path) -> None:
    """Writes the hashes of the training rows."""
    seen_rows.write_seen_rows(move(tools.run, place))


def read_seen(place: Path) -> dict[str, Any]:
    """The hashes."""
    found = read_seen_rows(place / "run")
    return {} if found is None else {SEEN_ROWS: found.hashes.tolist()}


def lock_twice(place: Path) -> bool:
    """Takes a lock, which nobody else can take, and releases it."""
    lock = Lock(place / "lock")
    try:
        lock.acquire(lambda _: None)
    except OSError as error:
        raise InputError(f"{place}: {error}") from None
    try:
        Lock(place / "lock").acquire(lambda _: None)
    except (HeldError, OSError):
        return True
    finally:
        lock.release()
    return False
