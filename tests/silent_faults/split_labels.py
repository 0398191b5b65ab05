"""The test file lacks a label of the training file, and its labels are numbered by themselves: right answers count as wrong."""

from pathlib import Path
from typing import Any

import datasets
import torch
from support import tiny

from silent_faults import parts

LACKING = "animals"  # the first label in the order of the alphabet


def make_splits() -> dict[str, list[dict[str, Any]]]:
    """Rows for training, and rows for the test that lack a label."""
    test = [row for row in tiny.make_rows(36, seed=2) if row["label"] != LACKING]
    return {"train": tiny.make_rows(24), "test": test}


def find(reported: float, counted: float) -> parts.Finding:
    """Compares the accuracy that is reported with the share of texts for which the right name is predicted."""
    detail = f"reports an accuracy of {reported:.2f}; by names it is {counted:.2f}"
    return parts.Finding(verdict="right" if abs(reported - counted) < 1e-6 else "silently wrong", detail=detail)


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer, with the class_encode_column() of datasets."""
    texts = {split: datasets.Dataset.from_list(rows) for split, rows in make_splits().items()}
    numbered = datasets.DatasetDict(texts).class_encode_column("label")
    tokenizer = tiny.make_tokenizer()
    rows = numbered.map(lambda row: tokenizer(row["text"])).rename_column("label", "labels").remove_columns("text")
    model = parts.make_classifier()
    training = parts.make_trainer(
        model,
        rows["train"],
        folder,
        eval_dataset=rows["test"],
        max_steps=60,
        learning_rate=0.01,
        compute_metrics=lambda output: {"accuracy": float((output[0].argmax(-1) == output[1]).mean())},
    )
    training.train()
    inputs = tokenizer(texts["test"]["text"][:], padding=True, return_tensors="pt")
    with torch.inference_mode():
        places = model.eval()(**inputs).logits.argmax(-1).tolist()
    names = numbered["train"].features["label"].names
    right = [names[place] == label for place, label in zip(places, texts["test"]["label"], strict=True)]
    return find(training.evaluate()["eval_accuracy"], sum(right) / len(right))


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers' CrossEncoder has classes without names."""
    return parts.DOES_NOT_APPLY


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""
    splits = make_splits()
    settings = {"train.max_updates": 60, "train.learning_rate": 0.01}
    run = parts.train_ours(folder, settings=settings, **splits)
    predicted = run.predict([row["text"] for row in splits["test"]])
    right = [one["label"] == row["label"] for one, row in zip(predicted, splits["test"], strict=True)]
    return find(run.results["test"]["accuracy"], sum(right) / len(right))
