"""A classifier is trained on, the labels of the new data have another order, and its head is taken by place."""

from pathlib import Path
from typing import Any

import torch
import transformers
from support import tiny

from silent_faults import parts

TRAINED = ["tools", "animals", "food"]  # the order in which the first training met them
TEXTS = [row["text"] for row in tiny.make_rows(24, seed=2)]


def predict(model: Any) -> list[str]:
    """The names of the classes that a model predicts."""
    inputs = tiny.make_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        places = model.eval()(**inputs).logits.argmax(-1).tolist()
    return [model.config.id2label[place] for place in places]


def save_trained(folder: Path) -> tuple[Path, list[str]]:
    """The folder of a classifier whose labels are not sorted, and what it predicts."""
    named = {"id2label": dict(enumerate(TRAINED)), "label2id": {name: place for place, name in enumerate(TRAINED)}}
    model = parts.make_classifier(**named)
    model.save_pretrained(folder / "trained")
    tiny.make_tokenizer().save_pretrained(folder / "trained")
    return folder / "trained", predict(model)


def find(before: list[str], after: list[str]) -> parts.Finding:
    """Compares the names that are predicted before and after the model is loaded to be trained on."""
    same = sum(one == other for one, other in zip(before, after, strict=True))
    detail = f"{same} of {len(before)} predictions stay the same when training begins"
    return parts.Finding(verdict="right" if same == len(before) else "silently wrong", detail=detail)


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer: the model is loaded with the labels of the new data, sorted, as its examples do."""
    place, before = save_trained(folder)
    named = {"id2label": dict(enumerate(parts.LABELS)), "num_labels": len(parts.LABELS)}
    return find(before, predict(transformers.AutoModelForSequenceClassification.from_pretrained(place, **named)))


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers' CrossEncoder has classes without names."""
    return parts.DOES_NOT_APPLY


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""
    place, before = save_trained(folder)
    settings = {"start_from": str(place), "train.max_updates": 1, "train.learning_rate": 1e-12}
    run = parts.train_ours(folder, settings=settings)
    return find(before, [row["label"] for row in run.predict(TEXTS)])
