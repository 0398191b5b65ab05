"""task.long_texts windows: a long text is classified in windows, which share its loss and give it one score."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from support import tiny

from hf_finetune.config.loading import load_config
from hf_finetune.data import encoding
from hf_finetune.data.features import Padding, collate, make_features
from hf_finetune.data.table import Table
from hf_finetune.export.predict import Predictor
from hf_finetune.export.predictor_calls import evaluate_file
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.classify import Classification
from hf_finetune.tasks.text.token_windows import encode_windows, pool_windows
from hf_finetune.train import finetune

TOKENIZER = tiny.make_tokenizer()


def make_task(labels: list[Any], lengths: list[int], **settings: Any) -> tuple[Classification, Table, Any]:
    """Returns a task with windows of 8 tokens, a table of texts of so many words, and its features."""
    texts = [" ".join(random.Random(row).choices(tiny.FILLER, k=length)) for row, length in enumerate(lengths)]
    table = Table(
        columns={"text": texts, "label": labels}, files=["a.csv"] * len(texts), lines=list(range(2, len(texts) + 2))
    )
    values = {"task.kind": "classify", "model.backbone": "none", "data.train": ["a.csv"], "task.long_texts": "windows"}
    task = Classification.from_table(load_config(values | settings), table)
    arrays = task.encoding.tokenize(table, TOKENIZER, 8)
    return task, table, make_features(arrays, task.encoding.labels(table, arrays))


@pytest.mark.parametrize("overlap", [0, 1, 3, None])
def test_windows_hold_all_tokens_and_share_some(overlap: int | None) -> None:
    texts = [" ".join(random.Random(length).choices(tiny.FILLER, k=length)) for length in (1, 5, 6, 7, 30)]
    arrays = encode_windows(texts, TOKENIZER, 8, overlap)
    shared = 6 // 4 if overlap is None else overlap
    windows: dict[int, list[list[int]]] = {}
    for number, example in enumerate(arrays["examples"].tolist()):
        tokens = arrays["input_ids"][arrays["offsets"][number] : arrays["offsets"][number + 1]].tolist()
        assert (tokens[0], tokens[-1]) == (TOKENIZER.cls_token_id, TOKENIZER.sep_token_id)
        assert len(tokens) <= 8
        windows.setdefault(example, []).append(tokens[1:-1])
    for row, text in enumerate(texts):
        first, *others = windows[row]
        whole = [*first, *(token for window in others for token in window[shared:])]
        assert whole == TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert np.bincount(arrays["examples"], arrays["weights"]) == pytest.approx(np.ones(5))
    assert [len(windows[row]) for row in range(3)] == [1, 1, 1]


def test_a_text_that_fits_has_the_tokens_that_it_has_without_windows() -> None:
    texts = ["the cat", "a", "one dog here"]
    _, _, features = make_task(["x", "y", "x"], [1, 1, 1])
    arrays = encode_windows(texts, TOKENIZER, 8, None)
    assert arrays["input_ids"].tolist() == [token for text in texts for token in TOKENIZER(text)["input_ids"]]
    assert features.weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["cut", "windows"])
def test_texts_are_encoded_in_parts_with_the_same_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    task, table, _ = make_task(["x", "y"] * 6, [3, 20, 40, 6, 7, 1] * 2, **{"task.long_texts": kind})
    whole = task.encoding.tokenize(table, TOKENIZER, 8)
    monkeypatch.setattr(encoding, "ROWS_IN_PART", 4)
    features = encoding.encode(task.encoding, table, TOKENIZER, 8, root=tmp_path)
    (entry,) = (path for path in (tmp_path / "encoded").iterdir() if path.is_dir())
    assert len((entry / "parts.jsonl").read_text().splitlines()) == 3
    expected = make_features(whole, task.encoding.labels(table, whole))
    assert features.fingerprint() == expected.fingerprint()
    if kind == "windows":
        assert features.example_indices.tolist() == expected.example_indices.tolist()
        assert features.weights.tolist() == expected.weights.tolist()


PROBLEMS: dict[str, tuple[list[Any], Callable[[torch.Tensor, Any], torch.Tensor], int]] = {
    "single_label": (
        ["a", "b", "a", "c"],
        lambda logits, label: torch.nn.functional.cross_entropy(logits, torch.tensor("abc".index(label))),
        3,
    ),
    "multi_label": (
        [["a"], [], ["a", "b"], ["b"]],
        lambda logits, label: torch.nn.functional.binary_cross_entropy_with_logits(
            logits, torch.tensor([float("a" in label), float("b" in label)])
        ),
        2,
    ),
    "regression": ([0.5, 1.25, -2.0, 3.5], lambda logits, label: (logits[0] - label) ** 2, 1),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_windows_of_a_text_share_its_loss_in_any_micro_batches(problem: str) -> None:
    labels, compute, num_outputs = PROBLEMS[problem]
    task, _, features = make_task(labels, [3, 20, 40, 6])
    assert task.problem == problem
    logits = torch.randn(len(features), num_outputs, generator=torch.manual_seed(0))
    expected = torch.stack([
        torch.stack([compute(logits[window], labels[row]) for window in np.flatnonzero(features.example_indices == row)]).mean()
        for row in range(4)
    ]).mean()  # fmt: skip
    for size in (1, 3, len(features)):
        sums = [0.0, 0.0]
        for start in range(0, len(features), size):
            indices = np.arange(start, min(start + size, len(features)))
            loss, count = task.objective.loss(logits[indices], collate(features, indices, Padding(0)))  # type: ignore[attr-defined]
            sums = [sums[0] + float(loss), sums[1] + count]
        assert sums[0] / sums[1] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_scores_of_windows_become_one_score(pooling: str) -> None:
    task, table, features = make_task(["a", "b", "a", "c"], [3, 20, 40, 6], **{"task.window_pooling": pooling})
    logits = np.random.default_rng(0).normal(size=(len(features), 3)).astype(np.float32)
    probabilities = softmax(logits, -1)
    expected = []
    for row in range(4):
        of_row = probabilities[features.example_indices == row]
        pooled = of_row.mean(0) if pooling == "mean" else of_row.max(0) / of_row.max(0).sum()
        expected.append(dict(zip("abc", pooled.tolist(), strict=True)))
    predictions = list(task.scoring.make_predictions(list(logits), features, table))
    for prediction, probability in zip(predictions, expected, strict=True):
        assert prediction["probabilities"] == pytest.approx(probability, rel=1e-5)
    values = task.scoring.compute_metrics("accuracy", list(logits), features, table, np.arange(len(features)))
    right = [max(row, key=row.__getitem__) == label for row, label in zip(expected, "abac", strict=True)]
    assert values["accuracy"] == np.mean(right)
    some = np.flatnonzero(features.example_indices != 1)
    partial = task.scoring.compute_metrics("accuracy", list(logits[some]), features, table, some)
    assert partial["accuracy"] == np.mean([right[0], *right[2:]])


def test_windows_in_any_order_are_pooled_by_their_texts() -> None:
    scores, examples = np.arange(10, dtype=np.float32).reshape(5, 2), np.array([7, 0, 7, 0, 3])
    assert pool_windows(scores, examples, "mean").tolist() == [[4, 5], [8, 9], [2, 3]]
    assert pool_windows(scores, examples, "max").tolist() == [[6, 7], [8, 9], [4, 5]]


REFUSED = {
    "task.long_texts (windows): is for one text column, not 2": {"data.text_columns": ["one", "two"]},
    "task.window_overlap (2): has no effect without task.long_texts windows": {
        "task.long_texts": "cut",
        "task.window_overlap": 2,
    },
    "task.window_pooling (max): has no effect without": {"task.long_texts": "cut", "task.window_pooling": "max"},
    "task.window_overlap (6): must be below the 6 tokens that a window of data.max_length 8 holds": {
        "task.window_overlap": 6
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_do_not_fit_are_errors(message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_task(["a", "b"], [3, 20], **REFUSED[message])
    assert str(caught.value).startswith(message)


def write_rows(path: Path, count: int, seed: int) -> str:
    """Writes texts of 16 to 24 words, whose label is told by the last four alone."""
    generator, rows = random.Random(seed), []
    for number in range(count):
        label = sorted(tiny.CLASSES)[number % 3]
        told = [generator.choice(tiny.CLASSES[label].split()) for _ in range(4)]
        words = [*generator.choices(tiny.FILLER, k=generator.randrange(12, 20)), *told]
        rows.append({"text": " ".join(words), "label": label})
    return str(tiny.write_jsonl(path, rows))


def test_a_run_learns_what_lies_beyond_max_length_and_evaluate_repeats_its_numbers(tmp_path: Path) -> None:
    settings = {
        "task.kind": "classify",
        "output_dir": str(tmp_path),
        "model.backbone": str(tiny.make_backbone(tmp_path / "backbone", layers=2, initializer_range=0.1)),
        "data.max_length": 12,
        "train.epochs": 8,
        "train.batch_size": 16,
        "train.learning_rate": 3e-3,
        "train.precision": "fp32",
        "freeze.embeddings": True,
        "freeze.layers": 1,
        "tracking.trackers": [],
        **{
            f"data.{split}": [write_rows(tmp_path / f"{split}.jsonl", count, seed)]
            for seed, (split, count) in enumerate({"train": 180, "validation": 30, "test": 30}.items())
        },
    }
    results = {}
    for name in ("cut", "windows"):
        result = finetune(load_config({**settings, "name": name, "task.long_texts": name}))
        results[name] = result.results["test"]
        predictor = Predictor.from_pretrained(result.run_dir)
        assert evaluate_file(predictor, settings["data.test"]) == results[name]
    assert results["windows"]["accuracy"] > 0.9 > 0.7 > results["cut"]["accuracy"]
    rows = [json.loads(line) for line in Path(settings["data.test"][0]).read_text().splitlines()]
    predictions = predictor.predict([row["text"] for row in rows])
    right = [prediction["label"] == row["label"] for prediction, row in zip(predictions, rows, strict=True)]
    assert np.mean(right) == pytest.approx(results["windows"]["accuracy"])
