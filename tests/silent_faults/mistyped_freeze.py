"""A pattern of parameters to freeze is mistyped, and matches nothing: everything trains."""

import re
from pathlib import Path
from typing import Any

from hf_finetune.system.errors import InputError
from silent_faults import parts

TYPO = "encoder.layr.0"


def freeze_by_hand(model: Any) -> int:
    """Freezes as one does where the package has no setting. Returns the number of parameters that train."""
    for name, parameter in model.named_parameters():
        if re.search(TYPO, name):
            parameter.requires_grad = False
    return sum(parameter.requires_grad for parameter in model.parameters())


def find(model: Any, trainer: Any) -> parts.Finding:
    """Trains, and looks whether the layer that was to be frozen has changed."""
    num_training = freeze_by_hand(model)
    before = parts.copy_weights(model)
    trainer.train()
    changed = parts.measure_difference(
        {name: tensor for name, tensor in before.items() if ".layer.0." in name}, parts.copy_weights(model)
    )
    assert changed > 0
    return parts.Finding(
        verdict="silently wrong", detail=f"no setting; a loop of one's own freezes 0 of {num_training} tensors"
    )


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer."""
    model = parts.make_classifier()
    return find(model, parts.make_trainer(model, parts.encode_classes(24), folder, max_steps=2))


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers."""
    return find(*parts.make_cross_encoder_trainer(folder, max_steps=2))


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""
    try:
        parts.train_ours(folder, settings={"freeze.patterns": [TYPO], "train.max_updates": 2})
    except InputError as error:
        return parts.Finding(verdict="stops", detail=f"before training: {str(error).split(';')[0]}")
    return parts.Finding(verdict="silently wrong")
