"""One word of the backbone has a damaged embedding (nan), and training continues: all weights become nan."""

import math
from pathlib import Path
from typing import Any

import transformers
from support import tiny

from hf_finetune.system.errors import InputError
from silent_faults import parts


def find(model: Any, trainer: Any) -> parts.Finding:
    """Trains, and looks at the weights and at what was logged."""
    trainer.train()
    lost = sum(not bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if lost <= 1:
        return parts.Finding(verdict="right", detail="the weights stay finite")
    shown = "nan" if any(not math.isfinite(loss) for loss in losses) else f"{losses[-1]:.3g}"
    return parts.Finding(
        verdict="silently wrong", detail=f"trains to the end, {lost} tensors are nan; the last loss logged: {shown}"
    )


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer."""
    model = parts.spoil(parts.make_classifier())
    return find(model, parts.make_trainer(model, parts.encode_classes(24), folder, max_steps=6, logging_steps=1))


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers."""
    return find(*parts.make_cross_encoder_trainer(folder, max_steps=6, logging_steps=1, spoils=True))


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""
    backbone = tiny.make_backbone(folder / "backbone", "bert")
    parts.spoil(model := transformers.AutoModel.from_pretrained(backbone))
    model.save_pretrained(backbone)
    try:
        parts.train_ours(folder, settings={"train.max_updates": 6})
    except InputError as error:
        return parts.Finding(verdict="stops", detail=f"before training: {str(error).replace(str(folder), '...')}")
    return parts.Finding(verdict="silently wrong")
