"""Training is to stop after 3 evaluations without a better one; the run is cut off and resumed, and the count begins again."""

import contextlib
from pathlib import Path
from typing import Any

import transformers

from silent_faults import parts
from silent_faults.resume import CutOffError

PATIENCE, CUT = 3, 3  # evaluations, of which each comes after an update; the update after which the run is cut off
RESTORE = "restore_callback_states_from_checkpoint"


def cut_off(number: int, _: Any) -> None:
    """Raises in the update after the save of CUT."""
    if number == CUT + 1:
        raise CutOffError


def find(complete: int, resumed: int, *, more: str = "") -> parts.Finding:
    """Compares the updates after which two runs stop: one that was not cut off, and one that was."""
    if complete == resumed:
        return parts.Finding(verdict="right", detail=f"both stop after update {complete}")
    detail = f"stops after update {resumed} instead of {complete}{more}"
    return parts.Finding(verdict="silently wrong", detail=detail)


def count_updates(folder: Path, make: Any, *, is_cut: bool, **options: Any) -> int:
    """The updates that a Trainer makes at a learning rate of 0, with which no evaluation is better than the first."""
    options |= {
        "max_steps": 12,
        "learning_rate": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
    }
    options |= {"save_steps": 1, "metric_for_best_model": "loss", "load_best_model_at_end": True}

    def train(look: Any, **more: Any) -> Any:
        stop = transformers.EarlyStoppingCallback(early_stopping_patience=PATIENCE)
        training = make(folder, callbacks=[stop, parts.After(look)], **options)
        training.train(**more)
        return training

    if is_cut:
        with contextlib.suppress(CutOffError):
            train(cut_off)
    return train(lambda *_: None, resume_from_checkpoint=is_cut).state.global_step


def compare(folder: Path, make: Any) -> parts.Finding:
    """A complete run, one that is cut off, and one whose options say that the states of callbacks are restored."""
    complete = count_updates(folder / "complete", make, is_cut=False)
    resumed = count_updates(folder / "cut", make, is_cut=True)
    restored = count_updates(folder / "restored", make, is_cut=True, **{RESTORE: True})
    return find(complete, resumed, more=f" ({restored} with `{RESTORE}`, which is off by default)")


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer."""

    def make(place: Path, **options: Any) -> Any:
        rows = parts.encode_classes(24)
        return parts.make_trainer(parts.make_classifier(), rows, place, eval_dataset=rows, **options)

    return compare(folder, make)


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers."""
    return compare(
        folder, lambda place, **options: parts.make_cross_encoder_trainer(place, evaluates=True, **options)[1]
    )


def ours(folder: Path) -> parts.Finding:
    """hf_finetune. A learning rate of 1e-12 changes no accuracy."""
    settings = {"train.max_updates": 12, "train.learning_rate": 1e-12, "train.patience": PATIENCE}
    settings |= {"evaluation.every": 1, "checkpoint.every": 1, "evaluation.metric": "accuracy"}

    def count(name: str, **options: Any) -> int:
        run = parts.train_ours(folder, settings={**settings, "name": name}, **options)
        return max(row["update"] for row in run.read_metrics())

    complete = count("complete")
    with contextlib.suppress(CutOffError):
        count("cut", on_update=lambda update, model: cut_off(update.number, model))
    return find(complete, count("cut"))
