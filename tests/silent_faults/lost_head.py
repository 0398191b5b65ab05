"""A classifier with a new head is trained with LoRA, saved and loaded: the head is a new one, and predicts at random."""

from pathlib import Path
from typing import Any

import torch
import transformers
from support import tiny

from silent_faults import parts

TEXTS = [row["text"] for row in tiny.make_rows(24, seed=2)]


def predict(model: Any) -> torch.Tensor:
    """The scores [N, C] of a model for the texts."""
    inputs = tiny.make_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**inputs).logits


def find(before: torch.Tensor, after: torch.Tensor, warnings: list[str]) -> parts.Finding:
    """Compares the scores of the model that was trained, and of the one that was loaded."""
    difference = float((before - after).abs().max())
    if difference < 1e-5:
        return parts.Finding(verdict="right", detail="equal scores")
    detail = f"scores differ by up to {difference:.2g}"
    lines = [
        line.strip()
        for text in warnings
        for line in text.splitlines()
        if "newly initialized" in line or "MISSING" in line
    ]
    if lines:
        return parts.Finding(verdict="warns", detail=f"{detail}; {lines[0]}")
    return parts.Finding(verdict="silently wrong", detail=detail)


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer and peft, with the adapter's settings as for a classifier."""
    import peft

    auto = transformers.AutoModelForSequenceClassification
    backbone = tiny.make_backbone(folder / "backbone")
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = peft.get_peft_model(auto.from_pretrained(backbone, num_labels=3), settings)
    training = parts.make_trainer(model, parts.encode_classes(24), folder, max_steps=4, learning_rate=0.01)
    training.train()
    training.save_model(folder / "trained")
    with parts.collect_warnings() as warnings:
        loaded = peft.PeftModel.from_pretrained(auto.from_pretrained(backbone, num_labels=3), folder / "trained")
    return find(predict(model), predict(loaded), warnings)


def sentence_transformers(folder: Path) -> parts.Finding:
    """Its models with adapters need a newer peft than this package is tested with."""
    return parts.Finding(verdict="does not apply")


def ours(folder: Path) -> parts.Finding:
    """hf_finetune, with an adapter that is not merged, and transformers' from_pretrained as its card says."""
    scores: list[torch.Tensor] = []
    settings: dict[str, Any] = {"adapter.kind": "lora", "adapter.rank": 4, "adapter.merge": False}
    settings |= {"train.max_updates": 3, "train.learning_rate": 0.01, "freeze.layers": 0, "freeze.embeddings": False}

    def look(update: Any, model: Any) -> None:
        if update.number == 3:
            scores.append(predict(model))
            model.train()

    run = parts.train_ours(folder, settings=settings, on_update=look)
    config = transformers.AutoConfig.from_pretrained(run.model_dir, subfolder="config")
    with parts.collect_warnings() as warnings:
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(run.model_dir, config=config)
    return find(scores[0], predict(loaded), warnings)
