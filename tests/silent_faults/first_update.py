"""With warm-up, the first update has the learning rate 0: it costs a batch and changes nothing."""

from pathlib import Path
from typing import Any

from silent_faults import parts


def find(before: dict[str, Any], after: dict[str, Any]) -> parts.Finding:
    """What the first update has changed."""
    if parts.measure_difference(before, after) > 0:
        return parts.Finding(verdict="right", detail="the first update changes the weights")
    return parts.Finding(verdict="silently wrong", detail="the first update changes nothing")


def compare(model: Any, make: Any) -> parts.Finding:
    """Trains 4 updates of warm-up, and compares the weights after the first with those before."""
    before, after = parts.copy_weights(model), list[dict[str, Any]]()
    look = parts.After(lambda number, model: after.append(parts.copy_weights(model)) if number == 1 else None)
    make(look).train()
    return find(before, after[0])


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer."""
    model = parts.make_classifier()
    return compare(
        model,
        lambda look: parts.make_trainer(
            model, parts.encode_classes(24), folder, max_steps=4, warmup_steps=4, callbacks=[look]
        ),
    )


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers."""
    after: list[dict[str, Any]] = []
    look = parts.After(lambda number, model: after.append(parts.copy_weights(model)) if number == 1 else None)
    model, training = parts.make_cross_encoder_trainer(folder, max_steps=4, warmup_steps=4, callbacks=[look])
    before = parts.copy_weights(model)
    training.train()
    return find(before, parts.copy_weights(model) if not after else after[0])


def ours(folder: Path) -> parts.Finding:
    """hf_finetune: the weights of updates 1 and 2 differ by update 2; those of 0 and 1 by update 1, whose rate is lower."""
    rates: list[float] = []
    run = parts.train_ours(
        folder, settings={"train.max_updates": 4, "train.warmup_fraction": 0.9, "tracking.log_every": 1}
    )
    for row in run.read_metrics():
        rates += [
            value for name, value in row.items() if name.startswith("train/learning_rate/") and row["update"] == 1
        ]
    assert rates
    if min(rates) > 0:
        return parts.Finding(verdict="right", detail="the first update changes the weights")
    return parts.Finding(verdict="silently wrong", detail="the first update changes nothing")
