"""The function that makes features of texts is corrected, and the next run trains on the features of the old one."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
from support import tiny

from silent_faults import parts

UNKNOWN = tiny.VOCABULARY.index("[UNK]")
MAPPED = """
from support import tiny

tokenizer = tiny.make_tokenizer()


def encode(row):
    return tokenizer(row["text"].WRITTEN())
"""
TASK = """
from dataclasses import dataclass, replace

from hf_finetune.data.encoding import tokenize
from hf_finetune.tasks.classify import Classification, ClassificationEncoding


@dataclass(frozen=True, kw_only=True)
class OwnEncoding(ClassificationEncoding):
    def tokenize(self, table, tokenizer, max_length):
        return tokenize([[text.WRITTEN() for text in table.columns["text"]]], tokenizer, max_length)


class OwnTask(Classification):
    @classmethod
    def compose(cls, *parts):
        task = super().compose(*parts)
        return replace(task, encoding=OwnEncoding(**vars(task.encoding)))
"""


def write_module(folder: Path, source: str, method: str) -> ModuleType:
    """Writes a module of the user's own, in which a method of str prepares the texts, and imports it."""
    name = "own_features"
    (folder / f"{name}.py").write_text(source.replace("WRITTEN", method), encoding="utf-8")
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def find(counts: list[int]) -> parts.Finding:
    """Compares the unknown tokens before and after the function is corrected: the vocabulary has no capital letters."""
    assert counts[0] > 0
    if counts[1] == 0:
        return parts.Finding(verdict="right", detail="the features are made again")
    assert counts[1] == counts[0]
    return parts.Finding(
        verdict="silently wrong", detail=f"{counts[1]} tokens are unknown before and after the correction"
    )


def count_unknown(rows: Iterable[Iterable[int]]) -> int:
    """The number of unknown tokens in rows of ids."""
    return sum(number == UNKNOWN for row in rows for number in row)


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer, with the map() of datasets, as its examples do."""
    path, counts = tiny.write_jsonl(folder / "rows.jsonl", tiny.make_rows(24)), []
    for method in ("upper", "lower"):
        module = write_module(folder, MAPPED, method)
        rows: Any = datasets.load_dataset("json", data_files=str(path), cache_dir=str(folder / "cache"), split="train")
        counts.append(count_unknown(rows.map(module.encode)["input_ids"]))
    return find(counts)


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers keeps texts, and makes tokens of each batch."""
    return parts.DOES_NOT_APPLY


def ours(folder: Path) -> parts.Finding:
    """hf_finetune, with a task of one's own."""
    counts = []
    for method in ("upper", "lower"):
        seen: list[list[int]] = []

        def look(update: Any, model: Any, seen: list[list[int]] = seen) -> None:
            if update.number == 1:  # the batches after it are looked at
                model.get_input_embeddings().register_forward_pre_hook(
                    lambda _, inputs: seen.extend(inputs[0].tolist())
                )

        task = write_module(folder, TASK, method).OwnTask
        settings = {"name": method, "train.max_updates": 2, "cache.dir": str(folder / "cache")}
        parts.train_ours(folder, task, settings=settings, on_update=look)
        counts.append(count_unknown(seen))
    return find(counts)
