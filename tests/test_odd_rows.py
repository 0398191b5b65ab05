"""Odd rows that reach training: a run ends with finite numbers, or with one InputError that names a row or a setting.

`make soak` runs many seeds: ODD_ROWS is their number for each task.
"""

import dataclasses
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support import odd_rows, tiny

from hf_finetune import finetune
from hf_finetune.system.errors import InputError

NUM_SEEDS = int(os.environ.get("ODD_ROWS", "1"))
NAMED = re.compile(
    r"(train|validation|test)\.jsonl|\b(data|task|model|train|evaluation|freeze|cache)\.[a-z_]+|update \d"
)
# Their rows may have nothing to predict, or none of a label: nan then
SPLIT = re.compile("/(validation|test|history|best)/|/[0-9]+/(validation|test)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A task, the families whose small models it takes, the maker of its rows, and its settings."""

    kind: str
    families: tuple[str, ...]
    make: Callable[[random.Random, int], odd_rows.Rows]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


SHORT = {"task.max_target_length": 6, "task.num_beams": 1, "task.generate_examples": 2, "task.input_prefix": ""}
CASES = {
    "classify": Case(kind="classify", families=("bert", "gpt2"), make=odd_rows.make_classified),
    "tag": Case(kind="tag", families=("bert", "distilbert"), make=odd_rows.make_tagged,
                settings={"task.tag_faults": "repair"}),
    "embed": Case(kind="embed", families=("bert",), make=odd_rows.make_pairs,
                  settings={"data.text_columns": ["anchor", "positive"]}),
    "rerank": Case(kind="rerank", families=("bert",), make=odd_rows.make_ranked),
    "answer": Case(kind="answer", families=("bert",), make=odd_rows.make_questions),
    "choose": Case(kind="choose", families=("bert",), make=odd_rows.make_choices),
    "causal": Case(kind="model_language", families=("gpt2", "llama"), make=odd_rows.make_texts),
    "masked": Case(kind="model_language", families=("bert",), make=odd_rows.make_texts,
                   settings={"task.objective": "masked"}),
    "instruct": Case(kind="instruct", families=("llama",), make=odd_rows.make_conversations),
    "summarize": Case(kind="summarize", families=("t5", "bart"), make=odd_rows.make_documents("summary"), settings=SHORT),
    "translate": Case(kind="translate", families=("t5",), make=odd_rows.make_documents("target"),
                      settings={**SHORT, "data.text_columns": ["document"], "data.label_column": "target"}),
}  # fmt: skip


def make_settings(case: Case, draw: random.Random, folder: Path) -> dict[str, Any]:
    """Writes a backbone and the rows of three splits. Returns the settings of a run of 3 updates."""
    family = draw.choice(case.families)
    tokenizer = odd_rows.make_tokenizer(draw, family)
    tiny.make_backbone(folder / "backbone", family, layers=1, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder / "backbone")
    settings: dict[str, Any] = {
        "name": "run", "output_dir": str(folder / "outputs"), "model.backbone": str(folder / "backbone"),
        "data.max_length": draw.choice([8, 16, 60]), "train.max_updates": 3, "train.batch_size": draw.choice([1, 2, 4]),
        "train.precision": "fp32", "tracking.trackers": [], "tracking.log_every": 1,
        "freeze.embeddings": draw.random() < 0.5, "freeze.layers": 0, "cache.dir": str(folder / "cache"), **case.settings,
    }  # fmt: skip
    counts = (12, draw.choice([1, 4]), draw.choice([1, 3]))
    rows = iter(case.make(draw, sum(counts)))
    for split, count in zip(odd_rows.SPLITS, counts, strict=True):
        settings[f"data.{split}"] = [str(tiny.write_jsonl(folder / f"{split}.jsonl", list(islice(rows, count))))]
    if case.kind == "instruct":
        (folder / "template.jinja").write_text(tiny.CHAT_TEMPLATE, encoding="utf-8")
        settings["task.chat_template"] = str(folder / "template.jinja")
    return settings


def iterate_numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers inside lists and dicts, with their keys."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from iterate_numbers(item, f"{key}/{name}")
    elif isinstance(value, int | float):
        yield key, value


def run_case(name: str, seed: int, folder: Path) -> str:
    """Runs a case. Returns "" if it ends with finite numbers, or the message of its InputError."""
    draw, case = random.Random(f"{name} {seed}"), CASES[name]
    settings = make_settings(case, draw, folder)
    try:
        run = finetune(case.kind, settings=settings)
    except InputError as error:
        return str(error)
    numbers = [*iterate_numbers(run.results), *iterate_numbers(list(run.read_metrics()))]
    assert numbers
    odd = [entry for entry in numbers if not math.isfinite(entry[1])]
    assert [entry for entry in odd if math.isinf(entry[1]) or not SPLIT.search(entry[0])] == []
    weights = safetensors.torch.load_file(run.model_dir / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert json.loads((run.run_dir / "results.json").read_text(encoding="utf-8"))["test"]
    return ""


@pytest.mark.slow
@pytest.mark.timeout(60 + 30 * NUM_SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_odd_rows_train_or_are_named(tmp_path: Path, name: str) -> None:
    refused = []
    for seed in range(NUM_SEEDS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            message = run_case(name, seed, folder)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {error}") from error
        if message:
            assert NAMED.search(message), f"seed {seed}: {message}"
            assert "\n" not in message
            refused.append(f"seed {seed}: {message[:300]}")
    assert len(refused) <= max(1, NUM_SEEDS // 5), "\n".join(refused)
