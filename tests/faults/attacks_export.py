"""The writers of what a run gives away: the model folder with its card, predictions, and notes of pushes."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fault_attack import Attack
from support.hub_client import make_run

from faults.tools import Tools, move, read_files
from hf_finetune import train
from hf_finetune.export import hub, materialize, pending_pushes, prediction_files, start
from hf_finetune.export.model_folder import record_settings, write_model
from hf_finetune.run.saving import save_run
from hf_finetune.run.training_run import Clock
from hf_finetune.system.errors import InputError, StoppedError
from hf_finetune.tasks import sentence_transformers_files
from hf_finetune.training.progress import FRESH

ENDINGS = ("jsonl", "json", "csv", "tsv.gz", "parquet", "txt")
TARGET = pending_pushes.Target(repo_id="ada/clf")

CHECKPOINT = "ckpt_epoch0001_update000001_loss0.5000.pt"  # of SAVED
SAVED = dataclasses.replace(FRESH, update=1, train_loss=0.5)


def list_attacks(tools: Tools) -> list[Attack]:
    """The attacks on what a run gives away."""
    return [
        Attack(
            name="model folder",
            prepare=lambda place: write_model_folder(tools, place, "old"),
            write=lambda place: write_model_folder(tools, place, "new"),
            read=read_model,
        ),
        Attack(
            name="adapter folder",
            write=lambda place: write_adapter_folder(tools, place),
            read=read_model,
        ),
        Attack(
            name="materialized model",
            sample=3,
            prepare=lambda place: save_run(move(tools.run, place), SAVED),
            write=lambda place: materialize_model(place),
            read=read_model,
        ),
        Attack(
            name="start",
            sample=3,
            prepare=lambda place: save_run(move(tools.run, place / "old"), SAVED),
            write=lambda place: resolve(tools, place),
            read=read_start,
        ),
        Attack(
            name="end of a run",
            prepare=lambda place: move(tools.run, place).config.run_dir.mkdir(),
            write=lambda place: finish(tools, place),
            read=read_end,
            sample=3,
        ),
        *(
            Attack(
                name=f"predictions in {ending}",
                prepare=lambda place, ending=ending: (place / f"out.{ending}").write_bytes(b"old"),  # type: ignore[misc]
                write=lambda place, ending=ending: predict(tools, place, ending),  # type: ignore[misc]
                read=read_predictions,
            )
            for ending in ENDINGS
        ),
        Attack(
            name="predictions of a stopped command",
            prepare=lambda place: predict_half(tools, place),
            write=lambda place: predict(tools, place, "jsonl"),
            read=read_predictions,
        ),
        Attack(
            name="push that is made",
            prepare=lambda place: make_run(place / "run"),
            write=lambda place: push(place, fails=False),
            read=read_results,
            goes_on=True,
        ),
        Attack(
            name="push that fails",
            prepare=lambda place: make_run(place / "run"),
            write=lambda place: push(place, fails=True),
            read=read_results,
            goes_on=True,
        ),
    ]


# --- model folders --------------------------------------------------------------------------------------------------


def write_extras(folder: Path, model: Any, max_length: int) -> None:
    """Writes the files of sentence-transformers, as the task embed does."""
    sentence_transformers_files.write_files(folder, dimension=32, pooling="mean", normalize=True)


def write_model_folder(tools: Tools, place: Path, card: str) -> None:
    """Writes a model folder with a card."""
    task: Any = SimpleNamespace(head=tools.run.task.head, write_extras=write_extras)  # as much of a task as it needs
    write_model(tools.run.backbone, task, place / "model", card)


def write_adapter_folder(tools: Tools, place: Path) -> None:
    """Writes the folder of an adapter."""
    run = tools.adapted
    record_settings(run.backbone, run.config, run.task, metric=run.metric, max_length=run.max_length)
    write_model(run.backbone, run.task, place / "model", "card")


def read_model(place: Path) -> dict[str, Any]:
    """The content of a model folder, as one value: it is replaced as a whole. Between two renames, the old one is aside."""
    return {"model": read_tree(place / "model") or read_tree(place / ".model.replaced")}


def read_tree(folder: Path) -> list[tuple[str, bytes]]:
    """Names and content of all files below a folder."""
    return sorted((str(path.relative_to(folder)), path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def materialize_model(place: Path) -> None:
    """Makes a model of a checkpoint, unless it is there."""
    path = place / "run" / "checkpoints" / CHECKPOINT
    if not os.path.exists(place / "model"):
        materialize.materialize(path, place / "model")


def resolve(tools: Tools, place: Path) -> str:
    """Makes the model that a run begins from."""
    path = place / "old" / "run" / "checkpoints" / CHECKPOINT
    config = tools.make_config(place, start_from=str(path))
    return start.resolve_start(config, move(tools.run, place).runtime).model.backbone


def read_start(place: Path) -> dict[str, Any]:
    """The model that was made, by its folder."""
    return {path.name: read_tree(path) for path in place.glob("run/.start_from/[!.]*/")}


def finish(tools: Tools, place: Path) -> None:
    """Exports the model, reloads it, and writes results.json."""
    train.finish_run(move(tools.run, place), dict(tools.results), Clock())


def read_end(place: Path) -> dict[str, Any]:
    """The model without its card, which has times; and whether the run is finished."""
    run_dir = place / "run"
    files = [(name, content) for name, content in read_tree(run_dir / "model") if name != "README.md"]
    status = read_files(run_dir, "results.json").get("results.json", {}).get("status")
    assert status is None or files, "finished without its model"
    return {"model": files, "status": status}


# --- predictions ----------------------------------------------------------------------------------------------------


def predict(tools: Tools, place: Path, ending: str) -> int:
    """Predicts all rows into a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_files, "SECONDS_BETWEEN_SAVES", -1)
        return prediction_files.predict_file(
            tools.predictor, str(tools.rows), str(place / f"out.{ending}"), batch_size=1
        )


def predict_half(tools: Tools, place: Path) -> None:
    """A command that was stopped after the first part."""
    real = prediction_files.format_part
    parts: list[Any] = []

    def stop(predictor: Any, part: Any, options: Any) -> Any:
        parts.append(part)
        if len(parts) > 1:
            raise StoppedError
        return real(predictor, part, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_files, "format_part", stop)
        with pytest.raises(StoppedError):
            predict(tools, place, "jsonl")


def read_predictions(place: Path) -> dict[str, Any]:
    """The finished files."""
    return {path.name: path.read_bytes() for ending in ENDINGS for path in place.glob(f"out.{ending}")}


# --- pushes ---------------------------------------------------------------------------------------------------------


def push(place: Path, *, fails: bool) -> tuple[Any, list[str]]:
    """Makes a push, of which the Hub is asked elsewhere (tests/export/test_hub_faults.py)."""

    def answer(*_: Any, **__: Any) -> str:
        if fails:
            raise InputError("503 Service Unavailable")
        return "https://hub/commit/1"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "collect_files", lambda *_: [])
        patch.setattr(hub, "push", answer)
        outcome = pending_pushes.push_run(place / "run", TARGET)
    return dataclasses.asdict(outcome), [
        str(outcome.reason),
        pending_pushes.make_command(place / "run", TARGET),
    ] * fails


def read_results(place: Path) -> dict[str, Any]:
    """What results.json says. A note that is there is read."""
    assert list(pending_pushes.list_pending(place / "run")) in ([], [TARGET])
    return read_files(place / "run", "results.json")
