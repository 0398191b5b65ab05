"""A run is cut off in the middle of an epoch and resumed: other examples, or other dropout, make other weights."""

import contextlib
from pathlib import Path
from typing import Any

from silent_faults import parts


class CutOffError(Exception):
    """Cuts a run off."""


def cut_off(number: int, _: Any) -> None:
    """Raises after update 4."""
    if number == 4:
        raise CutOffError


def find(difference: float) -> parts.Finding:
    """Compares the weights with those of a run that was not cut off."""
    if difference == 0:
        return parts.Finding(verdict="right", detail="equal weights, bit for bit")
    return parts.Finding(verdict="silently wrong", detail=f"weights differ by up to {difference:.1e}")


def compare(folder: Path, make: Any) -> parts.Finding:
    """Trains 6 updates at once, and 6 with a cut after the save of update 3."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "seed": 3}
    complete, training = make(folder / "complete", **options)
    training.train()
    _, training = make(folder / "cut", callbacks=[parts.After(cut_off)], **options)
    with contextlib.suppress(CutOffError):
        training.train()
    resumed, training = make(folder / "cut", **options)
    training.train(resume_from_checkpoint=True)
    return find(parts.measure_difference(parts.copy_weights(complete), parts.copy_weights(resumed)))


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer."""

    def make(place: Path, **options: Any) -> tuple[Any, Any]:
        model = parts.make_classifier()
        return model, parts.make_trainer(model, parts.encode_classes(40), place, **options)

    return compare(folder, make)


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers."""
    return compare(folder, parts.make_cross_encoder_trainer)


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""
    weights = []
    settings = {"train.max_updates": 6, "checkpoint.every": 3}
    run = parts.train_ours(folder, settings={**settings, "name": "complete"})
    weights.append(parts.copy_weights(run.predictor.model))

    def stop(update: Any, model: Any) -> None:
        cut_off(update.number, model)

    with contextlib.suppress(CutOffError):
        parts.train_ours(folder, settings={**settings, "name": "cut"}, on_update=stop)
    run = parts.train_ours(folder, settings={**settings, "name": "cut"})
    weights.append(parts.copy_weights(run.predictor.model))
    return find(parts.measure_difference(*weights))
